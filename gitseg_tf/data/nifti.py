"""NIfTI: the folders of nnU-Net and the Medical Segmentation Decathlon, and a folder a scan with a mask an organ."""

import hashlib
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from gitseg_tf.data.orientation import Grid, make_grid, to_uint16
from gitseg_tf.data.scans import (
    ORGANS,
    Cohort,
    Scan,
    Source,
    build_scans,
    numbered_slice_ids,
    organ_named,
    source_digest,
)
from gitseg_tf.errors import InputError

IMAGE_NAMES = ("image", "image_0000", "mri", "mr", "ct")
_DEFAULT_LABELS = {organ: (number,) for number, organ in enumerate(ORGANS, 1)}


@dataclass(frozen=True)
class NiftiSource(Source):
    """One image, and either one label image or a mask an organ.

    Attributes:
        image: the file.
        grid: of the image, as stored.
        label: numbers an organ, or None.
        label_numbers: organ to its numbers in `label`.
        known_numbers: all that may be in `label`, 0 among them.
        masks: organ to its file; an organ without file is absent.
    """

    image: Path
    grid: Grid
    label: Path | None
    label_numbers: dict[str, tuple[int, ...]]
    known_numbers: tuple[int, ...]
    masks: dict[str, Path]

    def files(self) -> list[tuple[str, Path]]:
        return [("image", self.image), *([("contours", self.label)] if self.label else []), *self.masks.items()]

    def digest(self):
        for role, path in self.files():
            yield f"{role} {path.name} {path.stat().st_size}\n".encode()
            if role != "image":
                yield hashlib.sha256(path.read_bytes()).digest()
        yield json.dumps(self.label_numbers, sort_keys=True).encode()

    def read_image(self, scan: Scan) -> np.ndarray:
        _, voxels = _read(self.image)
        return np.ascontiguousarray(self.grid.to_records(to_uint16(voxels, self.image)))

    def read_masks(self, scan: Scan) -> np.ndarray:
        masks = np.zeros((len(ORGANS), *scan.shape), bool)
        if self.label is not None:
            numbers = self._read_label(self.label)
            known = np.isin(numbers, self.known_numbers)
            if not known.all():
                raise InputError(
                    f"{self.label}: holds the label {numbers[~known][0]:g}, known are "
                    f"{', '.join(map(str, self.known_numbers))}; name it in dataset.json"
                )
            for k, organ in enumerate(ORGANS):
                masks[k] = np.isin(numbers, self.label_numbers.get(organ, ()))
        for organ, path in self.masks.items():
            values = self._read_label(path)
            inside = values != 0
            if inside.any() and (values[inside] != values[inside][0]).any():
                raise InputError(f"{path}: holds more than one value beside 0; a mask holds 0 and 1")
            masks[ORGANS.index(organ)] = inside
        return masks

    def whole_grid(self, scan: Scan) -> Grid:
        return self.grid

    def _read_label(self, path: Path) -> np.ndarray:
        grid, voxels = _read(path)
        _check_agreement(path, grid, self.image, self.grid)
        if voxels.dtype.kind == "f" and (voxels == np.rint(voxels)).all():
            voxels = voxels.astype(np.int32)
        if voxels.dtype.kind not in "biu":
            raise InputError(f"{path}: holds {voxels.dtype} values that are not whole; a label holds whole numbers")
        return grid.to_records(voxels)


def is_here(root: Path) -> bool:
    """True for a folder with imagesTr/ or imagesTs/, with NIfTI files, or with folders that hold an image."""
    return _nnunet_images(root, True) is not None or any(_scan_folders(root))


def read(root: Path, table: bool = True) -> Cohort:
    """Find the scans of a folder; only headers are read.

    Args:
        root: one of
            imagesTr/ID.nii.gz or ID_0000.nii.gz, labelsTr/ID.nii.gz and dataset.json (nnU-Net, Decathlon);
            ID.nii.gz, without labels;
            SCAN/image.nii.gz or PATIENT/SCAN/image.nii.gz, and beside it or in segmentations/ a mask an organ.
        table: False leaves labels alone, and takes imagesTs/ where it is there.

    Returns:
        The cohort, scans sorted by id; broken are those whose header cannot be read or whose label is on another grid.

    Raises:
        InputError: an image without label, a label without image, several channels, or a dataset.json without an organ.
    """
    images = _nnunet_images(root, table)
    found = _read_nnunet(root, images, table) if images is not None else _read_scan_folders(root, table)
    return _cohort(root, *found)


