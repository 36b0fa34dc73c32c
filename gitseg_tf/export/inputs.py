"""Validate requests in a TensorFlow graph; an InvalidArgumentError says what is wrong, and where."""

import tensorflow as tf

_PNG_START = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH = 24  # byte of a PNG, in its header
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def checked_windows(windows):
    """Reject windows of the wrong shape; a convolution with another rank would crash the whole process.

    Args:
        windows: float32 [N, ...], with known axes except for N.

    Returns:
        The windows.
    """
    expected, shape = windows.shape.as_list()[1:], _shape_sent(windows)
    # The second condition alone would accept [N, 5] for [N, 5, 5, 5], because of broadcasting.
    fits = (tf.size(shape) == windows.shape.rank) & tf.reduce_all(shape[1:] == tf.constant(expected))
    sentence = f"windows has shape {{}}; the network takes [N {' '.join(map(str, expected))}] with N above 0"
    with tf.control_dependencies([_require(fits & (tf.reduce_prod(shape) > 0), sentence, shape)]):
        return tf.identity(windows)


def checked_image(image, channels: int):
    """Reject an image with other axes or channels.

    Args:
        image: float32 [D, H, W, C]; with a single channel also [D, H, W].
        channels: number of channels, C.

    Returns:
        float32 [D, H, W, C].
    """
    shape = _shape_sent(image)
    fits = (tf.size(shape) == 4) & tf.reduce_all(shape[3:] == channels)
    if channels == 1:
        fits |= tf.size(shape) == 3
    sentence = f"image has shape {{}}; its axes must be slices, rows, columns and channels ({channels})"
    with tf.control_dependencies([_require(fits, sentence, shape)]):
        return tf.reshape(image, tf.concat([shape[:3], [channels]], 0))


def checked_keys(keys, known: list[str]):
    """Reject unknown keys.

    Args:
        keys: string [N].
        known: the valid keys.

    Returns:
        int64 [N], the index of each key in the known keys.
    """
    same = tf.reshape(keys, [-1])[:, None] == tf.constant(known)
    fits = tf.reduce_all(tf.reduce_any(same, 1))
    with tf.control_dependencies([_require(fits, f"keys is {{}}; known keys are {', '.join(known)}", keys)]):
        return tf.argmax(tf.cast(same, tf.int32), 1)


def checked_scan(image, spacing, numbers, widest_mm: float | None = None, axes: tuple[int, int] = (1, 2)):
    """Reject a scan that cannot be segmented.

    Args:
        image: float32 [D, H, W, C].
        spacing: float32 [3], (z, y, x) in mm.
        numbers: int64 [D], the slice numbers.
        widest_mm: maximum extent of a slice in mm; None accepts any.
        axes: the axes of the scan along which `widest_mm` applies.

    Returns:
        (image, spacing, numbers), with control dependencies on the checks.
    """
    spacing, numbers = tf.reshape(spacing, [-1]), tf.reshape(numbers, [-1])
    shape, count = tf.shape(image), tf.size(numbers)
    positive = (tf.size(spacing) == 3) & tf.reduce_all(tf.math.is_finite(spacing) & (spacing > 0))
    rising = tf.reduce_all(numbers[1:] > numbers[:-1])
    checks = [
        _require(
            tf.reduce_min(shape) > 0, "image has shape {}; a scan must have at least one slice and one pixel", shape
        ),
        _require(tf.reduce_all(tf.math.is_finite(image)), "image contains NaN or infinite values"),
        _require(positive, "spacing is {}; give three positive numbers in mm, along z, y and x", spacing),
        _require(
            count == shape[0],
            "numbers has {} entries, but image has {} slices; give one number per slice",
            count,
            shape[0],
        ),
        _require(rising, "numbers is {}; slice numbers must increase from slice to slice", numbers),
    ]
    if widest_mm is not None:
        with tf.control_dependencies(checks):
            pixels = tf.gather(shape, axes)
            extent = tf.cast(pixels, tf.float32) * tf.gather(tf.identity(spacing), axes)
        sentence = f"slices of {{}} pixels measure {{}} mm, more than {widest_mm:g}; give spacing in millimeters"
        checks.append(_require(tf.reduce_all(extent <= widest_mm), sentence, pixels, extent))
    with tf.control_dependencies(checks):
        # Do not use ensure_shape: the optimizer would assume the shape and remove the check.
        return tf.identity(image), tf.stack([spacing[0], spacing[1], spacing[2]]), tf.identity(numbers)


