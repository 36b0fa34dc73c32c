"""Search for the post-processing with the highest score; `tune.py` supplies a run's predictions."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.data.volume import Annotation
from gitseg_tf.evaluation.metrics.competition import combined, hausdorff_score_volume, score_parts
from gitseg_tf.evaluation.metrics.scores import dice, hausdorff, metric_value, surface_dice
from gitseg_tf.inference.postprocess import columns_reaching, label_mask, with_threshold
from gitseg_tf.labels import LabelSet

# The values to try for each step, in the order of the steps; the first is off, later ones have a stronger effect.
# Thresholds are tried in order of their distance from evaluation.threshold, which is represented by None.
GRID = {
    "smooth_mm": (0.0, 1.5, 3.0, 4.5, 6.0),
    "threshold": (None, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8),
    "min_presence": (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "fill_single_gaps": (False, True),
    "fill_holes": (False, True),
    "min_component_ml": (0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0),
    "keep_largest_component": (False, True),
    "min_adjacent_slices": (0, 2, 3, 4, 5),
    "max_gap_mm": (0.0, 60.0, 30.0, 15.0, 6.0),
}
ROUNDS = 2
# Minimum gain of the mean score: a smaller one is due to chance on these scans.
LEAST_GAIN = 1e-4
# Each thread holds one label of one scan, about 0.2 GiB for a large scan.
MOST_THREADS = 6
# numpy parses the headers of arrays with ast.literal_eval, which fails at times in several threads of Python 3.11.
_READING = Lock()


@dataclass(frozen=True)
class Step:
    """A setting that was adopted, and the mean score over all labels and scans before and after it.

    Attributes:
        label, key, value: the setting.
        before, after: the mean scores.
        alone: the gain of the setting with everything else off; None if another value replaced it later.
    """

    label: str
    key: str
    value: Any
    before: float
    after: float
    alone: float | None = None

    @property
    def gain(self) -> float:
        """The increase of the mean score."""
        return self.after - self.before


class PairScores:
    """Scores of pairs of label and scan for given post-processing.

    For each pair that can affect the metric, a file stores its probabilities in the columns that any mask may include.
    Unannotated labels do not count, and labels absent from the reference only in `score`, by their false positives.

    Args:
        folder: folder for the files.
        labels: labels of the masks.
        threshold: evaluation.threshold.
        metric: a name in `config.evaluation.METRICS`.
        tolerance_mm: tolerance of the surface Dice.
    """

    def __init__(
        self, folder: Path, labels: LabelSet, threshold: float, metric: str = "score", tolerance_mm: float = 3.0
    ):
        self._folder, self._threshold = folder, threshold
        self.metric, self._tolerance = metric, tolerance_mm
        self._least = min(value for value in (threshold, *GRID["threshold"]) if value is not None)
        self._files: dict[str, list[Path]] = {name: [] for name in labels.names}
        self._present: set[str] = set()
        self.has_presence = False
        self._known: dict[tuple[str, LabelPostprocess], np.ndarray] = {}

    @classmethod
    def of_config(cls, folder: Path, config: Config, metric: str | None = None) -> "PairScores":
        """Score with a config's labels, threshold and tolerance; metric None is its evaluation.metric."""
        settings = config.evaluation
        return cls(folder, config.label_set, settings.threshold, metric or settings.metric, settings.tolerance_mm)

    @property
    def labels(self) -> list[str]:
        """The labels that the reference of a scan has, which can be tuned."""
        return [name for name in self._files if name in self._present]

    def add(
        self,
        probabilities: np.ndarray,
        truth: Annotation,
        numbers: Sequence[int],
        spacing: Sequence[float],
        *,
        presence: np.ndarray | None = None,
    ) -> None:
        """Store a scan.

        Args:
            probabilities: float32 [L, D, H, W].
            truth: the reference; ignored voxels are removed from both masks.
            numbers: int [D], the slice numbers.
            spacing: (z, y, x) in mm.
            presence: float32 [L, D] from `Predictor.measure`, for all scans or none; only with it is min_presence
                searched for.
        """
        self.has_presence = presence is not None
        counted = np.True_ if truth.ignore is None else ~truth.ignore
        for k, (name, files) in enumerate(self._files.items()):
            mask = truth.masks[k] & counted
            if not truth.annotated[k] or not (mask.any() or self.metric == "score"):
                continue
            if mask.any():
                self._present.add(name)
            # Columns below all thresholds are not part of any mask, with or without smoothing.
            box = columns_reaching(np.maximum(self._highest(probabilities[k]), mask), self._least)
            if not mask[box].size:
                continue
            file = self._folder / f"{k}-{len(files)}.npz"
            np.savez(
                file,
                probabilities=self._stored(probabilities[k][(..., *box)]),
                **({} if presence is None else {"presence": presence[k]}),
                truth=mask[box],
                ignore=np.False_ if truth.ignore is None else truth.ignore[box],
                numbers=np.asarray(numbers),
                spacing=np.asarray(spacing, float),
                shape=np.array(mask.shape),
            )
            files.append(file)

    def terms(self, label: str, settings: Sequence[LabelPostprocess]) -> np.ndarray:
        """Measure a label's terms of the mean over all labels and scans.

        Args:
            label: a label.
            settings: the settings to try; each is measured only once.

        Returns:
            float [settings, terms, 2], see `scores.metric_terms`.
        """
        new = [s for s in dict.fromkeys(settings) if (label, s) not in self._known]
        if new:
            none = np.zeros((len(new), 2 if self.metric == "score" else 1, 2))
            with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as pool:
                total = sum(pool.map(lambda file: self._terms(file, new), self._files[label]), none)
            self._known |= {(label, s): own for s, own in zip(new, total, strict=True)}
        return np.stack([self._known[label, s] for s in settings])

    def value(self, terms: np.ndarray) -> float:
        """Compute the metric from the sum of the labels' terms; 0 if nothing enters it."""
        value = metric_value(terms, self.metric)
        return 0.0 if np.isnan(value) else value

    def rest(self) -> np.ndarray:
        """Measure the terms of the labels that are not tuned, with their post-processing off."""
        off, none = [LabelPostprocess()], np.zeros((2 if self.metric == "score" else 1, 2))
        return sum((self.terms(name, off)[0] for name in self._files if name not in self._present), none)

    def _highest(self, probabilities: np.ndarray) -> np.ndarray:
        """Compute the highest probability of each voxel that a search may reach: [D, H, W]."""
        return probabilities

    def _stored(self, probabilities: np.ndarray) -> np.ndarray:
        """Convert probabilities to the form in which they are stored."""
        return probabilities

    def _load(self, file: Path) -> dict[str, Any]:
        """Read a pair; its probabilities are float32 [D, H, W]."""
        with _READING, np.load(file) as pair:
            return {name: pair[name] for name in pair}

    def _terms(self, file: Path, settings: Sequence[LabelPostprocess]) -> np.ndarray:
        kept = self._load(file)
        masks = (
            label_mask(
                kept["probabilities"],
                with_threshold(s, self._threshold),
                kept["numbers"],
                kept["spacing"],
                presence=kept.get("presence"),
            )
            & ~kept["ignore"]
            for s in settings
        )
        return np.stack([self._terms_of(kept, mask) for mask in masks])

    def _terms_of(self, pair: dict[str, np.ndarray], mask: np.ndarray) -> np.ndarray:
        truth, shape = pair["truth"], tuple(pair["shape"].tolist())
        if self.metric == "score":
            dice_sum, images, hausdorff_score = score_parts(truth, mask, shape)
            return np.array([(dice_sum, images), (hausdorff_score, 1.0) if images else (0.0, 0.0)])
        return np.array([(self._score_of(truth, mask, shape, pair), 1.0)])

    def _score_of(self, truth: np.ndarray, mask: np.ndarray, shape: tuple[int, ...], pair: dict) -> float:
        """Compute one of the other metrics of one pair, as in `score_scan`."""
        if not mask.any():
            return 0.0
        if self.metric == "dice":
            return dice(truth, mask)
        if self.metric == "surface_dice":
            return surface_dice(truth, mask, tuple(pair["spacing"]), self._tolerance, pair["numbers"].tolist())
        distance = hausdorff(truth, mask, (1.0, 1.0, 1.0))
        return combined(dice(truth, mask), hausdorff_score_volume(distance, shape))


def search(
    pairs: PairScores,
    labels: Sequence[str],
    threshold: float,
    bar: Callable[[list], Iterable] = iter,
) -> tuple[dict[str, LabelPostprocess], list[Step], float]:
    """Run a coordinate search: each step of each label in turn gets the value of `GRID` with the highest mean score.

    The search starts with everything off and passes through all steps `ROUNDS` times, because a later step may change
    the best value of an earlier one. A value is adopted if it gains at least `LEAST_GAIN`; the first of equally good
    values is used.

    Args:
        pairs: object with the methods `terms`, `rest` and `value` of `PairScores`, and `has_presence`.
        labels: the labels to search for.
        threshold: evaluation.threshold, represented by None in the grid.
        bar: wraps a list in a progress bar.

    Returns:
        The settings of each label, the adopted steps in order, and the mean score with everything off.
    """
    off = LabelPostprocess()
    settings, terms = dict.fromkeys(labels, off), {label: pairs.terms(label, [off])[0] for label in labels}
    rest = pairs.rest()
    steps: list[Step] = []
    score = baseline = pairs.value(rest + sum(terms.values()))
    keys = [key for key in GRID if key != "min_presence" or pairs.has_presence]
    for _, label, key in bar(list(product(range(ROUNDS), labels, keys))):
        current = settings[label]
        values = [value for value in _values(key, threshold) if value != getattr(current, key)]
        tried = [current.model_copy(update={key: value}) for value in values]
        others = rest + sum(own for name, own in terms.items() if name != label)
        of_tried = pairs.terms(label, tried)
        reached = [pairs.value(others + own) for own in of_tried]
        best = int(np.argmax(reached))
        if reached[best] < score + LEAST_GAIN:
            continue
        steps.append(Step(label, key, values[best], score, reached[best]))
        settings[label], terms[label], score = tried[best], of_tried[best], reached[best]
    of_off = {label: pairs.terms(label, [off])[0] for label in labels}
    return settings, [_alone(step, settings, pairs, rest, of_off) for step in steps], baseline


