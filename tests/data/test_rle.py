from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gitseg_tf.data.rle import RleError, mask_to_rle, rle_to_mask
from gitseg_tf.errors import InputError

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))


def pixels_one_by_one(rle, shape):
    """The decoding as the competition describes it: number the pixels from 1, row after row, and fill the runs."""
    flat = [False] * (shape[0] * shape[1])
    numbers = [int(n) for n in rle.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start, start + length):
            flat[pixel - 1] = True
    return np.array(flat).reshape(shape)


@settings(deadline=None, max_examples=150)
@given(MASKS)
def test_any_mask_survives_both_ways(mask):
    assert np.array_equal(rle_to_mask(mask_to_rle(mask), mask.shape), mask)


@settings(deadline=None, max_examples=100)
@given(MASKS)
def test_the_encoding_means_what_the_competition_says(mask):
    assert np.array_equal(pixels_one_by_one(mask_to_rle(mask), mask.shape), mask)


@settings(deadline=None, max_examples=100)
@given(MASKS)
def test_encoded_runs_are_in_order_and_apart(mask):
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
def test_an_empty_string_is_an_empty_mask(blank):
    mask = rle_to_mask(blank, (4, 7))
    assert mask.shape == (4, 7) and mask.dtype == bool and not mask.any()


def test_an_empty_mask_is_an_empty_string():
    assert mask_to_rle(np.zeros((4, 7), bool)) == ""


def test_a_full_mask_is_one_run():
    assert mask_to_rle(np.ones((4, 7), bool)) == "1 28"


def test_a_full_run_is_a_full_mask():
    assert rle_to_mask("1 28", (4, 7)).all()


def test_runs_may_touch():
    assert np.array_equal(rle_to_mask("2 2 4 3", (2, 5)), rle_to_mask("2 5", (2, 5)))


def test_any_number_but_zero_is_inside():
    assert mask_to_rle(np.array([[0, 255], [0.5, 0]])) == "2 2"


def test_a_transposed_mask_is_read_row_by_row():
    mask = np.zeros((3, 5), bool)
    mask[1:, 2] = True
    assert mask_to_rle(mask.T) == "8 2"


@pytest.mark.parametrize(
    ("rle", "fault"),
    [
        ("1 3 10", "odd count of numbers (3)"),
        ("1 x", "no whole number"),
        ("1 2.5", "no whole number"),
        ("1 99999999999999999999999", "no whole number"),
        ("1 0", "length 0"),
        ("4 -2", "length -2"),
        ("0 3", "run 1 (start 0, length 3) leaves the image"),
        ("-3 2", "run 1 (start -3, length 2) leaves the image"),
        ("1 3 15 4", "run 2 (start 15, length 4) leaves the image"),
        ("18 1", "run 1 (start 18, length 1) leaves the image"),
        ("9223372036854775807 9223372036854775807", "leaves the image"),
        ("1 9223372036854775807", "leaves the image"),
        ("1 3 3 2", "run 2 starts before run 1 has ended"),
        ("9 2 1 2", "run 2 starts before run 1 has ended"),
    ],
)
def test_a_wrong_string_is_refused_and_the_fault_named(rle, fault):
    with pytest.raises(RleError) as caught:
        rle_to_mask(rle, (1, 17))
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_out_of_the_image_is_told_with_the_size_of_the_image():
    with pytest.raises(RleError, match=r"4 x 6 pixels numbered 1 to 24"):
        rle_to_mask("20 6", (4, 6))


def test_a_long_string_is_quoted_in_part():
    with pytest.raises(RleError) as caught:
        rle_to_mask("1 2 " * 500 + "7", (4, 6))
    assert len(str(caught.value)) < 200


def test_a_wrong_string_is_the_users_fault():
    assert issubclass(RleError, InputError)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-3, 30), max_size=8))
def test_a_string_of_numbers_is_a_mask_or_a_clear_error(numbers):
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
