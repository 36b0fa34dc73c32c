"""The changes made on the host, by OpenCV, on a batch of windows as they lie in the shards' prepared scans."""

import cv2
import numpy as np

from gitseg_tf.data.augment.draws import BIAS_NODES, blur_radius, hat_basis, spline_basis
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.sections.augment import AugmentConfig

_ORGAN_OF_BITS = [(np.arange(256) >> k & 1).astype(np.float32)[None] for k in range(len(ORGANS))]
_SCALE = np.float32(1 / 65535)
_ALIGNMENT = 64


class HostAugment:
    """From prepared windows to what the model sees, changed as drawn.

    Args:
        config: which changes are made.
        height, width: of the windows, pixels.
        volumetric: a window is a volume of one channel, not an image of several.
    """

    def __init__(self, config: AugmentConfig, height: int, width: int, volumetric: bool):
        self.config, self.shape, self.volumetric = config, (height, width), volumetric
        self.splines = [spline_basis(n, config.elastic.nodes) for n in self.shape]
        self.hats = [hat_basis(n, config.grid.nodes) for n in self.shape]
        self.bias = [spline_basis(n, BIAS_NODES) for n in self.shape]
        self.y, self.x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)

    def __call__(self, planes: np.ndarray, bits: np.ndarray, drawn: dict[str, np.ndarray]):
        """Change a batch.

        Args:
            planes: uint16 [B, K, H, W], 65535 stands for 1.
            bits: uint8 [B, M, H, W], bit k is organ k; M is 1, or K for volumes.
            drawn: from `draws.draw`, as arrays.

        Returns:
            image float32 [B, H, W, K], or [B, K, H, W, 1] for volumes; mask float32 [B, H, W, 3], or
            [B, K, H, W, 3] for volumes.
        """
        batch, slices = planes.shape[:2]
        shape = (batch, slices, *self.shape, 1) if self.volumetric else (batch, *self.shape, slices)
        image = _aligned_empty(shape)
        mask = _aligned_empty((*(shape[:4] if self.volumetric else shape[:3]), len(ORGANS)))
        for i in range(batch):
            own = {name: value[i] for name, value in drawn.items()}
            warp = self._warp_of(own)
            slices, organs = planes[i], bits[i]
            if warp is None and own.get("mirror", False):
                slices, organs = ([cv2.flip(plane, 1) for plane in each] for each in (slices, organs))
            self._change_image(slices, image[i], warp, own)
            for out, plane in zip(mask[i] if self.volumetric else mask[i][None], organs, strict=True):
                moved = plane if warp is None else warp(plane, cv2.INTER_NEAREST)
                cv2.merge([cv2.LUT(moved, organ) for organ in _ORGAN_OF_BITS], out)
        self._mix(image, mask, drawn)
        return image, mask

    def _change_image(self, planes, out, warp, own) -> None:
        """A 2.5-D window is one image of K channels, a volume K images of one channel."""
        images = list(out) if self.volumetric else [out]
        parts = [image[..., 0] if image.shape[-1] == 1 else image for image in images]  # as OpenCV has them
        sources = list(planes) if self.volumetric else [cv2.merge(list(planes))]
        for part, source in zip(parts, sources, strict=True):
            if warp is None:
                np.multiply(source, _SCALE, out=part)
            else:
                warp(np.multiply(source, _SCALE), cv2.INTER_LINEAR, part)
        self._change_intensities(parts, out, own)
        for y, x, height, width in own.get("holes", ()):
            for part in parts:
                part[y : y + height, x : x + width] = 0

    def _warp_of(self, own):
        """The function that moves an image or a mask, or None where it is but a flip, or nothing."""
        height, width = self.shape
        a, b, x0, c, d, y0 = own.get("transform", (1, 0, 0, 0, 1, 0))
        if own.get("displaced", False):
            maps = self._displacement(own)
            maps[..., 0] += (b * self.y + x0) + a * self.x
            maps[..., 1] += (d * self.y + y0) + c * self.x
            return lambda image, how, out=None: cv2.remap(image, maps, None, how, out, cv2.BORDER_CONSTANT)
        if own.get("moved", False):
            matrix = np.array([[a, b, x0], [c, d, y0]], np.float64)
            flags = cv2.WARP_INVERSE_MAP
            return lambda image, how, out=None: cv2.warpAffine(image, matrix, (width, height), out, how | flags)
        return None

    def _displacement(self, own) -> np.ndarray:
        """float32 [H, W, 2]: along x, then along y, in pixels."""
        field = np.zeros((*self.shape, 2), np.float32)
        if "elastic" in own:
            for axis, coefficients in zip((1, 0), own["elastic"], strict=True):
                field[..., axis] += _spline_surface(*self.splines, coefficients)
        if "grid" in own:
            along_y, along_x = (np.einsum("pn,n", *both) for both in zip(self.hats, own["grid"], strict=True))
            field[..., 0] += along_x
            field[..., 1] += along_y[:, None]
        return field

    def _change_intensities(self, parts, out, own) -> None:
        changed = False
        if own.get("zoom", 1) < 1:
            for part in parts:
                part[...] = _at_low_resolution(part, own["zoom"])
        if own.get("sigma", 0) > 0:
            kernel = gaussian_kernel(own["sigma"], blur_radius(self.config))
            for part in parts:
                part[...] = cv2.sepFilter2D(part, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE).reshape(
                    part.shape
                )
        if "bias" in own and own["bias"].any():
            field = np.exp(_spline_surface(*self.bias, own["bias"]))
            out *= field[..., None]
            changed = True
        if own.get("contrast", 1) != 1:
            mean = out.mean(dtype=np.float64)
            out[...] = (out - np.float32(mean)) * own["contrast"] + np.float32(mean)
            changed = True
        if own.get("brightness", 0) != 0:
            out += own["brightness"]
            changed = True
        if changed:
            np.clip(out, 0, 1, out=out)
        if own.get("gamma", 1) != 1:
            np.power(out, own["gamma"], out=out)
        if own.get("noise", 0) > 0:
            noise = np.empty(out.size, np.float32)
            cv2.setRNGSeed(int(own["noise_seed"]))
            cv2.randn(noise, 0, float(own["noise"]))
            out += noise.reshape(out.shape)
            np.clip(out, 0, 1, out=out)

    def _mix(self, image, mask, drawn) -> None:
        if "mixup" in drawn:
            for whole in (image, mask):
                share = drawn["mixup"].reshape(-1, *[1] * (whole.ndim - 1))
                whole[...] = share * whole + (1 - share) * np.roll(whole, -1, 0)
        if "cutmix" in drawn:
            for whole in (image, mask):
                following = np.roll(whole, -1, 0)
                for i, (y, x, height, width) in enumerate(drawn["cutmix"]):
                    box = (i, ..., slice(y, y + height), slice(x, x + width), slice(None))
                    whole[box] = following[box]