def _values(key: str, threshold: float) -> list:
    if key != "threshold":
        return list(GRID[key])
    others = [value for value in GRID[key] if value not in (None, threshold)]
    return [None, *sorted(others, key=lambda value: abs(value - threshold))]


def _alone(
    step: Step, settings: dict[str, LabelPostprocess], pairs: PairScores, rest: np.ndarray, of_off: dict
) -> Step:
    if getattr(settings[step.label], step.key) != step.value:
        return step
    only = LabelPostprocess().model_copy(update={step.key: step.value})
    terms = of_off | {step.label: pairs.terms(step.label, [only])[0]}
    without, with_it = (pairs.value(rest + sum(parts.values())) for parts in (of_off, terms))
    return Step(step.label, step.key, step.value, step.before, step.after, with_it - without)


def table_lines(steps: Sequence[Step]) -> list[str]:
    """Format the steps: label, step, setting, score before and after, gain, and gain with everything else off.

    Args:
        steps: from `search`.

    Returns:
        Headings and one line per step, or a single line if no step helps.
    """
    if not steps:
        return [f"steps      none; no step gains {LEAST_GAIN} or more"]
    wide, keys = (max(12, *map(len, column)) + 2 for column in ([s.label for s in steps], [s.key for s in steps]))
    lines = [f"{'label':<{wide}}{'step':<{keys}}{'setting':>9}{'before':>9}{'after':>9}{'gain':>10}{'alone':>10}"]
    for step in steps:
        setting = {None: "default", True: "on", False: "off"}.get(step.value, step.value)
        alone = "replaced" if step.alone is None else f"{step.alone:+.4f}"
        scores = f"{step.before:>9.4f}{step.after:>9.4f}{step.gain:>+10.4f}{alone:>10}"
        lines.append(f"{step.label:<{wide}}{step.key:<{keys}}{setting:>9}{scores}")
    return lines
