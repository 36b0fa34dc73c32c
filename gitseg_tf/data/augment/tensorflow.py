"""Augmentation with TensorFlow operations of static shape, which XLA compiles into the training step."""

import numpy as np
import tensorflow as tf

from gitseg_tf.config.augment import AugmentConfig
from gitseg_tf.data.augment.parameters import BIAS_NODES, blur_radius, draw, hat_basis, slice_steps, spline_basis

_SAMPLED = 8  # look at every eighth pixel of every eighth row


def augment_batch(
    image,
    mask,
    seed,
    config: AugmentConfig,
    *,
    first: int | tf.Tensor = 0,
    whole_batch: int | None = None,
    labels: int | None = None,
):
    """Draw random parameters for a batch and apply them.

    Args:
        image: float32 [B, H, W, K * C], or [B, D, H, W, C] for volumes.
        mask: float32 [B, H, W, L], or [B, D, H, W, L] for volumes; 0 or 1, or -1 where a voxel is excluded. More
            channels, with probabilities, may follow.
        seed: int64 tensor [2].
        config: probabilities and ranges.
        first: index of the first of these windows in the global batch, which several replicas may share.
        whole_batch: number of windows in the global batch; None is B.
        labels: number of labels, L; None is the number of channels of the mask.

    Returns:
        image and mask of the same shapes.
    """
    batch, (height, width) = image.shape[0], image.shape[-3:-1]
    parameters = draw(whole_batch or batch, height, width, seed, config)
    parameters = {
        name: tf.slice(value, [first, *[0] * (value.shape.rank - 1)], [batch, *value.shape[1:]])
        for name, value in parameters.items()
    }
    return change_batch(image, mask, parameters, config, labels=labels)


def change_batch(image, mask, parameters: dict, config: AugmentConfig, *, labels: int | None = None):
    """Apply random parameters to a batch, see `augment_batch` and `parameters.draw`."""
    volumetric, channels, targets = image.shape.rank == 5, image.shape[-1], mask.shape[-1]
    binary = np.arange(targets) < (targets if labels is None else labels)
    outside = _outside_of(mask)
    if "tilt" in parameters:
        image, mask = _warp_slices(image, mask, outside, parameters, config, binary)
    if volumetric:
        outside, binary = tf.tile(outside, [1, 1, 1, image.shape[1]]), np.tile(binary, image.shape[1])
        image, mask = _slices_as_channels(image), _slices_as_channels(mask)
    if "tilt" not in parameters:
        image, mask = _warp(image, mask, outside, parameters, config, binary)
    image = _change_intensities(image, parameters, config)
    if "holes" in parameters:
        image *= tf.cast(~tf.reduce_any(_inside(parameters["holes"], *image.shape[1:3]), 1), tf.float32)[..., None]
    if "mixup" in parameters:
        weight = parameters["mixup"][:, None, None, None]
        following = tf.roll(mask, -1, 0)
        excluded = (mask < 0) | ((following < 0) & (weight < 1))
        image = weight * image + (1 - weight) * tf.roll(image, -1, 0)
        mask = tf.where(excluded, -1.0, weight * mask + (1 - weight) * following)
    if "cutmix" in parameters:
        inside = _inside(parameters["cutmix"], *image.shape[1:3])[..., None]
        image, mask = (tf.where(inside, tf.roll(x, -1, 0), x) for x in (image, mask))
    return (_channels_as_slices(image, channels), _channels_as_slices(mask, targets)) if volumetric else (image, mask)


def _outside_of(mask):
    """Return a mask's values beyond its window, float32 [B, 1, 1, L]: -1 if the label is not annotated, else 0.

    A label that is not annotated is -1 at every voxel, so it suffices to check a few voxels, which is much faster.
    """
    few = mask[..., ::_SAMPLED, ::_SAMPLED, :]
    unannotated = tf.reduce_all(few < 0, list(range(1, mask.shape.rank - 1)))
    return tf.where(unannotated, -1.0, 0.0)[:, None, None, :]


def _slices_as_channels(volume):
    batch, depth, height, width, channels = volume.shape
    return tf.reshape(tf.transpose(volume, [0, 2, 3, 1, 4]), [batch, height, width, depth * channels])


