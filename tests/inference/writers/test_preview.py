"""The preview: which slices it shows, where the contours lie, and what the legend says."""

import cv2
import numpy as np
import pytest
from PIL import ImageDraw

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.volume import Volume
from gitseg_tf.inference.writers.preview import draw_preview, preview_files, write_preview
from gitseg_tf.labels import UWMGI, LabelSet

SPACING = (3.0, 1.5, 1.5)


@pytest.fixture
def texts(monkeypatch):
    """The texts that are drawn."""
    drawn, original = [], ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        drawn.append(text)
        return original(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return drawn


def scan_with(masks, low=0):
    image = np.full(masks.shape[1:], low, np.int16)
    image[:, 10:90, 10:110] = 500
    image[masks.any(0)] = 900
    return Volume(image, SPACING)


def shown_slices(texts):
    return [int(text.removeprefix("slice ")) for text in texts if text.startswith("slice ")]


def test_the_legend_has_the_volumes_and_the_absent_labels(texts):
    masks = np.zeros((3, 20, 100, 120), bool)
    masks[0, 5:15, 20:40, 20:40] = True  # 4000 voxels of 6.75 mm3
    masks[1, 10, 50, 50] = True
    page = draw_preview("anna", scan_with(masks), masks, UWMGI, "model a", ["spacing 9", "too dark"])
    assert page.shape[1:] == (1920, 3) and page.dtype == np.uint8
    assert {"large bowel", "27.0 ml", "small bowel", "0.0 ml", "anna", "model a"} <= set(texts)
    assert "no voxel of stomach" in texts and "stomach" not in texts
    assert "Check this result: spacing 9; too dark." in texts
    colors = {tuple(color) for color in page.reshape(-1, 3)}
    assert UWMGI[0].color in colors and UWMGI[1].color in colors and UWMGI[2].color not in colors


def test_the_slices_are_spread_over_the_labels_and_show_each_of_them(texts):
    masks = np.zeros((2, 100, 100, 120), bool)
    masks[0, 20:81, 20:40, 20:40] = True
    masks[1, 33, 50:60, 50:60] = True  # on none of the slices that are spread evenly
    draw_preview("anna", scan_with(masks), masks, LabelSet.of("a", "b"))
    numbers = shown_slices(texts)
    assert len(numbers) == 12 and numbers == sorted(numbers)
    assert numbers[0] == 21 and numbers[-1] == 81 and 34 in numbers and np.diff(numbers).max() <= 9


@pytest.mark.parametrize("depth", [1, 2, 5, 13])
def test_any_number_of_slices_and_no_label_at_all(texts, depth):
    masks = np.zeros((3, depth, 100, 120), bool)
    draw_preview("anna", scan_with(masks), masks, UWMGI)
    assert len(shown_slices(texts)) == min(depth, 12)


def test_contours_lie_on_the_edge_of_the_mask():
    masks = np.zeros((1, 1, 100, 120), bool)
    masks[0, 0, 30:60, 40:80] = True
    image = np.zeros((1, 100, 120), np.int16)
    image[masks[0]] = 1000
    page = draw_preview("anna", Volume(image, SPACING), masks, LabelSet.of("a")).astype(int)
    white = (np.abs(page - 255).max(-1) < 20).astype(np.uint8)
    orange = (np.abs(page - LabelSet.of("a")[0].color).max(-1) < 60).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(white)
    left, top, width, height, _ = max(stats[1:], key=lambda row: row[4])
    assert width / height == pytest.approx(40 / 30, rel=0.03)
    assert width / 40 > 8  # screen pixels per voxel: half a voxel would be seen
    extents = []
    for line, start, size in ((orange[:, left + width // 2], top, height), (orange[top + height // 2], left, width)):
        near = np.flatnonzero(line[start - 20 : start + size + 20]) - 20
        first, second = near[near < size // 2], near[near > size // 2]
        assert np.ptp(first) <= 6 and np.ptp(second) <= 6
        assert first.mean() + second.mean() == pytest.approx(size - 1, abs=1.5)  # centered on the white area
        extents.append(second.mean() - first.mean())
    # With 30 and 40 voxels, the extents are 30 k + e and 40 k + e; e would be 2 k if contours ran a voxel outside.
    assert abs(4 * extents[0] - 3 * extents[1]) < 5


@pytest.mark.parametrize(("low", "expected"), [(-1000, "CT window -160 to 240"), (0, "shown from 0 to 500")])
def test_ct_is_shown_in_a_soft_tissue_window(texts, low, expected):
    masks = np.zeros((3, 5, 100, 120), bool)
    draw_preview("anna", scan_with(masks, low), masks, UWMGI)
    assert f"5 slices of 100 x 120, 3 x 1.5 x 1.5 mm, {expected}" in texts


def test_many_labels_and_long_names_fit(texts):
    labels = LabelSet.of(*(f"a structure with a rather long name, number {k}".replace(",", "") for k in range(120)))
    masks = np.zeros((120, 4, 100, 120), bool)
    masks[:100, 1, 40, 40] = True
    page = draw_preview("scan" * 40, scan_with(masks), masks, labels, "", ["far away " * 200])
    assert page.shape[0] < 1600
    assert any(text.startswith("and ") and text.endswith(" more") for text in texts)
    assert any(text.startswith("no voxel of 20 labels: ") for text in texts) and texts[-1]


def test_the_file_is_named_after_the_scan(tiny_cohort, tmp_path):
    scan = read_cohort(tiny_cohort.root).scans[0]
    masks = scan.read_annotation().masks
    write_preview(tmp_path, scan, scan.read_volume(), masks, UWMGI, "model a", [])
    path = tmp_path / "previews" / f"{scan.id}.png"
    assert cv2.imread(str(path)).shape[1] == 1920
    assert preview_files(tmp_path, scan.id) == [path] and preview_files(tmp_path, "case1") == []
    assert list(path.parent.iterdir()) == [path]
