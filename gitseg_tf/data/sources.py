"""Whatever --data names, as a dataset: TFRecords, a cohort that is converted on the way, or the phantom."""

from collections.abc import Callable
from pathlib import Path

from gitseg_tf.data.convert import convert
from gitseg_tf.data.dataset import Dataset, is_dataset, load_dataset
from gitseg_tf.data.phantom import make_phantom
from gitseg_tf.data.scans import EXPECTED, is_cohort, read_cohort
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path

DATASETS = Path("tfrecords")


def open_dataset(path: str | AnyPath | None, folds: int = 5, say: Callable[[str], None] = print) -> Dataset:
    """Find or make the TFRecords to work on.

    Args:
        path: a dataset of `gitseg convert`; or a cohort of any layout, which is converted once to
            tfrecords/NAME-FINGERPRINT; or None for the phantom, which is made once in tfrecords/phantom.
        folds: folds by patient for what is converted here.
        say: takes lines for the user.

    Returns:
        The dataset.

    Raises:
        InputError: nothing usable at the path, or the conversion fails.
    """
    if path is None:
        return _phantom(folds, say)
    path = as_path(path)
    if is_dataset(path):
        return load_dataset(path)
    if not is_cohort(path):
        raise InputError(f"{path}: holds no data; give TFRecords made by gitseg convert, or a folder with {EXPECTED}")
    records = DATASETS / f"{path.resolve().name}-{folds}folds-{read_cohort(path).fingerprint[:8]}"
    return _converted(path, records, folds, say)


def _phantom(folds: int, say: Callable[[str], None]) -> Dataset:
    cohort = DATASETS / "phantom" / "phantom-cohort"
    if not cohort.is_dir():
        say(f"phantom    {cohort}, made once")
        make_phantom(cohort)
    return _converted(cohort, DATASETS / "phantom" / f"records-{folds}folds", folds, say)


def _converted(cohort: AnyPath, records: Path, folds: int, say: Callable[[str], None]) -> Dataset:
    if is_dataset(records):
        return load_dataset(records)
    say(f"converting {cohort} to {records}, once")
    return convert(cohort, records, folds=folds, resume=True)
