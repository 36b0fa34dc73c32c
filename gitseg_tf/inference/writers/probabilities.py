"""Write probabilities as NIfTI: one file per scan and label, next to the masks of any format."""

import numpy as np

from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.data.readers.base import Scan
from gitseg_tf.inference.writers.nifti import to_nifti, with_gaps
from gitseg_tf.labels import LabelSet

# A folder of its own: `gitseg convert` and other readers take NIfTI files beside an image as masks.
FOLDER = "probabilities"
# A power of two, exact in scl_slope, so that thresholds such as 0.5 and 0.25 give the same masks as before rounding.
STEPS = 1 << 15


def write_probabilities(out: AnyPath, scan: Scan, probabilities: np.ndarray, labels: LabelSet) -> None:
    """Write OUT/SCAN/probabilities/LABEL.nii.gz on the grid of the input, one label in memory at a time.

    The files contain uint16 with the scale factor 1/32768, which NIfTI readers apply: probabilities are rounded down
    to a multiple of it. Slices missing from scan.numbers are 0.

    Args:
        out: the output folder.
        scan: the scan.
        probabilities: float32 [L, D, H, W], from 0 to 1.
        labels: the labels in the order of the probabilities.
    """
    folder, grid = out / scan.id / FOLDER, scan.source.whole_grid(scan)
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in zip(labels.names, probabilities, strict=True):
        steps = (values * np.float32(STEPS)).astype(np.uint16)  # exact products, rounded down
        write_atomically(folder / f"{name}.nii.gz", to_nifti(with_gaps(steps, scan, grid), grid, 1 / STEPS))


def probability_files(out: AnyPath, scan_id: str) -> list[AnyPath]:
    """List the probabilities of a scan in a folder."""
    folder = out / scan_id / FOLDER
    return sorted(folder.glob("*.nii.gz")) if "/" not in scan_id and folder.is_dir() else []
