"""The page in a browser: user actions and what the page then shows."""

import base64
import shutil
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

from gitseg_tf.data.volume import Volume
from gitseg_tf.labels import UWMGI, LabelSet
from gitseg_tf.viewer.catalog import Entry, Library, open_library
from gitseg_tf.viewer.contours import Contours, pack_groups

pytest.importorskip("selenium", reason="needs selenium")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.browser

GRACE = 60  # seconds
COLORS = dict(zip(UWMGI.names, UWMGI.colors, strict=True))
SCAN = "case6_day0"  # has 12 slices of 40 x 64 pixels


class Page:
    """The page of the viewer."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def open(self, hash=""):
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}{hash}")
        self.until(lambda: self.shown or self.find("#message.failed"))

    def until(self, condition):
        return WebDriverWait(self.driver, GRACE, 0.02).until(lambda driver: condition())

    def find(self, selector):
        return (self.driver.find_elements(By.CSS_SELECTOR, selector) or [None])[0]

    def text(self, selector):
        return self.find(selector).text

    @property
    def shown(self):
        return self.find("#main canvas").get_attribute("data-shown")

    def see(self, shown):
        self.until(lambda: self.shown == shown)

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def canvas(self, name="main"):
        """The canvas as RGB."""
        data = self.driver.execute_script(f"return document.querySelector('#{name} canvas').toDataURL()")
        png = np.frombuffer(base64.b64decode(data.split(",")[1]), np.uint8)
        image = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
        return image[..., 2::-1] * (image[..., 3:] > 0)

    def colors(self):
        """The labels whose color occurs on the large canvas."""
        canvas = self.canvas()
        return {label for label in COLORS if near(canvas, label).sum() > 20}

    def box(self, canvas):
        """(width, height) of the part that is not black."""
        occupied = np.argwhere(canvas.max(2) > 8)
        (top, left), (bottom, right) = occupied.min(0), occupied.max(0) + 1
        return right - left, bottom - top


def near(canvas, label):
    """Where a canvas has the color of a label, excluding antialiased edges."""
    return np.abs(canvas.astype(int) - COLORS[label]).max(2) < 60


@contextmanager
def page_of(browser, serve, library):
    with serve(library) as client:
        browser.get_log("browser")
        page = Page(browser, f"http://127.0.0.1:{client.port}/")
        yield page
        browser.get("about:blank")
        assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


@pytest.fixture(scope="module")
def cohort(tiny_cohort):
    return open_library(tiny_cohort.root)


@pytest.fixture
def page(browser, serve, cohort):
    with page_of(browser, serve, cohort) as page:
        page.open(f"#scan={SCAN}")
        yield page


def test_the_page_opens_at_the_middle_slice_of_the_first_scan(browser, serve, cohort):
    with page_of(browser, serve, cohort) as page:
        page.open()
        page.see("case1_day0/axial/3")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#rows tr")) == 9
        assert page.text("#rows tr[aria-selected=true]") == "case1_day0"


def test_keys_scroll_through_the_slices(page):
    page.see(f"{SCAN}/axial/5")
    for key, index in (
        (Keys.ARROW_DOWN, 6), (Keys.ARROW_RIGHT, 7), (Keys.ARROW_UP, 6), (Keys.ARROW_LEFT, 5), (Keys.END, 11),
        (Keys.ARROW_DOWN, 11), (Keys.PAGE_UP, 1), (Keys.PAGE_DOWN, 11), (Keys.HOME, 0), (Keys.ARROW_UP, 0),
    ):  # fmt: skip
        page.press(key)
        page.see(f"{SCAN}/axial/{index}")
    assert page.text("#place") == "slice 1 of 12"


def test_the_wheel_scrolls_through_the_slices(page):
    for delta, index in ((100, 6), (100, 7), (-100, 6)):
        ActionChains(page.driver).scroll_from_origin(ScrollOrigin.from_element(page.find("#main")), 0, delta).perform()
        page.see(f"{SCAN}/axial/{index}")


def test_a_picture_has_the_gray_levels_of_its_window(page, tiny_cohort):
    page.press("t")
    image = tiny_cohort[SCAN].image[5]
    low, high = (int(np.percentile(tiny_cohort[SCAN].image, p, method="inverted_cdf")) for p in (1, 99.5))
    canvas = page.canvas()
    middle = canvas[canvas.shape[0] // 2, canvas.shape[1] // 2]
    expected = np.clip((float(image[20, 32]) - low) / (high - low) * 255, 0, 255)
    assert np.ptp(middle) == 0 and abs(middle[0] - expected) < 2
    page.driver.execute_script("chooseWindow(1600, 2000)")
    chosen = np.clip((float(image[20, 32]) - 1200) / 1600 * 255, 0, 255)
    assert 20 < chosen < 235
    page.until(lambda: abs(page.canvas()[canvas.shape[0] // 2, canvas.shape[1] // 2][0] - chosen) < 2)


def test_dragging_with_the_right_button_changes_the_window(page):
    width, level = (int(page.text(f"#{name}-value")) for name in ("width", "level"))
    main = page.find("#main")
    drag = ActionChains(page.driver).move_to_element(main)
    drag.w3c_actions.pointer_action.pointer_down(button=2)
    drag.w3c_actions.pointer_action.move_by(-60, 40)
    drag.w3c_actions.pointer_action.pointer_up(button=2)
    drag.perform()
    assert int(page.text("#width-value")) < width and int(page.text("#level-value")) < level
    page.until(lambda: "window=" in page.driver.current_url)
    page.press("w")
    assert [int(page.text(f"#{name}-value")) for name in ("width", "level")] == [width, level]


def test_contours_can_be_switched_on_and_off(page, tiny_cohort):
    page.press(Keys.END, Keys.ARROW_UP)
    page.see(f"{SCAN}/axial/10")
    page.until(lambda: page.colors())
    visible = page.colors()
    assert visible == {label for label, mask in zip(COLORS, tiny_cohort[SCAN].masks[:, 10], strict=True) if mask.any()}
    for key, label in zip("123", COLORS, strict=True):
        page.press(key)
        page.until(lambda label=label: page.colors() == visible - {label})
        page.press(key)
        page.until(lambda: page.colors() == visible)
    page.press("t")
    page.until(lambda: page.colors() == set())
    page.find("[data-layer=truth][data-label='2']").click()
    page.until(lambda: page.colors() == {"stomach"} & visible)


def test_a_contour_surrounds_its_label(page, tiny_cohort):
    page.press(Keys.END, Keys.ARROW_UP, "2", "3")
    page.see(f"{SCAN}/axial/10")
    page.until(lambda: page.colors() == {"large_bowel"})
    canvas, scan = page.canvas(), tiny_cohort[SCAN]
    rows, columns = np.nonzero(near(canvas, "large_bowel"))
    _, y, x = scan.spacing
    scale = min(canvas.shape[1] / (64 * x), canvas.shape[0] / (40 * y))
    left, top = (canvas.shape[1] - 64 * x * scale) / 2, (canvas.shape[0] - 40 * y * scale) / 2
    filled = np.argwhere(scan.masks[0, 10])
    (y0, x0), (y1, x1) = filled.min(0), filled.max(0) + 1
    actual = [columns.min(), columns.max(), rows.min(), rows.max()]
    expected = [left + x0 * x * scale, left + x1 * x * scale, top + y0 * y * scale, top + y1 * y * scale]
    np.testing.assert_allclose(actual, expected, atol=2.5)


@pytest.mark.parametrize(
    ("key", "plane", "across", "down"),
    [
        ("a", "axial", (64, 2), (40, 1)),
        ("c", "coronal", (64, 2), (12, 0)),
        ("s", "sagittal", (40, 1), (12, 0)),
    ],
)
def test_planes_have_the_proportions_of_the_patient(page, tiny_cohort, key, plane, across, down):
    page.press("t", key)
    page.until(lambda: f"/{plane}/" in page.shown)
    page.driver.execute_script("document.querySelector('[data-window=full]').click()")
    page.driver.execute_script("state.window = [1, -10]; redraw()")
    scan, canvas = tiny_cohort[SCAN], page.canvas()
    width, height = page.box(canvas)
    expected = across[0] * scan.spacing[across[1]] / (down[0] * scan.spacing[down[1]])
    assert width / height == pytest.approx(expected, rel=0.02)
    assert width > canvas.shape[1] - 3 or height > canvas.shape[0] - 3


def test_a_click_moves_the_other_planes_to_that_voxel(page, tiny_cohort):
    page.press("x")
    main = page.find("#main")
    ActionChains(page.driver).move_to_element_with_offset(main, 60, 30).click().perform()
    scan, size = tiny_cohort[SCAN], main.size
    z, y, x = scan.spacing
    scale = min(size["width"] / (64 * x), size["height"] / (40 * y))
    row, column = int(20 + 30 / (y * scale)), int(32 + 60 / (x * scale))
    page.until(lambda: page.find("#second canvas").get_attribute("data-shown") == f"{SCAN}/coronal/{row}")
    page.until(lambda: page.find("#third canvas").get_attribute("data-shown") == f"{SCAN}/sagittal/{column}")
    page.press("s")
    page.see(f"{SCAN}/sagittal/{column}")
    scale = min(size["width"] / (40 * y), size["height"] / (12 * z))
    ActionChains(page.driver).move_to_element_with_offset(main, -60, 70).click().perform()
    page.until(
        lambda: f"/coronal/{int(20 - 60 / (y * scale))}" in page.find("#third canvas").get_attribute("data-shown")
    )
    page.until(lambda: f"/axial/{int(6 + 70 / (z * scale))}" in page.find("#second canvas").get_attribute("data-shown"))


def test_a_link_restores_the_slice_and_the_window(page):
    page.press("s", Keys.END)
    page.see(f"{SCAN}/sagittal/63")
    page.driver.execute_script("chooseWindow(300, 1200)")
    page.until(lambda: page.driver.current_url.endswith(f"#scan={SCAN}&plane=sagittal&slice=64&window=300,1200"))
    link = page.driver.current_url
    page.open(link.removeprefix(page.address))
    page.see(f"{SCAN}/sagittal/63")
    assert (page.text("#width-value"), page.text("#level-value")) == ("300", "1200")


def test_the_slice_in_a_link_is_the_slice_number_of_the_scan(page):
    page.open("#scan=case5_day0&plane=axial&slice=8")  # its slices are 1, 2, 3, 7, 8, 9, 10
    page.see("case5_day0/axial/4")
    assert page.text("#place") == "slice 8 of 10"


def test_back_and_forward_navigate_scans_and_planes(page):
    page.press(Keys.HOME)
    page.see(f"{SCAN}/axial/0")
    page.press("c")
    page.until(lambda: f"{SCAN}/coronal" in page.shown)
    page.find("#rows tr[data-number='2']").click()
    page.until(lambda: "case2_day0/coronal" in page.shown)
    page.driver.back()
    page.until(lambda: f"{SCAN}/coronal" in page.shown)
    page.driver.back()
    page.see(f"{SCAN}/axial/0")
    page.driver.forward()
    page.until(lambda: f"{SCAN}/coronal" in page.shown)
    page.driver.forward()
    page.until(lambda: "case2_day0/coronal" in page.shown)


HOLD = """
    const fetched = window.fetch, held = [];
    window.fetch = (address) => {
      const isPicture = /(image|truth)\\/\\w+\\/\\d+$/.test(address);
      return isPicture ? new Promise((go) => held.push(go)).then(() => fetched(address)) : fetched(address);
    };
    window.held = () => held.length;
    window.release = () => { window.fetch = fetched; held.forEach((go) => go()); };
