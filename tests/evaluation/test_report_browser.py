"""The report in a browser: nothing but Chromium and the file."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from gitseg_tf.data.scans import ORGAN_COLORS, ORGANS
from gitseg_tf.evaluation.chosen import PictureShelf
from gitseg_tf.evaluation.reliability import Reliability
from gitseg_tf.evaluation.report import write_report
from gitseg_tf.evaluation.scores import score_scan, summarise
from gitseg_tf.evaluation.scroller import picture_scan

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "window-size=1400,1200", "force-device-scale-factor=1",
)  # fmt: skip
HISTORY = pd.DataFrame(
    {
        "epoch": range(1, 41),
        **{key: np.linspace(1, 0.2, 40) for key in ("loss", "val_loss", "learning_rate")},
        **{key: np.linspace(0.2, 0.9, 40) for key in ("dice", "val_dice")},
        "seconds": 60.0,
    }
)
MISSED, EXTRA = (255, 95, 168), (255, 225, 77)


def write(path, shape, scans, noise):
    """A report on `scans` scans; of the worst, slice 3 (the third) is the worst and slice 5 has a stomach invented."""
    depth, height, width = shape
    truth = np.zeros((3, *shape), bool)
    truth[0, 1:-1, height // 4 : height // 2, width // 8 : width // 2] = True
    prediction = truth.copy()
    prediction[0, 2, height // 4 : height // 3] = False
    prediction[2, 4, -height // 4 : -3 * height // 16, width // 2 : -width // 8] = True
    image = np.random.default_rng(0).integers(0, noise, shape).astype(np.uint16)
    drawn = picture_scan({"id": "drawn", "image": image, "numbers": np.arange(1, depth + 1)}, truth, prediction)
    reliability = Reliability()
    reliability.add(np.where(prediction, 80, 8).astype(np.uint8), truth)
    scores = score_scan("drawn", "drawn", truth, prediction, (3.0, 1.5, 1.5))
    rows = []
    with PictureShelf(scans) as shelf:
        for k in range(scans):
            name, gain = f"case{k + 1}_day0", 0.001 * k
            # With the largest distance in a scan of its own, as many scans are shown as ever are.
            new, further = {"scan": name, "case": f"case{k + 1}"}, 50 * (k == 19)
            own = [
                row | new | {"score": row["score"] + gain, "hausdorff_mm": row["hausdorff_mm"] + further}
                for row in scores
            ]
            shelf.add(name, own, lambda name=name: replace(drawn, scan=name))
            rows += own
        table = pd.DataFrame(rows)
        summary = summarise(table) | {"calibration": reliability.summary()}
        write_report(path, summary, table, shelf.chosen(), HISTORY, "A run", {})


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """50 scans of 144 slices of 360 x 310; noise from 0 to white, which compresses worse than any scan."""
    path = tmp_path_factory.mktemp("large") / "report.html"
    write(path, (144, 310, 360), 50, 4000)
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium or its chromedriver is not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "report.html"
    write(path, (8, 48, 64), 9, 2)
    return path


class Opened:
    """The report as its reader has it before them."""

    def __init__(self, browser, path):
        self.browser = browser
        browser.get_log("browser")
        browser.get(path.as_uri())
        self.wait_for(3)

    def script(self, text, *arguments):
        return self.browser.execute_script(text, *arguments)

    def wait_for(self, number):
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, 20, 0.02).until(lambda _: self.slice == number, f"slice {number} is not shown")

    @property
    def slice(self):
        return self.script("return Number(document.querySelector('.viewer').dataset.slice)")

    def press(self, *keys):
        self.browser.find_element("css selector", ".viewer").send_keys(*keys)

    def turn(self, by):
        """The wheel; the answer is whether the page was kept where it is."""
        return self.script(
            """const turn = new WheelEvent("wheel", {deltaY: arguments[0], cancelable: true, bubbles: true});
            return !document.querySelector(".viewer .picture").dispatchEvent(turn);""",
            by,
        )

    def flip(self, layer):
        box = self.browser.find_element("css selector", f"[data-layer={layer}]")
        self.script("arguments[0].scrollIntoView({block: 'center'})", box)
        box.click()

    def picture(self):
        """The canvas as uint8 [height, width, 3]."""
        from base64 import b64decode

        url = self.script("return document.querySelector('.viewer .picture').toDataURL()")
        png = np.frombuffer(b64decode(url.partition(",")[2]), np.uint8)
        return cv2.imdecode(png, cv2.IMREAD_COLOR_RGB)

    def pixels(self, colour):
        """[x, y] of the pixels of a colour in the scan's own pixels."""
        picture = self.picture()
        y, x = np.nonzero((np.abs(picture.astype(int) - colour) < 40).all(-1))
        return np.stack([x, y], 1) / (picture.shape[1] / 64)


