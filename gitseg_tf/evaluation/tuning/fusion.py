"""Tune an ensemble.yaml out of fold: the weights of its members, then the post-processing of their mean."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from gitseg_tf.config.evaluation import METRICS
from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.core.locks import locked
from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.progress import progress
from gitseg_tf.data.selection import select_labels
from gitseg_tf.data.tfrecords.dataset import Dataset, read_scans
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.errors import RunError
from gitseg_tf.evaluation.evaluate import scans_of_fold
from gitseg_tf.evaluation.tuning.search import MOST_THREADS, PairScores
from gitseg_tf.evaluation.tuning.tune import search_settings
from gitseg_tf.inference.postprocess import label_mask, with_threshold
from gitseg_tf.inference.predictor import Predictor
from gitseg_tf.runs.ensemble import RunEnsemble
from gitseg_tf.runs.fusion import Fusion, read_fusion, write_fusion
from gitseg_tf.runs.matching import check_matches
from gitseg_tf.runs.out_of_fold import fold_ensembles

logger = logging.getLogger(__name__)

# Minimum gain over equal weights, which generalize better: a smaller one is due to chance on these patients.
MARGIN = 0.001
# The distances by which the share of a member is changed, from coarse to fine.
STEPS = (0.2, 0.1, 0.05)
_LEAST_GAIN = 1e-5
_MOST_ROUNDS = 20
_LEVELS = 255

Weights = tuple[float, ...]


class MemberPairs(PairScores):
    """Scores of pairs of label and scan for the weighted mean of several members; see `PairScores`.

    `add` takes the probabilities of all members, float32 [L, M, D, H, W]. They are stored in steps of 1/255.
    """

    def use(self, weights: dict[str, Weights]) -> None:
        """Set the weights of the M members for each label; they sum to 1."""
        self._weights = {name: weights[name] for name in self._files}
        self._known.clear()

    def terms_of(self, label: str, weights: Sequence[Weights]) -> np.ndarray:
        """Measure a label's terms with each of several weights, without post-processing; see `terms`."""
        none = np.zeros((len(weights), 2 if self.metric == "score" else 1, 2))
        with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as pool:
            return sum(pool.map(lambda file: self._terms_with(file, weights), self._files[label]), none)

    def _terms_with(self, file: Path, weights: Sequence[Weights]) -> np.ndarray:
        kept, threshold = super()._load(file), with_threshold(LabelPostprocess(), self._threshold)
        masks = (
            label_mask(_mean(kept["probabilities"], one), threshold, kept["numbers"], kept["spacing"]) & ~kept["ignore"]
            for one in weights
        )
        return np.stack([self._terms_of(kept, mask) for mask in masks])

    @property
    def all_labels(self) -> list[str]:
        """All labels, including those that no reference has."""
        return list(self._files)

    def _highest(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities.max(0)

    def _stored(self, probabilities: np.ndarray) -> np.ndarray:
        return np.rint(probabilities * _LEVELS).astype(np.uint8)

    def _load(self, file: Path) -> dict[str, Any]:
        kept = super()._load(file)
        name = self.all_labels[int(file.name.split("-")[0])]
        return kept | {"probabilities": _mean(kept["probabilities"], self._weights[name])}


def _mean(members: np.ndarray, weights: Weights) -> np.ndarray:
    """Compute the weighted mean of stored probabilities, uint8 [M, D, H, W]: float32 [D, H, W]."""
    mean = np.zeros(members.shape[1:], np.float32)
    for weight, member in zip(weights, members, strict=True):
        if weight:
            mean += np.float32(weight / _LEVELS) * member
    return mean


@dataclass(frozen=True)
class FusionSearch:
    """The result of `search_weights`.

    Attributes:
        weights: the chosen weights of each label.
        alone: the metric of each member alone.
        equal: the metric with equal weights.
        found: the metric with the best weights of the search, which are chosen only if they gain MARGIN.
    """

    weights: dict[str, Weights]
    alone: tuple[float, ...]
    equal: float
    found: float

    @property
    def chosen(self) -> float:
        """The metric with the chosen weights."""
        return self.found if self.is_better else self.equal

    @property
    def is_better(self) -> bool:
        """Whether the weights of the search are chosen."""
        return self.found >= self.equal + MARGIN


def search_weights(
    terms_of: Callable[[str, Sequence[Weights]], np.ndarray],
    value: Callable[[np.ndarray], float],
    labels: Sequence[str],
    members: int,
    *,
    per_label: bool = False,
    bar: Callable[[list], Any] = iter,
) -> FusionSearch:
    """Search for the weights with the highest metric by coordinate ascent on the simplex.

    The search starts with equal weights. It raises or lowers the share of one member, at the expense or for the benefit
    of the others in proportion, and adopts the best of these changes, until none helps; then it continues with smaller
    changes.

    Args:
        terms_of: function from a label and weights to the label's terms of the metric, float [weights, ...].
        value: function from the sum of all labels' terms to the metric.
        labels: all labels.
        members: the number of members, M.
        per_label: search for weights of each label, after those for all labels.
        bar: wraps the list of steps in a progress bar.

    Returns:
        The weights, and the metric before and after.
    """
    known: dict[tuple[str, Weights], np.ndarray] = {}

    def measured(tried: Sequence[dict[str, Weights]]) -> list[float]:
        for name in labels:
            if new := [one for one in dict.fromkeys(weights[name] for weights in tried) if (name, one) not in known]:
                known.update({(name, one): terms for one, terms in zip(new, terms_of(name, new), strict=True)})
        return [value(np.sum([known[name, weights[name]] for name in labels], axis=0)) for weights in tried]

    weights = equal = dict.fromkeys(labels, (1 / members,) * members)
    ones = [tuple(float(m == k) for m in range(members)) for k in range(members)]
    best, *alone = measured([equal, *(dict.fromkeys(labels, one) for one in ones)])
    before = best
    groups = [tuple(labels)] + [(name,) for name in labels] * per_label
    for group, step in bar([(group, step) for group in groups for step in STEPS]):
        for _ in range(_MOST_ROUNDS):
            changes = [dict.fromkeys(group, moved) for moved in _moves(weights[group[0]], step)]
            reached = measured([weights | change for change in changes])
            if max(reached, default=best) < best + _LEAST_GAIN:
                break
            best = max(reached)
            weights = weights | changes[int(np.argmax(reached))]
    result = FusionSearch(weights, tuple(alone), before, best)
    return result if result.is_better else replace(result, weights=equal)


def _moves(weights: Weights, step: float) -> list[Weights]:
    """List the weights in which the share of one member is `step` higher or lower."""
    moves = []
    for k, own in enumerate(weights):
        for share in (min(own + step, 1.0), max(own - step, 0.0)):
            others = 1.0 - own
            if share == own or (others == 0.0 and share == 1.0):
                continue
            rest = 1.0 - share
            moved = [
                share if m == k else rest * (w / others if others else 1 / (len(weights) - 1))
                for m, w in enumerate(weights)
            ]
            moves.append(tuple(round(w, 6) for w in moved))
    return list(dict.fromkeys(moves))


def tune_ensemble(
    path: str | AnyPath,
    dataset: Dataset,
    *,
    overrides: dict[str, Any] | None = None,
    metric: str | None = None,
    per_label: bool = False,
    dry_run: bool = False,
) -> tuple[Fusion, FusionSearch]:
    """Choose weights and post-processing of an ensemble with the highest out-of-fold metric, and save both.

    No scan is predicted by a run that was trained on its patient. Weights are chosen first, without post-processing;
    existing weights and settings are ignored. Equal weights are kept unless others gain `MARGIN`.

    Args:
        path: the folder of an ensemble, or its ensemble.yaml.
        dataset: the dataset on which its members were trained.
        overrides: dotted keys of the section evaluation, for all runs.
        metric: a name in `config.evaluation.METRICS`; None is the evaluation.metric of the first member.
        per_label: also search for weights of each label.
        dry_run: do not write anything.

    Returns:
        The new ensemble, and the result of the search for weights.

    Raises:
        RunError: see `fold_ensembles`; or no scan has a label to tune on.
        ConfigError: no such metric.
    """
    if metric is not None:
        METRICS.check(metric)
    fusion = read_fusion(path)
    models = fold_ensembles(fusion, dataset, overrides)
    config = next(iter(models.values())).config
    check_matches(config, dataset)
    count = len(fusion.members)
    scans: list[ScanEntry] = []
    with tempfile.TemporaryDirectory(prefix="gitseg-tune-") as folder:
        pairs = MemberPairs.of_config(Path(folder), config, metric)
        assert isinstance(pairs, MemberPairs)
        for fold, model in models.items():
            of_fold = scans_of_fold(model, dataset, fold)[1]
            scans += of_fold
            logger.info("fold %d/%d   %s", fold + 1, dataset.folds, ", ".join(str(run.path) for run in model.runs))
            _predict_members(model, dataset, fold, len(of_fold), pairs)
        if not pairs.labels:
            raise RunError(f"{dataset.root}: no scan of the held-out folds has a label to tune on")
        found = search_weights(
            pairs.terms_of, pairs.value, pairs.all_labels, count,
            per_label=per_label, bar=partial(progress, title="weights", unit="step"),
        )  # fmt: skip
        for line in weight_lines(fusion, found, pairs.metric):
            logger.info(line)
        pairs.use(found.weights)
        where = next(iter(models)) if len(models) == 1 else "all"
        tuning = search_settings(config, dataset, where, scans, pairs)
    members = tuple(
        replace(member, weight=_weight({name: found.weights[name][k] for name in found.weights}))
        for k, member in enumerate(fusion.members)
    )
    gain = {"alone": list(found.alone), "equal_weights": found.equal, "tuned_weights": found.chosen}
    result = replace(fusion, members=members, postprocess=tuning.settings, tuned=tuning.facts | gain)
    if dry_run:
        logger.info("saved      nothing, because this is a dry run")
        return result, found
    with locked(fusion.path, wait=False):
        write_fusion(result)
    logger.info("saved      %s", fusion.file)
    return result, found


def weight_lines(fusion: Fusion, found: FusionSearch, metric: str) -> list[str]:
    """Format the result of `search_weights`: each member with its weights and its metric alone, and the gain."""
    shown = dict.fromkeys(found.weights.values())
    columns = [""] if len(shown) == 1 else list(found.weights)
    width = max(16, *(len(member.path.name) + 2 for member in fusion.members))
    lines = [f"{'member':<{width}}{metric + ' alone':>20}" + "".join(f"{f'weight {name}':>22}" for name in columns)]
    for k, member in enumerate(fusion.members):
        shares = [next(iter(shown))[k]] if columns == [""] else [found.weights[name][k] for name in columns]
        lines.append(
            f"{member.path.name:<{width}}{found.alone[k]:>20.4f}" + "".join(f"{share:>22.3f}" for share in shares)
        )
    best = max(found.alone)
    lines.append(f"{metric:<10} {best:.4f} of the best member, {found.equal:.4f} with equal weights")
    if found.is_better:
        lines.append(
            f"weights    gain {found.found - found.equal:+.4f} out of fold, on the patients they were chosen on"
        )
    else:
        gain = f"the best others gain {found.found - found.equal:+.4f}, less than {MARGIN:g}"
        lines.append(f"weights    equal, because {gain}")
    return lines


def _weight(of_labels: dict[str, float]) -> float | dict[str, float]:
    values = {round(value, 4) for value in of_labels.values()}
    return values.pop() if len(values) == 1 else {name: round(value, 4) for name, value in of_labels.items()}


def _predict_members(model: RunEnsemble, dataset: Dataset, fold: int, count: int, pairs: MemberPairs) -> None:
    """Predict the scans of a fold with each run, and add them to `pairs`."""
    keras.backend.clear_session()  # frees the memory of the previous networks
    predictors = [Predictor.of_run(run) for run in model.runs]
    labels = model.config.label_set
    with naming_damaged_shards(dataset):
        scans = read_scans(dataset, [fold], model.config.data.exclude_scans)
        for scan in progress(scans, "predict", total=count, unit="scan"):
            truth = select_labels(scan.reference, dataset.labels, labels)
            stack = np.stack([predictor.probabilities(scan.volume) for predictor in predictors], 1)
            pairs.add(stack, truth, scan.volume.numbers, scan.volume.spacing)