"""


@pytest.mark.parametrize(("key", "expected"), [("c", "coronal axial sagittal"), ("s", "sagittal axial coronal")])
def test_a_plane_selected_while_loading_is_shown_with_its_contours(page, tiny_cohort, key, expected):
    scan = tiny_cohort["case5_day0"]
    page.driver.execute_script(HOLD)
    page.find(f"#rows tr[data-scan={scan.id}]").click()
    page.until(lambda: page.driver.execute_script("return held()") >= 6)
    page.press(key)
    page.until(lambda: page.driver.execute_script("return state.plane")[0] == key)
    page.driver.execute_script("release()")
    middle = {"axial": 3, "coronal": 23, "sagittal": 19}
    for name, plane in zip(("main", "second", "third"), expected.split(), strict=True):
        canvas = page.find(f"#{name} canvas")
        page.until(lambda c=canvas, p=plane: c.get_attribute("data-shown") == f"{scan.id}/{p}/{middle[p]}")
        page.until(lambda c=canvas: c.get_attribute("data-layers") == "truth")


@pytest.mark.parametrize(
    ("answer", "expected", "marked"),
    [
        ("Promise.reject(new TypeError())", "The viewer does not respond", False),
        ("Promise.resolve(new Response('', { status: 500, statusText: 'Server Error' }))", "500 Server Error", False),
        ('Promise.resolve(new Response(\'{"detail": "damaged"}\', { status: 422 }))', "damaged", True),
    ],
)
def test_only_an_unreadable_scan_is_marked_and_other_scans_open_on_the_next_click(page, answer, expected, marked):
    page.driver.execute_script(f"window.fetched = fetch; window.fetch = () => {answer}")
    page.find("#rows tr[data-scan=case3_day0]").click()
    page.until(lambda: expected in page.text("#message"))
    page.driver.execute_script("window.fetch = fetched")
    assert ("cannot be read" in page.text("#rows tr[data-scan=case3_day0]")) == marked
    page.find("#rows tr[data-scan=case3_day0]").click()
    if marked:
        page.until(lambda: expected in page.text("#message"))
    else:
        page.until(lambda: page.shown.startswith("case3_day0/"))
        assert page.text("#message") == ""
        page.driver.back()
        page.until(lambda: page.shown.startswith(f"{SCAN}/"))


def test_n_and_b_step_through_the_list(page):
    page.press("n")
    page.until(lambda: page.shown.startswith("case6_day1/"))
    page.press("n", "b")
    page.until(lambda: page.shown.startswith(f"{SCAN}/"))


def test_help_opens_and_closes(page):
    page.press("?")
    page.until(lambda: page.find("#help").is_displayed())
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.find("#help").is_displayed())


def test_a_link_to_an_unknown_scan_shows_a_note(page):
    page.open("#scan=case99_day0")
    page.see("case1_day0/axial/3")
    assert "case99_day0, which is not in the list" in page.text("#notes")


def test_a_run_is_listed_worst_first_and_shows_its_prediction_when_ready(browser, serve, untrained):
    library = open_library(untrained)
    scored = sorted((entry.scores["score"], entry.id) for entry in library.entries if entry.scores)
    with page_of(browser, serve, library) as page:
        page.open()
        assert page.text("#rows tr td") == scored[0][1]
        column = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#rows td:nth-child(2)")]
        assert column == [f"{score:.3f}" for score, _ in scored] + ["\N{EN DASH}"] * (9 - len(scored))
        page.until(lambda: page.find("#prediction").get_attribute("data-state") == "ready")
        page.until(lambda: "prediction" in page.find("#main canvas").get_attribute("data-layers"))
        page.press("t")
        page.until(lambda: page.colors())
        page.press("p")
        page.until(lambda: not page.colors())
        page.find("#columns [data-key=id] button").click()
        ids = [row.get_attribute("data-scan") for row in browser.find_elements(By.CSS_SELECTOR, "#rows tr")]
        assert ids == sorted(entry.id for entry in library.entries)
        assert "trained on" in page.text("#rows")


def test_an_unreadable_scan_shows_the_reason_and_the_others_still_open(browser, serve, tiny_cohort, tmp_path):
    root = shutil.copytree(tiny_cohort.root, tmp_path / "cohort")
    path = sorted((root / "train/case1/case1_day0/scans").iterdir())[0]
    path.rename(path.with_name("slice_1.png"))
    with page_of(browser, serve, open_library(root)) as page:
        page.open()
        page.see("case1_day5/axial/3")
        assert "cannot be read" in page.text("#rows tr.broken")
        empty = "const [strip, blank] = [document.querySelector('#strip'), document.createElement('canvas')];"
        empty += "[blank.width, blank.height] = [strip.width, strip.height];"
        empty += "return strip.toDataURL() === blank.toDataURL()"
        page.until(lambda: not browser.execute_script(empty))
        page.find("#rows tr.broken").click()
        page.until(lambda: "slice_1.png: invalid name" in page.text("#message"))
        assert browser.execute_script(empty)  # nothing of the previous scan
        page.find("#strip").click()
        page.press(Keys.ARROW_DOWN, "c", "w", "n")
        page.until(lambda: page.shown.startswith("case1_day5/"))


def test_controls_do_not_fail_while_no_scan_is_open(browser, serve, tiny_cohort, tmp_path):
    root = shutil.copytree(tiny_cohort.root, tmp_path / "cohort")
    path = sorted((root / "train/case1/case1_day0/scans").iterdir())[0]
    path.rename(path.with_name("slice_1.png"))
    with page_of(browser, serve, open_library(root)) as page:  # which checks for errors on the page
        page.open("#scan=case1_day0")
        for selector in ("#strip", "#slice", "#width", "#level", "#main", "#second", "#cross", "[data-plane=coronal]"):
            ActionChains(browser).move_to_element_with_offset(page.find(selector), 15, 0).click().perform()
        assert "slice_1.png: invalid name" in page.text("#message")


@pytest.mark.parametrize(("width", "height"), [(1280, 860), (400, 860)])
def test_the_page_fits_the_window_width(browser, serve, cohort, width, height):
    with page_of(browser, serve, cohort) as page:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        try:
            page.open()
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert page.find("#main").size["width"] > 0.6 * min(width, 1000)
            if width < 500:
                assert not page.find("#list").is_displayed()
                page.find("#toggle-list").click()
                page.find("#rows tr[data-number='3']").click()
                page.until(lambda: page.shown.startswith("case3_day0/"))
                assert not page.find("#list").is_displayed()
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def many(browser, serve):
    """A CT scan with a second channel and 20 labels, the last of them unannotated."""
    labels, masks = LabelSet.of(*(f"part {k}" for k in range(20))), np.zeros((20, 3, 24, 60), bool)
    for k in range(19):
        masks[k, k % 3, 4:20, 3 * k : 3 * k + 3] = True
    voxels = np.linspace(-1000, 1000, 2 * 3 * 24 * 60).reshape(3, 24, 60, 2).astype(np.int16)
    voxels[..., 1] = 700
    volume, annotated = Volume(voxels, (3.0, 1.5, 1.5)), np.arange(20) < 19
    entry = Entry("ct", "p1", lambda: volume, lambda: Contours(pack_groups(masks), annotated))
    with page_of(browser, serve, Library("drawn", (entry,), labels, ("ct", "pet"))) as page:
        page.open()
        page.see("ct/axial/1")
        yield page


def test_many_labels_can_be_searched_and_toggled(many):
    rows = "return [...document.querySelectorAll('#layers tr[data-row]')].filter(r => !r.hidden).map(r => r.innerText)"
    assert len(many.driver.execute_script(rows)) == 20
    many.until(lambda: "unannotated" in many.find("#layers tr[data-row='19']").get_attribute("class"))
    color = np.array(LabelSet.of(*(f"part {k}" for k in range(20))).colors[16])

    def is_visible():
        return (np.abs(many.canvas().astype(int) - color).max(2) < 40).sum() > 20

    many.until(is_visible)  # a label of the third group of eight
    many.find("#find-label").send_keys("T 16")
    assert [text.strip() for text in many.driver.execute_script(rows)] == ["part 16"]
    many.find("[data-layer=truth][data-label='16']").click()
    many.until(lambda: not is_visible())


def test_ct_has_window_presets_and_each_channel_its_own_range(many):
    assert many.find("[data-window=ct-lung]").is_displayed()
    many.find("[data-window=ct-lung]").click()
    assert (many.text("#width-value"), many.text("#level-value")) == ("1500", "-600")
    many.until(lambda: many.driver.current_url.endswith("window=1500,-600"))
    options = many.driver.find_elements(By.CSS_SELECTOR, "#channel option")
    assert [option.text for option in options] == ["ct", "pet"]
    options[1].click()
    many.until(lambda: "channel=1" in many.driver.current_url)
    assert not many.find("[data-window=ct-lung]").is_displayed()
    assert many.text("#level-value") == "700"


def test_a_cohort_without_ct_has_no_ct_window_presets(page):
    assert not page.find("[data-window=ct-bone]").is_displayed() and not page.find("#channel").is_displayed()
    assert not page.find("#find-label").is_displayed()
