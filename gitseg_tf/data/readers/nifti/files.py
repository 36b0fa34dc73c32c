"""Image files with voxels on a grid, read with the library for their suffix."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np

from gitseg_tf.data.readers.grid import Grid
from gitseg_tf.data.volume import MAX_CHANNELS
from gitseg_tf.errors import DataError

# Suffix to the module whose `open_file` reads it.
_LIBRARIES = {".nii": "nibabel_files", ".nii.gz": "nibabel_files"} | dict.fromkeys(
    (".nrrd", ".seg.nrrd", ".nhdr", ".mha", ".mhd"), "itk_files"
)
SUFFIXES = tuple(_LIBRARIES)


@dataclass(frozen=True)
class ImageFile:
    """The header of an image file.

    Attributes:
        path: the file.
        grid: the voxel grid, as stored, in mm.
        channels: length of the fourth axis; None without one.
        voxel_bytes: upper bound on the bytes of a voxel in the records: 2 for unscaled integers of up to 16 bits,
            otherwise 4.
        read: reads the voxels as stored, [X, Y, Z] or [X, Y, Z, C].
        assumed: what the header leaves open, and how it is read.
        warnings: lines on a header that contradicts itself.
        names: values of a label map to their names, as far as the header has them.
    """

    path: Path
    grid: Grid
    channels: int | None
    voxel_bytes: int
    read: Callable[[], np.ndarray] = field(repr=False)
    assumed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    names: dict[int, str] = field(default_factory=dict)


def open_image(path: Path, channels: bool = False) -> ImageFile:
    """Read the header of an image file; `channels` allows a fourth axis.

    Raises:
        DataError: unknown suffix, damaged file, no orientation, a singular affine, or too many axes or channels.
        DependencyError: the library for the suffix is not installed.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(f"{path}: is not an image file with one of the suffixes {', '.join(SUFFIXES)}; convert it")
    library = import_module(f"{__package__}.{_LIBRARIES[suffix]}")
    file: ImageFile = library.open_file(path, channels)
    return file


def split_channels(path: Path, shape: tuple[int, ...], channels: bool) -> tuple[tuple[int, ...], int | None]:
    """Split a stored shape into that of the grid and the number of channels, without trailing axes of length 1.

    Raises:
        DataError: too many channels.
    """
    shape = tuple(map(int, shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not channels or len(shape) != 4 or shape[3] < 1:
        return shape, None
    if shape[3] > MAX_CHANNELS:
        raise DataError(f"{path}: has {shape[3]} channels on its fourth axis, but at most {MAX_CHANNELS} are supported")
    return shape[:3], shape[3]


def data_files(path: Path) -> list[Path]:
    """List the files with the voxels of a header without voxels (.nhdr, .mhd); empty for other files."""
    if not path.name.endswith((".nhdr", ".mhd")):
        return []
    files: list[Path] = import_module(f"{__package__}.itk_files").data_files(path)
    return files


def suffix_of(path: Path) -> str | None:
    """Return the suffix of an image file, or None if it is another file."""
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """Return the name of an image file without its suffix.

    Example:
        >>> stem_of(Path("labelsTr/case_001.nii.gz"))
        'case_001'
    """
    return path.name.removesuffix(suffix_of(path) or "")


def image_files(folder: Path) -> list[Path]:
    """List the image files of a folder, sorted, without hidden ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if suffix_of(path) is not None and not path.name.startswith(".") and path.is_file()
    )
