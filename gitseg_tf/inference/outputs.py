"""The formats that predictions are written in."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np

from gitseg_tf.data.scans import Cohort, Scan
from gitseg_tf.files import AnyPath
from gitseg_tf.inference.nifti_files import write_nifti
from gitseg_tf.inference.pictures import write_gif, write_pngs
from gitseg_tf.inference.rtstruct import check_is_dicom, write_rtstruct
from gitseg_tf.inference.submission import read_sample, submission_rows, write_submission

WriteScan = Callable[[Scan, np.ndarray, np.ndarray], None]


@contextmanager
def _submission(cohort: Cohort, out: AnyPath, say: Callable[[str], None]) -> Iterator[WriteScan]:
    wanted, note = read_sample(cohort)
    if note:
        say(note)
    rows = {}

    def add(scan, image, masks):
        rows.update(submission_rows(scan, masks))

    yield add
    if wanted is not None:
        rows = {key: rows[key] for key in wanted if key in rows}
    write_submission(out / "submission.csv", rows)


def _scan_by_scan(write: Callable[[AnyPath, Scan, np.ndarray, np.ndarray], None], check=lambda cohort: None):
    """A format that needs nothing but the scan at hand."""

    @contextmanager
    def output(cohort: Cohort, out: AnyPath, say: Callable[[str], None]) -> Iterator[WriteScan]:
        check(cohort)
        yield lambda scan, image, masks: write(out, scan, image, masks)

    return output


# Name to a function of (cohort, folder, say) that gives a context of a function of (scan, image uint16 [D, H, W], masks
# bool [3, D, H, W]), which is called for each scan in turn, in any one thread. On entering, InputError where the cohort
# cannot be written so; what is wanted once all scans are there is written at the end, unless there was an error.
OUTPUTS: dict[str, Callable[[Cohort, AnyPath, Callable[[str], None]], AbstractContextManager[WriteScan]]] = {
    "submission": _submission,
    "nifti": _scan_by_scan(write_nifti),
    "rtstruct": _scan_by_scan(write_rtstruct, check_is_dicom),
    "png": _scan_by_scan(write_pngs),
    "gif": _scan_by_scan(write_gif),
}
