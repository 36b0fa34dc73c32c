"""Tune a run's post-processing on patients that it was not trained on."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from gitseg_tf import __version__
from gitseg_tf.config import Config
from gitseg_tf.config.evaluation import METRICS, TtaConfig
from gitseg_tf.config.postprocess import LabelPostprocess, PostprocessConfig
from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.selection import select_labels
from gitseg_tf.data.tfrecords.dataset import Dataset, read_scans
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.errors import RunError
from gitseg_tf.evaluation.evaluate import scans_of_fold
from gitseg_tf.evaluation.tuning.search import PairScores, Step, search, table_lines
from gitseg_tf.inference.ensemble import tta_words
from gitseg_tf.inference.exported import exported_config, exported_version
from gitseg_tf.inference.predictor import Predictor
from gitseg_tf.runs.folder import TUNED
from gitseg_tf.runs.matching import check_matches
from gitseg_tf.runs.run import Run

logger = logging.getLogger(__name__)


def tune(
    run: Run, dataset: Dataset, fold: int | None = None, *, metric: str | None = None, dry_run: bool = False
) -> tuple[PostprocessConfig, list[Step]]:
    """Search for the post-processing with the highest metric, log the gain of each step, and save it with the run.

    Each scan is predicted once; its probabilities are kept in a temporary folder during the search. Existing
    post-processing of the run is ignored: the search starts with everything off. The test-time augmentation used in the
    search is saved with the result.

    Args:
        run: a trained run; its config contains the test-time augmentation.
        dataset: a dataset with annotations.
        fold: the fold to tune on; None is the one that the run held out.
        metric: a name in `config.evaluation.METRICS`; None is the run's evaluation.metric.
        dry_run: do not write anything.

    Returns:
        The best section `postprocess`, and the adopted steps.

    Raises:
        RunError: a dataset without the run's labels or with other channels, no contours, a patient on whom the run was
            trained, or a damaged shard.
        DataError: no such fold.
        ConfigError: no such metric.
    """
    metric = METRICS.check(metric or run.config.evaluation.metric)
    check_matches(run.config, dataset)
    fold, scans = scans_of_fold(run, dataset, fold)
    cases = sorted({scan.case for scan in scans})
    check_unseen(run, cases, fold)
    with tempfile.TemporaryDirectory(prefix="gitseg-tune-") as folder:
        pairs = PairScores.of_config(Path(folder), run.config, metric)
        predict_pairs(run, dataset, fold, len(scans), pairs)
        tuning = search_settings(run.config, dataset, fold, scans, pairs)
    if dry_run:
        logger.info("saved      nothing, because this is a dry run")
        return tuning.settings, tuning.steps
    write_atomically(run.path / TUNED, tuning.content)
    logger.info("saved      %s%s", run.path / TUNED, tuning.with_tta)
    for line in stale_export(run.path, tuning):
        logger.info(line)
    return tuning.settings, tuning.steps


@dataclass(frozen=True)
class Tuning:
    """The result of a search.

    Attributes:
        settings: the best section `postprocess`.
        tta: the test-time augmentation with which it was found.
        steps: the adopted steps.
        content: the content of postprocess.yaml.
        facts: its provenance.tuned.
    """

    settings: PostprocessConfig
    tta: TtaConfig
    steps: list[Step]
    content: bytes
    facts: dict[str, Any]

    @property
    def with_tta(self) -> str:
        """The test-time augmentation as a clause, if there is any."""
        return f", with test-time augmentation ({tta_words(self.tta)})" if self.tta != TtaConfig() else ""


def search_settings(
    config: Config, dataset: Dataset, fold: int | str, scans: Sequence[ScanEntry], pairs: PairScores
) -> Tuning:
    """Search for the best settings, and log the adopted steps.

    Args:
        config: provides evaluation.threshold and evaluation.tta.
        dataset: the dataset of the scans.
        fold: the fold of the scans, or "all".
        scans: the scans in `pairs`.
        pairs: their predictions.

    Raises:
        RunError: no scan has a label to tune on.
    """
    which = "any fold" if fold == "all" else f"fold {fold}"
    if not pairs.labels:
        raise RunError(f"{dataset.root}: no scan of {which} has a label to tune on; choose another fold")
    bar = partial(progress, title="tune", unit="step")
    best, steps, before = search(pairs, pairs.labels, config.evaluation.threshold, bar)
    after = steps[-1].after if steps else before
    for line in table_lines(steps):
        logger.info(line)
    which = "all folds" if fold == "all" else f"fold {fold}"
    scored = f"{plural(len(scans), 'scan')} of {which}"
    logger.info("%-10s %.4f before, %.4f after, on %s", pairs.metric, before, after, scored)
    settings, tta = _section(best), config.evaluation.tta
    tuned = {
        "fold": fold,
        "dataset": dataset.source["fingerprint"],
        "cases": sorted({scan.case for scan in scans}),
        "scans": [scan.id for scan in scans],
        "metric": pairs.metric,
        "score_before": before,
        "score_after": after,
        "gitseg_tf": __version__,
    }
    tree = {
        "evaluation": {"tta": tta.model_dump(mode="json")},
        "postprocess": settings.model_dump(mode="json"),
        "provenance": {"tuned": tuned},
    }
    return Tuning(settings, tta, steps, yaml.safe_dump(tree, sort_keys=False).encode(), tuned)


def _section(settings: dict[str, LabelPostprocess]) -> PostprocessConfig:
    """Build the section `postprocess` from settings of labels; other labels keep the defaults."""
    return PostprocessConfig(**settings)


def stale_export(path: AnyPath, tuning: Tuning) -> Iterator[str]:
    """Yield a line if the export of a run or cross-validation has other post-processing than the new settings."""
    exported = exported_version(path / "export")
    if exported is None:
        return
    before = exported_config(exported)
    if (before.postprocess, before.evaluation.tta) != (tuning.settings, tuning.tta):
        yield f"stale      {exported} still has the old settings; export {path} again as version {exported.name}"


def check_unseen(run: Run, cases: list[str], fold: int) -> None:
    """Check that a run was not trained on the patients of a fold.

    Raises:
        RunError: it was, or its config does not tell.
    """
    trained_on = run.config.provenance.get("trained_on")
    if trained_on is None:
        raise RunError(
            f"{run.path / 'config.yaml'}: does not record which patients the run was trained on; train again"
        )
    seen = sorted(set(cases) & set(trained_on))
    if seen:
        raise RunError(
            f"{run.path}: was trained on {', '.join(seen)} of fold {fold}; tune on patients that it was not trained on"
        )


def predict_pairs(run: Run, dataset: Dataset, fold: int, count: int, pairs: PairScores) -> None:
    """Predict the scans of a fold with a run's network, and add them to `pairs`; `count` is their number."""
    predictor = Predictor.of_run(run, presence=run.config.gates_slices)
    with naming_damaged_shards(dataset):
        scans = read_scans(dataset, [fold], run.config.data.exclude_scans)
        for scan in progress(scans, "predict", total=count, unit="scan"):
            volume = scan.volume
            truth = select_labels(scan.reference, dataset.labels, run.config.label_set)
            probabilities, presence = predictor.measure(volume)
            pairs.add(probabilities, truth, volume.numbers, volume.spacing, presence=presence)
