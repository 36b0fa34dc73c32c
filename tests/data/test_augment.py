import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from gitseg_tf.config import AugmentConfig
from gitseg_tf.data.augment import augment

HEIGHT, WIDTH = 96, 128
POINTS = np.array([[34, 48], [44, 86], [66, 60]], float)
RANGES = {"shift": 0.05, "scale": 0.15, "rotate": 14.0}
CONFIG = AugmentConfig(flip=0, affine=1, **RANGES)
SEEDS = range(24)
YX = np.moveaxis(np.indices((HEIGHT, WIDTH)), 0, -1).astype(float)


def distances():
    return np.linalg.norm(YX[:, :, None] - POINTS, axis=-1)


def blobs():
    """One smooth spot a channel."""
    return np.exp(-((distances() / 4.0) ** 2) / 2).astype(np.float32)


def discs():
    """One disc a channel, about the same points."""
    return (distances() <= 7.5).astype(np.float32)


def texture():
    rng = np.random.default_rng(1)
    image = ndimage.gaussian_filter(rng.random((HEIGHT, WIDTH, 3)), (3, 3, 0))
    image *= np.hypot(*np.moveaxis(YX - [(HEIGHT - 1) / 2, (WIDTH - 1) / 2], -1, 0))[..., None] < 40
    return (image / image.max()).astype(np.float32)


def centroids(planes):
    return np.einsum("hwk,hwc->kc", planes, YX) / planes.sum((0, 1))[:, None]


def augmented(image, mask, seed, config=CONFIG):
    return [part.numpy() for part in augment(image, mask, tf.constant([7, seed], tf.int64), config)]


def fitted_transform(moved):
    """The matrix and offset with moved = matrix @ point + offset, from the three points."""
    solution = np.linalg.solve(np.column_stack([POINTS, np.ones(3)]), moved)
    return solution[:2].T, solution[2]


@pytest.fixture(scope="module")
def warped():
    """Spots and discs after each seed."""
    return [augmented(blobs(), discs(), seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def transforms(warped):
    return [fitted_transform(centroids(image)) for image, _ in warped]


def test_with_probabilities_of_zero_nothing_changes():
    image, mask = augmented(texture(), discs(), 3, AugmentConfig(flip=0, affine=0))
    assert np.array_equal(image, texture()) and np.array_equal(mask, discs())


def test_a_flip_is_exact():
    image, mask = augmented(texture(), discs(), 3, AugmentConfig(flip=1, affine=0))
    assert np.array_equal(image, texture()[:, ::-1]) and np.array_equal(mask, discs()[:, ::-1])


def test_a_flip_of_odd_width_is_exact():
    image = texture()[:, :95]
    flipped, _ = augmented(image, discs()[:, :95], 3, AugmentConfig(flip=1, affine=0))
    assert np.array_equal(flipped, image[:, ::-1])


def test_the_same_seed_gives_the_same_window(warped):
    again = augmented(blobs(), discs(), SEEDS[3])
    assert all(np.array_equal(one, other) for one, other in zip(again, warped[3], strict=True))


def test_different_seeds_give_different_windows(warped):
    assert len({image.tobytes() for image, _ in warped}) == len(SEEDS)


def test_masks_stay_zero_or_one(warped):
    assert all(set(np.unique(mask)) == {0, 1} for _, mask in warped)


def test_image_and_mask_move_together_to_within_half_a_pixel(warped):
    assert all(np.abs(centroids(image) - centroids(mask)).max() < 0.5 for image, mask in warped)


def test_proportions_are_kept(transforms):
    for matrix, _ in transforms:
        assert np.allclose(matrix @ matrix.T, np.linalg.det(matrix) * np.eye(2), atol=0.01)


def test_sizes_change_within_their_range(transforms):
    zooms = np.array([np.sqrt(np.linalg.det(matrix)) for matrix, _ in transforms])
    assert np.abs(zooms - 1).max() < RANGES["scale"] + 0.005
    assert zooms.min() < 1 - RANGES["scale"] / 2 and zooms.max() > 1 + RANGES["scale"] / 2


def test_rotations_stay_within_their_range(transforms):
    angles = np.array([np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])) for matrix, _ in transforms])
    assert np.abs(angles).max() < RANGES["rotate"] + 0.3
    assert angles.min() < -RANGES["rotate"] / 2 and angles.max() > RANGES["rotate"] / 2


def test_shifts_of_the_middle_stay_within_their_range(transforms):
    middle = np.array([(HEIGHT - 1) / 2, (WIDTH - 1) / 2])
    shifts = np.array([matrix @ middle + offset - middle for matrix, offset in transforms]) / [HEIGHT, WIDTH]
    assert np.abs(shifts).max() < RANGES["shift"] + 0.003
    assert (shifts.min(0) < -RANGES["shift"] / 2).all() and (shifts.max(0) > RANGES["shift"] / 2).all()


@pytest.mark.parametrize("seed", [0, 5, 11])
def test_the_warp_is_that_of_scipy(transforms, seed):
    matrix, offset = transforms[seed]
    inverse = np.linalg.inv(matrix)
    expected = np.stack(
        [
            ndimage.affine_transform(plane, inverse, -inverse @ offset, order=1)
            for plane in np.moveaxis(texture(), -1, 0)
        ],
        axis=-1,
    )
    image, _ = augmented(texture(), discs(), seed)
    assert np.abs(image - expected).max() < 0.03


def test_nothing_is_drawn_where_no_image_was():
    image, mask = augmented(
        np.ones((HEIGHT, WIDTH, 1), np.float32),
        np.ones((HEIGHT, WIDTH, 3), np.float32),
        2,
        AugmentConfig(flip=0, affine=1, shift=0.5, scale=0, rotate=0),
    )
    assert 0 < image.mean() < 1 and abs(image.mean() - mask.mean()) < 0.02


def test_a_flip_and_a_warp_go_together():
    image, mask = augmented(blobs(), discs(), 4, AugmentConfig(flip=1, affine=1, **RANGES))
    matrix, _ = fitted_transform(centroids(image))
    assert np.linalg.det(matrix) < 0 and np.allclose(matrix @ matrix.T, -np.linalg.det(matrix) * np.eye(2), atol=0.01)
    assert np.abs(centroids(image) - centroids(mask)).max() < 0.5


def test_about_the_asked_share_of_windows_is_flipped():
    ramp = np.tile(np.arange(4, dtype=np.float32)[:, None], (4, 1, 1))
    mask, config = np.zeros((4, 4, 3), np.float32), AugmentConfig(flip=0.3, affine=0)
    flips = [augmented(ramp, mask, seed, config)[0][0, 0, 0] == 3 for seed in range(200)]
    assert 0.2 < np.mean(flips) < 0.4
