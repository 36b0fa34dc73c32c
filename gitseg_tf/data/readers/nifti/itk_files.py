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

_HEADER_BYTES = 1 << 16
_MOST_DEFLATED = 1100  # deflate makes nothing smaller than by a factor of 1032
_DATA_FILE = re.compile(r"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE)
_RAW = re.compile(r"^(?:CompressedData\s*=\s*False|encoding:\s*raw)\s*$", re.MULTILINE | re.IGNORECASE)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def open_file(path: Path, channels: bool = False) -> ImageFile:
    """Read the header of a NRRD or MetaImage file, see `files.open_image`; components of a voxel are channels."""
    sitk = _simpleitk()
    reader, (data, most) = sitk.ImageFileReader(), _data_file(path)
    try:
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); copy the file again") from None
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    shape, count = split_channels(path, (*size, *([components] if components > 1 else [])), channels)
    if len(shape) != 3 or len(size) != 3:
        layers = f"{components} values per voxel" if len(size) == 3 else f"{len(size)} axes"
        sizes = " x ".join(map(str, size))
        raise DataError(f"{path}: has {layers} ({sizes} voxels); save it with three axes and one value per voxel")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * np.array(reader.GetSpacing())
    affine[:3, 3] = reader.GetOrigin()
    dtype = np.dtype(sitk.GetArrayViewFromImage(sitk.Image([1] * 3, reader.GetPixelID(), components)).dtype)
    if most is not None and math.prod(size) * components * dtype.itemsize > most:
        raise DataError(f"{data}: is too small for the voxels in the header of {path.name}; copy the file again")
    return ImageFile(
        path, make_grid(shape, _LPS_TO_RAS @ affine, str(path)), count,
        voxel_bytes=2 if dtype.kind in "biu" and dtype.itemsize <= 2 else 4,
        read=partial(_read, path),
        names=_segments({key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}),
    )  # fmt: skip


def _read(path: Path) -> np.ndarray:
    sitk = _simpleitk()
    try:
        voxels: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); copy the file again") from None
    return voxels.transpose((2, 1, 0, 3)[: voxels.ndim])


def _data_file(path: Path) -> tuple[Path, int | None]:
    """Find the file with the voxels, and the most bytes of voxels that it can contain; None if there are several files.

    SimpleITK fills up what is missing from some files, and allocates memory for all voxels of the header.

    Raises:
        DataError: the file is missing.
    """
    with open(path, "rb") as file:
        header = file.read(_HEADER_BYTES).split(b"\n\n")[0].decode("latin-1")
    match = _DATA_FILE.search(header)
    name = match[1] if match else "LOCAL"
    if "%" in name or name.upper().startswith("LIST"):
        return path, None
    data = path if name.upper() == "LOCAL" else path.parent / name
    if not data.is_file():
        raise DataError(f"{path}: its data file {data} is missing; copy it, too")
    return data, data.stat().st_size * (1 if _RAW.search(header) else _MOST_DEFLATED)


def _segments(fields: dict[str, str]) -> dict[int, str]:
    """Read the names of 3-D Slicer's segments: {value: name}."""
    names = {}
    for key, name in fields.items():
        if match := re.fullmatch(r"Segment(\d+)_Name", key):
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
