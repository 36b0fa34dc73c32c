"""A rule in place of a network, in numpy and as a SavedModel with the signatures of an export."""

import json

import numpy as np
import tensorflow as tf

from gitseg_tf.labels import UWMGI


def rule(image, spacing, numbers=None):
    """The rule in numpy: bool [3, D, H, W]. It is sensitive to the order of slices, spacing axes and labels."""
    image = image.astype(np.float32)
    low, high = np.percentile(image, [1, 99], method="nearest")
    bright = (image - low) / max(high - low, 1)
    below = np.concatenate([bright[:1], bright[:-1]])
    if numbers is not None:
        after_gap = np.flatnonzero(np.diff(numbers) != 1) + 1
        below[after_gap] = bright[after_gap]
    return np.stack([bright > 0.5, below > 0.6, bright * spacing[0] > spacing[1] + spacing[2]])


def save_rule(folder, signatures):
    """Write the rule as a SavedModel with only these signatures."""
    image_spec = tf.TensorSpec(None, tf.float32, "image")
    png_spec = tf.TensorSpec([None], tf.string, "png_bytes")
    spacing_spec = tf.TensorSpec([None], tf.float32, "spacing")
    numbers_spec = tf.TensorSpec([None], tf.int64, "numbers")
    windows_spec = tf.TensorSpec([None, 8, 8, 3], tf.float32, "windows")

    def volume(image, spacing, numbers=None):
        shape = tf.shape(image)
        image = tf.reshape(tf.cast(image, tf.float32), shape[:3])
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
        # Uncompressed, as large as masks can be, to test message size limits.
        if numbers is None:
            return {"masks": masks}
        stacked = tf.reshape(tf.transpose(255 * masks, [0, 3, 1, 2]), [shape[0], 3 * shape[1], shape[2], 1])
        return {"masks_bytes": tf.io.encode_png(stacked, compression=0)}

    def png(png_bytes, spacing, *numbers):
        plane = tf.TensorSpec([None, None], tf.uint16)
        decode = lambda content: tf.io.decode_png(content, 1, tf.uint16)[..., 0]  # noqa: E731
        return volume(tf.map_fn(decode, png_bytes, fn_output_signature=plane), spacing, *numbers)

    def windows(windows):
        return {"probabilities": tf.sigmoid(windows)}

    def describe(keys):
        known = {"labels": json.dumps(UWMGI.to_tree()), "channels": '["mr"]'}
        which = tf.argmax(tf.cast(keys[:, None] == tf.constant(list(known)), tf.int32), 1)
        return {"json_bytes": tf.gather(list(known.values()), which)}

    functions = {
        "describe": (describe, [tf.TensorSpec([None], tf.string, "keys")]),
        "serving_default": (windows, [windows_spec]),
        "segment_volume": (volume, [image_spec, spacing_spec]),
        "segment_volume_to_png": (volume, [image_spec, spacing_spec, numbers_spec]),
        "segment_png": (png, [png_spec, spacing_spec]),
        "segment_png_to_png": (png, [png_spec, spacing_spec, numbers_spec]),
    }
    traced = {name: tf.function(*functions[name]) for name in signatures}
    module = tf.Module()
    module.traced = traced
    tf.saved_model.save(module, str(folder), signatures=traced)
    return folder
