"""Write predictions as a table of run-length strings: the competition's submission, or a table of any labels."""

import io
import logging

import numpy as np
import pandas as pd

from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.data.readers.competition import scan_of_slice, table_rows
from gitseg_tf.data.readers.rle import mask_to_rle
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import ConfigError, DataError
from gitseg_tf.inference.prediction import Prediction
from gitseg_tf.inference.writers.registry import WRITERS, Writer
from gitseg_tf.labels import UWMGI

logger = logging.getLogger(__name__)

# (slice id, label) to the run-length string; "" if the label is absent.
Rows = dict[tuple[str, str], str]


class Table(Writer):
    """Writes OUT/predictions.csv with any labels: id, class, segmentation, like the competition's train.csv."""

    columns = ("id", "class", "segmentation")
    format_name = "table"

    def check(self) -> None:
        self.rows: Rows = {}

    def write(self, scan: Scan, volume: Volume, prediction: Prediction) -> None:
        self.rows.update(scan_rows(scan, prediction.masks, self.labels.names))

    def finish(self) -> None:
        text = io.StringIO()
        table = ((*key, rle) for key, rle in self.rows.items())
        pd.DataFrame(table, columns=self.columns).to_csv(text, index=False, lineterminator="\n")
        write_atomically(self.out / WRITERS.facts(self.format_name)["table"], text.getvalue().encode())


class Submission(Table):
    """Writes OUT/submission.csv: id, class, predicted, with the rows of the competition's sample if there is one."""

    columns = ("id", "class", "predicted")
    format_name = "submission"

    def check(self) -> None:
        super().check()
        if others := [name for name in self.labels.names if name not in UWMGI.names]:
            raise ConfigError(
                f"the label {others[0]!r} is not a class of the competition ({', '.join(UWMGI.names)}); write these "
                "labels in another format, such as table"
            )
        self.wanted, note = read_sample(self.cohort)
        if note:
            logger.info(note)

    def write(self, scan: Scan, volume: Volume, prediction: Prediction) -> None:
        rows = scan_rows(scan, prediction.masks, self.labels.names)
        # Classes that the model does not segment are empty.
        self.rows.update({(s, name): rows.get((s, name), "") for s in scan.slice_ids for name in UWMGI.names})

    def finish(self) -> None:
        if self.wanted is not None:
            self.rows = {key: self.rows[key] for key in self.wanted if key in self.rows}
        super().finish()


def scan_rows(scan: Scan, masks: np.ndarray, names: tuple[str, ...]) -> Rows:
    """Encode the masks of a scan as rows.

    Args:
        scan: the scan, whose slice ids are used.
        masks: bool [L, D, H, W] at the scan's size.
        names: names of the labels.

    Returns:
        One row per slice and label, slice by slice.
    """
    return {
        (slice_id, name): mask_to_rle(masks[k, z])
        for z, slice_id in enumerate(scan.slice_ids)
        for k, name in enumerate(names)
    }


def read_sample(cohort: Cohort) -> tuple[list[tuple[str, str]] | None, str | None]:
    """Read the rows required by the competition's sample submission.

    Args:
        cohort: a cohort with or without a sample_submission.csv in its root.

    Returns:
        (id, class) in the sample's order, or None if all rows of the cohort are required: without a sample, or with one
        that has only a header, as the competition provides before a notebook is submitted. And a note on rows or slices
        that are left out, or None.

    Raises:
        DataError: a row whose slice has no image (except for scans of cohort.broken), a repeated row, a class that is
            not one of the competition's, or an invalid table.
    """
    path: AnyPath = cohort.root / "sample_submission.csv"
    if not path.is_file():
        return None, None
    wanted: dict[tuple[str, str], None] = {}
    for slice_id, name in table_rows(path, path.read_bytes(), ("id", "class")):
        if name not in UWMGI.names:
            raise DataError(f"{path}: unknown class {name!r}; classes are {', '.join(UWMGI.names)}")
        if (slice_id, name) in wanted:
            raise DataError(f"{path}: {slice_id}, {name} is listed twice; keep one row")
        wanted[slice_id, name] = None
    if not wanted:
        return None, f"{path}: has no rows; all slices are written"
    asked = dict.fromkeys(slice_id for slice_id, _ in wanted)
    present = {slice_id for scan in cohort.scans for slice_id in scan.slice_ids}
    broken = {name for name, _ in cohort.broken}
    missing = [slice_id for slice_id in asked if slice_id not in present and scan_of_slice(slice_id) not in broken]
    if missing:
        raise DataError(
            f"{path}: lists {plural(len(missing), 'slice')} without an image, first {missing[0]}; add their PNGs, "
            "or write another format"
        )
    extra = sorted(present - asked.keys())
    note = f"{path}: does not list {plural(len(extra), 'slice')}, first {extra[0]}; left out" if extra else None
    return list(wanted), note
