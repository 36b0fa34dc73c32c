"""A rule in place of a network, in numpy and as a SavedModel with the signatures of an export."""

import numpy as np
import tensorflow as tf


def rule(image, spacing, numbers=None):
    """The rule in numpy: bool [3, D, H, W]. Its parts notice the order of slices, of axes of spacing and of organs."""
    image = image.astype(np.float32)
    low, high = np.percentile(image, [1, 99], method="nearest")
    bright = (image - low) / max(high - low, 1)
    below = np.concatenate([bright[:1], bright[:-1]])
    if numbers is not None:
        after_gap = np.flatnonzero(np.diff(numbers) != 1) + 1
        below[after_gap] = bright[after_gap]
    return np.stack([bright > 0.5, below > 0.6, bright * spacing[0] > spacing[1] + spacing[2]])


def save_rule(folder, signatures):
    """Write the rule as a SavedModel with these signatures alone."""
    image_spec = tf.TensorSpec([None, None, None], tf.uint16, "image")
    png_spec = tf.TensorSpec([None], tf.string, "png_bytes")
    spacing_spec = tf.TensorSpec([None], tf.float32, "spacing")
    numbers_spec = tf.TensorSpec([None], tf.int64, "numbers")
    windows_spec = tf.TensorSpec([None, 8, 8, 3], tf.float32, "windows")

    def volume(image, spacing, numbers=None):
        image = tf.cast(image, tf.float32)
        ordered = tf.sort(tf.reshape(image, [-1]))
        last = tf.cast(tf.size(ordered) - 1, tf.float64)
        low, high = (ordered[tf.cast(tf.round(last * share), tf.int32)] for share in (0.01, 0.99))
        bright = (image - low) / tf.maximum(high - low, 1.0)
        below = tf.concat([bright[:1], bright[:-1]], 0)
        if numbers is not None:
            tf.debugging.assert_equal(tf.size(numbers), tf.shape(image)[0])
            tf.debugging.assert_equal(tf.reduce_all(numbers[1:] > numbers[:-1]), True)
            first = tf.concat([[True], numbers[1:] - numbers[:-1] != 1], 0)
            below = tf.where(first[:, None, None], bright, below)
        found = [bright > 0.5, below > 0.6, bright * spacing[0] > spacing[1] + spacing[2]]
        masks = tf.cast(tf.stack(found, -1), tf.uint8)
        # As large as masks can be, for the limits on what is sent.
        return {"masks": masks} if numbers is None else {"masks_bytes": tf.io.encode_png(255 * masks, compression=0)}

    def png(png_bytes, spacing, *numbers):
        plane = tf.TensorSpec([None, None], tf.uint16)
        decode = lambda content: tf.io.decode_png(content, 1, tf.uint16)[..., 0]  # noqa: E731
        return volume(tf.map_fn(decode, png_bytes, fn_output_signature=plane), spacing, *numbers)

    def windows(windows):
        return {"probabilities": tf.sigmoid(windows)}

    all_of_them = {
        "serving_default": (windows, [windows_spec]),
        "segment_volume": (volume, [image_spec, spacing_spec]),
        "segment_volume_to_png": (volume, [image_spec, spacing_spec, numbers_spec]),
        "segment_png": (png, [png_spec, spacing_spec]),
        "segment_png_to_png": (png, [png_spec, spacing_spec, numbers_spec]),
    }
    traced = {name: tf.function(*all_of_them[name]) for name in signatures}
    module = tf.Module()
    module.traced = traced
    tf.saved_model.save(module, str(folder), signatures=traced)
    return folder