def decode_slices(pngs, channels: int = 1):
    """Decode a scan's slices.

    Args:
        pngs: string [D], gray PNGs of 8 or 16 bits; with several channels [D, C].
        channels: number of channels, C.

    Returns:
        float32 [D, H, W, C], the values in the files.
    """
    if channels == 1:
        pngs = _with_rank(pngs, 1, "png_bytes has shape {}; it must be a list of slices")
    else:
        shape = _shape_sent(pngs)
        fits = (tf.size(shape) == 2) & tf.reduce_all(shape[1:] == channels)
        sentence = f"png_bytes has shape {{}}; it must be a list of slices with {channels} channels each"
        with tf.control_dependencies([_require(fits, sentence, shape)]):
            pngs = tf.reshape(pngs, [-1])
    count = tf.size(pngs)
    with tf.control_dependencies(
        [_require(count > 0, "png_bytes has {} slices; a scan must have at least one", count)]
    ):
        first = _decode(pngs, 0)
    shape = tf.shape(first)

    def decode(z):
        plane = _decode(pngs, z)
        plane_shape = tf.shape(plane)
        same = _require(
            tf.reduce_all(plane_shape == shape),
            "png_bytes[{}] is {} (height, width), but png_bytes[0] is {}; all slices of a scan must have the same size",
            z,
            plane_shape,
            shape,
        )
        with tf.control_dependencies([same]):
            return tf.identity(plane)

    planes = tf.map_fn(decode, tf.range(count), fn_output_signature=tf.TensorSpec([None, None], tf.uint16))
    planes = tf.reshape(planes, [count // channels, channels, shape[0], shape[1]])
    return tf.cast(tf.transpose(planes, [0, 2, 3, 1]), tf.float32)


def _decode(pngs, z):
    png = pngs[z]
    length = tf.strings.length(png)
    is_png = tf.strings.substr(png, 0, len(_PNG_START)) == _PNG_START
    is_png &= length > _BIT_DEPTH
    begins = _require(
        is_png, "png_bytes[{}] is not a PNG ({} bytes); send the file unchanged (base64 in JSON)", z, length
    )
    with tf.control_dependencies([begins]):
        ending = tf.strings.substr(png, -len(_PNG_END), len(_PNG_END))
    ends = _require(
        ending == _PNG_END,
        "png_bytes[{}] is a truncated PNG, or has bytes after its end ({} bytes); send the file unchanged",
        z,
        length,
    )
    with tf.control_dependencies([ends]):
        plane = tf.io.decode_png(tf.identity(png), dtype=tf.uint16)
    channels = tf.shape(plane)[2]
    gray = _require(
        channels == 1, "png_bytes[{}] has {} channels; slices must be grayscale with 8 or 16 bits", z, channels
    )
    with tf.control_dependencies([gray]):
        depth = tf.io.decode_raw(tf.strings.substr(png, _BIT_DEPTH, 1), tf.uint8)[0]
        # decode_png scales 8 bits to 16: 0 to 0, 255 to 65535.
        return tf.where(depth == 16, plane[..., 0], plane[..., 0] // 257)


def _with_rank(tensor, rank: int, sentence: str):
    shape = _shape_sent(tensor)
    with tf.control_dependencies([_require(tf.size(shape) == rank, sentence, shape)]):
        return tf.identity(tensor)


def _shape_sent(tensor):
    """Return the shape that was sent, int32 [rank]; the optimizer would assume the rank of the signature."""
    return tf.shape(tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tf.TensorShape(None)))


def _require(good, sentence: str, *values):
    return tf.debugging.Assert(good, [tf.strings.format(sentence, values)])
