"""Random changes of training windows; image and mask move together. Stateless: the seed decides."""

import math

import tensorflow as tf

from gitseg_tf.config import AugmentConfig


def augment(image, mask, seed, config: AugmentConfig):
    """Flip and warp a window and its mask.

    Args:
        image: float32 [H, W, K].
        mask: float32 [H, W, 3], 0 or 1.
        seed: int64 tensor [2]; the same seed gives the same result.
        config: probabilities and ranges.

    Returns:
        image, warped linearly, zeros where nothing was; mask, warped to the nearest pixel, 0 or 1.
    """
    height, width = image.shape[:2]
    draws = tf.random.stateless_uniform([7], seed)
    moved = tf.cast(draws[0] < config.affine, tf.float32)
    span = moved * (2.0 * draws[1:5] - 1.0)
    mirror = tf.where(draws[5] < config.flip, -1.0, 1.0)
    transform = _output_to_input(
        height,
        width,
        angle=span[0] * config.rotate * math.pi / 180.0,
        zoom=1.0 + span[1] * config.scale,
        shift_y=span[2] * config.shift * height,
        shift_x=span[3] * config.shift * width,
        mirror=mirror,
    )
    return _warp(image, transform, "BILINEAR"), _warp(mask, transform, "NEAREST")


def _output_to_input(height, width, angle, zoom, shift_y, shift_x, mirror):
    """The numbers of ImageProjectiveTransformV3: rotation, zoom, mirror about the centre, then a shift, inverted."""
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    cos, sin = tf.cos(angle) / zoom, tf.sin(angle) / zoom
    a, b = mirror * cos, mirror * sin
    c, d = -sin, cos
    offset_x = centre_x - a * (centre_x + shift_x) - b * (centre_y + shift_y)
    offset_y = centre_y - c * (centre_x + shift_x) - d * (centre_y + shift_y)
    return tf.stack([a, b, offset_x, c, d, offset_y, 0.0, 0.0])


def _warp(planes, transform, interpolation: str):
    warped = tf.raw_ops.ImageProjectiveTransformV3(
        images=planes[None],
        transforms=transform[None],
        output_shape=planes.shape[:2],
        fill_value=0.0,
        interpolation=interpolation,
        fill_mode="CONSTANT",
    )[0]
    return tf.ensure_shape(warped, planes.shape)
