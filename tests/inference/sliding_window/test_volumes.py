import numpy as np
import pytest
import tensorflow as tf
from helpers.known_networks import labeled, masks_by

from gitseg_tf.data.pipeline.tiles import tile_slices
from gitseg_tf.inference.sliding_window.blend import blend_patches, gaussian_weights

PATCH = (4, 6, 8)


def blended(network, volume, patch=PATCH, overlap=0.5, batch_size=3):
    offsets = np.arange(patch[0], dtype=np.int32) - patch[0] // 2
    slices = tile_slices(tf.range(len(volume), dtype=tf.int64), offsets, overlap).numpy()
    return blend_patches(network, volume[..., None], slices, patch=patch, batch_size=batch_size, overlap=overlap)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("depth", [2, 4, 11])
def test_an_identity_network_reproduces_the_volume(depth, overlap):
    volume = np.random.default_rng(0).random((depth, 15, 21), np.float32)
    np.testing.assert_allclose(blended(lambda x: x, volume, overlap=overlap)[..., 0], volume, atol=1e-5)


def test_overlapping_patches_are_averaged_with_gaussian_weights():
    # Patches of 4 pixels at 0 and 2. The network returns the number of the patch.
    volume = np.zeros((1, 1, 6), np.float32)
    answers = iter([1.0, 2.0])

    def network(batch):
        return np.full(batch.shape, next(answers), np.float32)

    found = blended(network, volume, (1, 1, 4), batch_size=1)[0, 0, :, 0]
    # sigma is half a pixel: exp(-4.5), exp(-0.5), exp(-0.5), exp(-4.5) at distances of 1.5 and 0.5.
    far, near = np.exp(-4.5), np.exp(-0.5)
    third, fourth = (near * 1 + far * 2) / (near + far), (far * 1 + near * 2) / (near + far)
    assert found == pytest.approx([1, 1, third, fourth, 2, 2], abs=1e-6)


def test_gaussian_weights_have_a_sigma_of_an_eighth_of_the_patch_and_are_positive():
    weights = gaussian_weights((5, 8, 16))
    middle = weights[2, 4, :]
    ratio = middle[9] / middle[8]
    assert ratio == pytest.approx(np.exp(-0.5 * (1.5**2 - 0.5**2) / 2**2), rel=1e-5)
    assert weights.shape == (5, 8, 16) and weights.min() == pytest.approx(1e-3) and weights.max() <= 1
    assert np.array_equal(weights, weights[::-1, ::-1, ::-1])


def test_batches_are_padded_and_do_not_change_the_result():
    volume = np.random.default_rng(1).random((9, 15, 21), np.float32)
    sizes = set()

    def network(batch):
        sizes.add(len(batch))
        return batch**2

    assert np.allclose(blended(network, volume, batch_size=5), blended(network, volume, batch_size=1))
    assert sizes == {1, 5}


def ball_scan(depth=9, height=70, width=110):
    z, y, x = np.ogrid[:depth, :height, :width]
    inside = (z - 4) ** 2 / 9 + (y - 30) ** 2 / 225 + (x - 60) ** 2 / 400 < 1
    return np.where(inside, 3000, 100).astype(np.uint16), inside


def brightness(patches):
    """A network that predicts bright voxels as stomach, and no other labels."""
    return tf.concat([tf.zeros_like(patches), tf.zeros_like(patches), patches], -1)


def predict(image, numbers=None, probabilities=brightness, **overrides):
    settings = {"data.input_size": [64, 64], "data.patch": [8, 48, 64], "model.architecture": "unet3d"}
    settings |= {"evaluation.batch_size": 2} | {key.replace("__", "."): value for key, value in overrides.items()}
    return masks_by(probabilities, image, labeled(settings), () if numbers is None else numbers)


@pytest.mark.parametrize("settings", [{}, {"data__pixel_mm": 2.0}, {"data__window_stride": 2}])
def test_masks_have_the_size_and_position_of_the_scan(settings):
    image, inside = ball_scan()
    masks = predict(image, **settings)
    assert masks.shape == (3, *image.shape) and masks.dtype == bool and not masks[:2].any()
    assert 2 * (masks[2] & inside).sum() / (masks[2].sum() + inside.sum()) > 0.95


@pytest.mark.parametrize("smooth_mm", [0, 1e-3])
def test_masks_are_postprocessed_as_configured(smooth_mm):
    image, _ = ball_scan()
    image[0, 24:34, 55:65] = 3000
    plain = predict(image)
    settings = {"postprocess__stomach__keep_largest_component": True, "postprocess__stomach__smooth_mm": smooth_mm}
    cleaned = predict(image, **settings)
    assert plain[2, 0].any() and not cleaned[2, 0].any()
    np.testing.assert_array_equal(cleaned[2, 1:], plain[2, 1:])


@pytest.mark.parametrize("depth", [1, 3])
def test_a_scan_with_fewer_slices_than_the_patch_is_predicted(depth):
    image, inside = ball_scan()
    image, inside = image[4 : 4 + depth], inside[4 : 4 + depth]
    masks = predict(image)
    assert masks.shape == (3, *image.shape)
    assert 2 * (masks[2] & inside).sum() / (masks[2].sum() + inside.sum()) > 0.95


def test_a_patch_does_not_cross_a_gap_in_the_slice_numbers():
    image = np.full((6, 64, 64), 100, np.uint16)
    image[:3, 10:50, 10:50] = 3000

    def slice_below(patches):
        return tf.repeat(tf.concat([patches[:, 1:], patches[:, -1:]], 1), 3, -1)

    joined = predict(image, np.arange(6), slice_below, data__patch=[8, 64, 64])
    apart = predict(image, np.array([0, 1, 2, 7, 8, 9]), slice_below, data__patch=[8, 64, 64])
    assert joined[0].any((1, 2)).tolist() == [True, True, False, False, False, False]
    assert apart[0].any((1, 2)).tolist() == [True, True, True, False, False, False]