def _spline_surface(rows: np.ndarray, columns: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    # Not by numpy's BLAS: its own threads get in the way of those that call this function at the same time.
    return cv2.gemm(cv2.gemm(rows, coefficients, 1, None, 0), columns, 1, None, 0, flags=cv2.GEMM_2_T)


def gaussian_kernel(sigma: float, radius: int) -> np.ndarray:
    """Weights of a Gaussian of `sigma` pixels at the distances -radius to radius, float32, of sum 1."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def coarse_pixels(pixels: int, zoom: float) -> tuple[int, np.ndarray]:
    """How many pixels a coarser grid has along an axis, and which of the fine ones are at their centres."""
    coarse = max(int(np.floor(pixels * zoom + 0.5)), 1)
    return coarse, np.minimum(((np.arange(coarse) + 0.5) * (pixels / coarse)).astype(int), pixels - 1)


def _at_low_resolution(image: np.ndarray, zoom: float) -> np.ndarray:
    height, width = image.shape[:2]
    rows, columns = coarse_pixels(height, zoom)[1], coarse_pixels(width, zoom)[1]
    coarse = np.ascontiguousarray(image[rows][:, columns])
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(image.shape)


def _aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array at an address that TensorFlow takes over without copying."""
    size = int(np.prod(shape)) * 4
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(np.float32).reshape(shape)