@pytest.fixture
def opened(chromium, path):
    report = Opened(chromium, path)
    yield report
    assert [entry for entry in chromium.get_log("browser") if "favicon" not in entry["message"]] == []


def test_a_large_report_is_below_20_mb(large):
    assert large.read_text(encoding="utf-8").count('<script type="application/json"') == 8
    assert 5e6 < large.stat().st_size < 20e6


def test_a_large_report_opens_in_time(large, chromium):
    """Within 2 s, training and reliability included; on a busy machine some of the loads may take longer."""
    text = large.read_text(encoding="utf-8")
    assert "Training" in text and "Reliability" in text
    times = []
    for _ in range(5):
        opened = Opened(chromium, large)
        times.append(opened.script("return performance.getEntriesByType('navigation')[0].loadEventEnd"))
        if times[-1] < 2000:
            break
    print(f"{large.stat().st_size / 1e6:.1f} MB, opened in ms: {', '.join(f'{ms:.0f}' for ms in times)}")
    assert 0 < min(times) < 2000


def test_the_worst_scan_begins_with_its_worst_slice(opened):
    assert opened.slice == 3
    assert opened.script("return document.querySelector('[aria-pressed=true]').dataset.show") == "case1_day0"
    assert opened.script("return document.querySelector('.viewer .number').textContent") == "Slice 3"


def test_keys_move_through_the_slices(opened):
    from selenium.webdriver import Keys

    for key, number in (
        (Keys.ARROW_RIGHT, 4), (Keys.ARROW_UP, 3), (Keys.END, 8), (Keys.ARROW_DOWN, 8), (Keys.PAGE_UP, 1), ("n", 5)
    ):  # fmt: skip
        opened.press(key)
        opened.wait_for(number)


def test_the_wheel_moves_through_the_slices_and_then_the_page(opened):
    assert opened.turn(40)
    opened.wait_for(4)
    for _ in range(5):
        opened.turn(-40)
    opened.wait_for(1)
    assert not opened.turn(-40)


def test_the_slider_moves_through_the_slices(opened):
    slider = opened.browser.find_element("css selector", ".viewer input[type=range]")
    assert slider.get_attribute("max") == "7"
    opened.script("arguments[0].value = 6; arguments[0].dispatchEvent(new Event('input'))", slider)
    opened.wait_for(7)


def test_a_finger_moves_through_the_slices(opened):
    opened.script(
        """const canvas = document.querySelector(".viewer .picture"), id = {pointerId: 1, pointerType: "touch"};
        canvas.setPointerCapture = () => {};
        canvas.dispatchEvent(new PointerEvent("pointerdown", {...id, clientX: 100}));
        canvas.dispatchEvent(new PointerEvent("pointermove", {...id, clientX: 112}));
        canvas.dispatchEvent(new PointerEvent("pointerup", {...id, clientX: 112}));"""
    )
    opened.wait_for(5)


