import cv2
import numpy as np
import pytest
from PIL import Image

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.volume import Volume
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.registry import open_writer
from gitseg_tf.labels import UWMGI, LabelSet


@pytest.fixture
def scan(tiny_cohort):
    return read_cohort(tiny_cohort.root).scans[0]


@pytest.fixture
def masks(scan):
    """A square per label, each on its own slice, starting with the second slice."""
    masks = np.zeros((3, *scan.shape), bool)
    for k in range(3):
        masks[k, 1 + k, 5:20, 5:20] = True
    return masks


def write(output, out, scan, image, masks, labels=UWMGI):
    with open_writer(output, None, out, labels) as writer:
        writer.write(scan, Volume(image, scan.spacing), Prediction(masks))


def colored(picture):
    """The colors that are not gray."""
    pixels = picture.reshape(-1, 3).astype(int)
    return set(map(tuple, pixels[pixels.max(1) - pixels.min(1) > 20].tolist()))


def test_png_output_is_one_image_per_slice_with_colored_outlines(tiny_cohort, scan, masks, tmp_path):
    write("png", tmp_path, scan, tiny_cohort[scan.id].image, masks)
    paths = sorted((tmp_path / scan.id).iterdir())
    assert [path.name for path in paths] == [f"{slice_id}.png" for slice_id in scan.slice_ids]
    pictures = [cv2.imread(str(path))[..., ::-1] for path in paths]
    assert all(picture.shape == (2 * scan.shape[1], 2 * scan.shape[2], 3) for picture in pictures)
    colors = [{color} for color in UWMGI.colors]
    assert [colored(picture) for picture in pictures] == [set(), *colors, *[set()] * (len(paths) - 4)]


def test_gif_output_is_one_frame_per_slice_in_gray_and_label_colors(scan, masks, tmp_path):
    image = np.random.default_rng(0).integers(0, 3000, scan.shape).astype(np.uint16)
    write("gif", tmp_path, scan, image, masks)
    with Image.open(tmp_path / f"{scan.id}.gif") as gif:
        assert gif.n_frames == scan.shape[0] and gif.info["loop"] == 0 and gif.size == scan.shape[:0:-1]
        frames = []
        for index in range(gif.n_frames):
            gif.seek(index)
            assert gif.info["duration"] == 100
            frames.append(np.array(gif.convert("RGB")))
    colors = [{color} for color in UWMGI.colors]
    assert [colored(frame) for frame in frames] == [set(), *colors, *[set()] * (len(frames) - 4)]
    low, high = np.percentile(image, [1, 99.5])
    expected = np.clip((image[0].astype(float) - low) / (high - low) * 255, 0, 255)
    assert np.abs(frames[0].mean(-1) - expected).max() < 2


def test_a_single_slice_scan_is_written_as_gif(tiny_cohort, scan, masks, tmp_path):
    write("gif", tmp_path, scan, tiny_cohort[scan.id].image[:1], masks[:, 1:2])
    with Image.open(tmp_path / f"{scan.id}.gif") as gif:
        assert gif.n_frames == 1


def test_a_gif_of_200_labels_keeps_its_gray_levels(scan, tmp_path):
    labels = LabelSet.of(*(f"label {k}" for k in range(200)))
    image = np.random.default_rng(0).integers(0, 3000, scan.shape).astype(np.uint16)
    masks = np.zeros((200, *scan.shape), bool)
    for k in range(200):
        masks[k, k % scan.shape[0], k % 30 : k % 30 + 2, k // 30 * 4 : k // 30 * 4 + 2] = True
    write("gif", tmp_path, scan, image, masks, labels)
    with Image.open(tmp_path / f"{scan.id}.gif") as gif:
        assert gif.n_frames == scan.shape[0]
        grays = {tuple(c) for c in np.array(gif.convert("RGB")).reshape(-1, 3).tolist() if len(set(c)) == 1}
    assert len(grays) > 100
