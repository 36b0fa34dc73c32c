"""Rank scans by the disagreement between their annotation and a prediction of a network that never saw it.

The score follows Lad and Mueller 2023 (arXiv:2307.05080): a voxel counts by how certain the network is, and a scan is
compared with the others. Unlike theirs, it is computed per label, so that a small label is not lost in the background,
and relative to the label's distribution, so that a difficult label does not fill the top of the list.
"""

import csv
import io
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tf_keras as keras

from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.selection import select_labels
from gitseg_tf.data.tfrecords.dataset import Dataset, read_scans
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.data.volume import Annotation, LoadedScan
from gitseg_tf.errors import RunError
from gitseg_tf.evaluation.cross_validation import finished_runs
from gitseg_tf.evaluation.evaluate import scans_of_fold
from gitseg_tf.evaluation.report.slices import draw_slice
from gitseg_tf.evaluation.scope import HELD_OUT, choose_scope
from gitseg_tf.html.pages import to_gray
from gitseg_tf.inference.predictor import LEVELS, Predictor
from gitseg_tf.inspection.findings import robust_z
from gitseg_tf.labels import LabelSet
from gitseg_tf.runs.cross_validation import is_cross_validation, read_cross_validation
from gitseg_tf.runs.matching import check_matches
from gitseg_tf.runs.run import Run, load_run

logger = logging.getLogger(__name__)

# Slices that are compared together, to find errors in a part of a scan.
BLOCK = 5
# Lower bounds on the standard deviations of the agreements and of the logarithm of the size ratio, so that irrelevant
# differences do not count.
_SPREAD, _BLOCK_SPREAD, _RATIO_SPREAD = 0.02, 0.04, 0.05
_PICTURES, _PICTURED_SCANS = 4, 24
_COLUMNS = ("agreement", "block_agreement", "slices", "size_ratio", "missing_ml", "extra_ml")


@dataclass(frozen=True)
class LabelDisagreement:
    """How much annotation and prediction of one label of a scan disagree.

    Attributes:
        label: its name.
        agreement: Dice in which a voxel with probability p counts |2 p - 1|; NaN if the label is neither annotated
            as present nor predicted.
        block_agreement: the lowest agreement of `BLOCK` adjacent slices, to which an average slice in full agreement
            is added, so that the few voxels at the ends of a label do not decide.
        slices: the first and last slice number of that block.
        size_ratio: annotated divided by predicted volume, over the slices that have both; NaN if there are none.
        missing_ml: volume that is predicted but not annotated.
        extra_ml: volume that is annotated but not predicted.
    """

    label: str
    agreement: float
    block_agreement: float
    slices: tuple[int, int]
    size_ratio: float
    missing_ml: float
    extra_ml: float


@dataclass(frozen=True)
class ScanDisagreement:
    """The disagreement of a scan's labels, with its position in the ranking.

    Attributes:
        scan, case: ids of the scan and its patient.
        fold: the fold that held it out.
        labels: the annotated labels.
        suspicion: per label, how far its agreement, or that of its worst block, lies below the median of all scans, or
            its size ratio from the median in either direction, in robust standard deviations; the highest of the three.
        pictures: slices for the page, from `draw_slice`; only of the first scans of a ranking.
    """

    scan: str
    case: str
    fold: int
    labels: tuple[LabelDisagreement, ...]
    suspicion: dict[str, float]
    pictures: tuple[dict, ...] = ()

    @property
    def worst(self) -> LabelDisagreement:
        """The label with the highest suspicion."""
        return max(self.labels, key=lambda one: self.suspicion.get(one.label, 0.0))

    @property
    def score(self) -> float:
        """The highest suspicion of a label."""
        return max(self.suspicion.values(), default=0.0)


