"""The report in Chromium, opened from the file."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from gitseg_tf.data.volume import Annotation, LoadedScan, Volume
from gitseg_tf.evaluation.calibration import Reliability
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.evaluation.report.report import write_report
from gitseg_tf.evaluation.report.selection import PictureShelf
from gitseg_tf.evaluation.report.slices import picture_scan
from gitseg_tf.labels import UWMGI

pytestmark = pytest.mark.browser

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
    """A report on `scans` scans; in the worst one, slice 3 is the worst and slice 5 has a false positive stomach."""
    _, height, width = shape
    truth = np.zeros((3, *shape), bool)
    truth[0, 1:-1, height // 4 : height // 2, width // 8 : width // 2] = True
    prediction = truth.copy()
    prediction[0, 2, height // 4 : height // 3] = False
    prediction[2, 4, -height // 4 : -3 * height // 16, width // 2 : -width // 8] = True
    image = np.random.default_rng(0).integers(0, noise, shape).astype(np.uint16)
    annotation = Annotation.complete(truth)
    pictures = picture_scan(LoadedScan("drawn", "drawn", Volume(image, (3, 1.5, 1.5)), annotation), prediction, UWMGI)
    reliability = Reliability(UWMGI)
    reliability.add(np.where(prediction, 80, 8).astype(np.uint8), annotation)
    scores = score_scan("drawn", "drawn", truth, prediction, labels=UWMGI, spacing=(3.0, 1.5, 1.5))
    rows = []
    with PictureShelf(scans) as shelf:
        for k in range(scans):
            name, gain = f"case{k + 1}_day0", 0.001 * k
            # The largest distance is in another scan, so that the maximum number of scans is shown.
            new, further = {"scan": name, "case": f"case{k + 1}"}, 50 * (k == 19)
            scan_rows = [
                row
                | new
                | {key: row[key] + gain for key in ("score", "hausdorff_score")}
                | {"hausdorff_mm": row["hausdorff_mm"] + further}
                for row in scores
            ]
            shelf.add(name, scan_rows, lambda name=name: replace(pictures, scan=name))
            rows += scan_rows
        table = pd.DataFrame(rows)
        summary = summarize(table) | {"calibration": reliability.summary()}
        write_report(
            path, summary, table, labels=UWMGI, chosen=shelf.chosen(), history=HISTORY, title="A run", details={}
        )


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """50 scans of 144 slices of 360 x 310; full-range noise, which compresses worse than any scan."""
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
    """The report opened in the browser."""

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
        """Turn the wheel; returns whether the page was kept from scrolling."""
        return self.script(
            """const turn = new WheelEvent("wheel", {deltaY: arguments[0], cancelable: true, bubbles: true});
            return !document.querySelector(".viewer .picture").dispatchEvent(turn);""",
            by,
        )

    def flip(self, layer):
        box = f"[data-layer={layer}]" if isinstance(layer, str) else f"[data-label='{layer}']"
        box = self.browser.find_element("css selector", box)
        self.script("arguments[0].scrollIntoView({block: 'center'})", box)
        box.click()

    def picture(self):
        """The canvas as uint8 [height, width, 3]."""
        from base64 import b64decode

        url = self.script("return document.querySelector('.viewer .picture').toDataURL()")
        png = np.frombuffer(b64decode(url.partition(",")[2]), np.uint8)
        return cv2.imdecode(png, cv2.IMREAD_COLOR_RGB)

    def pixels(self, color):
        """[x, y] of the canvas pixels of a color, in pixels of the scan."""
        picture = self.picture()
        y, x = np.nonzero((np.abs(picture.astype(int) - color) < 40).all(-1))
        return np.stack([x, y], 1) / (picture.shape[1] / 64)


@pytest.fixture
def opened(chromium, path):
    report = Opened(chromium, path)
    yield report
    assert [entry for entry in chromium.get_log("browser") if "favicon" not in entry["message"]] == []


def test_a_large_report_is_below_20_mb(large):
    assert large.read_text(encoding="utf-8").count('<script type="application/json"') == 8
    assert 5e6 < large.stat().st_size < 20e6


def test_a_large_report_opens_within_two_seconds(large, chromium):
    """Within 2 s, including training and reliability; on a busy machine some loads may take longer."""
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


def test_the_viewer_opens_at_the_worst_slice_of_the_worst_scan(opened):
    assert opened.slice == 3
    assert opened.script("return document.querySelector('[aria-pressed=true]').dataset.show") == "case1_day0"
    assert opened.script("return document.querySelector('.viewer .number').textContent") == "Slice 3"


def test_keys_scroll_through_the_slices(opened):
    from selenium.webdriver import Keys

    for key, number in (
        (Keys.ARROW_RIGHT, 4), (Keys.ARROW_UP, 3), (Keys.END, 8), (Keys.ARROW_DOWN, 8), (Keys.PAGE_UP, 1), ("n", 5)
    ):  # fmt: skip
        opened.press(key)
        opened.wait_for(number)


def test_the_wheel_scrolls_through_the_slices_and_then_the_page(opened):
    assert opened.turn(40)
    opened.wait_for(4)
    for _ in range(5):
        opened.turn(-40)
    opened.wait_for(1)
    assert not opened.turn(-40)


def test_the_slider_scrolls_through_the_slices(opened):
    slider = opened.browser.find_element("css selector", ".viewer input[type=range]")
    assert slider.get_attribute("max") == "7"
    opened.script("arguments[0].value = 6; arguments[0].dispatchEvent(new Event('input'))", slider)
    opened.wait_for(7)


def test_a_touch_drag_scrolls_through_the_slices(opened):
    opened.script(
        """const canvas = document.querySelector(".viewer .picture"), id = {pointerId: 1, pointerType: "touch"};
        canvas.setPointerCapture = () => {};
        canvas.dispatchEvent(new PointerEvent("pointerdown", {...id, clientX: 100}));
        canvas.dispatchEvent(new PointerEvent("pointermove", {...id, clientX: 112}));
        canvas.dispatchEvent(new PointerEvent("pointerup", {...id, clientX: 112}));"""
    )
    opened.wait_for(5)


def test_missed_regions_are_hatched_in_place(opened):
    """Slice 3: rows 12 to 15 of columns 8 to 31 are only in the reference."""
    for layer in ("reference", "prediction"):
        opened.flip(layer)
    x, y = opened.pixels(MISSED).T
    assert len(x) and len(opened.pixels(EXTRA)) == 0
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((8, 32, 12, 16), abs=0.6)
    opened.flip("disagreement")
    assert len(opened.pixels(MISSED)) == 0


def test_false_positives_are_hatched_differently_and_hidden_with_their_label(opened):
    """Slice 5: rows 36 to 38 of columns 32 to 55 are only in the prediction."""
    opened.press("n")
    opened.wait_for(5)
    for layer in ("reference", "prediction"):
        opened.flip(layer)
    x, y = opened.pixels(EXTRA).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((32, 56, 36, 39), abs=0.6)
    opened.flip(2)
    assert len(opened.pixels(EXTRA)) == 0


def test_outlines_surround_the_masks_and_are_hidden_with_their_layer(opened):
    """Slice 3 of the reference: rows 12 to 23 of columns 8 to 31."""
    for layer in ("disagreement", "prediction"):
        opened.flip(layer)
    x, y = opened.pixels(UWMGI.colors[0]).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((8, 32, 12, 24), abs=0.6)
    assert not ((x > 9) & (x < 31) & (y > 13) & (y < 23)).any()
    opened.flip("reference")
    assert len(opened.pixels(UWMGI.colors[0])) == 0
    before = len(opened.pixels((255, 255, 255)))
    opened.flip("prediction")
    assert len(opened.pixels((255, 255, 255))) > before


def test_a_close_up_zooms_in_on_reference_and_prediction(opened):
    opened.flip("disagreement")
    whole = opened.pixels(UWMGI.colors[0])
    opened.flip("close")
    closer = opened.pixels(UWMGI.colors[0])
    assert np.ptp(closer[:, 0]) > 1.1 * np.ptp(whole[:, 0])


def test_the_table_shows_the_figures_of_the_slice(opened):
    cells = "return [...document.querySelectorAll(`.viewer tr[data-row='${arguments[0]}'] td`)].map(c => c.textContent)"
    both, missed = 24 * 8, 24 * 4
    assert opened.script(cells, 0) == [f"{2 * both / (2 * both + missed):.3f}", str(missed), "0"]
    assert opened.script(cells, 2) == ["\N{EN DASH}"] * 3


def test_a_link_opens_its_scan(opened):
    tabs = opened.script("return [...document.querySelectorAll('.viewer [data-show]')].map(tab => tab.dataset.show)")
    assert tabs == [f"case{k}_day0" for k in (1, 2, 3, 4, 9, 5)]  # four of the worst, the best, the median
    opened.press("n")
    opened.wait_for(5)
    opened.script("document.querySelector('a[data-scan=case3_day0]').click()")
    opened.wait_for(3)
    assert opened.script("return document.querySelector('[aria-pressed=true]').dataset.show") == "case3_day0"


@pytest.mark.parametrize("width", [1400, 500, 360])
def test_the_page_fits_the_window_width(opened, width):
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    opened.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert opened.script("return document.documentElement.scrollWidth") <= width
        picture = opened.script("return document.querySelector('.viewer .picture').getBoundingClientRect().width")
        assert picture > 0.6 * min(width, 900)
    finally:
        opened.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_clicking_a_column_sorts_the_rows(opened):
    opened.script("document.querySelectorAll('.sortable th button')[2].click()")
    first = opened.script("return document.querySelector('.sortable tbody td').dataset.text")
    opened.script("document.querySelectorAll('.sortable th button')[2].click()")
    last = opened.script("return document.querySelector('.sortable tbody td').dataset.text")
    assert (first, last) == ("case1_day0", "case9_day0")


def test_labels_are_listed_in_order(opened):
    named = opened.script(
        "return [...document.querySelectorAll('.viewer tr[data-row]')].map(r => r.querySelector('th').textContent)"
    )
    assert named == [label.title for label in UWMGI]
