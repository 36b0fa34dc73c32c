"""Pictures of a scan: which slices are shown, and the data of the slice viewer."""

import base64
import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gitseg_tf.data.volume import Annotation, LoadedScan, Volume
from gitseg_tf.evaluation.report.slices import encode_scan, pick_slices, picture_scan, run_lengths
from gitseg_tf.labels import UWMGI


def decoded(text, shape):
    """Decode alternating runs of background and foreground."""
    lengths = [int(length) for length in text.split()]
    flat = [k % 2 == 1 for k, length in enumerate(lengths) for _ in range(length)]
    return np.array(flat + [False] * (np.prod(shape) - len(flat))).reshape(shape)


@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_run_lengths_round_trip(mask):
    np.testing.assert_array_equal(decoded(run_lengths(mask), mask.shape), mask)


def test_run_lengths_of_small_masks():
    assert run_lengths(np.array([[0, 1, 1], [1, 0, 1]], bool)) == "1 3 1 1"
    assert run_lengths(np.ones((2, 2), bool)) == "0 4"
    assert run_lengths(np.zeros((2, 2), bool)) == ""


@pytest.fixture(scope="module")
def pair():
    """Large bowel: 12 pixels missed in slice 1. Stomach: 4 extra in slice 1, 9 right in slice 2, 3 extra in slice 4."""
    truth, prediction = np.zeros((3, 5, 20, 30), bool), np.zeros((3, 5, 20, 30), bool)
    truth[0, 1, 5:8, 10:14] = True
    prediction[2, 1, 2, 3:7] = True
    truth[2, 2, 5:8, 5:8] = prediction[2, 2, 5:8, 5:8] = True
    prediction[2, 4, 18, 20:23] = True
    return truth, prediction


def test_errors_are_counted_per_slice(pair):
    encoded = encode_scan([3, 4, 5, 6, 9], np.zeros((5, 20, 30), np.uint8), *pair)
    assert encoded["missed"] == [[0, 12, 0, 0, 0], [0] * 5, [0] * 5]
    assert encoded["extra"] == [[0] * 5, [0] * 5, [0, 4, 0, 0, 3]]
    assert encoded["both"] == [[0] * 5, [0] * 5, [0, 0, 9, 0, 0]]
    assert encoded["start"] == 1 and encoded["numbers"] == [3, 4, 5, 6, 9]
    assert encoded["box"] == [3, 2, 23, 19]
    assert (encoded["width"], encoded["height"]) == (30, 20)


def test_encoded_masks_match_the_given_masks(pair):
    encoded = encode_scan([1, 2, 3, 4, 5], np.zeros((5, 20, 30), np.uint8), *pair)
    for name, masks in zip(("truth", "prediction"), pair, strict=True):
        found = np.array([[decoded(text, (20, 30)) for text in label] for label in encoded[name]])
        np.testing.assert_array_equal(found, masks)


def test_encoded_images_look_like_the_scan(pair):
    y, x = np.mgrid[:20, :30]
    image = np.stack([(x * 4 + y * 5 + z * 10) % 256 for z in range(5)]).astype(np.uint8)
    images = encode_scan([1, 2, 3, 4, 5], image, *pair)["images"]
    seen = [cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED) for text in images]
    assert np.abs(np.stack(seen).astype(int) - image).mean() < 3


def test_the_size_of_an_incompressible_scan_is_limited():
    image = np.random.default_rng(0).integers(0, 256, (40, 400, 400), dtype=np.uint8)
    empty = np.zeros((3, 40, 400, 400), bool)
    assert sum(map(len, encode_scan(list(range(40)), image, empty, empty)["images"])) <= 1_900_000


def test_a_scan_without_masks_is_not_cropped():
    empty = np.zeros((3, 2, 20, 30), bool)
    assert encode_scan([1, 2], np.zeros((2, 20, 30), np.uint8), empty, empty)["box"] == [0, 0, 30, 20]


def test_pictures_keep_the_slice_numbers(pair):
    image = np.random.default_rng(0).integers(0, 4000, (5, 20, 30)).astype(np.uint16)
    truth, prediction = pair
    volume = Volume(image, (3, 1.5, 1.5), (3, 4, 5, 6, 9))
    scan = LoadedScan("case1_day0", "case1", volume, Annotation.complete(truth))
    pictures = picture_scan(scan, prediction, UWMGI)
    assert [picture["slice_number"] for picture in pictures.slices] == [4, 5]
    assert json.loads(pictures.scroller)["numbers"] == [3, 4, 5, 6, 9]


def test_selected_slices_are_spread_out_and_show_labels():
    truth = np.zeros((3, 30, 20, 20), bool)
    truth[0, 5:26, :4, :4] = True
    truth[0, [9, 15, 22], :15, :15] = True
    assert pick_slices(truth) == [9, 15, 22]


def test_a_small_label_counts_as_much_as_a_large_one():
    truth = np.zeros((3, 10, 20, 20), bool)
    truth[0, :, :15, :15] = True
    truth[2, 5, 18, 18] = True
    assert pick_slices(truth, 1) == [5]


@pytest.mark.parametrize("annotated", [1, 2, 3, 5, 7])
def test_selected_slices_are_distinct_and_show_a_label(annotated):
    truth = np.zeros((3, 10, 4, 4), bool)
    truth[1, 1 : 1 + annotated] = True
    slices = pick_slices(truth)
    assert len(slices) == len(set(slices)) == min(3, annotated)
    assert slices == sorted(slices) and truth[1, slices].any(axis=(1, 2)).all()


def test_a_scan_without_labels_still_has_slices_to_show():
    slices = pick_slices(np.zeros((3, 40, 4, 4), bool))
    assert len(slices) == 3 and slices == sorted(slices) and 0 < slices[0] < slices[-1] < 39