def rank_training_scans(
    path: str | AnyPath, open_data: Callable[[Any, int], Dataset]
) -> tuple[list[ScanDisagreement], LabelSet]:
    """Rank the scans of a run's dataset by out-of-fold disagreement, most suspicious first.

    Every scan is predicted by a network that was not trained on its patient: with a cross-validation all scans of the
    folds, with a single run those of its held-out fold. Scans with pseudo-labels only are left out.

    Args:
        path: the folder of a cross-validation or of a run.
        open_data: function from the path of the dataset on which it was trained, and a number of folds, to the dataset.

    Returns:
        The ranking, and the labels of the run.

    Raises:
        RunError: an unfinished run, a run without a held-out fold, another dataset, or a damaged shard.
    """
    if is_cross_validation(path):
        folds = read_cross_validation(path)
        dataset = open_data(folds.config.provenance.get("records"), len(folds.cases))
        pairs = list(enumerate(finished_runs(folds, dataset)))
    else:
        run = load_run(path)
        dataset = open_data(run.config.provenance.get("records"), run.config.data.folds)
        check_matches(run.config, dataset)
        fold, _ = scans_of_fold(run, dataset, None)
        if choose_scope(run, dataset, fold).kind != HELD_OUT:
            raise RunError(f"{run.path}: was trained on a dataset other than {dataset.root}; use that one")
        pairs = [(fold, run)]
        logger.info("folds      only fold %d, which the run held out; a cross-validation ranks all scans", fold)
    measured: list[ScanDisagreement] = []
    with tempfile.TemporaryDirectory() as shelf:
        for fold, run in pairs:
            keras.backend.clear_session()  # frees the memory of the previous network
            measured += _measure_fold(run, dataset, fold, Path(shelf))
        ranked = rank_scans(measured)
        for n, scan in enumerate(ranked[:_PICTURED_SCANS]):
            ranked[n] = replace(scan, pictures=tuple(json.loads((Path(shelf) / scan.scan).read_bytes())))
    return ranked, pairs[0][1].config.label_set


def _measure_fold(run: Run, dataset: Dataset, fold: int, shelf: Path) -> list[ScanDisagreement]:
    predictor, labels = Predictor.of_run(run), run.config.label_set
    count = len(scans_of_fold(run, dataset, fold)[1])
    measured = []
    with naming_damaged_shards(dataset):
        scans = read_scans(dataset, [fold], run.config.data.exclude_scans)
        for scan in progress(scans, f"fold {fold}", total=count, unit="scan"):
            annotation = select_labels(scan.reference, dataset.labels, labels)
            levels = predictor.predict_levels(scan.volume).levels
            assert levels is not None
            volume = scan.volume
            found = measure_disagreement(levels, annotation, labels, volume.spacing, volume.numbers)
            measured.append(ScanDisagreement(scan.id, scan.case, fold, tuple(found), {}))
            pictures = _draw(replace(scan, annotation=annotation), levels, labels)
            (shelf / scan.id).write_text(json.dumps(pictures))
    return measured


def measure_disagreement(
    levels: np.ndarray,
    annotation: Annotation,
    labels: LabelSet,
    spacing: tuple[float, float, float],
    numbers: Sequence[int],
) -> list[LabelDisagreement]:
    """Measure the disagreement of each annotated label of a scan.

    Args:
        levels: uint8 [L, D, H, W], probabilities in percent, see `Predictor.predict_levels`.
        annotation: the annotation, in the same order; ignored voxels do not count.
        labels: the labels.
        spacing: (z, y, x) in mm.
        numbers: the slice numbers.

    Returns:
        One measurement per annotated label.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    found = []
    for k in np.flatnonzero(annotation.annotated).tolist():
        sums = _by_slice(levels[k], annotation.masks[k], annotation.ignore)
        wrong, size = sums.wrong, sums.size
        if not size.any():
            nothing = (np.nan, np.nan, (numbers[0], numbers[-1]), np.nan, 0.0, 0.0)
            found.append(LabelDisagreement(labels.names[k], *nothing))
            continue
        blocks = np.lib.stride_tricks.sliding_window_view(np.stack([wrong, size]), min(BLOCK, len(size)), axis=1)
        wrong_in, size_in = blocks.sum(-1)
        block = 1 - wrong_in / (size_in + size[size > 0].mean())
        z = int(block.argmin())
        both = (sums.annotated > 0) & (sums.predicted > 0)
        found.append(
            LabelDisagreement(
                labels.names[k],
                float(1 - wrong.sum() / size.sum()),
                float(block[z]),
                (numbers[z], numbers[min(z + BLOCK, len(size)) - 1]),
                float(sums.annotated[both].sum() / sums.predicted[both].sum()) if both.any() else np.nan,
                float(sums.predicted.sum() - sums.common.sum()) * voxel_ml,
                float(sums.annotated.sum() - sums.common.sum()) * voxel_ml,
            )
        )
    return found


def rank_scans(scans: Sequence[ScanDisagreement]) -> list[ScanDisagreement]:
    """Compare the scans with each other, label by label, and sort them by `score`, highest first."""
    suspicion: dict[str, dict[str, float]] = {scan.scan: {} for scan in scans}
    for label in dict.fromkeys(one.label for scan in scans for one in scan.labels):
        having = [(scan.scan, one) for scan in scans for one in scan.labels if one.label == label]
        whole = -robust_z(np.array([one.agreement for _, one in having]), _SPREAD)
        block = -robust_z(np.array([one.block_agreement for _, one in having]), _BLOCK_SPREAD)
        ratio = np.abs(robust_z(np.log([one.size_ratio for _, one in having]), _RATIO_SPREAD))
        for (scan, _), values in zip(having, np.nan_to_num(np.stack([whole, block, ratio], 1)), strict=True):
            suspicion[scan][label] = float(values.max())
    return sorted((replace(scan, suspicion=suspicion[scan.scan]) for scan in scans), key=lambda s: (-s.score, s.scan))


def write_ranking(path: AnyPath, ranking: Sequence[ScanDisagreement]) -> None:
    """Write a CSV file with a row per scan and label: the scans in order, with their most suspicious label first."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["rank", "scan", "case", "fold", "score", "label", "suspicion", *_COLUMNS])
    for rank, scan in enumerate(ranking, 1):
        for one in sorted(scan.labels, key=lambda one: -scan.suspicion[one.label]):
            values = [f"{value:.4g}" for value in (one.agreement, one.block_agreement)]
            volumes = [f"{value:.3f}" for value in (one.size_ratio, one.missing_ml, one.extra_ml)]
            row = [rank, scan.scan, scan.case, scan.fold, f"{scan.score:.2f}", one.label]
            row += [f"{scan.suspicion[one.label]:.2f}", *values, f"{one.slices[0]}-{one.slices[1]}", *volumes]
            table.writerow(row)
    write_atomically(path, text.getvalue().encode())


