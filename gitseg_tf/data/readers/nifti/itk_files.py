"""NRRD and MetaImage files, read with SimpleITK (extra itk), and the segments of 3-D Slicer."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gitseg_tf.data.readers.grid import make_grid
from gitseg_tf.data.readers.nifti.files import ImageFile, split_channels
from gitseg_tf.errors import DataError, DependencyError

_LONGEST_HEADER = 1 << 20
_LONGEST_NAME = 255  # bytes of a file name
_MOST_DEFLATED = 1100  # deflate makes nothing smaller than by a factor of 1032
_SEGMENT = re.compile(r"Segment(\d+)_(Name|LabelValue)")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# The spaces of NRRD whose axes are those of the patient; SimpleITK converts them to LPS.
_SPACES = ("leftposteriorsuperior", "rightanteriorsuperior", "leftanteriorsuperior", "lps", "ras", "las")
_MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001, "micron": 0.001}


def open_file(path: Path, channels: bool = False) -> ImageFile:
    """Read the header of a NRRD or MetaImage file, see `files.open_image`; components of a voxel are channels."""
    sitk = _simpleitk()
    reader, fields = sitk.ImageFileReader(), _text_header(path)
    _data_files(path, fields)
    try:
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); copy the file again") from None
    mm, assumed = _unit(path, fields)
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    shape, count = split_channels(path, (*size, *([components] if components > 1 else [])), channels)
    if len(shape) != 3 or len(size) != 3:
        layers = f"{components} values per voxel" if len(size) == 3 else f"{len(size)} axes"
        sizes = " x ".join(map(str, size))
        raise DataError(f"{path}: has {layers} ({sizes} voxels); save it with three axes and one value per voxel")
    affine = np.eye(4)
    affine[:3, :3] = mm * np.reshape(reader.GetDirection(), (3, 3)) * np.array(reader.GetSpacing())
    affine[:3, 3] = mm * np.array(reader.GetOrigin())
    dtype = np.dtype(sitk.GetArrayViewFromImage(sitk.Image([1] * 3, reader.GetPixelID(), components)).dtype)
    _check_size(path, fields, math.prod(size) * components * dtype.itemsize)
    return ImageFile(
        path, make_grid(shape, _LPS_TO_RAS @ affine, str(path)), count,
        voxel_bytes=2 if dtype.kind in "biu" and dtype.itemsize <= 2 else 4,
        read=partial(_read, path),
        assumed=assumed,
        names=_segments({key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys() if _SEGMENT.fullmatch(key)}),
    )  # fmt: skip


def _read(path: Path) -> np.ndarray:
    sitk = _simpleitk()
    try:
        voxels: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); copy the file again") from None
    return voxels.transpose((2, 1, 0, 3)[: voxels.ndim])


def data_files(path: Path) -> list[Path]:
    """List the file with the voxels of a header (.nhdr, .mhd); empty for a file with its own voxels.

    Raises:
        DataError: the file is missing or outside the folder of the header, or there are several.
    """
    return _data_files(path, _text_header(path))


def _data_files(path: Path, fields: dict[str, str]) -> list[Path]:
    name = fields.get("elementdatafile", fields.get("data file", fields.get("datafile", "LOCAL")))
    if name.upper() == "LOCAL":
        return []
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        raise DataError(f"{path}: the name of its data file is damaged; copy the file again")
    if not name or "%" in name or name.upper().startswith("LIST"):
        raise DataError(f"{path}: its voxels are not in one file; save it as one")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{path}: its data file {name} is outside its folder; move it next to the header")
    data = path.parent / name
    if not data.is_file():
        raise DataError(f"{path}: its data file {data} is missing; copy it, too")
    return [data]


def _check_size(path: Path, fields: dict[str, str], expected: int) -> None:
    """Check that the file can contain the voxels of its header: SimpleITK may fill up what is missing.

    Raises:
        DataError: it is too small.
    """
    raw = fields.get("encoding", "").lower() == "raw" or fields.get("compresseddata", "").lower() == "false"
    data = next(iter(_data_files(path, fields)), path)
    if expected > data.stat().st_size * (1 if raw else _MOST_DEFLATED):
        raise DataError(f"{data}: is too small for the voxels in the header of {path.name}; copy the file again")


def _text_header(path: Path) -> dict[str, str]:
    """Read the text at the start of a file: NRRD's fields, or MetaImage's, by lower-case name."""
    nrrd = path.name.endswith((".nrrd", ".nhdr"))
    with open(path, "rb") as file:
        content = file.read(_LONGEST_HEADER)
    fields = {}
    for line in content.split(b"\n"):
        text = line.decode("utf-8", "replace").rstrip("\r")
        if nrrd and not text:
            break
        name, separator, value = text.partition(":" if nrrd else "=")
        if separator and not value.startswith("="):  # NRRD's keys have :=
            fields[name.strip().lower()] = value.strip()
        if not nrrd and name.strip().lower() == "elementdatafile":
            break
    return fields


def _unit(path: Path, fields: dict[str, str]) -> tuple[float, tuple[str, ...]]:
    """Return the length of the header's unit in mm, and what was assumed or converted.

    Raises:
        DataError: an unknown unit, or axes without a relation to the patient.
    """
    if path.name.endswith((".mha", ".mhd")):
        if {"transformmatrix", "rotation", "orientation"} & fields.keys():
            return 1.0, ()
        return 1.0, ("the header has no TransformMatrix; axes to the left, posterior and superior are assumed",)
    space = fields.get("space", "")
    if re.sub(r"[^a-z]", "", space.lower()) not in _SPACES:
        given = f"its space is {space}" if space else "space is missing"
        raise DataError(f"{path}: has no orientation ({given}); set it to left-posterior-superior or another of these")
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {""}
    if len(units) > 1 or not units <= _MM.keys():
        raise DataError(f"{path}: its space units are {', '.join(sorted(units))}; convert them to mm")
    (unit,) = units or {"mm"}
    converted = f"the spacing is stored in {unit} and is converted to millimeters"
    return _MM[unit], () if _MM[unit] == 1 else (converted,)


def _segments(fields: dict[str, str]) -> dict[int, str]:
    """Read the names of 3-D Slicer's segments: {value: name}."""
    names = {}
    for key, name in fields.items():
        if (match := _SEGMENT.fullmatch(key)) and match[2] == "Name":
            value = fields.get(f"Segment{match[1]}_LabelValue", "")
            if value.isdecimal() and int(value):
                names[int(value)] = name.strip()
    return dict(sorted(names.items()))


def _reason(error: RuntimeError) -> str:
    """Return the last line of an error of SimpleITK: earlier ones name its source files."""
    return (str(error).strip().splitlines() or [""])[-1].strip()


def _simpleitk() -> Any:
    try:
        import SimpleITK as sitk
    except ModuleNotFoundError:
        raise DependencyError("reading NRRD and MetaImage requires pip install 'gitseg-tf[itk]'") from None
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk
