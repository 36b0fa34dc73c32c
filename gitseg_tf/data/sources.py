"""Open a dataset from a path: TFRecords, or a cohort that is converted first."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.registry import expected_layouts, is_cohort, read_cohort
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import Dataset, is_dataset, load_dataset
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

logger = logging.getLogger(__name__)

DATASETS = Path("tfrecords")


def open_dataset(
    path: str | AnyPath,
    folds: int = 5,
    *,
    labels: LabelSet | None = None,
    missing: str = "unannotated",
    structure_set: str | None = None,
) -> Dataset:
    """Open TFRecords, or convert a cohort to TFRecords first.

    Args:
        path: a dataset written by `convert`; or a cohort of any layout, which is converted once, to
            tfrecords/NAME-FINGERPRINT.
        folds: folds by patient, for a cohort; fewer are made if it has fewer patients, and a warning says so.
        labels, missing, structure_set: how to read a cohort, see `read_cohort`.

    Returns:
        The dataset.

    Raises:
        DataError: nothing usable at the path, or the conversion fails.

    Example:
        >>> import gitseg_tf
        >>> dataset = gitseg_tf.open_dataset("cohort", folds=1)
        >>> dataset.folds, dataset.labels.names
        (1, ('large_bowel', 'small_bowel', 'stomach'))
    """
    path = as_path(path)
    if is_dataset(path):
        if labels is not None:
            logger.warning("%s is already converted, so the given labels are ignored", path)
        if structure_set is not None:
            logger.warning("%s is already converted, so the given structure set is ignored", path)
        return load_dataset(path)
    if not is_cohort(path):
        expected = expected_layouts()
        raise DataError(f"{path}: contains no data; give TFRecords made by gitseg convert, or a folder with {expected}")
    cohort = read_cohort(path, labels=labels, missing=missing, structure_set=structure_set)
    patients = len({scan.case for scan in cohort.scans if scan.labeled})
    if 0 < patients < folds:
        split = f"has {plural(patients, 'patient')}, so it is split into {plural(patients, 'fold')}, not {folds}"
        logger.warning("%s %s", path, split)
        folds = patients
    fingerprint = cohort.fingerprint
    if labels is not None or missing != "unannotated":
        tree = [fingerprint, labels and labels.to_tree(), missing]
        fingerprint = hashlib.sha256(json.dumps(tree).encode()).hexdigest()
    records = DATASETS / f"{path.resolve().name}-{folds}folds-{fingerprint[:8]}"
    return convert_once(path, records, folds, labels=labels, missing=missing, structure_set=structure_set)


def convert_once(
    cohort: AnyPath,
    records: Path,
    folds: int,
    *,
    labels: LabelSet | None = None,
    missing: str = "unannotated",
    structure_set: str | None = None,
) -> Dataset:
    """Convert a cohort unless it is already converted; an interrupted conversion is resumed.

    Args:
        cohort: the cohort's folder.
        records: the dataset's folder.
        folds: folds by patient.
        labels, missing, structure_set: how to read the cohort, see `read_cohort`.

    Returns:
        The dataset.

    Raises:
        DataError: the cohort cannot be converted.
    """
    if is_dataset(records):
        return load_dataset(records)
    logger.info("converting %s to %s (once)", cohort, records)
    how: dict[str, Any] = {"labels": labels, "missing": missing, "structure_set": structure_set}
    return convert(cohort, records, folds=folds, resume=True, **how)
