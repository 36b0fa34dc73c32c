"""The search for post-processing that raises the competition's score; `tune.py` gives it a run's predictions."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.evaluation.scores import DICE_WEIGHT, HAUSDORFF_WEIGHT, dice, hausdorff
from gitseg_tf.inference.postprocess import columns_reaching, organ_mask, with_threshold
from gitseg_tf.sections.postprocess import OrganConfig

# What is tried of each step, in the order of the steps; the first is off, and what follows does more and more.
# Thresholds are tried from the nearest to evaluation.threshold, which None is, to the farthest.
GRID = {
    "smooth_mm": (0.0, 1.5, 3.0, 4.5, 6.0),
    "threshold": (None, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8),
    "fill_holes": (False, True),
    "smallest_ml": (0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0),
    "largest_only": (False, True),
    "gap_mm": (0.0, 60.0, 30.0, 15.0, 6.0),
}
ROUNDS = 2
# Of the mean score: a step that gains less has found the chance of these scans.
LEAST_GAIN = 1e-4
# Each holds one organ of one scan, some 0.2 GiB of a large one.
_MOST_THREADS = 6


@dataclass(frozen=True)
class Step:
    """A setting that was taken, and the mean score over all organs and scans before and after it.

    Attributes:
        organ, key, value: the setting.
        before, after: the mean scores.
        alone: what the setting gains with all else off; None where another value replaced it later.
    """

    organ: str
    key: str
    value: Any
    before: float
    after: float
    alone: float | None = None

    @property
    def gain(self) -> float:
        return self.after - self.before


class PairScores:
    """Scores of organs of scans under post-processing.

    Of each organ that the reference of a scan has there is a file with its probabilities, of the columns that can be
    in any mask. Organs that the reference lacks are in no score, as the competition has it.

    Args:
        folder: for the files.
        threshold: evaluation.threshold.
    """

    def __init__(self, folder: Path, threshold: float):
        self._folder, self._threshold = folder, threshold
        self._least = min(value for value in (threshold, *GRID["threshold"]) if value is not None)
        self._files: dict[str, list[Path]] = {organ: [] for organ in ORGANS}
        self._known: dict[tuple[str, OrganConfig], float] = {}

    @property
    def organs(self) -> list[str]:
        """Organs that there is anything to score of."""
        return [organ for organ, files in self._files.items() if files]

    def add(
        self, probabilities: np.ndarray, truth: np.ndarray, numbers: Sequence[int], spacing: Sequence[float]
    ) -> None:
        """Keep a scan.

        Args:
            probabilities: float32 [3, D, H, W].
            truth: bool [3, D, H, W].
            numbers: int [D], the slices' numbers.
            spacing: (z, y, x) in mm.
        """
        for k, organ in enumerate(ORGANS):
            if not truth[k].any():
                continue
            # Columns below all thresholds are in no mask, smoothed or not.
            box = columns_reaching(np.maximum(probabilities[k], truth[k]), self._least)
            file = self._folder / f"{organ}{len(self._files[organ])}.npz"
            np.savez(
                file,
                probabilities=probabilities[k][box],
                truth=truth[k][box],
                numbers=np.asarray(numbers),
                spacing=np.asarray(spacing, float),
                diagonal=np.linalg.norm(truth.shape[1:]),
            )
            self._files[organ].append(file)

    def means(self, organ: str, settings: Sequence[OrganConfig]) -> list[float]:
        """What an organ adds to the mean score over all organs and scans.

        Args:
            organ: one of `organs`.
            settings: what is tried; what was measured before is not measured again.

        Returns:
            One number for each of the settings.
        """
        new = [s for s in dict.fromkeys(settings) if (organ, s) not in self._known]
        if new:
            with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
                scores = np.array(list(pool.map(lambda file: self._scores(file, new), self._files[organ])))
            pairs = sum(map(len, self._files.values()))
            self._known |= {(organ, s): float(total) / pairs for s, total in zip(new, scores.sum(0), strict=True)}
        return [self._known[organ, s] for s in settings]

    def _scores(self, file: Path, settings: Sequence[OrganConfig]) -> list[float]:
        with np.load(file) as pair:
            kept = {name: pair[name] for name in pair}
        masks = (
            organ_mask(kept["probabilities"], with_threshold(s, self._threshold), kept["numbers"], kept["spacing"])
            for s in settings
        )
        return [competition_score(kept["truth"], mask, float(kept["diagonal"])) for mask in masks]


def competition_score(truth: np.ndarray, prediction: np.ndarray, diagonal: float) -> float:
    """The competition's score of one organ of a scan, as `score_scan` has it, without all else.

    Args:
        truth: bool [D, H, W], not empty.
        prediction: bool [D, H, W].
        diagonal: of the whole scan, voxels.

    Returns:
        0, where nothing is predicted, to 1.
    """
    if not prediction.any():
        return 0.0
    distance = hausdorff(truth, prediction, (1.0, 1.0, 1.0))
    return DICE_WEIGHT * dice(truth, prediction) + HAUSDORFF_WEIGHT * (1 - distance / diagonal)


def search(
    means: Callable[[str, Sequence[OrganConfig]], list[float]],
    organs: Sequence[str],
    threshold: float,
    bar: Callable[[list], Iterable] = iter,
) -> tuple[dict[str, OrganConfig], list[Step], float]:
    """Coordinate search: one step of one organ after the other gets the value of `GRID` with the highest mean score.

    From all off; all steps are gone through `ROUNDS` times, for a later step may change what an earlier one should be.
    A value is taken if it gains `LEAST_GAIN`; of equally good ones the first.

    Args:
        means: as `PairScores.means`.
        organs: to search for.
        threshold: evaluation.threshold, for which None stands in the grid.
        bar: shows how far a list has been gone through.

    Returns:
        The settings of each organ, what was taken in its order, and the mean score with all off.
    """
    off = OrganConfig()
    found, scores = dict.fromkeys(organs, off), {organ: means(organ, [off])[0] for organ in organs}
    steps, baseline = [], sum(scores.values())
    for _, organ, key in bar(list(product(range(ROUNDS), organs, GRID))):
        current = found[organ]
        values = [value for value in _values(key, threshold) if value != getattr(current, key)]
        tried = [current.model_copy(update={key: value}) for value in values]
        reached = means(organ, tried)
        best = int(np.argmax(reached))
        if reached[best] < scores[organ] + LEAST_GAIN:
            continue
        before, others = sum(scores.values()), sum(scores.values()) - scores[organ]
        steps.append(Step(organ, key, values[best], before, others + reached[best]))
        found[organ], scores[organ] = tried[best], reached[best]
    return found, [_alone(step, found, means) for step in steps], baseline


def _values(key: str, threshold: float) -> list:
    if key != "threshold":
        return list(GRID[key])
    others = [value for value in GRID[key] if value not in (None, threshold)]
    return [None, *sorted(others, key=lambda value: abs(value - threshold))]


def _alone(step: Step, found: dict[str, OrganConfig], means) -> Step:
    if getattr(found[step.organ], step.key) != step.value:
        return step
    off = OrganConfig()
    without, with_it = means(step.organ, [off, off.model_copy(update={step.key: step.value})])
    return Step(step.organ, step.key, step.value, step.before, step.after, with_it - without)


def table_lines(steps: Sequence[Step]) -> list[str]:
    """The steps as a table for people: organ, step, setting, score before and after, gain, and gain with all else off.

    Args:
        steps: from `search`.

    Returns:
        A line of headings and one a step, or one that says that there is none.
    """
    if not steps:
        return [f"steps      none gains {LEAST_GAIN} or more"]
    lines = [f"{'organ':<14}{'step':<14}{'setting':>9}{'before':>9}{'after':>9}{'gain':>10}{'alone':>10}"]
    for step in steps:
        setting = {None: "default", True: "on", False: "off"}.get(step.value, step.value)
        alone = "replaced" if step.alone is None else f"{step.alone:+.4f}"
        scores = f"{step.before:>9.4f}{step.after:>9.4f}{step.gain:>+10.4f}{alone:>10}"
        lines.append(f"{step.organ:<14}{step.key:<14}{setting:>9}{scores}")
    return lines
