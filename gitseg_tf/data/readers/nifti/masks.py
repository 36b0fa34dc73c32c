"""Masks of one scan in NIfTI files that some other tool made or corrected: a label map, or a file per label."""

import logging
from pathlib import Path

import numpy as np

from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Scan
from gitseg_tf.data.readers.naming import resolve_labels
from gitseg_tf.data.readers.nifti.files import SUFFIXES, image_files, stem_of
from gitseg_tf.data.readers.nifti.folders import IMAGE_NAMES
from gitseg_tf.data.readers.nifti.label_tables import named_values
from gitseg_tf.data.readers.nifti.nnunet import IGNORE, named_numbers, read_json
from gitseg_tf.data.readers.nifti.source import read_on_grid
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

logger = logging.getLogger(__name__)


def read_masks(path: Path, scan: Scan, labels: LabelSet | None = None) -> tuple[LabelSet, np.ndarray]:
    """Read the masks of a scan from NIfTI files on its grid.

    Args:
        path: a label map, whose values are named by dataset.json beside it, by the table in its header or by `labels`
            (1 is the first one); a file with a single mask, named like its label; a folder with one file per label,
            beside an image or in segmentations/; or a folder with such a file or folder named like the scan.
        scan: the scan whose grid the masks must have.
        labels: names, aliases, colors and codes; None creates a label for each name. Labels without a mask are left
            out.

    Returns:
        The labels that have a mask, and bool [L, D, H, W].

    Raises:
        DataError: no masks, another grid than that of the scan, values without a name, a name that matches no label, or
            a file with other values than a mask's.
    """
    if not path.exists():
        raise DataError(f"{path}: does not exist; give a NIfTI file or a folder of NIfTI files")
    found = _of_scan(path, scan)
    if isinstance(found, Path):
        by_name = _from_label_map(found, scan, labels)
    else:
        by_name = {stem_of(file): _mask(file, _on_grid(file, scan)) for file in found}
    return _labeled(by_name, labels, path)


def _of_scan(path: Path, scan: Scan) -> Path | list[Path]:
    """Find the label map of a scan, or its mask files."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"{path}: is not an image file; give one of {', '.join(SUFFIXES)}")
        return path
    named = [path / f"{scan.id}{ending}" for ending in SUFFIXES if (path / f"{scan.id}{ending}").is_file()]
    if named:
        return named[0]
    folder = path / scan.id if (path / scan.id).is_dir() else path
    folders = (folder, folder / "segmentations")
    files = [file for one in folders if one.is_dir() for file in image_files(one)]
    files = [file for file in files if stem_of(file).lower() not in IMAGE_NAMES]
    if not files:
        raise DataError(f"{path}: has no masks of {scan.id}; give a file per label, or a label map")
    if (folder / "dataset.json").is_file() or len(files) == 1:
        if len(files) > 1:
            raise DataError(f"{path}: has several label maps, none of them named {scan.id}; give the file of this scan")
        return files[0]
    names = [stem_of(file) for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: has two masks named {twice[0]}; remove one")
    return files


def _from_label_map(path: Path, scan: Scan, labels: LabelSet | None) -> dict[str, np.ndarray]:
    values = _on_grid(path, scan)
    present = sorted(set(np.unique(values).tolist()) - {0})
    table = path.parent / "dataset.json"
    if table.is_file():
        named = named_numbers(table, read_json(table))
        source = str(table)
    else:
        named, source = named_values([path])
        if source != "the label tables in the headers":
            if len(present) < 2 and (labels is None or labels.match(stem_of(path)) is not None):
                return {stem_of(path): _mask(path, values)}
            if labels is None:
                listed = ", ".join(map(str, present[:8]))
                raise DataError(f"{path}: nothing names its values ({listed}); give labels, or add a dataset.json")
            named = [(label.name, (number,)) for number, label in enumerate(labels, 1)]
            logger.info("%s: the values 1 to %d are read as %s", path, len(labels), ", ".join(labels.names))
            source = "the labels"
    if unknown := sorted(set(present).difference(*(numbers for _, numbers in named))):
        raise DataError(f"{path}: contains the value {unknown[0]}, which {source} does not name; name it")
    return {name: np.isin(values, numbers) for name, numbers in named if numbers != (0,) and name.lower() != IGNORE}


def _mask(path: Path, values: np.ndarray) -> np.ndarray:
    inside: np.ndarray = values != 0
    if np.unique(values[inside]).size > 1:
        raise DataError(f"{path}: contains more than one nonzero value; a mask must contain only 0 and 1")
    return inside


def _labeled(by_name: dict[str, np.ndarray], labels: LabelSet | None, path: Path) -> tuple[LabelSet, np.ndarray]:
    """Match masks to labels, and put them into their order."""
    labels, found = resolve_labels(dict.fromkeys(by_name, 1), labels, str(path))
    mask_of: dict[str, str] = {}
    for item in found:
        if item.label is None:
            raise DataError(f"{path}: {item.name!r} matches no label; add it to the labels, or as an alias of one")
        if item.label in mask_of:
            raise DataError(f"{path}: {mask_of[item.label]!r} and {item.name!r} are both {item.label}; remove one")
        mask_of[item.label] = item.name
    if left := [name for name in labels.names if name not in mask_of]:
        logger.info("%s: has no mask of %s; left out", path, ", ".join(left))
    chosen = labels.subset([name for name in labels.names if name in mask_of])
    return chosen, np.stack([by_name[mask_of[name]] for name in chosen.names])


def _on_grid(path: Path, scan: Scan) -> np.ndarray:
    values, beyond = read_on_grid(path, scan)
    if beyond:
        raise DataError(f"{path}: {plural(beyond, 'voxel')} of its masks are in slices that {scan.id} lacks; add them")
    return values
