"""Voxels and masks of one scan in NIfTI files."""

import hashlib
import json
import logging
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Scan, Source
from gitseg_tf.data.readers.grid import Grid, make_grid, stored_voxels
from gitseg_tf.data.volume import MAX_CHANNELS, Annotation
from gitseg_tf.errors import DataError, first_line

logger = logging.getLogger(__name__)

_MOST_DEFLATED = 1100  # deflate makes nothing smaller than by a factor of 1032


@dataclass(frozen=True)
class NiftiSource(Source):
    """The channels of an image, with one label map or one mask per label.

    Attributes:
        images: one file per channel, or one file with all channels on a fourth axis.
        grid: the images' grid, as stored.
        label_map: a file of integers, or None.
        numbers: label to its values in `label_map`; a region has several.
        ignored: values in `label_map` that mark ignored voxels.
        known: all values allowed in `label_map`, including 0.
        masks: label to its file; an empty mask means absent, a missing file unannotated.
        voxel_bytes: bytes of a stored voxel, from the function `voxel_bytes`.
    """

    images: tuple[Path, ...]
    grid: Grid
    label_map: Path | None
    numbers: dict[str, tuple[int, ...]]
    ignored: tuple[int, ...]
    known: tuple[int, ...]
    masks: dict[str, Path]
    voxel_bytes: int = 2

    def files(self) -> Sequence[tuple[str, Path]]:
        images = [("image", path) for path in self.images]
        return [*images, *([("contours", self.label_map)] if self.label_map else []), *self.masks.items()]

    def digest(self):
        for role, path in self.files():
            yield f"{role} {path.name} {path.stat().st_size}\n".encode()
            if role != "image":
                yield hashlib.sha256(path.read_bytes()).digest()
        yield json.dumps([self.numbers, self.ignored], sort_keys=True).encode()

    def read_image(self, scan: Scan) -> np.ndarray:
        channels = []
        for path in self.images:
            _, voxels = read_voxels(path)
            stored = [self.grid.to_records(c) for c in (np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else [voxels])]
            channels += [_without_nan_outside(channel, path) for channel in stored]
        volume = channels[0] if len(channels) == 1 else np.stack(channels, -1)
        return np.ascontiguousarray(stored_voxels(volume, self.images[0]))

    def read_annotation(self, scan: Scan) -> Annotation:
        masks, ignore = np.zeros((len(scan.labels), *scan.shape), bool), None
        if self.label_map is not None:
            values = self._read_labels(self.label_map)
            known = np.isin(values, self.known)
            if not known.all():
                raise DataError(
                    f"{self.label_map}: contains the value {values[~known][0]:g}, but the known values are "
                    f"{', '.join(map(str, self.known))}; name it in dataset.json"
                )
            for name, numbers in self.numbers.items():
                masks[scan.labels.index(name)] = np.isin(values, numbers)
            ignore = np.isin(values, self.ignored) if self.ignored else None
        for name, path in self.masks.items():
            values = self._read_labels(path)
            inside = values != 0
            if inside.any() and (values[inside] != values[inside][0]).any():
                raise DataError(f"{path}: contains more than one nonzero value; a mask must contain only 0 and 1")
            masks[scan.labels.index(name)] = inside
        return Annotation(masks, scan.is_annotated, ignore)

    def whole_grid(self, scan: Scan) -> Grid:
        return self.grid

    def _read_labels(self, path: Path) -> np.ndarray:
        grid, voxels = read_voxels(path)
        check_agreement(path, grid, self.images[0], self.grid)
        return grid.to_records(integers(path, voxels))


def integers(path: Path, voxels: np.ndarray) -> np.ndarray:
    """Return the voxels of a label map as integers.

    Raises:
        DataError: other values.
    """
    if voxels.dtype.kind == "f" and (voxels == np.rint(voxels)).all():
        voxels = voxels.astype(np.int32)
    if voxels.dtype.kind not in "biu":
        raise DataError(f"{path}: contains {voxels.dtype} values that are not integers; labels must be integers")
    return voxels


