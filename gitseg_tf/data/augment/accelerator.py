"""The changes made by TensorFlow operations with static shapes, which compile with XLA into the training step."""

import tensorflow as tf

from gitseg_tf.data.augment.draws import BIAS_NODES, blur_radius, draw, hat_basis, spline_basis
from gitseg_tf.sections.augment import AugmentConfig


def augment_batch(image, mask, seed, config: AugmentConfig, first: int | tf.Tensor = 0, whole_batch: int | None = None):
    """Draw and make the changes of a batch.

    Args:
        image: float32 [B, H, W, K], or [B, D, H, W, 1] for volumes.
        mask: float32 [B, H, W, 3], or [B, D, H, W, 3] for volumes; 0 or 1.
        seed: int64 tensor [2].
        config: probabilities and ranges.
        first: the number in the whole batch of the first of these windows, where several replicas share one.
        whole_batch: windows in the whole batch; None is B.

    Returns:
        image and mask of the same shapes.
    """
    batch, (height, width) = image.shape[0], image.shape[-3:-1]
    drawn = draw(whole_batch or batch, height, width, seed, config)
    drawn = {
        name: tf.slice(value, [first, *[0] * (value.shape.rank - 1)], [batch, *value.shape[1:]])
        for name, value in drawn.items()
    }
    return change_batch(image, mask, drawn, config)


def change_batch(image, mask, drawn: dict, config: AugmentConfig):
    """Make changes that were drawn, see `augment_batch` and `draws.draw`."""
    volumetric = image.shape.rank == 5
    if volumetric:
        image, mask = _slices_as_channels(image), _slices_as_channels(mask)
    image, mask = _warp(image, mask, drawn, config)
    image = _change_intensities(image, drawn, config)
    if "holes" in drawn:
        image *= tf.cast(~tf.reduce_any(_inside(drawn["holes"], *image.shape[1:3]), 1), tf.float32)[..., None]
    if "mixup" in drawn:
        share = drawn["mixup"][:, None, None, None]
        image, mask = (share * x + (1 - share) * tf.roll(x, -1, 0) for x in (image, mask))
    if "cutmix" in drawn:
        inside = _inside(drawn["cutmix"], *image.shape[1:3])[..., None]
        image, mask = (tf.where(inside, tf.roll(x, -1, 0), x) for x in (image, mask))
    return (_channels_as_slices(image, 1), _channels_as_slices(mask, 3)) if volumetric else (image, mask)


def _slices_as_channels(volume):
    batch, depth, height, width, channels = volume.shape
    return tf.reshape(tf.transpose(volume, [0, 2, 3, 1, 4]), [batch, height, width, depth * channels])


