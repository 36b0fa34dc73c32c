"""What is done to each window of a batch, drawn from a seed: the same numbers for the host and for the accelerator."""

import math

import numpy as np
import tensorflow as tf

from gitseg_tf.sections.augment import AugmentConfig

BIAS_NODES = 2
# The place of a transform in the stream of random numbers, so that switching one on leaves the others as they are.
_STREAMS = ("flip", "affine", "displace", "elastic", "grid", "low_resolution", "blur", "bias_field", "contrast")
_STREAMS += ("brightness", "gamma", "noise", "dropout", "mixup", "cutmix")


def draw(count: int, height: int, width: int, seed, config: AugmentConfig) -> dict:
    """Draw what is done to each window of a batch.

    Args:
        count: windows in the batch, B.
        height, width: of a window, pixels.
        seed: int64 tensor [2]; the same seed gives the same numbers, on any device.
        config: probabilities and ranges.

    Returns:
        dict of tensors, of the transforms with a probability above 0 alone, all with B as first dimension:

        - transform float32 [B, 6]: a, b, x0, c, d, y0; the pixel (y, x) of the result is taken from
          (c x + d y + y0, a x + b y + x0). mirror, moved bool [B]: is it a flip, is it more than a flip.
        - elastic float32 [B, 2, n + 3, n + 3]: coefficients of the displacement (y, x) in pixels, for `spline_basis`;
          grid float32 [B, 2, n + 1]: displacements at the knots along y and x, for `hat_basis`. displaced bool [B].
        - zoom, sigma, contrast, brightness, gamma, noise float32 [B]; noise_seed int32 [B]; bias float32
          [B, BIAS_NODES + 3, BIAS_NODES + 3]: coefficients of the logarithm of the field.
        - holes int32 [B, n, 4]: y, x, height, width; height 0 is no hole.
        - mixup float32 [B]: share of the window itself, the rest is of the next one in the batch. cutmix int32 [B, 4]:
          y, x, height, width of what is taken from the next one.
    """
    random = _Uniform(count, tf.cast(seed, tf.int64))
    drawn = _draw_warp(random, height, width, config) | _draw_intensities(random, config)
    if config.dropout.p:
        drawn["holes"] = _draw_holes(random, height, width, config)
    if config.mixup.p:
        u = random("mixup", 2)
        drawn["mixup"] = tf.where(u[:, 0] < config.mixup.p, _beta(u[:, 1], config.mixup.alpha), 1.0)
    if config.cutmix.p:
        u = random("cutmix", 4)
        side = tf.sqrt(1.0 - _beta(u[:, 1], config.cutmix.alpha))
        box = _boxes(u[:, 2], u[:, 3], side * height, side * width, height, width)
        drawn["cutmix"] = box * tf.cast(u[:, :1] < config.cutmix.p, tf.int32)
    return drawn


def spline_basis(pixels: int, nodes: int) -> np.ndarray:
    """Uniform cubic B-splines along an axis.

    Args:
        pixels: length of the axis.
        nodes: spans along it.

    Returns:
        float32 [pixels, nodes + 3], scaled so that coefficients of unit variance give displacements of unit variance.
    """
    at = (np.arange(pixels) + 0.5) / pixels * nodes
    span = np.minimum(at.astype(int), nodes - 1)
    t = at - span
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((pixels, nodes + 3))
    np.put_along_axis(basis, span[:, None] + np.arange(4), weights, 1)
    return (basis / np.sqrt(np.mean(np.sum(basis**2, 1)))).astype(np.float32)


def hat_basis(pixels: int, nodes: int) -> np.ndarray:
    """Linear interpolation between knots along an axis: float32 [pixels, nodes + 1]."""
    at = (np.arange(pixels) + 0.5) / pixels * nodes
    return np.maximum(1 - np.abs(at[:, None] - np.arange(nodes + 1)), 0).astype(np.float32)


def blur_radius(config: AugmentConfig) -> int:
    """Pixels to each side that the blur reaches, for any sigma of the config."""
    return math.ceil(3 * config.blur.sigma)


class _Uniform:
    """Streams of numbers from 0 to 1, one a transform."""

    def __init__(self, count: int, seed):
        self.count, self.seed = count, seed

    def __call__(self, stream: str, *shape: int):
        seed = self.seed + tf.constant([7919 * (_STREAMS.index(stream) + 1), 0], tf.int64)
        return tf.random.stateless_uniform([self.count, *shape], seed, alg="philox")


def _draw_warp(random: _Uniform, height: int, width: int, config: AugmentConfig) -> dict:
    drawn = {}
    if config.flip.p or config.affine.p:
        drawn["mirror"] = random("flip", 1)[:, 0] < config.flip.p
        u = random("affine", 5)
        drawn["moved"] = u[:, 0] < config.affine.p
        drawn["transform"] = _transforms(height, width, u[:, 1:], drawn["mirror"], drawn["moved"], config)
    kind = random("displace", 1)[:, 0]
    elastic, grid = kind < config.elastic.p, (kind >= config.elastic.p) & (kind < config.elastic.p + config.grid.p)
    if config.elastic.p:
        nodes, amplitude = config.elastic.nodes + 3, config.elastic.displacement
        normal = math.sqrt(2.0) * tf.math.erfinv(1.998 * random("elastic", 2, nodes, nodes) - 0.999)
        size = tf.constant([height, width], tf.float32)[:, None, None]
        drawn["elastic"] = normal * size * amplitude * tf.cast(elastic, tf.float32)[:, None, None, None]
    if config.grid.p:
        nodes = config.grid.nodes
        steps = config.grid.distortion * (2 * random("grid", 2, nodes) - 1)
        steps -= tf.reduce_mean(steps, 2, keepdims=True)  # the borders stay where they are
        knots = tf.pad(tf.cumsum(steps, 2), [[0, 0], [0, 0], [1, 0]])
        cell = tf.constant([height / nodes, width / nodes], tf.float32)[:, None]
        drawn["grid"] = knots * cell * tf.cast(grid, tf.float32)[:, None, None]
    if config.elastic.p or config.grid.p:
        drawn["displaced"] = elastic | grid
    return drawn


