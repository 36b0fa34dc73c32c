import numpy as np
import pytest

from gitseg_tf.data.volume import Annotation, Volume
from gitseg_tf.labels import LabelSet
from gitseg_tf.viewer.contours import labels_shown, of_annotation, pack_groups
from gitseg_tf.viewer.planes import cut, describe

NUMBERS = (4, 5, 8)


@pytest.fixture
def volume():
    """Each voxel encodes its position: 100 times the slice, plus 10 times the row, plus the column."""
    z, y, x = np.mgrid[1:4, 1:5, 1:7]
    return (100 * z + 10 * y + x).astype(np.uint16)


def test_an_axial_picture_is_a_slice(volume):
    np.testing.assert_array_equal(cut(volume, NUMBERS, "axial", 2), volume[2])


def test_a_coronal_picture_has_the_first_slice_on_top_and_the_first_column_left(volume):
    picture = cut(volume, NUMBERS, "coronal", 1)
    expected = [[121, 122, 123, 124, 125, 126], [221, 222, 223, 224, 225, 226], [0] * 6, [0] * 6]
    np.testing.assert_array_equal(picture, [*expected, [321, 322, 323, 324, 325, 326]])


def test_a_sagittal_picture_has_the_first_slice_on_top_and_the_first_row_left(volume):
    picture = cut(volume, NUMBERS, "sagittal", 5)
    np.testing.assert_array_equal(
        picture, [[116, 126, 136, 146], [216, 226, 236, 246], [0] * 4, [0] * 4, [316, 326, 336, 346]]
    )
    assert picture.flags["C_CONTIGUOUS"] and picture.dtype == np.uint16


@pytest.mark.parametrize(("plane", "count"), [("axial", 3), ("coronal", 4), ("sagittal", 6)])
def test_a_plane_outside_the_scan_is_refused(volume, plane, count):
    cut(volume, NUMBERS, plane, count - 1)
    for index in (-1, count):
        with pytest.raises(IndexError, match=f"0 to {count - 1}"):
            cut(volume, NUMBERS, plane, index)


def test_the_description_matches_the_pictures(volume):
    planes = describe(Volume(volume, (3.0, 1.5, 1.25), NUMBERS))
    assert [planes[p]["mm"] for p in ("axial", "coronal", "sagittal")] == [(1.25, 1.5), (1.25, 3.0), (1.5, 3.0)]
    assert [planes[p]["count"] for p in ("axial", "coronal", "sagittal")] == [3, 4, 6]
    for plane, facts in planes.items():
        assert cut(volume, NUMBERS, plane, 0).shape == (facts["height"], facts["width"])


def test_labels_shown_lists_the_labels_of_each_plane():
    bits = np.zeros((3, 4, 6), np.uint8)
    bits[0, 1, 2], bits[0, 1, 3], bits[2, 3, 2] = 1, 6, 4
    expected = {
        "axial": [[0, 1, 2], [], [2]],
        "coronal": [[], [0, 1, 2], [], [2]],
        "sagittal": [[], [], [0, 2], [1, 2], [], []],
    }
    assert labels_shown(bits[None], 3) == expected


def test_labels_of_the_data_are_matched_by_name():
    model_labels, data_labels = LabelSet.of("liver", "spleen", "colon"), LabelSet.of("Spleen", "kidney", "liver")
    masks = np.random.default_rng(0).random((3, 2, 4, 5)) < 0.3
    actual = of_annotation(Annotation(masks, np.array([True, False, True])), model_labels, data_labels)
    assert actual.annotated.tolist() == [False, False, True]
    np.testing.assert_array_equal(actual.bits, pack_groups(np.stack([masks[1], np.zeros_like(masks[0]), masks[0]])))
