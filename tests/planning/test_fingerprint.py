"""The fingerprint of a dataset: numbers of scans made here, compared with scipy and with cases worked by hand."""

import numpy as np
import pytest
from scipy import ndimage

from gitseg_tf.data.tfrecords.dataset import load_dataset
from gitseg_tf.data.volume import Annotation, LoadedScan, Volume
from gitseg_tf.errors import DataError
from gitseg_tf.planning.fingerprint import (
    _channel,
    measure_scan,
    mirrored_pairs,
    named_side,
    summarize,
    take_fingerprint,
)

SPACING = (4.0, 2.0, 1.0)


def made_scan(masks, annotated=None, image=None, numbers=(), scan_id="a"):
    masks = np.asarray(masks, bool)
    if image is None:
        image = np.full(masks.shape[1:], 100, np.int16)
    annotation = Annotation(masks, np.ones(len(masks), bool) if annotated is None else np.array(annotated))
    return LoadedScan(scan_id, scan_id, Volume(image, SPACING, numbers), annotation)


def two_organs(rng, shift=0):
    """Two mirrored boxes of about the same size, and one in the middle, in a body of 40 columns."""
    masks = np.zeros((3, 8, 32, 40), bool)
    grow = int(rng.integers(0, 2))
    masks[0, 2:5, 10 : 16 + grow, 4 + shift : 10 + shift] = True
    masks[1, 2:5, 10:16, 30 + shift : 36 + shift] = True
    masks[2, 1:7, 4:28, 16 + shift : 24 + shift] = True
    return masks


def test_volumes_components_and_slices_agree_with_scipy():
    masks = np.random.default_rng(0).random((2, 6, 20, 24)) > 0.9
    measured = measure_scan(made_scan(masks))
    for mask, label in zip(masks, measured.labels, strict=True):
        numbered, count = ndimage.label(mask, np.ones((3, 3, 3)))
        voxels = ndimage.sum_labels(mask, numbered, range(1, count + 1))
        np.testing.assert_allclose(label.components_ml, sorted(voxels * 8 / 1000))
        assert label.slices == mask.any((1, 2)).sum()
        z, y, x = ndimage.center_of_mass(mask)
        np.testing.assert_allclose(label.center, (z * 4, y * 2, (x - 11.5) * 1))


def test_a_summary_of_hand_made_labels():
    one = np.zeros((2, 5, 16, 16), bool)
    one[0, 1:3, 2:6, 2:6] = True  # 2 * 4 * 4 voxels of 8 mm3
    other = one.copy()
    other[0, 4, 14, 14] = True  # a second component of one voxel, on a third slice
    facts = summarize([measure_scan(made_scan(one)), measure_scan(made_scan(other))], ("liver", "gland"))
    liver, gland = facts.labels
    assert (liver.annotated, liver.present, liver.components) == (2, 2, 2)
    assert liver.volume_ml == (0.256, 0.26, 0.264)
    assert liver.slice_fraction == 0.5  # two and three of ten slices
    assert liver.smallest_component_ml < 0.02
    assert (gland.present, gland.components, gland.slice_fraction) == (0, 0, 0.0)
    assert facts.shape == (5, 16, 16) and facts.spacing == SPACING and facts.anisotropy == 4


def test_an_unannotated_label_does_not_count():
    masks = np.zeros((2, 4, 8, 8), bool)
    masks[0, 0, 2:4, 2:4] = True
    facts = summarize([measure_scan(made_scan(masks, annotated=[True, False]))] * 2, ("a", "b"))
    assert [label.annotated for label in facts.labels] == [2, 0]


def test_the_body_box_has_a_margin_and_gives_the_aspect():
    image = np.zeros((6, 60, 80), np.int16)
    image[:, 20:40, 20:60] = 1000  # 40 mm x 40 mm
    facts = summarize([measure_scan(made_scan(np.zeros((1, 6, 60, 80)), image=image))], ("a",))
    assert facts.body_mm == pytest.approx((60, 60), abs=5)


def test_gaps_in_the_slice_numbers_are_counted():
    scan = made_scan(np.zeros((1, 6, 8, 8)), numbers=(1, 2, 3, 7, 8, 20))
    assert measure_scan(scan).gaps == 2
    assert summarize([measure_scan(scan)], ("a",)).neighbors == pytest.approx(1 / 3, abs=0.001)


def test_mirrored_labels_are_a_pair_whatever_their_names():
    rng = np.random.default_rng(0)
    scans = [measure_scan(made_scan(two_organs(rng))) for _ in range(6)]
    assert mirrored_pairs(scans) == {0: 1, 1: 0}
    first, second, third = summarize(scans, ("parotid_1", "parotid_2", "spine")).labels
    assert first.side == "it mirrors parotid_2" and second.side == "it mirrors parotid_1" and third.side is None


def test_labels_that_change_sides_or_differ_in_size_are_no_pair():
    rng = np.random.default_rng(0)
    swapped = []
    for k in range(6):
        masks = two_organs(rng)
        swapped.append(measure_scan(made_scan(masks[[1, 0, 2]] if k % 2 else masks)))
    assert mirrored_pairs(swapped) == {}
    larger = two_organs(rng)
    larger[0, 1:7, 6:24, 2:14] = True
    assert mirrored_pairs([measure_scan(made_scan(larger))] * 6) == {}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("kidney_left", "left"), ("Right Lung", "right"), ("KidneyL", "left"), ("parotid-r", "right"),
        ("A_Lt", "left"), ("bright", None), ("liver", None), ("vertebra_L1", None), ("rib_left_4", "left"),
    ],
)  # fmt: skip
def test_names_with_a_side(name, side):
    assert named_side(name) == side


def test_hounsfield_units_are_recognized_by_their_air():
    ct = np.array([[-1024, -1024, -1000, -990, -900, -100, 40, 200, 400, 700, 2000]] * 3, float)
    mr = np.array([[0, 0, 1, 5, 30, 80, 200, 600, 900, 1000, 4000]] * 3, float)
    normalized = np.array([[-3, -2.5, -2, -1.5, -0.5, 0, 0.5, 1.5, 2, 2.5, 6]] * 3, float)
    assert [_channel("image", list(values), (0, 1)).is_ct for values in (ct, mr, normalized)] == [True, False, False]
    assert _channel("CT", list(normalized), (0, 1)).is_ct
    wide = [mr[0], mr[0] * 10]
    assert _channel("image", wide, (0, 1)).width_ratio == 10


def test_a_dataset_gives_the_same_fingerprint_twice(tiny_dataset):
    facts = take_fingerprint(tiny_dataset, 0)
    assert facts == take_fingerprint(load_dataset(tiny_dataset.root), 0)
    assert facts.scans == facts.measured == 9 and facts.patients == 6
    shapes = [scan.shape for shard in tiny_dataset.shards for scan in shard.scans]
    assert facts.shape == tuple(np.median(shapes, 0)) and facts.most_shape == tuple(np.max(shapes, 0))
    assert len(facts.training) + len(facts.held_out) == 9
    assert sum(facts.held_out) == sum(scan.shape[0] for scan in tiny_dataset.scans_of([0]))


def test_a_damaged_shard_is_named(tiny_dataset, tmp_path, refusal):
    import shutil

    root = shutil.copytree(tiny_dataset.root, tmp_path / "copy")
    dataset = load_dataset(root)
    shard = root / dataset.shards[0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    assert shard.name in refusal(take_fingerprint, dataset)
    with pytest.raises(DataError):
        take_fingerprint(dataset)
