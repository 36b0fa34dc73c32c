"""Make an RT structure set from masks that were corrected in another tool."""

import logging
from os import PathLike
from pathlib import Path

from gitseg_tf.core.paths import write_atomically
from gitseg_tf.data.readers.nifti.masks import read_masks
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.errors import DataError
from gitseg_tf.inference.writers.dicom import check_layout, encoded
from gitseg_tf.inference.writers.rtstruct import structure_set
from gitseg_tf.labels import LabelSet

logger = logging.getLogger(__name__)


def masks_to_structure_set(
    masks: str | PathLike,
    series: str | PathLike,
    out: str | PathLike | None = None,
    *,
    labels: LabelSet | None = None,
    force: bool = False,
) -> Path:
    """Write the RT structure set of a DICOM series from NIfTI masks on its grid.

    It says that it was made from masks and not by a model, and ROIGenerationAlgorithm is empty.

    Args:
        masks: NIfTI files, see `gitseg_tf.data.readers.nifti.masks.read_masks`.
        series: a folder with one DICOM series; structure sets in it are not read.
        out: the file; None is SCAN.dcm in the current folder, where SCAN is the id of the series.
        labels: names, aliases, colors, ROI names and codes; None takes the names of the masks.
        force: replace an existing file.

    Returns:
        The file.

    Raises:
        DataError: not a single series, masks on another grid or without names, or a file that exists.

    Example:
        >>> masks_to_structure_set("corrected", "ct", "corrected.dcm")  # doctest: +SKIP
        PosixPath('corrected.dcm')
    """
    cohort = read_cohort(series, table=False)
    check_layout(cohort, "a structure set")
    if len(cohort.scans) != 1:
        ids = ", ".join(scan.id for scan in cohort.scans[:5])
        raise DataError(f"{series}: has {len(cohort.scans)} series ({ids}); give the folder of one of them")
    (scan,) = cohort.scans
    path = Path(out) if out is not None else Path(f"{scan.id}.dcm")
    if path.exists() and not force:
        raise DataError(f"{path}: already exists; choose another file, or force its replacement")
    for note in cohort.notes:
        logger.info(note)
    chosen, arrays = read_masks(Path(masks), scan, labels)
    for label, mask in zip(chosen, arrays, strict=True):
        logger.info("%-16s %.1f ml", label.name, mask.sum() * scan.spacing[0] * scan.spacing[1] * scan.spacing[2] / 1e3)
    content = encoded(structure_set(scan, arrays, chosen))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path
