"""NIfTI files, read with nibabel."""

import html
import math
import re
import zlib
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from gitseg_tf.data.readers.grid import Grid, make_grid
from gitseg_tf.data.readers.nifti.files import ImageFile, split_channels
from gitseg_tf.errors import DataError, first_line

_DAMAGE = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error)
_MOST_DEFLATED = 1100  # deflate makes nothing smaller than by a factor of 1032
_TABLE_ROW = re.compile(
    r"""<Label\b[^>]*\bKey=["'](\d+)["'][^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>""", re.DOTALL
)
# The bits 0 to 2 of xyzt_units, see nifti1.h: name and mm.
_UNITS = {1: ("meters", 1000.0), 2: ("millimeters", 1.0), 3: ("micrometers", 0.001)}
_LONGEST_MM = 100.0  # voxels of a scan are never that long; the unit is wrong
_ROUNDED = 1e-3  # relative difference between numbers that were rounded for storage


class _RoundedHeader(nibabel.Nifti1Header):
    """Accepts quaternions that rounding made slightly longer than 1; nibabel normalizes them."""

    quaternion_threshold = -_ROUNDED


class _RoundedImage(nibabel.Nifti1Image):
    header_class = _RoundedHeader


def open_file(path: Path, channels: bool = False) -> ImageFile:
    """Read the header of a NIfTI file, see `files.open_image`.

    Orientation and spacing come from the sform if its code is above 0, otherwise from the qform, as in nibabel.
    """
    image = _load(path)
    if not isinstance(image, nibabel.Nifti1Pair):
        raise DataError(f"{path}: is not a NIfTI file; convert it to NIfTI")
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise DataError(f"{path}: has no orientation (sform_code and qform_code are 0); set one of them")
    shape, count = split_channels(path, image.shape, channels)
    affine, assumed = _in_mm(path, image)
    grid = make_grid(shape, affine, str(path))
    # Floating-point voxels that turn out to be integers take only 2 bytes.
    dtype, scaling = image.get_data_dtype(), (image.dataobj.slope, image.dataobj.inter)
    size = 2 if dtype.kind in "biu" and dtype.itemsize <= 2 and scaling == (1, 0) else 4
    stored = shape if count is None else (*shape, count)
    return ImageFile(
        path, grid, count, size, partial(_read, path, image, stored), assumed, _contradictions(path, image, grid),
        _label_table(image),
    )  # fmt: skip


def _load(path: Path):
    try:
        try:
            return nibabel.load(path)
        except ValueError as error:
            if "w2 should be positive" not in str(error) or not path.name.endswith((".nii", ".nii.gz")):
                raise
            return _RoundedImage.from_filename(path)
    except _DAMAGE as error:
        raise DataError(f"{path}: cannot be read as NIfTI ({first_line(error)}); copy the file again") from None


def _read(path: Path, image, shape: tuple[int, ...]) -> np.ndarray:
    # Check that the file can contain the voxels of its header, before memory is allocated for them.
    expected = math.prod(shape) * image.get_data_dtype().itemsize
    if expected > path.stat().st_size * (_MOST_DEFLATED if path.name.endswith(".gz") else 1):
        size = " x ".join(map(str, shape))
        raise DataError(f"{path}: is too small for the {size} voxels in its header; copy the file again")
    try:
        return np.asanyarray(image.dataobj).reshape(shape)
    except _DAMAGE as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); copy the file again") from None


def _in_mm(path: Path, image) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the affine in mm, and what was assumed or converted."""
    unit = int(image.header["xyzt_units"]) & 7
    name, mm = _UNITS.get(unit, ("", 1.0))
    if not name:
        return image.affine, ("the header does not state the unit of the spacing; millimeters are assumed",)
    affine = image.affine.copy()
    affine[:3] *= mm
    if mm == 1:
        return affine, ()
    if np.linalg.norm(affine[:3, :3], axis=0).max() > _LONGEST_MM:
        spacing = _times(np.linalg.norm(image.affine[:3, :3], axis=0))
        raise DataError(f"{path}: has a spacing of {spacing} {name}, which cannot be right; fix xyzt_units")
    return affine, (f"the spacing is stored in {name} and is converted to millimeters",)


def _contradictions(path: Path, image, grid: Grid) -> tuple[str, ...]:
    """Compare the sform, which is used, with the qform and pixdim."""
    header = image.header
    if not header["sform_code"]:
        return ()
    lines = []
    spacing, pixdim = np.linalg.norm(image.affine[:3, :3], axis=0), np.array(header.get_zooms()[:3], float)
    if (np.abs(spacing - pixdim) > _ROUNDED * spacing).any():
        lines.append(f"{path}: the sform has a spacing of {_times(spacing)}, but pixdim {_times(pixdim)}")
    elif header["qform_code"]:
        try:
            qform = make_grid(grid.shape, _scaled(header.get_qform(), image.affine, grid), str(path))
        except (ValueError, DataError):
            lines.append(f"{path}: the qform is not valid")
        else:
            if not qform.agrees_with(grid):
                lines.append(f"{path}: the sform places {grid}, but the qform {qform}")
    return tuple(f"{line}; the sform is used" for line in lines)


def _scaled(affine: np.ndarray, stored: np.ndarray, grid: Grid) -> np.ndarray:
    """Convert an affine to mm like the one that the grid was made from."""
    column = int(np.argmax(np.abs(stored[:3, :3]).max(0)))
    mm = np.linalg.norm(np.array(grid.affine)[:3, column]) / np.linalg.norm(stored[:3, column])
    return np.vstack([mm * affine[:3], affine[3:]])


def _times(numbers) -> str:
    return " x ".join(f"{number:.5g}" for number in numbers)


def _label_table(image) -> dict[int, str]:
    """Read the table of labels in a NIfTI header, an XML extension of Caret: {value: name}."""
    table: dict[int, str] = {}
    for extension in getattr(image.header, "extensions", ()):
        # From nibabel 5.3 on, get_content raises NotImplementedError for codes such as Caret's own.
        content = extension.content if hasattr(extension, "content") else extension.get_content()
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        for value, quoted, plain in _TABLE_ROW.findall(text):
            if int(value):
                table[int(value)] = html.unescape((quoted or plain).strip())
    return table