def test_what_was_missed_is_hatched_where_it_is(opened):
    """Slice 3: rows 12 to 15 of columns 8 to 31 are in the reference alone."""
    for layer in ("reference", "prediction"):
        opened.flip(layer)
    x, y = opened.pixels(MISSED).T
    assert len(x) and len(opened.pixels(EXTRA)) == 0
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((8, 32, 12, 16), abs=0.6)
    opened.flip("disagreement")
    assert len(opened.pixels(MISSED)) == 0


def test_what_was_invented_is_hatched_otherwise_and_gone_with_its_organ(opened):
    """Slice 5: rows 36 to 38 of columns 32 to 55 are in the prediction alone."""
    opened.press("n")
    opened.wait_for(5)
    for layer in ("reference", "prediction"):
        opened.flip(layer)
    x, y = opened.pixels(EXTRA).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((32, 56, 36, 39), abs=0.6)
    opened.flip("stomach")
    assert len(opened.pixels(EXTRA)) == 0


def test_outlines_lie_around_the_masks_and_are_gone_with_their_layer(opened):
    """Slice 3 of the reference: rows 12 to 23 of columns 8 to 31."""
    for layer in ("disagreement", "prediction"):
        opened.flip(layer)
    x, y = opened.pixels(ORGAN_COLORS["large_bowel"]).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((8, 32, 12, 24), abs=0.6)
    assert not ((x > 9) & (x < 31) & (y > 13) & (y < 23)).any()
    opened.flip("reference")
    assert len(opened.pixels(ORGAN_COLORS["large_bowel"])) == 0
    before = len(opened.pixels((255, 255, 255)))
    opened.flip("prediction")
    assert len(opened.pixels((255, 255, 255))) > before


def test_a_close_up_holds_all_that_was_drawn_or_predicted(opened):
    opened.flip("disagreement")
    whole = opened.pixels(ORGAN_COLORS["large_bowel"])
    opened.flip("close")
    closer = opened.pixels(ORGAN_COLORS["large_bowel"])
    assert np.ptp(closer[:, 0]) > 1.1 * np.ptp(whole[:, 0])


def test_the_figures_are_those_of_the_slice(opened):
    cells = "return [...document.querySelectorAll(`.viewer tr[data-organ=${arguments[0]}] td`)].map(c => c.textContent)"
    both, missed = 24 * 8, 24 * 4
    assert opened.script(cells, "large_bowel") == [f"{2 * both / (2 * both + missed):.3f}", str(missed), "0"]
    assert opened.script(cells, "stomach") == ["\N{EN DASH}"] * 3


def test_a_link_shows_its_scan(opened):
    tabs = opened.script("return [...document.querySelectorAll('.viewer [data-show]')].map(tab => tab.dataset.show)")
    assert tabs == [f"case{k}_day0" for k in (1, 2, 3, 4, 9, 5)]  # four of the worst, the best, the median
    opened.press("n")
    opened.wait_for(5)
    opened.script("document.querySelector('a[data-scan=case3_day0]').click()")
    opened.wait_for(3)
    assert opened.script("return document.querySelector('[aria-pressed=true]').dataset.show") == "case3_day0"


@pytest.mark.parametrize("width", [1400, 500, 360])
def test_nothing_is_wider_than_the_window(opened, width):
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    opened.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert opened.script("return document.documentElement.scrollWidth") <= width
        picture = opened.script("return document.querySelector('.viewer .picture').getBoundingClientRect().width")
        assert picture > 0.6 * min(width, 900)
    finally:
        opened.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_rows_are_sorted_by_a_click(opened):
    opened.script("document.querySelectorAll('.sortable th button')[2].click()")
    first = opened.script("return document.querySelector('.sortable tbody td').dataset.text")
    opened.script("document.querySelectorAll('.sortable th button')[2].click()")
    last = opened.script("return document.querySelector('.sortable tbody td').dataset.text")
    assert (first, last) == ("case1_day0", "case9_day0")


def test_organs_are_named_in_their_order(opened):
    named = opened.script("return [...document.querySelectorAll('.viewer tr[data-organ]')].map(r => r.dataset.organ)")
    assert named == list(ORGANS)
