"""The probabilities of a teacher in a batch: unpacked on the host, and warped by both backends like masks."""

import numpy as np
import pytest
import tensorflow as tf

from gitseg_tf.config.augment import AugmentConfig
from gitseg_tf.data.augment.opencv import HostAugment
from gitseg_tf.data.augment.parameters import draw
from gitseg_tf.data.augment.tensorflow import change_batch

BATCH, LABELS, LEVELS, HEIGHT, WIDTH = 2, 3, 4, 32, 48
OFF = {name: {"p": 0.0} for name in AugmentConfig.model_fields if name not in ("backend", "tensorflow_warp")}


def packed(labels=LABELS, volumes=1, seed=0):
    """Random bits in the pipeline's order: labels, four levels per label, the ignore bit."""
    bits = np.random.default_rng(seed).random((BATCH, volumes, labels * (1 + LEVELS) + 1, HEIGHT, WIDTH)) < 0.3
    return bits, np.packbits(bits, 2, bitorder="little")


def host(settings, labels=LABELS, volumetric=False):
    return HostAugment(settings, HEIGHT, WIDTH, labels=labels, volumetric=volumetric, levels=LEVELS)


@pytest.mark.parametrize("labels", [1, 3, 9])
@pytest.mark.parametrize("slices", [1, 2])
def test_the_mean_of_the_bits_follows_the_labels(labels, slices):
    bits, planes = packed(labels, slices)
    annotated = np.ones((BATCH, labels), bool)
    annotated[1, 0] = False
    image = np.zeros((BATCH, slices, 1, HEIGHT, WIDTH), np.uint16)
    _, mask = host(AugmentConfig(**OFF), labels, slices > 1)(image, planes, annotated, {})
    of_labels = np.where(annotated[:, None, :, None, None], bits[:, :, :labels].astype(float), -1)
    levels = bits[:, :, labels:-1].reshape(BATCH, slices, labels, LEVELS, HEIGHT, WIDTH).mean(3)
    expected = np.where(bits[:, :, -1:], -1, np.concatenate([of_labels, levels], 2))
    expected = np.moveaxis(expected, 2, -1)
    np.testing.assert_allclose(mask, expected if slices > 1 else expected[:, 0], atol=1e-6)


def test_both_backends_warp_them_with_the_same_transform():
    settings = AugmentConfig(**OFF | {"affine": {"p": 1.0}, "flip": {"p": 0.5}, "elastic": {"p": 0.5}})
    parameters = draw(BATCH, HEIGHT, WIDTH, tf.constant([3, 1], tf.int64), settings)
    # A smooth probability, as levels, and a label of the same shape.
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    probability = np.exp(-((y - 15) ** 2 + (x - 20) ** 2) / 120)
    levels = [probability >= threshold for threshold in (0.125, 0.375, 0.625, 0.875)]
    bits = np.broadcast_to(
        np.stack([probability >= 0.5, *levels, np.zeros_like(levels[0])]), (BATCH, 1, 6, HEIGHT, WIDTH)
    )
    image = np.zeros((BATCH, 1, 1, HEIGHT, WIDTH), np.uint16)
    annotated = np.ones((BATCH, 1), bool)
    planes = np.packbits(bits, 2, bitorder="little")
    arrays = {name: value.numpy() for name, value in parameters.items()}
    _, on_host = host(settings, 1)(image, planes, annotated, arrays)
    _, plain = host(AugmentConfig(**OFF), 1)(image, planes, annotated, {})
    zeros = tf.zeros([BATCH, HEIGHT, WIDTH, 1])
    _, on_device = change_batch(zeros, tf.constant(plain), parameters, settings, labels=1)
    assert np.abs(on_host - plain).mean() > 0.02  # the warp moves something
    assert (np.abs(on_host - on_device.numpy()) < 1e-6).mean() > 0.99
    assert set(np.unique(on_host[..., 1])) == {0, 0.25, 0.5, 0.75, 1}
