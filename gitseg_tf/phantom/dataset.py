"""The phantom as a dataset, for users without data."""

import logging

from gitseg_tf.data.sources import DATASETS, convert_once
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.phantom.cohort import make_phantom

logger = logging.getLogger(__name__)


def open_phantom(folds: int = 5) -> Dataset:
    """Open the phantom's dataset in tfrecords/phantom, creating its cohort and TFRecords if necessary.

    Args:
        folds: number of folds by patient.

    Returns:
        The dataset.
    """
    cohort = DATASETS / "phantom" / "phantom-cohort"
    if not cohort.is_dir():
        logger.info("phantom    %s (generated once)", cohort)
        make_phantom(cohort)
    return convert_once(cohort, DATASETS / "phantom" / f"records-{folds}folds", folds)