def _without_nan_outside(volume: np.ndarray, path: Path) -> np.ndarray:
    """Replace NaN outside the field of view, as resampling leaves it at the border of slices, by the lowest value."""
    if volume.dtype.kind != "f":
        return volume
    missing: np.ndarray = np.isnan(volume)
    if not missing.any() or missing.all():
        return volume
    for plane in missing[missing.any(axis=(1, 2))]:
        _, regions = cv2.connectedComponents(plane.astype(np.uint8), connectivity=4)
        edges = np.concatenate([regions[[0, -1]].ravel(), regions[:, [0, -1]].ravel()])
        if not np.isin(regions[plane], edges).all():
            raise DataError(f"{path}: contains NaN inside a slice; replace it with a number")
    lowest = np.nanmin(volume)
    logger.warning(
        "%s: NaN in %s at the border of slices is read as the lowest value, %g",
        path, plural(int(missing.sum()), "voxel"), lowest,
    )  # fmt: skip
    return np.where(missing, lowest, volume)


def open_nifti(path: Path):
    """Open a NIfTI file without reading voxels.

    Raises:
        DataError: not a NIfTI file, or a damaged one.
    """
    try:
        return nibabel.load(path)
    except (
        ImageFileError,
        HeaderDataError,
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        zlib.error,
    ) as error:
        raise DataError(f"{path}: cannot be read as NIfTI ({first_line(error)}); copy the file again") from None


def shape_of(image) -> tuple[int, ...]:
    """Return the shape without trailing axes of length 1."""
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(map(int, shape))


def voxel_bytes(image) -> int:
    """Return an upper bound on the bytes of a stored voxel: 2 for unscaled integers of up to 16 bits, otherwise 4.

    Floating-point voxels that turn out to be integers take only 2.
    """
    dtype, scaling = image.get_data_dtype(), (image.dataobj.slope, image.dataobj.inter)
    return 2 if dtype.kind in "biu" and dtype.itemsize <= 2 and scaling == (1, 0) else 4


def grid_of(path: Path, image, channels: bool = False) -> Grid:
    """Read the grid from an image's header; `channels` allows a fourth axis.

    Raises:
        DataError: no orientation, a singular affine, or too many axes or channels.
    """
    if not isinstance(image, nibabel.Nifti1Pair):
        raise DataError(f"{path}: is not a NIfTI file; convert it to NIfTI")
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise DataError(f"{path}: has no orientation (sform_code and qform_code are 0); set one of them")
    shape = shape_of(image)
    if channels and len(shape) == 4:
        if shape[3] > MAX_CHANNELS:
            raise DataError(
                f"{path}: has {shape[3]} channels on its fourth axis, but at most {MAX_CHANNELS} are supported"
            )
        shape = shape[:3]
    return make_grid(shape, image.affine, str(path))


def read_voxels(path: Path) -> tuple[Grid, np.ndarray]:
    """Read the grid, and the voxels as stored [X, Y, Z] or [X, Y, Z, C]."""
    image = open_nifti(path)
    grid = grid_of(path, image, channels=True)
    _check_size(path, image)
    try:
        return grid, np.asanyarray(image.dataobj).reshape(shape_of(image))
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); copy the file again") from None


def _check_size(path: Path, image) -> None:
    """Check that the file can contain the voxels of its header, before memory is allocated for them."""
    expected = math.prod(shape_of(image)) * image.get_data_dtype().itemsize
    at_most = path.stat().st_size * (_MOST_DEFLATED if path.name.endswith(".gz") else 1)
    if expected > at_most:
        size = " x ".join(map(str, shape_of(image)))
        raise DataError(f"{path}: is too small for the {size} voxels in its header; copy the file again")


def check_agreement(path: Path, grid: Grid, image: Path, image_grid: Grid) -> None:
    """Check that a mask or channel is on the grid of its image.

    Raises:
        DataError: another shape or affine.
    """
    if grid.records_shape != image_grid.records_shape:
        sizes = (" x ".join(map(str, g.records_shape)) for g in (grid, image_grid))
        own, other = sizes
        raise DataError(f"{path}: has {own} voxels, but {image.name} has {other}; resample one to the other")
    if not grid.agrees_with(image_grid):
        raise DataError(f"{path}: its affine differs from that of {image.name}; resample one to the other")
