from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gitseg_tf.data.readers.rle import RleError, mask_to_rle, rle_to_mask
from gitseg_tf.errors import GitsegError

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))


def pixels_one_by_one(rle, shape):
    """Decode as the competition describes it: number the pixels from 1, row by row, and fill the runs."""
    flat = [False] * (shape[0] * shape[1])
    numbers = [int(n) for n in rle.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start, start + length):
            flat[pixel - 1] = True
    return np.array(flat).reshape(shape)


@settings(deadline=None, max_examples=150)
@given(MASKS)
def test_any_mask_round_trips(mask):
    assert np.array_equal(rle_to_mask(mask_to_rle(mask), mask.shape), mask)


@settings(deadline=None, max_examples=100)
@given(MASKS)
def test_the_encoding_matches_the_definition_of_the_competition(mask):
    assert np.array_equal(pixels_one_by_one(mask_to_rle(mask), mask.shape), mask)


@settings(deadline=None, max_examples=100)
@given(MASKS)
def test_encoded_runs_are_sorted_and_separated(mask):
    numbers = [int(n) for n in mask_to_rle(mask).split()]
    starts, lengths = numbers[::2], numbers[1::2]
    assert all(start + length < after for start, length, after in zip(starts, lengths, starts[1:], strict=False))


def test_the_published_example_decodes_to_its_pixels():
    expected = [
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
        [1, 1, 0, 0, 0, 0],
    ]
    assert rle_to_mask("1 3 10 5", (3, 6)).astype(int).tolist() == expected


def test_the_published_example_encodes_to_its_string():
    mask = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    assert mask_to_rle(mask) == "1 3 10 5"


@pytest.mark.parametrize("blank", ["", "  "])
def test_an_empty_string_decodes_to_an_empty_mask(blank):
    mask = rle_to_mask(blank, (4, 7))
    assert mask.shape == (4, 7) and mask.dtype == bool and not mask.any()


def test_an_empty_mask_encodes_to_an_empty_string():
    assert mask_to_rle(np.zeros((4, 7), bool)) == ""


def test_a_full_mask_encodes_to_one_run():
    assert mask_to_rle(np.ones((4, 7), bool)) == "1 28"


def test_a_full_run_decodes_to_a_full_mask():
    assert rle_to_mask("1 28", (4, 7)).all()


def test_adjacent_rle_runs_are_accepted():
    assert np.array_equal(rle_to_mask("2 2 4 3", (2, 5)), rle_to_mask("2 5", (2, 5)))


def test_any_nonzero_value_is_foreground():
    assert mask_to_rle(np.array([[0, 255], [0.5, 0]])) == "2 2"


def test_a_transposed_mask_is_encoded_row_by_row():
    mask = np.zeros((3, 5), bool)
    mask[1:, 2] = True
    assert mask_to_rle(mask.T) == "8 2"


@pytest.mark.parametrize(
    ("rle", "fault"),
    [
        ("1 3 10", "odd number of values (3)"),
        ("1 x", "other than integers"),
        ("1 2.5", "other than integers"),
        ("1 99999999999999999999999", "other than integers"),
        ("1 0", "length 0"),
        ("4 -2", "length -2"),
        ("0 3", "run 1 (start 0, length 3) leaves the image"),
        ("-3 2", "run 1 (start -3, length 2) leaves the image"),
        ("1 3 15 4", "run 2 (start 15, length 4) leaves the image"),
        ("18 1", "run 1 (start 18, length 1) leaves the image"),
        ("9223372036854775807 9223372036854775807", "leaves the image"),
        ("1 9223372036854775807", "leaves the image"),
        ("1 3 3 2", "run 2 starts before run 1 ends"),
        ("9 2 1 2", "run 2 starts before run 1 ends"),
    ],
)
def test_an_invalid_string_is_refused_with_the_reason(rle, fault):
    with pytest.raises(RleError) as caught:
        rle_to_mask(rle, (1, 17))
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_that_leaves_the_image_is_refused_with_the_image_size():
    with pytest.raises(RleError, match=r"4 x 6 pixels numbered 1 to 24"):
        rle_to_mask("20 6", (4, 6))


def test_a_long_string_is_abbreviated_in_the_message():
    with pytest.raises(RleError) as caught:
        rle_to_mask("1 2 " * 500 + "7", (4, 6))
    assert len(str(caught.value)) < 200


def test_an_rle_error_is_a_gitseg_error():
    assert issubclass(RleError, GitsegError)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-3, 30), max_size=8))
def test_a_list_of_integers_decodes_or_raises_an_rle_error(numbers):
    rle = " ".join(map(str, numbers))
    starts, lengths = numbers[::2], numbers[1::2]
    pairs = list(zip(starts, lengths, strict=False))
    right = len(numbers) % 2 == 0 and all(n > 0 and s > 0 and s + n - 1 <= 24 for s, n in pairs)
    right = right and all(s + n <= after for (s, n), (after, _) in pairwise(pairs))
    if right:
        assert np.array_equal(rle_to_mask(rle, (4, 6)), pixels_one_by_one(rle, (4, 6)))
    else:
        with pytest.raises(RleError):
            rle_to_mask(rle, (4, 6))
