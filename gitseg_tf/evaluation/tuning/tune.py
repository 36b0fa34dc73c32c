"""Tune a run's post-processing on patients that it was not trained on."""

import logging
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml

from gitseg_tf import __version__
from gitseg_tf.config.evaluation import METRICS, TtaConfig
from gitseg_tf.config.postprocess import LabelPostprocess, PostprocessConfig
from gitseg_tf.core.paths import write_atomically
from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.selection import select_labels
from gitseg_tf.data.tfrecords.dataset import Dataset, read_scans
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.errors import RunError
from gitseg_tf.evaluation.evaluate import scans_of_fold
from gitseg_tf.evaluation.tuning.search import PairScores, Step, search, table_lines
from gitseg_tf.inference.ensemble import tta_words
from gitseg_tf.inference.exported import exported_config, exported_version
from gitseg_tf.inference.predictor import Predictor, run_probabilities
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
    _check_unseen(run, cases, fold)
    threshold = run.config.evaluation.threshold
    with tempfile.TemporaryDirectory(prefix="gitseg-tune-") as folder:
        pairs = PairScores(Path(folder), run.config.label_set, threshold, metric, run.config.evaluation.tolerance_mm)
        _predict(run, dataset, fold, len(scans), pairs)
        if not pairs.labels:
            raise RunError(f"{dataset.root}: no scan of fold {fold} has a label to tune on; choose another fold")
        bar = partial(progress, title="tune", unit="step")
        best, steps, before = search(pairs, pairs.labels, threshold, bar)
    after = steps[-1].after if steps else before
    for line in table_lines(steps):
        logger.info(line)
    where = f"{plural(len(scans), 'scan')} of fold {fold}"
    logger.info("%-10s %.4f before, %.4f after, on %s", metric, before, after, where)
    settings = _section(best)
    if dry_run:
        logger.info("saved      nothing, because this is a dry run")
        return settings, steps
    tuned = {
        "fold": fold,
        "dataset": dataset.source["fingerprint"],
        "cases": cases,
        "scans": [scan.id for scan in scans],
        "metric": metric,
        "score_before": before,
        "score_after": after,
        "gitseg_tf": __version__,
    }
    tta = run.config.evaluation.tta
    tree = {
        "evaluation": {"tta": tta.model_dump(mode="json")},
        "postprocess": settings.model_dump(mode="json"),
        "provenance": {"tuned": tuned},
    }
    write_atomically(run.path / TUNED, yaml.safe_dump(tree, sort_keys=False).encode())
    with_tta = f", with test-time augmentation ({tta_words(run.config)})" if tta != TtaConfig() else ""
    logger.info("saved      %s%s", run.path / TUNED, with_tta)
    for line in _stale_export(run, settings):
        logger.info(line)
    return settings, steps


def _section(settings: dict[str, LabelPostprocess]) -> PostprocessConfig:
    """Build the section `postprocess` from settings of labels; other labels keep the defaults."""
    return PostprocessConfig(**settings)


def _stale_export(run: Run, settings: PostprocessConfig) -> Iterator[str]:
    """Yield a line if the run's export has other post-processing than the new settings."""
    exported = exported_version(run.path / "export")
    if exported is None:
        return
    before = exported_config(exported)
    if (before.postprocess, before.evaluation.tta) != (settings, run.config.evaluation.tta):
        yield f"stale      {exported} still has the old settings; export {run.path} again as version {exported.name}"


def _check_unseen(run: Run, cases: list[str], fold: int) -> None:
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


def _predict(run: Run, dataset: Dataset, fold: int, count: int, pairs: PairScores) -> None:
    predictor = Predictor.of_run(run, run_probabilities(run))
    with naming_damaged_shards(dataset):
        scans = read_scans(dataset, [fold], run.config.data.exclude_scans)
        for scan in progress(scans, "predict", total=count, unit="scan"):
            volume = scan.volume
            truth = select_labels(scan.reference, dataset.labels, run.config.label_set)
            pairs.add(predictor.probabilities(volume), truth, volume.numbers, volume.spacing)
