"""Masks as NIfTI: label maps of nnU-Net, or one file per label like those of TotalSegmentator."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.data.readers.nifti.files import SUFFIXES, image_files, stem_of
from gitseg_tf.data.readers.nifti.folders import IMAGE_NAMES
from gitseg_tf.data.readers.nifti.label_tables import named_values
from gitseg_tf.data.readers.nifti.nnunet import IGNORE, named_numbers, read_json
from gitseg_tf.data.readers.nifti.source import NiftiSource, read_on_grid
from gitseg_tf.data.readers.predictions.base import PredictedScan, PredictionReader, Predictions
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

_SEGMENTATIONS = "segmentations"
_LABEL_FOLDERS = ("labelsTr", "labelsTs")
# Names of values, in their order: (name, values).
Named = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class LabelMap(PredictedScan):
    """A file of integers.

    Attributes:
        path: the file.
        values: name to its values; a region has several.
    """

    path: Path
    values: dict[str, tuple[int, ...]]
    known: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the values."""
        return tuple(self.values)

    @property
    def where(self) -> Path:  # type: ignore[override]
        """The file."""
        return self.path

    def read(self, scan: Scan, name_of: Mapping[str, str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        numbers, notes = _read_on_grid(self.path, scan)
        unknown = numbers[~np.isin(numbers, self.known)]
        if unknown.size:
            listed = ", ".join(map(str, self.known))
            raise DataError(f"{self.path}: contains the value {unknown[0]}, but the named values are {listed}; name it")
        return {label: np.isin(numbers, self.values[name]) for label, name in name_of.items()}, notes


@dataclass(frozen=True)
class MaskFiles(PredictedScan):
    """One file per label.

    Attributes:
        where: their folder.
        files: name to its file.
    """

    where: Path
    files: dict[str, Path]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the files."""
        return tuple(self.files)

    def read(self, scan: Scan, name_of: Mapping[str, str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        masks: dict[str, np.ndarray] = {}
        notes: list[str] = []
        for label, name in name_of.items():
            values, lines = _read_on_grid(self.files[name], scan)
            if np.unique(values[values != 0]).size > 1:
                raise DataError(f"{self.files[name]}: has more than one value beside 0; a mask must have only 0 and 1")
            masks[label] = values != 0
            notes += lines
        return masks, tuple(notes)


def is_here(path: AnyPath) -> bool:
    """Check for NIfTI files in a folder, in its subfolders or theirs."""
    if not isinstance(path, Path):
        return False
    if path.is_file():
        return path.name.endswith(SUFFIXES)
    folders = [path, *(path / name for name in _LABEL_FOLDERS if (path / name).is_dir())]
    return any(map(image_files, folders)) or next(_mask_folders(path), None) is not None


def read(path: Path, reference: Cohort, labels: LabelSet | None = None) -> Predictions:
    """Find label maps ID.nii.gz (also in labelsTr/ or labelsTs/) and folders of masks ID/LABEL.nii.gz.

    Masks may be in ID/segmentations/; an image beside them is not read. If the reference has a single scan, the folder
    itself may contain its masks.

    Raises:
        DataError: a scan with both, or values of label maps without names.
    """
    ids = {scan.id for scan in reference.scans}
    folders = [path, *(path / name for name in _LABEL_FOLDERS if (path / name).is_dir())] if path.is_dir() else []
    files = [file for folder in folders for file in image_files(folder)] if folders else [path]
    scans: dict[str, PredictedScan] = {}
    for folder, masks in _mask_folders(path) if path.is_dir() else ():
        parts = [part for part in folder.relative_to(path).parts if part != _SEGMENTATIONS]
        scan_id = "_".join(parts) if parts else _only_scan(path, reference)
        if scan_id in scans:
            raise DataError(f"{folder}: {scan_id} also has masks in {scans[scan_id].where}; remove one of the folders")
        scans[scan_id] = MaskFiles(folder, masks)
    maps = {stem_of(file): file for file in files}
    if _are_masks(maps, ids, reference):
        scan_id = _only_scan(path, reference)
        named = {name: file for name, file in maps.items() if name.lower() not in IMAGE_NAMES}
        return Predictions(path, {scan_id: MaskFiles(path, named)} | scans)
    if twice := sorted(maps.keys() & scans.keys()):
        raise DataError(f"{maps[twice[0]]}: {twice[0]} also has masks in {scans[twice[0]].where}; remove one of them")
    if not maps:
        return Predictions(path, scans)
    values, known, notes = _names_of_values(path, maps, reference, labels)
    return Predictions(path, {name: LabelMap(file, values, known) for name, file in maps.items()} | scans, notes)


def _are_masks(maps: dict[str, Path], ids: set[str], reference: Cohort) -> bool:
    """Check whether the files of a folder are the masks of the only scan, rather than label maps of scans."""
    if len(ids) != 1 or ids & maps.keys():
        return False
    return any(reference.labels.match(name) for name in maps)


def _only_scan(path: Path, reference: Cohort) -> str:
    if len(reference.scans) != 1:
        raise DataError(
            f"{path}: has masks, but the reference has several scans; put each scan's masks in a folder SCAN/"
        )
    return reference.scans[0].id


def _mask_folders(root: Path) -> Iterator[tuple[Path, dict[str, Path]]]:
    """Find the folders SCAN/, PATIENT/SCAN/ and their segmentations/ with files of masks."""
    for pattern in (_SEGMENTATIONS, "*", "*/*", f"*/*/{_SEGMENTATIONS}"):
        for folder in sorted(root.glob(pattern)):
            top = folder.relative_to(root).parts[0]
            if not folder.is_dir() or top in _LABEL_FOLDERS or top.startswith(("imagesT", ".")):
                continue
            if pattern == "*" and folder.name == _SEGMENTATIONS:
                continue
            masks = {stem_of(path): path for path in image_files(folder)}
            masks = {name: path for name, path in masks.items() if name.lower() not in IMAGE_NAMES}
            if masks:
                yield folder, masks


def _names_of_values(
    path: Path, maps: dict[str, Path], reference: Cohort, labels: LabelSet | None
) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...], tuple[str, ...]]:
    """Return name to values, all values that may occur, and notes on assumptions."""
    folders = dict.fromkeys([path if path.is_dir() else path.parent, *(file.parent for file in maps.values())])
    for file in (folder / "dataset.json" for folder in folders):
        if file.is_file():
            return (*_without_background(named_numbers(file, read_json(file))), ())
    named, source = named_values(list(maps.values()))
    if source == "the label tables in the headers":
        return (*_without_background(named), (f"{path}: no dataset.json, so the label names come from {source}",))
    values = [number for _, numbers in named for number in numbers]
    own = next((s.source for s in reference.scans if isinstance(s.source, NiftiSource) and s.source.label_map), None)
    if own is not None:
        note = f"{path}: no dataset.json, so the values are read as those of the reference"
        return own.numbers, own.known, (note,)
    if labels is not None or (len(reference.labels) == 1 and values in ([], [1])):
        chosen = labels or reference.labels
        note = f"{path}: no dataset.json, so the values 1 to {len(chosen)} are read as {', '.join(chosen.names)}"
        return (*_without_background([(name, (k,)) for k, name in enumerate(chosen.names, 1)]), (note,))
    listed = ", ".join(map(str, values[:8])) or "none"
    raise DataError(f"{path}: nothing names the values of its label maps ({listed}); add a dataset.json with labels")


def _without_background(named: Named) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    known = sorted({0}.union(*(numbers for _, numbers in named)))
    return {name: n for name, n in named if n != (0,) and name.lower() != IGNORE}, tuple(known)


def _read_on_grid(path: Path, scan: Scan) -> tuple[np.ndarray, tuple[str, ...]]:
    values, beyond = read_on_grid(path, scan)
    return values, (f"{path}: {plural(beyond, 'voxel')} in slices that {scan.id} lacks; left out",) if beyond else ()


READER = PredictionReader(is_here, read)
