"""Random augmentation parameters of a batch, drawn from a seed; shared by the OpenCV and TensorFlow backends."""

import math

import numpy as np
import tensorflow as tf

from gitseg_tf.config.augment import AugmentConfig

BIAS_NODES = 2
# The index of a transform selects its stream of random numbers, so that enabling one does not change the others.
_STREAMS = (
    "flip", "affine", "displace", "elastic", "grid", "low_resolution", "blur", "bias_field", "contrast",
    "brightness", "gamma", "noise", "dropout", "mixup", "cutmix", "tilt",
)  # fmt: skip


def draw(count: int, height: int, width: int, seed, config: AugmentConfig) -> dict:
    """Draw the augmentation parameters of each window of a batch.

    Args:
        count: number of windows in the batch, B.
        height, width: size of a window in pixels.
        seed: int64 tensor [2]; the same seed gives the same numbers, on any device.
        config: probabilities and ranges.

    Returns:
        dict of tensors whose first dimension is B, only for the transforms with a probability above 0:

        - transform float32 [B, 6]: a, b, x0, c, d, y0; the pixel (y, x) of the result is sampled from
          (c x + d y + y0, a x + b y + x0). mirror bool [B]: with a flip; moved bool [B]: with more than a flip.
        - tilt float32 [B, 2]: y and x in pixels, which is added to where the last slice of a patch is sampled, and
          subtracted from where the first one is; proportionally in between.
        - elastic float32 [B, 2, n + 3, n + 3]: coefficients of the displacement (y, x) in pixels, for `spline_basis`;
          grid float32 [B, 2, n + 1]: displacements at the knots along y and x, for `hat_basis`. displaced bool [B].
        - zoom, sigma, contrast, brightness, gamma, noise float32 [B]; noise_seed int32 [B]; bias float32
          [B, BIAS_NODES + 3, BIAS_NODES + 3]: coefficients of the logarithm of the field.
        - holes int32 [B, n, 4]: y, x, height, width; height 0 means no hole.
        - mixup float32 [B]: weight of the window itself; the next window in the batch has the remaining weight. cutmix
          int32 [B, 4]: y, x, height, width of the rectangle that is taken from the next window.
    """
    random = _Uniform(count, tf.cast(seed, tf.int64))
    parameters = _draw_warp(random, height, width, config) | _draw_intensities(random, config)
    if config.dropout.p:
        parameters["holes"] = _draw_holes(random, height, width, config)
    if config.mixup.p:
        u = random("mixup", 2)
        parameters["mixup"] = tf.where(u[:, 0] < config.mixup.p, _beta(u[:, 1], config.mixup.alpha), 1.0)
    if config.cutmix.p:
        u = random("cutmix", 4)
        side = tf.sqrt(1.0 - _beta(u[:, 1], config.cutmix.alpha))
        box = _boxes(u[:, 2], u[:, 3], side * height, side * width, height, width)
        parameters["cutmix"] = box * tf.cast(u[:, :1] < config.cutmix.p, tf.int32)
    return parameters


def spline_basis(pixels: int, nodes: int) -> np.ndarray:
    """Evaluate uniform cubic B-splines along an axis.

    Args:
        pixels: length of the axis.
        nodes: number of spans along the axis.

    Returns:
        float32 [pixels, nodes + 3], scaled so that coefficients of unit variance give displacements of unit variance.
    """
    position = (np.arange(pixels) + 0.5) / pixels * nodes
    span = np.minimum(position.astype(int), nodes - 1)
    t = position - span
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((pixels, nodes + 3))
    np.put_along_axis(basis, span[:, None] + np.arange(4), weights, 1)
    return (basis / np.sqrt(np.mean(np.sum(basis**2, 1)))).astype(np.float32)


def hat_basis(pixels: int, nodes: int) -> np.ndarray:
    """Evaluate linear interpolation between knots along an axis: float32 [pixels, nodes + 1]."""
    position = (np.arange(pixels) + 0.5) / pixels * nodes
    return np.maximum(1 - np.abs(position[:, None] - np.arange(nodes + 1)), 0).astype(np.float32)