def _channels_as_slices(planes, channels: int):
    batch, height, width, depth = planes.shape
    return tf.transpose(tf.reshape(planes, [batch, height, width, depth // channels, channels]), [0, 3, 1, 2, 4])


def _warp(image, mask, drawn: dict, config: AugmentConfig):
    if "transform" not in drawn and "displaced" not in drawn:
        return image, mask
    height, width = image.shape[1:3]
    y, x = tf.meshgrid(tf.range(height, dtype=tf.float32), tf.range(width, dtype=tf.float32), indexing="ij")
    from_y, from_x = y[None], x[None]
    if "transform" in drawn:
        a, b, x0, c, d, y0 = (n[:, None, None] for n in tf.unstack(drawn["transform"], axis=1))
        from_y, from_x = c * x + d * y + y0, a * x + b * y + x0
    if "elastic" in drawn:
        rows, columns = (spline_basis(n, config.elastic.nodes) for n in (height, width))
        field = tf.einsum("hi,bcij,wj->bchw", rows, drawn["elastic"], columns)
        from_y, from_x = from_y + field[:, 0], from_x + field[:, 1]
    if "grid" in drawn:
        rows, columns = (hat_basis(n, config.grid.nodes) for n in (height, width))
        from_y += tf.einsum("hi,bi->bh", rows, drawn["grid"][:, 0])[:, :, None]
        from_x += tf.einsum("wi,bi->bw", columns, drawn["grid"][:, 1])[:, None, :]
    if config.accelerator_warp == "addons":
        from gitseg_tf.addons import import_addons

        flow = tf.stack([y - from_y, x - from_x], -1)
        warp = import_addons().image.dense_image_warp
        # The warp of tensorflow-addons repeats the border; outside of the window there is nothing.
        there = tf.cast(_within(from_y, from_x, height, width), tf.float32)[..., None]
        return warp(image, flow) * there, tf.cast(warp(mask, flow) >= 0.5, tf.float32) * there
    return _bilinear(image, from_y, from_x), _gather(mask, tf.round(from_y), tf.round(from_x))


def _within(y, x, height: int, width: int):
    return (y >= 0) & (y <= height - 1) & (x >= 0) & (x <= width - 1)


def _gather(planes, y, x):
    """Pixels at whole coordinates [B, H, W]; zeros outside."""
    batch, height, width, channels = planes.shape
    index = tf.cast(tf.clip_by_value(y, 0, height - 1) * width + tf.clip_by_value(x, 0, width - 1), tf.int32)
    flat = tf.reshape(planes, [batch, height * width, channels])
    picked = tf.gather(flat, tf.reshape(index, [batch, height * width]), batch_dims=1)
    there = tf.cast(_within(y, x, height, width), planes.dtype)[..., None]
    return tf.reshape(picked, [batch, height, width, channels]) * there


def _bilinear(planes, y, x):
    above, left = tf.floor(y), tf.floor(x)
    down, right = (tf.cast(part[..., None], planes.dtype) for part in (y - above, x - left))
    upper = (1 - right) * _gather(planes, above, left) + right * _gather(planes, above, left + 1)
    lower = (1 - right) * _gather(planes, above + 1, left) + right * _gather(planes, above + 1, left + 1)
    return (1 - down) * upper + down * lower


def _change_intensities(image, drawn: dict, config: AugmentConfig):
    if "zoom" in drawn:
        image = _at_low_resolution(_at_low_resolution(image, drawn["zoom"], 1), drawn["zoom"], 2)
    if "sigma" in drawn:
        image = _blur(_blur(image, drawn["sigma"], blur_radius(config), 1), drawn["sigma"], blur_radius(config), 2)
    if "bias" in drawn:
        rows, columns = (spline_basis(n, BIAS_NODES) for n in image.shape[1:3])
        image *= tf.exp(tf.einsum("hi,bij,wj->bhw", rows, drawn["bias"], columns))[..., None]
    if "contrast" in drawn:
        mean = tf.reduce_mean(image, [1, 2, 3], keepdims=True)
        image = (image - mean) * drawn["contrast"][:, None, None, None] + mean
    if "brightness" in drawn:
        image += drawn["brightness"][:, None, None, None]
    if {"bias", "contrast", "brightness"} & set(drawn):
        image = tf.clip_by_value(image, 0.0, 1.0)
    if "gamma" in drawn:
        image = tf.pow(image, drawn["gamma"][:, None, None, None])
    if "noise" in drawn:
        seed = tf.cast(tf.stack([drawn["noise_seed"][0], image.shape[0]]), tf.int64)
        noise = tf.random.stateless_normal(image.shape, seed) * drawn["noise"][:, None, None, None]
        image = tf.clip_by_value(image + noise, 0.0, 1.0)
    return image


def _at_low_resolution(image, zoom, axis: int):
    """A coarse pixel is the fine one at its centre, and the fine ones lie between them: two gathers along an axis."""
    pixels = image.shape[axis]
    coarse = tf.maximum(tf.floor(pixels * zoom + 0.5), 1.0)[:, None]
    at = tf.clip_by_value((tf.range(pixels, dtype=tf.float32) + 0.5) * coarse / pixels - 0.5, 0.0, coarse - 1)
    below = tf.floor(at)
    above = tf.minimum(below + 1, coarse - 1)

    def fine(pixel):
        return tf.cast(tf.minimum(tf.floor((pixel + 0.5) * (pixels / coarse)), pixels - 1.0), tf.int32)

    share = tf.reshape(at - below, [-1, pixels, 1, 1] if axis == 1 else [-1, 1, pixels, 1])
    one, other = (tf.gather(image, fine(pixel), axis=axis, batch_dims=1) for pixel in (below, above))
    smaller = tf.reshape(zoom < 1, [-1, 1, 1, 1])
    return tf.where(smaller, (1 - share) * one + share * other, image)


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
    """Which pixels are in boxes [..., 4] of y, x, height, width: bool [..., H, W]."""
    y, x, box_height, box_width = (side[..., None] for side in tf.unstack(boxes, axis=-1))
    rows, columns = tf.range(height), tf.range(width)
    in_rows = (rows >= y) & (rows < y + box_height)
    in_columns = (columns >= x) & (columns < x + box_width)
    return in_rows[..., :, None] & in_columns[..., None, :]
