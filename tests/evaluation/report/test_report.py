import base64
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest

from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.evaluation.report.report import write_report
from gitseg_tf.evaluation.report.selection import Chosen, PictureShelf
from gitseg_tf.evaluation.report.slices import ScanPictures, draw_slice
from gitseg_tf.labels import UWMGI

HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "loss": [0.9, 0.5, 0.4],
        "val_loss": [0.8, np.nan, 0.5],
        "dice": [0.2, 0.6, 0.7],
        "val_dice": [0.3, 0.71234, 0.6],
        "val_dice_stomach": [0.3, 0.8, 0.7],
        "learning_rate": [1e-3, 1e-4, 1e-5],
        "seconds": [60.0, 50.0, 51.0],
    }
)


class Page(HTMLParser):
    """What a browser would show: tags with their attributes, and the text outside style, script and template."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("style", "script", "template"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def attributes(self, tag, name):
        return [attributes[name] for found, attributes in self.tags if found == tag and name in attributes]


def scan_with_dice(dice):
    """Reference and prediction of a large bowel of 100 voxels; the predicted fraction gives the Dice `dice`."""
    truth, prediction = np.zeros((3, 4, 12, 12), bool), np.zeros((3, 4, 12, 12), bool)
    truth[0, 1, 1:11, 1:11] = True
    prediction[0, 1, 1:11, 1:11] = np.arange(100).reshape(10, 10) < round(100 * dice / (2 - dice))
    return truth, prediction


def picture(scan, slices=()):
    return ScanPictures(scan, list(slices), "{}")


def evaluation(dice_of_scans):
    rows = []
    image = np.arange(144, dtype=np.uint8).reshape(12, 12)
    with PictureShelf(len(dice_of_scans)) as shelf:
        for scan, dice in dice_of_scans.items():
            truth, prediction = scan_with_dice(dice)
            scan_rows = score_scan(scan, scan.split("_")[0], truth, prediction, labels=UWMGI, spacing=(3.0, 1.5, 1.5))
            pictures = picture(
                scan, [draw_slice(2, image, truth=truth[:, 1], prediction=prediction[:, 1], labels=UWMGI)]
            )
            shelf.add(scan, scan_rows, lambda pictures=pictures: pictures)
            rows += scan_rows
        return pd.DataFrame(rows), shelf.chosen()


def write(folder, summary, rows, chosen=(), history=None, title="A run", details=None):
    write_report(
        folder / "report.html", summary, rows,
        labels=UWMGI, chosen=list(chosen), history=history, title=title, details=details or {},
    )  # fmt: skip


@pytest.fixture
def report(tmp_path):
    def draw(dice_of_scans, history=None, title="A run", details=None, **more):
        rows, chosen = evaluation(dice_of_scans)
        write(tmp_path, summarize(rows) | more, rows, chosen, history, title, details)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return draw


SCANS = {"case1_day0": 0.9, "case2_day0": 0.3, "case3_day0": 0.8, "case4_day0": 0.7, "case5_day0": 1.0}


def test_the_report_is_a_single_file(report, tmp_path):
    report(SCANS, HISTORY)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_existing_report_is_replaced(report, tmp_path):
    (tmp_path / "report.html").write_text("older")
    assert "A run" in report(SCANS).text


def test_a_report_that_fails_leaves_the_older_one_and_no_temporary_file(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("older")
    rows, chosen = evaluation(SCANS)

    def full_disk(_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, summarize(rows), rows, chosen=chosen)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.html", "older")]


def test_the_page_loads_no_external_resources(report, tmp_path):
    page = report(SCANS, HISTORY)
    loading = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    references = [value for _, attributes in page.tags for name, value in attributes.items() if name in loading]
    assert references
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in references)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", html)
    assert not page.attributes("link", "rel")


def test_every_internal_reference_has_a_target(report):
    page = report(SCANS, HISTORY)
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    used = {value[1:] for value in page.attributes("use", "href") + page.attributes("use", "xlink:href")}
    assert used <= targets


def test_the_mean_dice_is_shown(report):
    assert "Dice 0.700 3-D" in report({"case1_day0": 0.4, "case2_day0": 1.0}).text


def test_every_scan_is_in_the_table(report):
    page = report(SCANS)
    assert set(page.attributes("td", "data-text")) >= set(SCANS)


def test_names_and_values_are_escaped(report):
    hostile = '<script>alert("x")</script>'
    page = report({"<u>": 0.9}, title=hostile, details={"<em>": hostile})
    tags = [tag for tag, _ in page.tags]
    assert "u" not in tags and tags.count("script") == 2  # that of the page, and the scan of the slice viewer
    assert page.text.count(hostile) == 3
    assert "<u>" in page.text and "<em>" in page.text
    assert page.attributes("td", "data-text")[0] == page.attributes("a", "data-scan")[0] == "<u>"


def test_slice_viewer_data_cannot_close_its_script_element(tmp_path):
    rows, _ = evaluation({"case1_day0": 0.9})
    chosen = [Chosen("best", ScanPictures("case1_day0", [], '{"numbers": "</script><h6>"}'))]
    write(tmp_path, summarize(rows), rows, chosen=chosen)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "h6" not in [tag for tag, _ in Page(html).tags]
    written = re.search(r'<script type="application/json" id="scan-1">(.*?)</script>', html).group(1)
    assert json.loads(written) == {"numbers": "</script><h6>"}


def test_best_median_and_worst_scans_are_pictured(report):
    page = report(SCANS)
    headings = re.findall(r"(best|median and \w+ worst|worst) (case\d_day0)", page.text)
    assert headings == [("best", "case5_day0"), ("median and 3rd worst", "case3_day0"), ("worst", "case2_day0")]
    assert len(page.attributes("image", "href")) == 3


def test_the_embedded_picture_is_the_given_image(report):
    (href,) = report({"case1_day0": 0.9}).attributes("image", "href")
    encoded = np.frombuffer(base64.b64decode(href.partition(",")[2]), np.uint8)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, np.arange(144).reshape(12, 12))


def test_contours_enclose_the_area_of_the_mask(report):
    """The contour cuts the corners of a square by half a pixel: 4 triangles of 1/8 pixel."""
    page = report({"case1_day0": 1.0})
    path = next(a["d"] for tag, a in page.tags if tag == "path" and "label-0 filled" in a.get("class", ""))
    x, y = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), float).T
    assert abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 == pytest.approx(100 - 4 / 8)
    assert (x.min(), x.max(), y.min(), y.max()) == (1, 11, 1, 11)


def test_a_mask_at_the_border_has_a_closed_contour(tmp_path):
    rows, _ = evaluation({"case1_day0": 1.0})
    full = np.ones((3, 12, 12), bool)
    pictures = picture(
        "case1_day0", [draw_slice(1, np.zeros((12, 12), np.uint8), truth=full, prediction=full, labels=UWMGI)]
    )
    write(tmp_path, summarize(rows), rows, chosen=[Chosen("best", pictures)])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    path = next(a["d"] for tag, a in page.tags if tag == "path" and "filled" in a.get("class", ""))
    assert path.count("M") == path.count("Z") == 1


def test_missed_and_absent_labels_are_reported(tmp_path):
    truth, prediction = scan_with_dice(0.0)
    prediction[2, 0, 0, :10] = True
    rows = pd.DataFrame(score_scan("case1_day0", "case1", truth, prediction, labels=UWMGI, spacing=(10.0, 10.0, 10.0)))
    write(tmp_path, summarize(rows), rows, chosen=[])
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "1 label missed" in text
    assert "10.0 ml predicted of labels that are absent from the reference" in text
    assert "stomach absent" in text and "large bowel missed" in text


def test_the_training_section_names_the_best_epoch(report):
    text = report(SCANS, HISTORY).text
    assert "3 epochs, best validation Dice 0.712 in epoch 2, 51.0 s per epoch" in text
    assert all(chart in text for chart in ("Loss", "Validation Dice per label", "Learning rate"))


@pytest.mark.parametrize(
    "history",
    [
        HISTORY.head(1),
        HISTORY[["loss"]],
        HISTORY.assign(val_dice=np.nan, learning_rate=np.nan, loss=[np.nan, np.inf, 0.3]),
        HISTORY.set_index(pd.Index([7, 7, 7])),
    ],
    ids=["one epoch", "loss alone", "not finite", "index repeats"],
)
def test_incomplete_histories_can_be_plotted(report, history):
    text = report({"case1_day0": 0.9}, history).text
    assert "Training" in text and "Loss" in text


@pytest.mark.parametrize("history", [None, HISTORY.head(0)], ids=["none", "empty"])
def test_without_a_history_there_is_no_training_section(report, history):
    assert "Training" not in report({"case1_day0": 0.9}, history).text


def test_a_cohort_without_any_label_is_reported(tmp_path):
    empty = np.zeros((3, 4, 12, 12), bool)
    rows = pd.DataFrame(score_scan("case1_day0", "case1", empty, empty, labels=UWMGI, spacing=(3.0, 1.5, 1.5)))
    write(tmp_path, summarize(rows), rows, chosen=[])
    assert "case1_day0" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_intervals_are_shown_next_to_their_scores(report):
    labels = {label: {"score": [0.5, 0.6], "dice": None} for label in UWMGI.names} | {"stomach": {}}
    intervals = {"level": 0.95, "dice": [0.6123, 0.7654], "hd95_mm": None, "score": None, "labels": labels}
    text = report({"case1_day0": 0.4, "case2_day0": 1.0}, intervals=intervals).text
    assert "Dice 0.700 0.612\N{EN DASH}0.765 3-D" in text and "95% confidence interval" in text
    assert text.count("0.500\N{EN DASH}0.600") == 2
    assert "confidence" not in report({"case1_day0": 0.4}).text


def test_the_largest_distances_come_first_and_outliers_are_marked(tmp_path):
    """Quartiles of 1, 2, 3, 4, 5, 50 are 2.25 and 4.75: the fence is at 4.75 + 1.5 * 2.5 = 8.5."""
    rows, _ = evaluation({f"case{number}_day0": 0.9 for number in range(1, 7)})
    present = rows["label"] == "large_bowel"
    rows.loc[present, "hausdorff_mm"] = [3.0, 1.0, 50.0, 2.0, 5.0, 4.0]
    chosen = [Chosen("worst", picture("case3_day0"))]
    write(tmp_path, summarize(rows), rows, chosen=chosen)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    listed = page.text[page.text.index("Largest Hausdorff") : page.text.index("Slice by slice")]
    assert re.findall(r"case(\d)_day0", listed) == ["3", "5", "6", "1", "4", "2"]
    assert listed.count("outlier ") == 1 and listed.index("outlier ") < listed.index("case5_day0")
    assert "large bowel 8.5 mm" in listed
    assert set(page.attributes("a", "data-scan")) == {"case3_day0"}


def test_reliability_is_shown_when_it_was_measured(report):
    bins = [{"predicted": 0.15, "observed": 0.1, "voxels": 900}, {"predicted": 0.9, "observed": 0.7, "voxels": 100}]
    counted = {"voxels": 1000, "ece": 0.065, "mce": 0.2, "predicted": 0.225, "observed": 0.16, "below": 0.123}
    nothing = {"voxels": 0, "ece": None, "mce": None, "predicted": None, "observed": None, "below": None, "bins": []}
    calibration = {label: nothing for label in UWMGI.names} | {"stomach": counted | {"bins": bins}}
    text = report(SCANS, calibration=calibration).text
    assert "stomach 0.065 0.200 0.225 0.160 1,000 12.3%" in text
    assert "Observed frequency versus predicted probability" in text
    assert "Reliability" not in report(SCANS).text


def test_every_selected_scan_can_be_scrolled_through_worst_first(report):
    page = report(SCANS)
    shown = ["case2_day0", "case4_day0", "case1_day0", "case5_day0", "case3_day0"]
    assert page.attributes("button", "data-show") == shown
    assert len({a["id"] for tag, a in page.tags if a.get("type") == "application/json"}) == 5