def read_file(path: Path) -> Cohort:
    """An image alone, its id the file's name; see `read`."""
    name = _stem(path)
    return _cohort(path, [(name, partial(_scan, name, name, path, None, {}, (), {}, False))], False, [], [])


def _cohort(root: Path, found, labelled: bool, labels: list[str], ignored: list[str]) -> Cohort:
    scans, broken = build_scans(found)
    names = hashlib.sha256(json.dumps([scan.id for scan in scans]).encode() + source_digest(list(scans)).encode())
    lines = tuple(labels), tuple(ignored)
    return Cohort(root, scans, labelled, names.hexdigest(), "NIfTI", *lines, broken=broken)


def _nnunet_images(root: Path, table: bool) -> Path | None:
    names = ("imagesTr", "imagesTs") if table else ("imagesTs", "imagesTr")
    folder = next((root / name for name in names if (root / name).is_dir()), root)
    return folder if folder != root or _nifti_files(root) else None


def _nifti_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".") and path.is_file()
    )


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def _read_nnunet(root: Path, images: Path, table: bool):
    files = {}
    for path in _nifti_files(images):
        scan_id, channel = re.fullmatch(r"(.+?)(?:_(\d{4}))?", _stem(path)).groups()
        if channel not in (None, "0000"):
            raise InputError(f"{path}: is channel {channel} of {scan_id}; a scan has one, {scan_id}_0000")
        if scan_id in files:
            raise InputError(f"{path}: {scan_id} is there twice ({files[scan_id].name}); keep one")
        files[scan_id] = path
    if not files:
        raise InputError(f"{images}: holds no .nii or .nii.gz file")
    folder = root / "labelsTr"
    labelled = table and images.name == "imagesTr" and folder.is_dir()
    numbers, known, labels, ignored = _label_numbers(root) if labelled else ({}, (), [], [])
    label_files = {_stem(path): path for path in _nifti_files(folder)} if labelled else {}
    if labelled and files.keys() != label_files.keys():
        odd = min(files.keys() ^ label_files.keys())
        there, missing = (images, folder) if odd in files else (folder, images)
        raise InputError(f"{there}: {odd} has no file in {missing.name}/; add it, or move this one away")
    found = [
        (name, partial(_scan, name, name, path, label_files.get(name), numbers, known, {}, labelled))
        for name, path in files.items()
    ]
    return found, labelled, labels, ignored


def _label_numbers(root: Path):
    """Organ to numbers, all known numbers, lines on what is an organ, lines on what is none."""
    path = root / "dataset.json"
    if not path.is_file():
        labels = [
            f"{numbers[0]} is {organ} (by default, for there is no dataset.json)"
            for organ, numbers in _DEFAULT_LABELS.items()
        ]
        return _DEFAULT_LABELS, (0, 1, 2, 3), labels, []
    try:
        tree = json.loads(path.read_bytes())["labels"]
        # nnU-Net v2 has names to numbers, or to the numbers of a region; the Decathlon has numbers to names.
        named = [
            (value, (int(key),)) if isinstance(value, str) else (key, tuple(np.atleast_1d(value).astype(int).tolist()))
            for key, value in tree.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f'{path}: has no "labels" with names and numbers; see docs/data.md') from None
    organs, labels, ignored = {}, [], []
    for name, numbers in named:
        organ, listed = organ_named(name), ", ".join(map(str, numbers))
        if organ in organs:
            raise InputError(f"{path}: {organ} is there under two names; keep one")
        if organ is not None:
            organs[organ] = numbers
            labels.append(f"{listed} is {organ} ({name})")
        elif numbers != (0,):
            ignored.append(f"label {listed} ({name}): no organ of ours")
    if not organs:
        raise InputError(
            f"{path}: names no organ; known are {', '.join(ORGANS)}, there are {', '.join(name for name, _ in named)}"
        )
    return organs, tuple(sorted({0}.union(*(numbers for _, numbers in named)))), labels, ignored


