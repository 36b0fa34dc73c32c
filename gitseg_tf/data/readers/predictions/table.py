"""Masks in a table of run-length strings, such as a submission to the competition."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.data.readers.competition import scan_of_slice, table_rows
from gitseg_tf.data.readers.predictions.base import PredictedScan, PredictionReader, Predictions
from gitseg_tf.data.readers.rle import RleError, rle_to_mask
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

_MASKS = ("predicted", "segmentation", "rle")


@dataclass(frozen=True)
class TableScan(PredictedScan):
    """The rows of a scan.

    Attributes:
        rles: (slice id, class) to the run-length string.
    """

    names: tuple[str, ...]
    where: object
    rles: dict[tuple[str, str], str] = field(repr=False)

    def read(self, scan: Scan, name_of: Mapping[str, str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        masks = {label: np.zeros(scan.shape, bool) for label in name_of}
        missing = []
        for label, name in name_of.items():
            for z, slice_id in enumerate(scan.slice_ids):
                rle = self.rles.get((slice_id, name))
                if rle is None:
                    missing.append((slice_id, name))
                    continue
                try:
                    masks[label][z] = rle_to_mask(rle, scan.shape[1:])
                except RleError as error:
                    raise DataError(f"{self.where}: {slice_id}, {name}: {error}; fix the row") from None
        if not missing:
            return masks, ()
        first = ", ".join(missing[0])
        return masks, (f"{scan.id}: {plural(len(missing), 'row')} missing, scored as empty; the first is {first}",)


def is_here(path: AnyPath) -> bool:
    """Check for a CSV table with the columns id, class and a mask."""
    return bool(_tables(path))


def read(path: AnyPath, reference: Cohort, labels: LabelSet | None = None) -> Predictions:
    """Read a table, whose ids are slice ids of the reference, such as case1_day0_slice_0001.

    Raises:
        DataError: several tables, an invalid table, a row listed twice, or a slice that its scan does not have.
    """
    tables = _tables(path)
    if len(tables) > 1:
        raise DataError(
            f"{path}: {tables[0][0].name} and {tables[1][0].name} are both tables of masks; give one of them"
        )
    ((table, column),) = tables
    scan_of = {slice_id: scan.id for scan in reference.scans for slice_id in scan.slice_ids}
    known = {scan.id for scan in reference.scans}
    rles: dict[str, dict[tuple[str, str], str]] = {}
    for slice_id, name, rle in table_rows(table, table.read_bytes(), ("id", "class", column)):
        scan_id = scan_of.get(slice_id) or scan_of_slice(slice_id)
        if slice_id not in scan_of and scan_id in known:
            raise DataError(f"{table}: {slice_id} is not a slice of {scan_id} in the reference; remove its rows")
        rows = rles.setdefault(scan_id, {})
        if (slice_id, name) in rows:
            raise DataError(f"{table}: {slice_id}, {name} has two rows; remove one")
        rows[slice_id, name] = rle.strip()
    scans = {
        scan_id: TableScan(tuple(dict.fromkeys(name for _, name in rows)), table, rows)
        for scan_id, rows in rles.items()
    }
    return Predictions(path, scans)


def _tables(path: AnyPath) -> list[tuple[AnyPath, str]]:
    """List the tables of masks at a path, each with the name of its column of masks."""
    if path.is_file():
        files = [path] if path.name.lower().endswith(".csv") else []
    else:
        files = sorted((file for file in path.iterdir() if file.name.lower().endswith(".csv")), key=str)
    found = []
    for file in files:
        with file.open("rb") as opened:
            start = opened.readline().decode("utf-8-sig", "replace")
        header = next(iter(csv.reader([start])), [])
        column = next((name for name in _MASKS if name in header), None)
        if column and {"id", "class"} <= set(header):
            found.append((file, column))
    return found


READER = PredictionReader(is_here, read)