def slice_steps(slices: int) -> np.ndarray:
    """Return the distance of each slice from the middle of a patch: float32 [slices], from -1 to 1."""
    return ((2 * np.arange(slices) - (slices - 1)) / max(slices - 1, 1)).astype(np.float32)


def blur_radius(config: AugmentConfig) -> int:
    """Return the radius of the blur kernel in pixels, large enough for any sigma of the config."""
    return math.ceil(3 * config.blur.sigma)


class _Uniform:
    """Uniform random numbers from 0 to 1, with an independent stream for each transform."""

    def __init__(self, count: int, seed):
        self.count, self.seed = count, seed

    def __call__(self, stream: str, *shape: int):
        seed = self.seed + tf.constant([7919 * (_STREAMS.index(stream) + 1), 0], tf.int64)
        return tf.random.stateless_uniform([self.count, *shape], seed, alg="philox")


def _draw_warp(random: _Uniform, height: int, width: int, config: AugmentConfig) -> dict:
    parameters = {}
    if config.flip.p or config.affine.p:
        parameters["mirror"] = random("flip", 1)[:, 0] < config.flip.p
        u = random("affine", 5)
        parameters["moved"] = u[:, 0] < config.affine.p
        parameters["transform"] = _transforms(
            height, width, u[:, 1:], parameters["mirror"], parameters["moved"], config
        )
    if config.tilt.p:
        u = random("tilt", 3)
        largest = config.tilt.shift * tf.constant([height, width], tf.float32)
        parameters["tilt"] = (2.0 * u[:, 1:] - 1.0) * largest * tf.cast(u[:, :1] < config.tilt.p, tf.float32)
    kind = random("displace", 1)[:, 0]
    elastic, grid = kind < config.elastic.p, (kind >= config.elastic.p) & (kind < config.elastic.p + config.grid.p)
    if config.elastic.p:
        nodes, amplitude = config.elastic.nodes + 3, config.elastic.displacement
        normal = math.sqrt(2.0) * tf.math.erfinv(1.998 * random("elastic", 2, nodes, nodes) - 0.999)
        size = tf.constant([height, width], tf.float32)[:, None, None]
        parameters["elastic"] = normal * size * amplitude * tf.cast(elastic, tf.float32)[:, None, None, None]
    if config.grid.p:
        nodes = config.grid.nodes
        steps = config.grid.distortion * (2 * random("grid", 2, nodes) - 1)
        steps -= tf.reduce_mean(steps, 2, keepdims=True)  # keeps the borders in place
        knots = tf.pad(tf.cumsum(steps, 2), [[0, 0], [0, 0], [1, 0]])
        cell = tf.constant([height / nodes, width / nodes], tf.float32)[:, None]
        parameters["grid"] = knots * cell * tf.cast(grid, tf.float32)[:, None, None]
    if config.elastic.p or config.grid.p:
        parameters["displaced"] = elastic | grid
    return parameters


def _transforms(height, width, u, mirror, moved, config: AugmentConfig):
    """Map result pixels to window pixels: the inverse of rotation, zoom and flip about the center, then a shift."""
    span = (2.0 * u - 1.0) * tf.cast(moved, tf.float32)[:, None]
    angle = span[:, 0] * config.affine.rotate * math.pi / 180.0
    zoom = 1.0 + span[:, 1] * config.affine.scale
    shift_y, shift_x = span[:, 2] * config.affine.shift * height, span[:, 3] * config.affine.shift * width
    sign = tf.where(mirror, -1.0, 1.0)
    cos, sin = tf.cos(angle) / zoom, tf.sin(angle) / zoom
    a, b, c, d = sign * cos, sign * sin, -sin, cos
    center_y, center_x = (height - 1) / 2, (width - 1) / 2
    x0 = center_x - a * (center_x + shift_x) - b * (center_y + shift_y)
    y0 = center_y - c * (center_x + shift_x) - d * (center_y + shift_y)
    return tf.stack([a, b, x0, c, d, y0], 1)


