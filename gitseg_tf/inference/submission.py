"""The competition's table."""

import io

import numpy as np
import pandas as pd

from gitseg_tf.data.competition import check_organ, scan_of_slice, table_rows
from gitseg_tf.data.rle import mask_to_rle
from gitseg_tf.data.scans import ORGANS, Cohort, Scan
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, write_atomically

Rows = dict[tuple[str, str], str]


def submission_rows(scan: Scan, masks: np.ndarray) -> Rows:
    """A scan's rows of the competition's table.

    Args:
        scan: its slice ids.
        masks: bool [3, D, H, W] at the scan's size.

    Returns:
        (id, class) to predicted, a slice and organ; "" where the organ is absent.
    """
    return {
        (slice_id, organ): mask_to_rle(masks[k, z])
        for z, slice_id in enumerate(scan.slice_ids)
        for k, organ in enumerate(ORGANS)
    }


def read_sample(cohort: Cohort) -> tuple[list[tuple[str, str]] | None, str | None]:
    """The rows that the competition asks for.

    Args:
        cohort: with or without a sample_submission.csv in its root.

    Returns:
        (id, class) in the sample's order, or None where all rows of the cohort are wanted: without a sample, or with
        one of a header alone, which is what the competition shows before a notebook is submitted. And a line on what of
        the sample or of the cohort is left aside, or None.

    Raises:
        InputError: a row whose slice has no image (scans of cohort.broken are no matter), a row twice, or no table.
    """
    path = cohort.root / "sample_submission.csv"
    if not path.is_file():
        return None, None
    wanted: dict[tuple[str, str], None] = {}
    for slice_id, organ in table_rows(path, path.read_bytes(), ("id", "class")):
        check_organ(path, organ)
        if (slice_id, organ) in wanted:
            raise InputError(f"{path}: {slice_id}, {organ} is there twice; keep one row")
        wanted[slice_id, organ] = None
    if not wanted:
        return None, f"{path}: has no rows; all slices are written"
    asked = dict.fromkeys(slice_id for slice_id, _ in wanted)
    there = {slice_id for scan in cohort.scans for slice_id in scan.slice_ids}
    broken = {name for name, _ in cohort.broken}
    missing = [slice_id for slice_id in asked if slice_id not in there and scan_of_slice(slice_id) not in broken]
    if missing:
        raise InputError(
            f"{path}: asks for {len(missing)} slices that have no image, {missing[0]} first; add their PNGs, or use "
            "another --format"
        )
    extra = sorted(there - asked.keys())
    note = f"{path}: does not ask for {len(extra)} slices, {extra[0]} first; they are left out" if extra else None
    return list(wanted), note


def write_submission(path: str | AnyPath, rows: Rows) -> None:
    """Write submission.csv: id, class, predicted.

    Args:
        path: the file; written whole or not at all.
        rows: as from `submission_rows`, in their order.
    """
    text = io.StringIO()
    table = ((*key, predicted) for key, predicted in rows.items())
    pd.DataFrame(table, columns=["id", "class", "predicted"]).to_csv(text, index=False, lineterminator="\n")
    write_atomically(as_path(path), text.getvalue().encode())