def _scan_folders(root: Path):
    """The images of SCAN/ and PATIENT/SCAN/."""
    for pattern in ("*", "*/*"):
        for folder in sorted(root.glob(pattern)):
            if folder.is_dir():
                images = [path for path in _nifti_files(folder) if _stem(path).lower() in IMAGE_NAMES]
                if len(images) > 1:
                    raise InputError(f"{folder}: {images[0].name} and {images[1].name} are both images; keep one")
                yield from images


def _read_scan_folders(root: Path, table: bool):
    found, missing, labels, ignored = [], Counter(), Counter(), []
    images = list(_scan_folders(root))
    masks = {image: _masks_beside(image, ignored) if table else {} for image in images}
    labelled = any(masks.values())
    for image in images:
        if labelled and not masks[image]:
            raise InputError(f"{image.parent}: holds no mask of an organ, other scans do; add one (it may be empty)")
        names = image.parent.relative_to(root).parts
        labels.update(f"{path.name} is {organ}" for organ, path in masks[image].items())
        missing.update(organ for organ in ORGANS if labelled and organ not in masks[image])
        scan_id = "_".join(names)
        found.append((scan_id, partial(_scan, scan_id, names[0], image, None, {}, (), masks[image], labelled)))
    lines = [f"{line} ({n} of {len(found)} scans)" for line, n in sorted(labels.items())]
    lines += [
        f"no file is {organ}: taken as absent ({n} of {len(found)} scans)" for organ, n in sorted(missing.items())
    ]
    return found, labelled, lines, ignored


def _masks_beside(image: Path, ignored: list[str]) -> dict[str, Path]:
    masks = {}
    for folder in (image.parent, image.parent / "segmentations"):
        for path in _nifti_files(folder) if folder.is_dir() else ():
            organ = organ_named(_stem(path))
            if organ in masks:
                raise InputError(f"{path}: {organ} is there already ({masks[organ].name}); keep one")
            if organ is not None:
                masks[organ] = path
            elif path != image:
                ignored.append(f"{path}: no organ of ours")
    return dict(sorted(masks.items()))


def _scan(scan_id, patient, image, label, numbers, known, masks, labelled) -> Scan:
    grid = _grid(image, _open(image))
    for path in [*([label] if label else []), *masks.values()]:
        _check_agreement(path, _grid(path, _open(path)), image, grid)
    source = NiftiSource(image, grid, label, numbers, known, masks)
    slices = list(range(1, grid.records_shape[0] + 1))
    ids = numbered_slice_ids(scan_id, slices)
    case = patient.split("_day")[0]
    return Scan(scan_id, case, grid.records_shape, grid.spacing, slices, ids, labelled, source)


def _open(path: Path):
    try:
        return nibabel.load(path)
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
        raise InputError(f"{path}: cannot be read as NIfTI ({_first_line(error)}); copy the file again") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _grid(path: Path, image) -> Grid:
    if not isinstance(image, nibabel.Nifti1Pair):
        raise InputError(f"{path}: is no NIfTI file")
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise InputError(f"{path}: does not say how the patient lies (sform_code and qform_code are 0); set one")
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return make_grid(shape, image.affine, path)


def _read(path: Path) -> tuple[Grid, np.ndarray]:
    image = _open(path)
    grid = _grid(path, image)
    try:
        return grid, np.asanyarray(image.dataobj).reshape(grid.shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({_first_line(error)}); copy the file again") from None


def _check_agreement(path: Path, grid: Grid, image: Path, image_grid: Grid) -> None:
    if grid.records_shape != image_grid.records_shape:
        sizes = (" x ".join(map(str, g.records_shape)) for g in (grid, image_grid))
        raise InputError(f"{path}: has {next(sizes)} voxels, {image.name} has {next(sizes)}; resample one to the other")
    if not grid.agrees_with(image_grid):
        raise InputError(f"{path}: lies elsewhere than {image.name} (their affines differ); resample one to the other")