def _transforms(height, width, u, mirror, moved, config: AugmentConfig):
    """From the result's pixels to the window's: rotation, zoom and mirror about the centre, then a shift, inverted."""
    span = (2.0 * u - 1.0) * tf.cast(moved, tf.float32)[:, None]
    angle = span[:, 0] * config.affine.rotate * math.pi / 180.0
    zoom = 1.0 + span[:, 1] * config.affine.scale
    shift_y, shift_x = span[:, 2] * config.affine.shift * height, span[:, 3] * config.affine.shift * width
    sign = tf.where(mirror, -1.0, 1.0)
    cos, sin = tf.cos(angle) / zoom, tf.sin(angle) / zoom
    a, b, c, d = sign * cos, sign * sin, -sin, cos
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    x0 = centre_x - a * (centre_x + shift_x) - b * (centre_y + shift_y)
    y0 = centre_y - c * (centre_x + shift_x) - d * (centre_y + shift_y)
    return tf.stack([a, b, x0, c, d, y0], 1)


def _draw_intensities(random: _Uniform, config: AugmentConfig) -> dict:
    drawn = {}

    def between(name: str, low: float, high: float, rest: float):
        """Uniform from low to high where the transform is made, `rest` where it is not."""
        u = random(name, 2)
        return tf.where(u[:, 0] < getattr(config, name).p, low + (high - low) * u[:, 1], rest)

    if config.low_resolution.p:
        drawn["zoom"] = between("low_resolution", config.low_resolution.zoom, 1.0, 1.0)
    if config.blur.p:
        drawn["sigma"] = between("blur", min(0.1, config.blur.sigma), config.blur.sigma, 0.0)
    if config.bias_field.p:
        nodes = BIAS_NODES + 3
        u = random("bias_field", 1 + nodes * nodes)
        field = tf.reshape(2.0 * u[:, 1:] - 1.0, [-1, nodes, nodes])
        made = tf.cast(u[:, 0] < config.bias_field.p, tf.float32)
        drawn["bias"] = field * config.bias_field.strength * made[:, None, None]
    if config.contrast.p:
        drawn["contrast"] = between("contrast", 1 - config.contrast.factor, 1 + config.contrast.factor, 1.0)
    if config.brightness.p:
        drawn["brightness"] = between("brightness", -config.brightness.shift, config.brightness.shift, 0.0)
    if config.gamma.p:
        bound = math.log(config.gamma.exponent)
        drawn["gamma"] = tf.exp(between("gamma", -bound, bound, 0.0))
    if config.noise.p:
        u = random("noise", 3)
        drawn["noise"] = tf.where(u[:, 0] < config.noise.p, config.noise.std * u[:, 1], 0.0)
        drawn["noise_seed"] = tf.cast(u[:, 2] * (2.0**31 - 256), tf.int32)
    return drawn


def _draw_holes(random: _Uniform, height: int, width: int, config: AugmentConfig):
    holes, (low, high) = config.dropout.holes, config.dropout.size
    u = random("dropout", 2 + 4 * holes)
    number = 1 + tf.cast(u[:, 1] * holes, tf.int32)
    there = (u[:, :1] < config.dropout.p) & (tf.range(holes) < number[:, None])
    u = tf.reshape(u[:, 2:], [-1, holes, 4])
    sides = low + (high - low) * u[..., :2]
    boxes = _boxes(u[..., 2], u[..., 3], sides[..., 0] * height, sides[..., 1] * width, height, width)
    return boxes * tf.cast(there, tf.int32)[..., None]


def _boxes(u_y, u_x, box_height, box_width, height: int, width: int):
    """Boxes of the given sides at random places inside of the window: int32 [..., 4], y, x, height, width."""
    box_height = tf.clip_by_value(tf.cast(tf.round(box_height), tf.int32), 1, height)
    box_width = tf.clip_by_value(tf.cast(tf.round(box_width), tf.int32), 1, width)
    y = tf.cast(u_y * tf.cast(height - box_height + 1, tf.float32), tf.int32)
    x = tf.cast(u_x * tf.cast(width - box_width + 1, tf.float32), tf.int32)
    return tf.stack([y, x, box_height, box_width], -1)


def _beta(u, alpha: float):
    """Numbers from 0 to 1 by the quantiles of Beta(alpha, alpha), in static shapes for XLA."""
    from scipy.stats import beta

    quantiles = tf.constant(beta.ppf(np.linspace(0, 1, 257), alpha, alpha), tf.float32)
    at = u * 256
    below = tf.minimum(tf.cast(at, tf.int32), 255)
    share = at - tf.cast(below, tf.float32)
    return (1 - share) * tf.gather(quantiles, below) + share * tf.gather(quantiles, below + 1)
