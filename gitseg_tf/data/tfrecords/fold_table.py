"""Folds given by the user as a CSV table of patients."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from os import PathLike

from gitseg_tf.core.paths import as_path
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Scan
from gitseg_tf.data.readers.competition import table_rows
from gitseg_tf.errors import ConfigError, DataError

HEADER = ("patient", "fold")

# A number of folds, or a table of them.
Folds = int | str | PathLike


def read_fold_table(path: str | PathLike) -> dict[str, int]:
    """Read a table of folds.

    Args:
        path: a CSV file whose first line is `patient,fold`, in any case and order, and which has one line per patient.
            Other columns are ignored.

    Returns:
        Patient to fold, in the order of the file.

    Raises:
        DataError: no such file, an invalid table, a fold that is not an integer from 0, a patient listed twice, or fold
            numbers with holes.

    Example:
        >>> from pathlib import Path
        >>> size = Path("folds.csv").write_text("patient,fold\\ncase1,0\\ncase2,1\\n")
        >>> read_fold_table("folds.csv")
        {'case1': 0, 'case2': 1}
    """
    path = as_path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; give a CSV file with the columns patient and fold, or a number of folds"
        )
    header, newline, rows = path.read_bytes().partition(b"\n")
    folds: dict[str, int] = {}
    for patient, fold in table_rows(path, header.lower() + newline + rows, HEADER):
        patient, fold = patient.strip(), fold.strip()
        if not patient:
            raise DataError(f"{path}: has a row without a patient (fold {fold}); fill it in or remove the row")
        if not re.fullmatch(r"[0-9]{1,6}", fold):
            raise DataError(f"{path}: patient {patient} has the fold {fold!r}; folds must be integers from 0")
        if patient in folds:
            raise DataError(
                f"{path}: patient {patient} is listed twice (folds {folds[patient]} and {fold}); remove one"
            )
        folds[patient] = int(fold)
    if not folds:
        raise DataError(f"{path}: lists no patients; add a row per patient")
    _check_holes(path, set(folds.values()))
    return folds


def folds_from_table(path: str | PathLike, scans: Iterable[Scan]) -> dict[str, int]:
    """Look up the folds of the patients of a cohort.

    Args:
        path: see `read_fold_table`.
        scans: the scans of the cohort. Patients without an annotated scan may be listed, but are not in any fold.

    Returns:
        Patient to fold, for the patients with an annotated scan; no fold is empty.

    Raises:
        DataError: see `read_fold_table`; also a listed patient that the cohort does not have, a patient with an
            annotated scan that is not listed, or a fold without annotated scans.
    """
    table, scans = read_fold_table(path), list(scans)
    patients, annotated = {scan.case for scan in scans}, sorted({scan.case for scan in scans if scan.labeled})
    unknown, missing = sorted(table.keys() - patients), [case for case in annotated if case not in table]
    if unknown:
        which = f"{_some(unknown)}, which the cohort does not have"
        raise DataError(f"{path}: lists {which}; its patients are {_some(sorted(patients))}")
    if missing:
        raise DataError(f"{path}: does not list {_some(missing)} of the cohort; add a row per patient")
    folds = {case: table[case] for case in annotated}
    empty = sorted(set(table.values()) - set(folds.values()))
    if empty:
        raise DataError(f"{path}: no patient of fold {empty[0]} has an annotated scan; give each fold one")
    return folds


def check_same_folds(path: str | PathLike, folds: Mapping[str, int], where: object) -> None:
    """Check that a finished dataset has the folds of a table.

    Args:
        path: see `read_fold_table`.
        folds: patient to fold in the dataset.
        where: the dataset, for the error.

    Raises:
        DataError: a patient is in another fold, or in only one of the two.
    """
    table = read_fold_table(path)
    for case in sorted({*table, *folds}):
        if table.get(case) != folds.get(case) and case in folds:
            listed = f"in fold {table[case]}" if case in table else "missing"
            fix = "leave out the table, or convert the cohort again with it"
            raise DataError(f"{where}: patient {case} is in fold {folds[case]}, but {listed} in {path}; {fix}")


def count_of(folds: Folds) -> int:
    """Return the number of folds of a table, or the number itself.

    Raises:
        DataError: see `read_fold_table`.
        ConfigError: a boolean or another type.
    """
    if isinstance(folds, bool) or not isinstance(folds, int | str | PathLike):
        raise ConfigError(f"folds must be a number or a CSV file, got {folds!r}")
    return folds if isinstance(folds, int) else max(read_fold_table(folds).values()) + 1


def table_digest(path: str | PathLike) -> str:
    """Hash the folds of a table: hexadecimal SHA-256, independent of the order of its rows."""
    return hashlib.sha256(repr(sorted(read_fold_table(path).items())).encode()).hexdigest()


def _check_holes(path: object, numbers: set[int]) -> None:
    holes = sorted(set(range(max(numbers) + 1)) - numbers)
    if holes:
        fix = f"number the {plural(len(numbers), 'fold')} from 0 to {len(numbers) - 1}"
        raise DataError(f"{path}: no patient is in fold {holes[0]}, but one is in fold {max(numbers)}; {fix}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{'patients' if len(names) > 1 else 'patient'} {', '.join(names[:3])}{more}"
