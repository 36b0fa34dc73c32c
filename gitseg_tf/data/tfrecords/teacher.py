"""The probabilities of a teacher in a dataset, for distillation. See tfrecords/README.md.

A probability is stored as four bits: whether it reaches 1/8, 3/8, 5/8 and 7/8. Their mean is within 1/8 of the
probability. Bits are resized, cached and warped like masks. Volumes of uint8 would be exact to 1/510, but would need a
second kind of volume in all these steps.
"""

import zlib
from dataclasses import replace

import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.data.tfrecords.codec import decode_example, encode_example
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.example import pack_masks
from gitseg_tf.data.tfrecords.index import UNLABELED, ScanEntry, TeacherSlices, count_label_sets, count_plane_sets
from gitseg_tf.errors import ConfigError

THRESHOLDS = (0.125, 0.375, 0.625, 0.875)
LEVELS = len(THRESHOLDS)
# A slice shows a label if the teacher's probability of a voxel reaches this threshold.
SHOWN = 1
FEATURE = "teacher/bits"


def add_teacher(
    record: bytes, entry: ScanEntry, probabilities: np.ndarray, names: tuple[str, ...]
) -> tuple[bytes, ScanEntry]:
    """Add a teacher's probabilities to a scan.

    Args:
        record: the serialized Example.
        entry: the scan's entry in dataset.json.
        probabilities: float32 [L, D, H, W], in the order of the dataset's labels; 0 for a label that the teacher does
            not segment.
        names: the names of the dataset's labels.

    Returns:
        The Example with the feature teacher/bits, and the entry with the slices in which the teacher finds labels.
    """
    bits = np.stack([probabilities >= np.float32(threshold) for threshold in THRESHOLDS], 1)
    bits = bits.reshape(-1, *probabilities.shape[1:])
    packed = np.ascontiguousarray(np.moveaxis(pack_masks(bits), -1, 0))
    shown = np.asarray(bits[SHOWN::LEVELS].any((2, 3)))
    counts = dict(zip(names, shown.sum(1).tolist(), strict=True))
    slices = TeacherSlices(
        counts, int((~shown.any(0)).sum()), count_label_sets(shown), count_plane_sets(bits[SHOWN::LEVELS])
    )
    features = decode_example(record) | {FEATURE: zlib.compress(packed.data, 1)}
    return encode_example(features), replace(entry, teacher=slices)


def learns_from_teacher(dataset: Dataset, config: Config) -> bool:
    """Check whether an experiment uses the teacher's probabilities in a dataset.

    Raises:
        ConfigError: the teacher does not segment a label of the experiment.
    """
    if dataset.teacher is None or not config.training.loss.distillation.weight:
        return False
    if missing := [name for name in config.label_set.names if name not in dataset.teacher.labels]:
        fix = "choose other data.labels, or set training.loss.distillation.weight to 0"
        raise ConfigError(f"{dataset.root}: its teacher does not segment {', '.join(missing)}; {fix}")
    return True


def training_scans(dataset: Dataset, config: Config) -> tuple[list[int], list[ScanEntry], tuple[str, ...]]:
    """Choose the scans to train on: those of the training folds, and with a teacher also those without annotation.

    Scans without annotation of patients in the held-out fold are left out.

    Args:
        dataset: the dataset.
        config: its data.fold and data.exclude_scans are left out.

    Returns:
        The folds, the scans, and the ids of scans in these folds to leave out. With a teacher, a scan without an
        annotation of the experiment's labels has the counts of slices in which the teacher finds them.

    Raises:
        DataError: no such fold.
    """
    held_out, excluded = config.data.fold, tuple(config.data.exclude_scans)
    folds = dataset.training_folds(held_out)
    if not learns_from_teacher(dataset, config):
        scans = dataset.training_scans(held_out, excluded)
        return folds, scans, (*excluded, *dataset.held_back(held_out))
    cases = {case for case, fold in dataset.fold_of_case.items() if fold == held_out}
    excluded += tuple(scan.id for scan in dataset.scans_of([UNLABELED]) if scan.case in cases)
    folds = [*folds, UNLABELED]
    names = config.label_set.names
    return folds, [_counted(scan, names) for scan in dataset.scans_of(folds, excluded)], excluded


def _counted(scan: ScanEntry, names: tuple[str, ...]) -> ScanEntry:
    return scan if any(name in scan.label_slices for name in names) else scan.for_teacher
