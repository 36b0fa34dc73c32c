"""The formats that predictions are written in."""

import glob
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np

from gitseg_tf.data.scans import ORGANS, Cohort, Scan
from gitseg_tf.files import AnyPath
from gitseg_tf.inference.nifti_files import write_nifti
from gitseg_tf.inference.pictures import write_gif, write_pngs
from gitseg_tf.inference.rtstruct import check_is_dicom, write_rtstruct
from gitseg_tf.inference.submission import read_sample, submission_rows, write_submission

SUBMISSION = "submission.csv"
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
    write_submission(out / SUBMISSION, rows)


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

# What OUT holds of a scan, by format: folder or none, and files.
_FILES = {
    "submission": ("", ()),
    "nifti": ("{}", tuple(f"{organ}.nii.gz" for organ in ORGANS)),
    "rtstruct": ("", ("{}.dcm",)),
    "png": ("{}", ("{}_slice_*.png",)),
    "gif": ("", ("{}.gif",)),
}


def predicted_files(output: str, out: AnyPath, scan_id: str) -> list[AnyPath]:
    """The predictions of a scan that are in a folder; of NIfTI the masks, for the image beside them is none.

    Args:
        output: of OUTPUTS.
        out: the folder.
        scan_id: of the scan; what is no name of a file is none.

    Returns:
        The files that are there.
    """
    if "/" in scan_id or not out.is_dir():
        return []
    folder, names = _FILES[output]
    place = out / folder.format(scan_id) if folder else out
    name = glob.escape(scan_id)
    return [path for pattern in names if place.is_dir() for path in place.glob(pattern.format(name))]


def predicted_scans(output: str, out: AnyPath) -> list[str]:
    """The ids of all scans of which `predicted_files` finds any."""
    folder, names = _FILES[output]
    if not names or not out.is_dir():
        return []
    ending = "" if folder else names[0].removeprefix("{}")
    ids = [path.name.removesuffix(ending) for path in out.iterdir() if path.name.endswith(ending)]
    return sorted(scan_id for scan_id in ids if predicted_files(output, out, scan_id))