def ranking_lines(ranking: Sequence[ScanDisagreement], most: int = 20) -> list[str]:
    """Format the first scans of a ranking as a table, with the label that is most suspicious in each."""
    width = max((len(scan.scan) for scan in ranking[:most]), default=4)
    lines = [f"{'rank':>4}  {'scan':{width}}  suspicion  agreement  missing ml  extra ml  slices   label"]
    for rank, scan in enumerate(ranking[:most], 1):
        if not scan.labels:
            continue
        worst = scan.worst
        slices = f"{worst.slices[0]}-{worst.slices[1]}"
        lines.append(
            f"{rank:>4}  {scan.scan:{width}}  {scan.score:9.1f}  {worst.agreement:9.3f}  {worst.missing_ml:10.1f}  "
            f"{worst.extra_ml:8.1f}  {slices:7}  {worst.label}"
        )
    if len(ranking) > most:
        lines.append(f"      and {plural(len(ranking) - most, 'more scan')}")
    return lines


class _Sums(NamedTuple):
    """Sums over the voxels of each slice, float64 [D].

    Attributes:
        wrong: voxels in only one of annotation and prediction, weighted by the certainty of the prediction.
        size: the sum of both sizes, weighted likewise.
        annotated, predicted, common: numbers of voxels in either and in both.
    """

    wrong: np.ndarray
    size: np.ndarray
    annotated: np.ndarray
    predicted: np.ndarray
    common: np.ndarray


def _by_slice(levels: np.ndarray, mask: np.ndarray, ignore: np.ndarray | None) -> _Sums:
    """Sum over each slice: levels uint8 [D, H, W], mask bool [D, H, W], and ignore bool [D, H, W] or None."""
    predicted = levels >= LEVELS // 2
    if ignore is not None:
        predicted, mask = predicted & ~ignore, mask & ~ignore
    certainty = np.abs(2 * (levels.astype(np.float32) + 0.5) / LEVELS - 1)

    def total(chosen: np.ndarray) -> np.ndarray:
        return np.asarray(np.where(chosen, certainty, 0.0).sum((1, 2), dtype=np.float64))

    counts = (np.count_nonzero(chosen, axis=(1, 2)).astype(float) for chosen in (mask, predicted, mask & predicted))
    return _Sums(total(predicted != mask), total(predicted) + total(mask), *counts)


def _draw(scan: LoadedScan, levels: np.ndarray, labels: LabelSet) -> list[dict]:
    """Draw the slices with most disagreement, relative to the size of each label; no two adjacent ones."""
    annotation = scan.reference
    wrong = np.zeros(len(scan.volume.numbers))
    for k in np.flatnonzero(annotation.annotated).tolist():
        sums = _by_slice(levels[k], annotation.masks[k], annotation.ignore)
        wrong += sums.wrong / max(sums.size.sum(), 1.0)
    chosen: list[int] = []
    for z in np.argsort(-wrong, kind="stable").tolist():
        if len(chosen) < _PICTURES and all(abs(z - other) > 1 for other in chosen):
            chosen.append(z)
    low, high = map(float, scan.volume.percentiles[0, [2, 9]])
    known = annotation.annotated[:, None, None]
    return [
        draw_slice(
            scan.volume.numbers[z],
            to_gray(scan.volume.with_channels[z, ..., 0], low, high),
            truth=annotation.masks[:, z],
            prediction=(levels[:, z] >= LEVELS // 2) & known,
            labels=labels,
        )
        for z in sorted(chosen)
    ]
