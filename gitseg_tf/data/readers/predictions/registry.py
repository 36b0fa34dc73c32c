"""Find the masks in a folder or file in any supported format."""

from os import PathLike

from gitseg_tf.core.paths import as_path
from gitseg_tf.core.registry import Registry
from gitseg_tf.data.readers.base import Cohort
from gitseg_tf.data.readers.predictions.base import Predictions
from gitseg_tf.errors import DataError
from gitseg_tf.labels import LabelSet

_READERS = "gitseg_tf.data.readers.predictions"

# Fact: `expected` describes the format, for messages.
PREDICTIONS = Registry("format of predictions")
PREDICTIONS.register(
    "table",
    f"{_READERS}.table:READER",
    expected="a table with the columns id, class and predicted (or segmentation)",
)
PREDICTIONS.register(
    "NIfTI",
    f"{_READERS}.nifti:READER",
    expected="NIfTI label maps SCAN.nii.gz, or masks SCAN/LABEL.nii.gz",
)
PREDICTIONS.register("RTSTRUCT", f"{_READERS}.rtstruct:READER", expected="DICOM structure sets")


def read_predictions(
    path: str | PathLike, reference: Cohort, labels: LabelSet | None = None
) -> tuple[str, Predictions]:
    """Find predicted masks without reading voxels.

    Args:
        path: a folder or file in any format of PREDICTIONS.
        reference: the cohort whose scans were segmented.
        labels: labels that the user gave explicitly; they name the values of label maps that nothing else names.

    Returns:
        The format, and the predictions.

    Raises:
        DataError: nothing usable at the path, several formats, or invalid files.
    """
    path = as_path(path)
    if not path.exists():
        raise DataError(f"{path}: does not exist; give a folder or file with predicted masks")
    readers = {name: PREDICTIONS.get(name) for name in PREDICTIONS}
    formats = [name for name, reader in readers.items() if reader.is_here(path)]
    if not formats:
        expected = "; ".join(PREDICTIONS.facts(name)["expected"] for name in PREDICTIONS)
        raise DataError(f"{path}: contains no masks; expected {expected}")
    if len(formats) > 1:
        raise DataError(f"{path}: contains masks as {' and as '.join(formats)}; give a folder or file with only one")
    return formats[0], readers[formats[0]].read(path, reference, labels)
