"""What a request may hold, in a TensorFlow graph: what is wrong is an InvalidArgumentError that says what and where."""

import tensorflow as tf

_PNG_START = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH = 24  # byte of a PNG, in its header
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def checked_scan(image, spacing, numbers):
    """Refuse a scan that cannot be segmented.

    Args:
        image: uint16 [D, H, W].
        spacing: float32 [3], (z, y, x) in mm.
        numbers: int64 [D].

    Returns:
        The three; what uses them waits for the checks.
    """
    spacing, numbers = tf.reshape(spacing, [-1]), tf.reshape(numbers, [-1])
    shape, depth = tf.shape(image), tf.size(numbers)
    good_spacing = tf.size(spacing) == 3
    good_spacing &= tf.reduce_all(tf.math.is_finite(spacing) & (spacing > 0))
    checks = [
        _refuse_unless(
            tf.reduce_min(shape) > 0, "image has the shape {}; a scan has a slice or more, none of them empty", shape
        ),
        _refuse_unless(
            good_spacing, "spacing is {}; it is three numbers above 0, the millimetres along z, y and x", spacing
        ),
        _refuse_unless(depth == shape[0], "numbers has {} entries and image {} slices; give one a slice", depth, shape[0]),
        _refuse_unless(tf.reduce_all(numbers[1:] > numbers[:-1]), "numbers is {}; slice numbers must rise", numbers),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(image), tf.ensure_shape(tf.identity(spacing), [3]), tf.identity(numbers)


def decode_slices(pngs):
    """Decode a scan's slices.

    Args:
        pngs: string [D], grey PNGs of 8 or 16 bits.

    Returns:
        uint16 [D, H, W]: the values in the files.
    """
    count = tf.size(pngs)
    with tf.control_dependencies([_refuse_unless(count > 0, "png_bytes is empty; a scan has {} slices or more", 1)]):
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
    ends = _refuse_unless(ending == _PNG_END, "png_bytes[{}] is a PNG that ends too early, after {} bytes", z, length)
    with tf.control_dependencies([ends]):
        plane = tf.io.decode_png(tf.identity(png), dtype=tf.uint16)
    channels = tf.shape(plane)[2]
    grey = _refuse_unless(channels == 1, "png_bytes[{}] has {} channels; a slice is grey with 8 or 16 bits", z, channels)
    with tf.control_dependencies([grey]):
        plane = plane[..., 0]
    # 8 bits are spread over 16 by 0 to 0, 255 to 65535.
    depth = tf.io.decode_raw(tf.strings.substr(png, _BIT_DEPTH, 1), tf.uint8)[0]
    return tf.where(depth == 16, plane, plane // 257)


def _refuse_unless(good, sentence: str, *values):
    return tf.debugging.Assert(good, [tf.strings.format(sentence, values)])
