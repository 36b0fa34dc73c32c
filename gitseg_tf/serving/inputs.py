"""What a request may hold, in a TensorFlow graph: what is wrong is an InvalidArgumentError that says what and where."""

import tensorflow as tf

_PNG_START = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH = 24  # byte of a PNG, in its header
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def checked_windows(windows):
    """Refuse windows that the network does not take; a convolution of another rank ends the whole process.

    Args:
        windows: float32 [N, ...], the other axes known.

    Returns:
        The windows.
    """
    expected, shape = windows.shape.as_list()[1:], _shape_sent(windows)
    # The second alone would take [N, 5] for [N, 5, 5, 5].
    fits = (tf.size(shape) == windows.shape.rank) & tf.reduce_all(shape[1:] == tf.constant(expected))
    sentence = f"windows has the shape {{}}; the network takes [N {' '.join(map(str, expected))}], N above 0"
    with tf.control_dependencies([_refuse_unless(fits & (tf.reduce_prod(shape) > 0), sentence, shape)]):
        return tf.identity(windows)


def checked_image(image):
    """Refuse an image that has not the axes of one: uint16 [D, H, W] to the same."""
    return _with_rank(image, 3, "image has the shape {}; its axes are slices, rows and columns")


def checked_scan(image, spacing, numbers, widest_mm: float | None = None):
    """Refuse a scan that cannot be segmented.

    Args:
        image: uint16 [D, H, W].
        spacing: float32 [3], (z, y, x) in mm.
        numbers: int64 [D].
        widest_mm: what a slice may measure; None is anything.

    Returns:
        The three; what uses them waits for the checks.
    """
    spacing, numbers = tf.reshape(spacing, [-1]), tf.reshape(numbers, [-1])
    shape, count = tf.shape(image), tf.size(numbers)
    positive = (tf.size(spacing) == 3) & tf.reduce_all(tf.math.is_finite(spacing) & (spacing > 0))
    rising = tf.reduce_all(numbers[1:] > numbers[:-1])
    checks = [
        _refuse_unless(
            tf.reduce_min(shape) > 0, "image has the shape {}; a scan has at least a slice and pixels", shape
        ),
        _refuse_unless(positive, "spacing is {}; give the millimetres along z, y and x, each above 0", spacing),
        _refuse_unless(count == shape[0], "numbers has {} entries, image {} slices; give one a slice", count, shape[0]),
        _refuse_unless(rising, "numbers is {}; slice numbers rise from slice to slice", numbers),
    ]
    if widest_mm is not None:
        with tf.control_dependencies(checks):
            extent = tf.cast(shape[1:], tf.float32) * tf.identity(spacing)[1:3]
        sentence = f"slices of {{}} pixels measure {{}} mm, more than {widest_mm:g}; give spacing in millimetres"
        checks.append(_refuse_unless(tf.reduce_all(extent <= widest_mm), sentence, shape[1:], extent))
    with tf.control_dependencies(checks):
        # Not ensure_shape: the optimizer takes what it says for granted, and drops the check of it.
        return tf.identity(image), tf.stack([spacing[0], spacing[1], spacing[2]]), tf.identity(numbers)


def decode_slices(pngs):
    """Decode a scan's slices.

    Args:
        pngs: string [D], grey PNGs of 8 or 16 bits.

    Returns:
        uint16 [D, H, W]: the values in the files.
    """
    pngs = _with_rank(pngs, 1, "png_bytes has the shape {}; it is a list of slices")
    count = tf.size(pngs)
    with tf.control_dependencies(
        [_refuse_unless(count > 0, "png_bytes has {} slices; a scan has at least one", count)]
    ):
        first = _decode(pngs, 0)
    shape = tf.shape(first)

    def decode(z):
        plane = _decode(pngs, z)
        own = tf.shape(plane)
        same = _refuse_unless(
            tf.reduce_all(own == shape),
            "png_bytes[{}] is {} (height, width) and png_bytes[0] {}; slices of a scan have one size",
            z,
            own,
            shape,
        )
        with tf.control_dependencies([same]):
            return tf.identity(plane)

    return tf.map_fn(decode, tf.range(count), fn_output_signature=tf.TensorSpec([None, None], tf.uint16))


def _decode(pngs, z):
    png = pngs[z]
    length = tf.strings.length(png)
    is_png = tf.strings.substr(png, 0, len(_PNG_START)) == _PNG_START
    is_png &= length > _BIT_DEPTH
    begins = _refuse_unless(
        is_png, "png_bytes[{}] is no PNG, it has {} bytes; send the file as it is (base64 in JSON)", z, length
    )
    with tf.control_dependencies([begins]):
        ending = tf.strings.substr(png, -len(_PNG_END), len(_PNG_END))
    ends = _refuse_unless(
        ending == _PNG_END, "png_bytes[{}] is a PNG that ends too early or too late, after {} bytes", z, length
    )
    with tf.control_dependencies([ends]):
        plane = tf.io.decode_png(tf.identity(png), dtype=tf.uint16)
    channels = tf.shape(plane)[2]
    grey = _refuse_unless(
        channels == 1, "png_bytes[{}] has {} channels; slices are grey with 8 or 16 bits", z, channels
    )
    with tf.control_dependencies([grey]):
        depth = tf.io.decode_raw(tf.strings.substr(png, _BIT_DEPTH, 1), tf.uint8)[0]
        # 8 bits are spread over 16 by then: 0 to 0, 255 to 65535.
        return tf.where(depth == 16, plane[..., 0], plane[..., 0] // 257)


def _with_rank(tensor, rank: int, sentence: str):
    shape = _shape_sent(tensor)
    with tf.control_dependencies([_refuse_unless(tf.size(shape) == rank, sentence, shape)]):
        return tf.identity(tensor)


def _shape_sent(tensor):
    """int32 [rank]. TensorFlow Serving feeds tensors of any rank, where the optimizer trusts in the signature's."""
    return tf.shape(tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tf.TensorShape(None)))


def _refuse_unless(good, sentence: str, *values):
    return tf.debugging.Assert(good, [tf.strings.format(sentence, values)])