def _channels_as_slices(planes, channels: int):
    batch, height, width, depth = planes.shape
    return tf.transpose(tf.reshape(planes, [batch, height, width, depth // channels, channels]), [0, 3, 1, 2, 4])


def _warp_slices(image, mask, outside, parameters: dict, config: AugmentConfig, binary: np.ndarray):
    """Warp each slice of a volume by its own map, because of the tilt: slices become windows of a larger batch."""
    batch, depth = image.shape[:2]
    repeated = {
        name: tf.repeat(value, depth, 0)
        for name, value in parameters.items()
        if name in ("transform", "elastic", "grid", "displaced")
    }
    steps = tf.reshape(parameters["tilt"][:, None] * slice_steps(depth)[:, None], [batch * depth, 2])
    image, mask = (tf.reshape(volume, [batch * depth, *volume.shape[2:]]) for volume in (image, mask))
    warped = _warp(image, mask, tf.repeat(outside, depth, 0), repeated | {"tilt": steps}, config, binary)
    return [tf.reshape(volume, [batch, depth, *volume.shape[1:]]) for volume in warped]


def _warp(image, mask, outside, parameters: dict, config: AugmentConfig, binary: np.ndarray):
    if not {"transform", "displaced", "tilt"} & set(parameters):
        return image, mask
    height, width = image.shape[1:3]
    y, x = tf.meshgrid(tf.range(height, dtype=tf.float32), tf.range(width, dtype=tf.float32), indexing="ij")
    from_y, from_x = y[None], x[None]
    if "transform" in parameters:
        a, b, x0, c, d, y0 = (n[:, None, None] for n in tf.unstack(parameters["transform"], axis=1))
        from_y, from_x = c * x + d * y + y0, a * x + b * y + x0
    if "tilt" in parameters:
        shift = parameters["tilt"][:, :, None, None]
        from_y, from_x = from_y + shift[:, 0], from_x + shift[:, 1]
    if "elastic" in parameters:
        rows, columns = (spline_basis(n, config.elastic.nodes) for n in (height, width))
        field = tf.einsum("hi,bcij,wj->bchw", rows, parameters["elastic"], columns)
        from_y, from_x = from_y + field[:, 0], from_x + field[:, 1]
    if "grid" in parameters:
        rows, columns = (hat_basis(n, config.grid.nodes) for n in (height, width))
        from_y += tf.einsum("hi,bi->bh", rows, parameters["grid"][:, 0])[:, :, None]
        from_x += tf.einsum("wi,bi->bw", columns, parameters["grid"][:, 1])[:, None, :]
    if config.tensorflow_warp == "addons":
        from gitseg_tf.core.addons import import_addons

        flow = tf.stack([y - from_y, x - from_x], -1)
        warp = import_addons().image.dense_image_warp
        # The warp of tensorflow-addons repeats the border; outside the window the image is 0 and the mask is `outside`.
        inside = _within(from_y, from_x, height, width)[..., None]
        excluded = warp(tf.cast(mask < 0, tf.float32), flow) >= 0.5
        soft = warp(tf.maximum(mask, 0.0), flow)
        warped = tf.where(excluded, -1.0, tf.where(binary, tf.cast(soft >= 0.5, tf.float32), soft))
        return tf.where(inside, warp(image, flow), 0.0), tf.where(inside, warped, outside)
    return _bilinear(image, from_y, from_x), _gather(mask, tf.round(from_y), tf.round(from_x), outside)


def _within(y, x, height: int, width: int):
    return (y >= 0) & (y <= height - 1) & (x >= 0) & (x <= width - 1)


def _gather(planes, y, x, outside=None):
    """Gather the pixels at integer coordinates [B, H, W], with `outside` or zeros beyond the border."""
    batch, height, width, channels = planes.shape
    index = tf.cast(tf.clip_by_value(y, 0, height - 1) * width + tf.clip_by_value(x, 0, width - 1), tf.int32)
    flat = tf.reshape(planes, [batch, height * width, channels])
    picked = tf.gather(flat, tf.reshape(index, [batch, height * width]), batch_dims=1)
    inside = tf.cast(_within(y, x, height, width), planes.dtype)[..., None]
    picked = tf.reshape(picked, [batch, height, width, channels]) * inside  # XLA compiles tf.where to slower code
    return picked if outside is None else picked + outside * (1 - inside)


def _bilinear(planes, y, x):
    above, left = tf.floor(y), tf.floor(x)
    down, right = (tf.cast(part[..., None], planes.dtype) for part in (y - above, x - left))
    upper = (1 - right) * _gather(planes, above, left) + right * _gather(planes, above, left + 1)
    lower = (1 - right) * _gather(planes, above + 1, left) + right * _gather(planes, above + 1, left + 1)
    return (1 - down) * upper + down * lower


def _change_intensities(image, parameters: dict, config: AugmentConfig):
    if "zoom" in parameters:
        image = _at_low_resolution(_at_low_resolution(image, parameters["zoom"], 1), parameters["zoom"], 2)
    if "sigma" in parameters:
        image = _blur(
            _blur(image, parameters["sigma"], blur_radius(config), 1), parameters["sigma"], blur_radius(config), 2
        )
    if "bias" in parameters:
        rows, columns = (spline_basis(n, BIAS_NODES) for n in image.shape[1:3])
        image *= tf.exp(tf.einsum("hi,bij,wj->bhw", rows, parameters["bias"], columns))[..., None]
    if "contrast" in parameters:
        mean = tf.reduce_mean(image, [1, 2, 3], keepdims=True)
        image = (image - mean) * parameters["contrast"][:, None, None, None] + mean
    if "brightness" in parameters:
        image += parameters["brightness"][:, None, None, None]
    if {"bias", "contrast", "brightness"} & set(parameters):
        image = tf.clip_by_value(image, 0.0, 1.0)
    if "gamma" in parameters:
        image = tf.pow(image, parameters["gamma"][:, None, None, None])
    if "noise" in parameters:
        seed = tf.cast(tf.stack([parameters["noise_seed"][0], image.shape[0]]), tf.int64)
        noise = tf.random.stateless_normal(image.shape, seed) * parameters["noise"][:, None, None, None]
        image = tf.clip_by_value(image + noise, 0.0, 1.0)
    return image


def _at_low_resolution(image, zoom, axis: int):
    """Downsample to the nearest pixels and interpolate back linearly along an axis, with two gathers."""
    pixels = image.shape[axis]
    coarse = tf.maximum(tf.floor(pixels * zoom + 0.5), 1.0)[:, None]
    position = tf.clip_by_value((tf.range(pixels, dtype=tf.float32) + 0.5) * coarse / pixels - 0.5, 0.0, coarse - 1)
    below = tf.floor(position)
    above = tf.minimum(below + 1, coarse - 1)

    def fine(pixel):
        return tf.cast(tf.minimum(tf.floor((pixel + 0.5) * (pixels / coarse)), pixels - 1.0), tf.int32)

    fraction = tf.reshape(position - below, [-1, pixels, 1, 1] if axis == 1 else [-1, 1, pixels, 1])
    low, high = (tf.gather(image, fine(pixel), axis=axis, batch_dims=1) for pixel in (below, above))
    smaller = tf.reshape(zoom < 1, [-1, 1, 1, 1])
    return tf.where(smaller, (1 - fraction) * low + fraction * high, image)


def _blur(image, sigma, radius: int, axis: int):
    distance = tf.range(-radius, radius + 1, dtype=tf.float32)
    weights = tf.exp(-0.5 * (distance / tf.maximum(sigma, 1e-3)[:, None]) ** 2)
    weights /= tf.reduce_sum(weights, 1, keepdims=True)
    pixels = image.shape[axis]
    index = tf.clip_by_value(tf.range(pixels)[None] + tf.range(-radius, radius + 1)[:, None], 0, pixels - 1)
    blurred = tf.zeros_like(image)
    for k in range(2 * radius + 1):
        blurred += weights[:, k, None, None, None] * tf.gather(image, index[k], axis=axis)
    return blurred


def _inside(boxes, height: int, width: int):
    """Rasterize boxes [..., 4] of y, x, height, width: bool [..., H, W]."""
    y, x, box_height, box_width = (side[..., None] for side in tf.unstack(boxes, axis=-1))
    rows, columns = tf.range(height), tf.range(width)
    in_rows = (rows >= y) & (rows < y + box_height)
    in_columns = (columns >= x) & (columns < x + box_width)
    return in_rows[..., :, None] & in_columns[..., None, :]
