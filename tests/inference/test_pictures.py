import cv2
import numpy as np
import pytest
from PIL import Image

from gitseg_tf.data.scans import ORGAN_COLORS, read_cohort
from gitseg_tf.inference.pictures import write_gif, write_pngs


@pytest.fixture
def scan(drawn):
    return read_cohort(drawn.root).scans[0]


@pytest.fixture
def masks(scan):
    """A square of each organ, on a slice of its own, from the second one."""
    masks = np.zeros((3, *scan.shape), bool)
    for k in range(3):
        masks[k, 1 + k, 5:20, 5:20] = True
    return masks


def coloured(picture):
    """The colours that are no greys."""
    pixels = picture.reshape(-1, 3).astype(int)
    return set(map(tuple, pixels[pixels.max(1) - pixels.min(1) > 20].tolist()))


def test_png_is_a_picture_a_slice_with_the_outlines_in_the_organs_colours(drawn, scan, masks, tmp_path):
    write_pngs(tmp_path, scan, drawn[scan.id].image, masks)
    paths = sorted((tmp_path / scan.id).iterdir())
    assert [path.name for path in paths] == [f"{slice_id}.png" for slice_id in scan.slice_ids]
    pictures = [cv2.imread(str(path))[..., ::-1] for path in paths]
    assert all(picture.shape == (2 * scan.shape[1], 2 * scan.shape[2], 3) for picture in pictures)
    colours = [{colour} for colour in ORGAN_COLORS.values()]
    assert [coloured(picture) for picture in pictures] == [set(), *colours, *[set()] * (len(paths) - 4)]


def test_gif_is_a_frame_a_slice_in_greys_and_the_organs_colours(scan, masks, tmp_path):
    image = np.random.default_rng(0).integers(0, 3000, scan.shape).astype(np.uint16)
    write_gif(tmp_path, scan, image, masks)
    with Image.open(tmp_path / f"{scan.id}.gif") as gif:
        assert gif.n_frames == scan.shape[0] and gif.info["loop"] == 0 and gif.size == scan.shape[:0:-1]
        frames = []
        for index in range(gif.n_frames):
            gif.seek(index)
            assert gif.info["duration"] == 100
            frames.append(np.array(gif.convert("RGB")))
    colours = [{colour} for colour in ORGAN_COLORS.values()]
    assert [coloured(frame) for frame in frames] == [set(), *colours, *[set()] * (len(frames) - 4)]
    low, high = np.percentile(image, [1, 99.5])
    expected = np.clip((image[0].astype(float) - low) / (high - low) * 255, 0, 255)
    assert np.abs(frames[0].mean(-1) - expected).max() < 2


def test_a_scan_of_one_slice_is_a_gif(drawn, scan, masks, tmp_path):
    write_gif(tmp_path, scan, drawn[scan.id].image[:1], masks[:, 1:2])
    with Image.open(tmp_path / f"{scan.id}.gif") as gif:
        assert gif.n_frames == 1
