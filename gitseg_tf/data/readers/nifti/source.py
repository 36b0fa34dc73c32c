"""Voxels and masks of one scan in NIfTI files."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Scan, Source
from gitseg_tf.data.readers.grid import Grid, stored_voxels
from gitseg_tf.data.readers.nifti.files import data_files, open_image
from gitseg_tf.data.volume import Annotation
from gitseg_tf.errors import DataError

logger = logging.getLogger(__name__)


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
        voxel_bytes: upper bound on the bytes of a stored voxel, see `ImageFile`.
        channels: number of channels.
        assumed: what the headers leave open, and how it is read; the same text for each scan.
        warnings: lines on headers that contradict themselves.
    """

    images: tuple[Path, ...]
    grid: Grid
    label_map: Path | None
    numbers: dict[str, tuple[int, ...]]
    ignored: tuple[int, ...]
    known: tuple[int, ...]
    masks: dict[str, Path]
    voxel_bytes: int = 2
    channels: int = 1
    assumed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def files(self) -> Sequence[tuple[str, Path]]:
        images = [("image", path) for path in self.images]
        listed = [*images, *([("contours", self.label_map)] if self.label_map else []), *self.masks.items()]
        return [(role, file) for role, path in listed for file in (path, *data_files(path))]

    def digest(self):
        for role, path in self.files():
            yield f"{role} {path.name} {path.stat().st_size}\n".encode()
            if role != "image":
                yield hashlib.sha256(path.read_bytes()).digest()
        yield json.dumps([self.numbers, self.ignored], sort_keys=True).encode()

    def read_image(self, scan: Scan) -> np.ndarray:
        channels = []
        for path in self.images:
            voxels = open_image(path, channels=True).read()
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
        file = open_image(path)
        check_agreement(path, file.grid, self.images[0], self.grid)
        return file.grid.to_records(integers(path, file.read()))


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


def check_agreement(path: Path, grid: Grid, image: Path, image_grid: Grid) -> None:
    """Check that a mask or channel is on the grid of its image.

    Raises:
        DataError: another grid.
    """
    if not grid.agrees_with(image_grid):
        raise DataError(
            f"{path}: its grid is {grid}, but that of {image.name} is {image_grid}; resample one to the other"
        )


def read_on_grid(path: Path, scan: Scan) -> tuple[np.ndarray, int]:
    """Read a label map or a mask on the grid of a scan of any layout.

    Returns:
        Integers [D, H, W], without the slices that the scan lacks, and the number of their voxels that are not 0.

    Raises:
        DataError: another grid, or values that are not integers.
    """
    file, whole = open_image(path, channels=True), scan.source.whole_grid(scan)
    if file.channels is not None or not file.grid.agrees_with(whole):
        raise DataError(f"{path}: its grid is {file.grid}, but that of {scan.id} is {whole}; resample one to the other")
    values = file.grid.to_records(integers(path, file.read()))
    present = np.array(scan.numbers) - scan.numbers[0]
    if len(values) == len(present):
        return values, 0
    return values[present], int(np.count_nonzero(np.delete(values, present, 0)))
