"""Augmentation of a batch of windows with OpenCV, in the input pipeline."""

import cv2
import numpy as np

from gitseg_tf.config.augment import AugmentConfig
from gitseg_tf.data.augment.parameters import BIAS_NODES, blur_radius, hat_basis, slice_steps, spline_basis

_SCALE = np.float32(1 / 65535)
_ALIGNMENT = 64
MOST_PLANES = 128  # the maximum number of channels of an image in OpenCV 5


class HostAugment:
    """Convert prepared windows to the model's input and targets, applying random transforms.

    Args:
        config: the transforms to apply.
        height, width: size of the windows in pixels.
        labels: number of labels, L.
        volumetric: a window is a volume of C channels rather than an image of all channels of K slices.
        levels: number of bits per label of a teacher's probabilities, which become L more channels of the mask: the
            mean of these bits; 0 without a teacher.
        ignore_per_label: the bits have an ignore bit for each label, for pseudo-labels.
    """

    def __init__(
        self,
        config: AugmentConfig,
        height: int,
        width: int,
        *,
        labels: int,
        volumetric: bool,
        levels: int = 0,
        ignore_per_label: bool = False,
    ):
        self.config, self.shape, self.volumetric = config, (height, width), volumetric
        self.splines = [spline_basis(n, config.elastic.nodes) for n in self.shape]
        self.hats = [hat_basis(n, config.grid.nodes) for n in self.shape]
        self.bias = [spline_basis(n, BIAS_NODES) for n in self.shape]
        self.y, self.x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
        self.ignore_bit = labels * (1 + levels)
        self.values_of_bits = [_values_of_bits(k, self.ignore_bit) for k in range(labels)]
        self.values_of_levels = [
            _values_of_levels(range(labels + k * levels, labels + (k + 1) * levels))
            for k in range(labels if levels else 0)
        ]
        self.unannotated = np.full(self.shape, -1, np.float32)
        following = self.ignore_bit + 1
        self.ignore_bits = range(following, following + labels) if ignore_per_label else range(0)

    def __call__(self, planes: np.ndarray, bits: np.ndarray, annotated: np.ndarray, parameters: dict[str, np.ndarray]):
        """Augment a batch.

        Args:
            planes: uint16 [B, K, C, H, W], 65535 represents 1.
            bits: uint8 [B, M, G, H, W], bit k % 8 of plane k // 8 is label k; `levels` bits per label follow; the next
                bit is set where a voxel is ignored, and with ignore_per_label L more bits where it is ignored for a
                label. M is 1, or K for volumes.
            annotated: bool [B, L], whether the label is annotated in the scan.
            parameters: from `parameters.draw`, as arrays.

        Returns:
            image float32 [B, H, W, K * C], or [B, K, H, W, C] for volumes; mask float32 [B, H, W, L], or
            [B, K, H, W, L] for volumes: 0 or 1, or -1 where a label is not annotated or a voxel is ignored. With
            `levels`, 2 L channels.
        """
        batch, slices, channels = planes.shape[:3]
        targets = len(self.values_of_bits) + len(self.values_of_levels)
        image = _aligned_empty(
            (batch, slices, *self.shape, channels) if self.volumetric else (batch, *self.shape, slices * channels)
        )
        mask = _aligned_empty((batch, *([slices] if self.volumetric else []), *self.shape, targets))
        for i in range(batch):
            params = {name: value[i] for name, value in parameters.items()}
            warps = self._warps_of(params, slices if self.volumetric else 1)
            window, masks = planes[i].reshape(-1, *self.shape), bits[i].reshape(-1, *self.shape)
            if warps[0] is None and params.get("mirror", False):
                window, masks = ([cv2.flip(plane, 1) for plane in each] for each in (window, masks))
            self._change_image(window, image[i], warps, params)
            groups = bits.shape[2]
            for z, out in enumerate(mask[i] if self.volumetric else mask[i][None]):
                self._change_mask(masks[z * groups : (z + 1) * groups], annotated[i], out, warps[z])
        self._mix(image, mask, parameters)
        return image, mask

    def _change_mask(self, planes, annotated, out, warp) -> None:
        moved = planes if warp is None else [warp(plane, cv2.INTER_NEAREST) for plane in planes]
        parts = [
            cv2.LUT(moved[k // 8], values) if is_annotated else self.unannotated
            for k, (values, is_annotated) in enumerate(zip(self.values_of_bits, annotated.tolist(), strict=True))
        ]
        for tables in self.values_of_levels:
            first, *others = (cv2.LUT(moved[plane], values) for plane, values in tables.items())
            parts.append(sum(others, first))
        if len(parts) <= MOST_PLANES:
            cv2.merge(parts, out)
        else:
            for k, part in enumerate(parts):
                out[..., k] = part
        # With a single plane, `_values_of_bits` has already marked ignored voxels.
        if len(moved) > 1 or self.values_of_levels:
            out[moved[self.ignore_bit // 8] >> (self.ignore_bit % 8) & 1 > 0] = -1
        for k, bit in enumerate(self.ignore_bits):
            out[..., k][moved[bit // 8] >> bit % 8 & 1 > 0] = -1

    def _change_image(self, planes, out, warps, params) -> None:
        """Transform a window: a 2.5-D window is one image of K * C planes, a volume is K images of C planes."""
        images, each = list(out) if self.volumetric else [out], out.shape[-1]
        parts = [image[..., 0] if each == 1 else image for image in images]  # OpenCV drops a single channel's axis
        for n, part in enumerate(parts):
            source = planes[n] if each == 1 else cv2.merge(list(planes[n * each : (n + 1) * each]))
            if warps[n] is None:
                np.multiply(source, _SCALE, out=part)
            else:
                warps[n](np.multiply(source, _SCALE), cv2.INTER_LINEAR, part)
        self._change_intensities(parts, out, params)
        for y, x, height, width in params.get("holes", ()):
            for part in parts:
                part[y : y + height, x : x + width] = 0

    def _warps_of(self, params, slices: int) -> list:
        """Build the functions that warp an image or a mask, one per slice; None if there is at most a flip to apply."""
        a, b, x0, c, d, y0 = params.get("transform", (1, 0, 0, 0, 1, 0))
        tilt = params.get("tilt", np.zeros(2, np.float32))
        shifts = slice_steps(slices)[:, None] * tilt[::-1] if tilt.any() else np.zeros((1, 2), np.float32)
        if params.get("displaced", False):
            maps = self._displacement(params)
            maps[..., 0] += (b * self.y + x0) + a * self.x
            maps[..., 1] += (d * self.y + y0) + c * self.x
            warps = [_remap(maps + shift if shift.any() else maps) for shift in shifts]
        elif params.get("moved", False) or tilt.any():
            size = self.shape[::-1]
            warps = [_warp_affine(np.array([[a, b, x0 + x], [c, d, y0 + y]], np.float64), size) for x, y in shifts]
        else:
            warps = [None]
        return warps if tilt.any() else warps * slices

    def _displacement(self, params) -> np.ndarray:
        """Compute the displacement field: float32 [H, W, 2], along x and along y, in pixels."""
        field = np.zeros((*self.shape, 2), np.float32)
        if "elastic" in params:
            for axis, coefficients in zip((1, 0), params["elastic"], strict=True):
                field[..., axis] += _spline_surface(self.splines[0], self.splines[1], coefficients)
        if "grid" in params:
            along_y, along_x = (np.einsum("pn,n", *both) for both in zip(self.hats, params["grid"], strict=True))
            field[..., 0] += along_x
            field[..., 1] += along_y[:, None]
        return field

    def _change_intensities(self, parts, out, params) -> None:
        changed = False
        if params.get("zoom", 1) < 1:
            for part in parts:
                part[...] = _at_low_resolution(part, params["zoom"])
        if params.get("sigma", 0) > 0:
            kernel = gaussian_kernel(params["sigma"], blur_radius(self.config))
            for part in parts:
                part[...] = cv2.sepFilter2D(part, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE).reshape(
                    part.shape
                )
        if "bias" in params and params["bias"].any():
            field = np.exp(_spline_surface(self.bias[0], self.bias[1], params["bias"]))
            out *= field[..., None]
            changed = True
        if params.get("contrast", 1) != 1:
            mean = out.mean(dtype=np.float64)
            out[...] = (out - np.float32(mean)) * params["contrast"] + np.float32(mean)
            changed = True
        if params.get("brightness", 0) != 0:
            out += params["brightness"]
            changed = True
        if changed:
            np.clip(out, 0, 1, out=out)
        if params.get("gamma", 1) != 1:
            np.power(out, params["gamma"], out=out)
        if params.get("noise", 0) > 0:
            noise = np.empty(out.size, np.float32)
            cv2.setRNGSeed(int(params["noise_seed"]))
            cv2.randn(noise, 0, float(params["noise"]))
            out += noise.reshape(out.shape)
            np.clip(out, 0, 1, out=out)

    def _mix(self, image, mask, parameters) -> None:
        if "mixup" in parameters:
            weight = parameters["mixup"].reshape(-1, *[1] * (image.ndim - 1))
            following = np.roll(mask, -1, 0)
            excluded = (mask < 0) | ((following < 0) & (weight < 1))
            image[...] = weight * image + (1 - weight) * np.roll(image, -1, 0)
            mask[...] = np.where(excluded, np.float32(-1), weight * mask + (1 - weight) * following)
        if "cutmix" in parameters:
            for whole in (image, mask):
                following = np.roll(whole, -1, 0)
                for i, (y, x, height, width) in enumerate(parameters["cutmix"]):
                    box = (i, ..., slice(y, y + height), slice(x, x + width), slice(None))
                    whole[box] = following[box]


def _remap(maps: np.ndarray):
    return lambda image, how, out=None: cv2.remap(image, maps, None, how, out, cv2.BORDER_CONSTANT)


def _warp_affine(matrix: np.ndarray, size: tuple[int, int]):
    return lambda image, how, out=None: cv2.warpAffine(image, matrix, size, out, how | cv2.WARP_INVERSE_MAP)


def pack_masks(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert masks to the packed bits that `HostAugment` expects.

    Args:
        mask: float32 [B, H, W, L] or [B, D, H, W, L], 0 or 1, or -1 where a voxel is excluded.

    Returns:
        bits uint8 [B, 1, G, H, W] or [B, D, G, H, W], and annotated bool [B, L]: False for a label that is -1
        everywhere in a window. A voxel is ignored where all other labels are -1.
    """
    excluded = mask < 0
    annotated = ~np.all(excluded, axis=tuple(range(1, mask.ndim - 1)))
    excluded_or_unannotated = excluded | ~annotated.reshape(len(mask), *[1] * (mask.ndim - 2), -1)
    ignored = excluded_or_unannotated.all(-1, keepdims=True) & annotated.any(-1).reshape(-1, *[1] * (mask.ndim - 1))
    bits = np.packbits(np.concatenate([mask > 0, ignored], -1), -1, bitorder="little")
    bits = np.moveaxis(bits, -1, -3)
    return np.ascontiguousarray(bits if mask.ndim == 5 else bits[:, None]), annotated


def _values_of_bits(label: int, ignore_bit: int) -> np.ndarray:
    """Build the lookup table of a label: float32 [1, 256], mask value by byte, -1 where the ignore bit is set too."""
    byte = np.arange(256)
    values = (byte >> label % 8 & 1).astype(np.float32)
    if label // 8 == ignore_bit // 8:
        values[byte >> ignore_bit % 8 & 1 > 0] = -1
    return values[None]


def _values_of_levels(bits: range) -> dict[int, np.ndarray]:
    """Build the lookup tables of a label's levels: plane to float32 [1, 256], whose sum is the mean of the bits."""
    byte, tables = np.arange(256), {bit // 8: np.zeros((1, 256), np.float32) for bit in bits}
    for bit in bits:
        tables[bit // 8] += (byte >> bit % 8 & 1).astype(np.float32) / np.float32(len(bits))
    return tables


def _spline_surface(rows: np.ndarray, columns: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    # cv2.gemm instead of numpy: the threads of numpy's BLAS compete with the threads that call this function.
    return cv2.gemm(cv2.gemm(rows, coefficients, 1, None, 0), columns, 1, None, 0, flags=cv2.GEMM_2_T)


def gaussian_kernel(sigma: float, radius: int) -> np.ndarray:
    """Return float32 weights of a Gaussian of `sigma` pixels at the distances -radius to radius, with sum 1."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def coarse_pixels(pixels: int, zoom: float) -> tuple[int, np.ndarray]:
    """Return the number of pixels of a coarser grid along an axis, and the fine pixels at their centers."""
    coarse = max(int(np.floor(pixels * zoom + 0.5)), 1)
    return coarse, np.minimum(((np.arange(coarse) + 0.5) * (pixels / coarse)).astype(int), pixels - 1)


def _at_low_resolution(image: np.ndarray, zoom: float) -> np.ndarray:
    height, width = image.shape[:2]
    rows, columns = coarse_pixels(height, zoom)[1], coarse_pixels(width, zoom)[1]
    coarse = np.ascontiguousarray(image[rows][:, columns])
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(image.shape)


def _aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """Allocate a float32 array whose memory is aligned so that TensorFlow can use it without copying."""
    size = int(np.prod(shape)) * 4
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(np.float32).reshape(shape)