def _draw_intensities(random: _Uniform, config: AugmentConfig) -> dict:
    parameters = {}

    def between(name: str, low: float, high: float, rest: float):
        """Draw uniformly from low to high where the transform is applied, and use `rest` elsewhere."""
        u = random(name, 2)
        return tf.where(u[:, 0] < getattr(config, name).p, low + (high - low) * u[:, 1], rest)

    if config.low_resolution.p:
        parameters["zoom"] = between("low_resolution", config.low_resolution.zoom, 1.0, 1.0)
    if config.blur.p:
        parameters["sigma"] = between("blur", min(0.1, config.blur.sigma), config.blur.sigma, 0.0)
    if config.bias_field.p:
        nodes = BIAS_NODES + 3
        u = random("bias_field", 1 + nodes * nodes)
        field = tf.reshape(2.0 * u[:, 1:] - 1.0, [-1, nodes, nodes])
        applied = tf.cast(u[:, 0] < config.bias_field.p, tf.float32)
        parameters["bias"] = field * config.bias_field.strength * applied[:, None, None]
    if config.contrast.p:
        parameters["contrast"] = between("contrast", 1 - config.contrast.factor, 1 + config.contrast.factor, 1.0)
    if config.brightness.p:
        parameters["brightness"] = between("brightness", -config.brightness.shift, config.brightness.shift, 0.0)
    if config.gamma.p:
        bound = math.log(config.gamma.exponent)
        parameters["gamma"] = tf.exp(between("gamma", -bound, bound, 0.0))
    if config.noise.p:
        u = random("noise", 3)
        parameters["noise"] = tf.where(u[:, 0] < config.noise.p, config.noise.std * u[:, 1], 0.0)
        parameters["noise_seed"] = tf.cast(u[:, 2] * (2.0**31 - 256), tf.int32)
    return parameters


def _draw_holes(random: _Uniform, height: int, width: int, config: AugmentConfig):
    holes, (low, high) = config.dropout.holes, config.dropout.size
    u = random("dropout", 2 + 4 * holes)
    number = 1 + tf.cast(u[:, 1] * holes, tf.int32)
    is_used = (u[:, :1] < config.dropout.p) & (tf.range(holes) < number[:, None])
    u = tf.reshape(u[:, 2:], [-1, holes, 4])
    sides = low + (high - low) * u[..., :2]
    boxes = _boxes(u[..., 2], u[..., 3], sides[..., 0] * height, sides[..., 1] * width, height, width)
    return boxes * tf.cast(is_used, tf.int32)[..., None]


def _boxes(u_y, u_x, box_height, box_width, height: int, width: int):
    """Place boxes of the given sides at random positions inside the window: int32 [..., 4], y, x, height, width."""
    box_height = tf.clip_by_value(tf.cast(tf.round(box_height), tf.int32), 1, height)
    box_width = tf.clip_by_value(tf.cast(tf.round(box_width), tf.int32), 1, width)
    y = tf.cast(u_y * tf.cast(height - box_height + 1, tf.float32), tf.int32)
    x = tf.cast(u_x * tf.cast(width - box_width + 1, tf.float32), tf.int32)
    return tf.stack([y, x, box_height, box_width], -1)


def _beta(u, alpha: float):
    """Transform uniform numbers to Beta(alpha, alpha) by its quantiles, with static shapes for XLA."""
    from scipy.stats import beta

    quantiles = tf.constant(beta.ppf(np.linspace(0, 1, 257), alpha, alpha), tf.float32)
    position = u * 256
    below = tf.minimum(tf.cast(position, tf.int32), 255)
    fraction = position - tf.cast(below, tf.float32)
    return (1 - fraction) * tf.gather(quantiles, below) + fraction * tf.gather(quantiles, below + 1)
