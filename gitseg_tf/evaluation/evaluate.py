"""Score a run on patients that it was not trained on."""

import io
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from gitseg_tf import __version__
from gitseg_tf.config import Config
from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural, table_lines, wrapped
from gitseg_tf.data.selection import select_labels
from gitseg_tf.data.tfrecords.dataset import Dataset, read_scans
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.data.volume import LoadedScan
from gitseg_tf.errors import RunError
from gitseg_tf.evaluation.calibration import Reliability
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.evaluation.report.report import write_report
from gitseg_tf.evaluation.report.selection import Chosen, PictureShelf, worst_labels
from gitseg_tf.evaluation.report.slices import picture_scan
from gitseg_tf.evaluation.scope import OTHER_DATASET, choose_scope, seen_line
from gitseg_tf.evaluation.statistics.intervals import RESAMPLES, mean_intervals
from gitseg_tf.inference.ensemble import tta_words
from gitseg_tf.inference.postprocess import label_settings
from gitseg_tf.inference.predictor import Predictor
from gitseg_tf.labels import LabelSet
from gitseg_tf.runs.ensemble import RunEnsemble
from gitseg_tf.runs.folder import TUNED, read_history, tuned_where
from gitseg_tf.runs.fusion import MARKER
from gitseg_tf.runs.matching import check_matches
from gitseg_tf.runs.run import Run

logger = logging.getLogger(__name__)
# Columns of the table of scores: the title at its width, the key in the summary, the format.
_COLUMNS = (
    ("   score", "score", ".3f"),
    ("    Dice", "dice", ".3f"),
    ("     IoU", "iou", ".3f"),
    ("  Hausdorff", "hausdorff", ".3f"),
    ("  HD95 mm", "hd95_mm", ".2f"),
    ("  mean mm", "mean_surface_mm", ".2f"),
    ("  surface Dice", "surface_dice", ".3f"),
    ("  volume error", "volume_error_relative", ".1%"),
)
MOST_LABELS = 40
_WITH_INTERVAL, _INTERVAL_WIDTH = ("score", "dice"), len(" (0.00-1.00)")


def evaluate(
    run: Run | RunEnsemble,
    dataset: Dataset,
    fold: int | None = None,
    *,
    network: Callable | None = None,
) -> dict:
    """Predict scans, score them and write evaluation.json, evaluation.csv and report.html.

    `choose_scope` decides which scans are scored and where the files go: only the scores of the fold that the run held
    out go into the run's folder. Logs a warning if the run was trained, or its post-processing tuned, on patients who
    are scored.

    Args:
        run: a trained run; or the runs of a cross-validation, for a dataset on which they were not trained.
        dataset: a dataset with annotations.
        fold: the fold to score; None is the one that the run held out, and all folds of another dataset.
        network: from `run_probabilities`, if it is already loaded.

    Returns:
        The content of evaluation.json.

    Raises:
        RunError: a dataset without the run's labels or with other channels, no fold was held out and none is given, or
            a damaged shard.
        DataError: no such fold.
    """
    check_matches(run.config, dataset)
    scope = choose_scope(run, dataset, fold)
    other = scope.kind == OTHER_DATASET
    history = [] if other else read_history(run.path)
    if line := seen_line(scope, dataset):
        logger.warning("%s", line)
    tuned_on = tuned_on_cases(run, scope.cases)
    with PictureShelf(len(scope.scans)) as shelf:
        reliability = Reliability(run.config.label_set)
        rows = score_fold(
            run, dataset, scope.folds, shelf=shelf, reliability=reliability, count=len(scope.scans), network=network,
            exclude=scope.exclude,
        )  # fmt: skip
        chosen = shelf.chosen()
    facts = {"fold": scope.fold, "scope": scope.kind, "trained_on": list(scope.seen), "tuned_on": tuned_on}
    part = f"all of its {plural(len(scope.scans), 'scan')}" if scope.fold == "all" else f"fold {scope.fold}"
    patients = "Patients trained on" if scope.seen else "Patients" if other else "Held-out patients"
    details = {
        **model_details(run),
        "Data": f"{dataset.source['name']}, {part}" + ("" if scope.fold == "all" else f" of {dataset.folds}"),
        patients: ", ".join(scope.seen or scope.cases),
        "Surface Dice tolerance": f"{run.config.evaluation.tolerance_mm} mm",
        "Post-processing": postprocess_details(run.config, tuned_on),
    }
    summary = summary_of(rows, reliability=reliability, dataset=dataset, config=run.config, facts=facts)
    curves = pd.DataFrame(history) if history else None
    kind = _kind(run)
    scope.folder.mkdir(parents=True, exist_ok=True)
    write_evaluation(
        scope.folder, summary, rows, labels=run.config.label_set, chosen=chosen, curves=curves,
        title=f"{kind} {run.path.name}" + (f" on {dataset.source['name']}" if other else ""), details=details,
    )  # fmt: skip
    return summary


def score_fold(
    run: Run | RunEnsemble,
    dataset: Dataset,
    fold: int | Sequence[int],
    *,
    count: int,
    shelf: PictureShelf,
    reliability: Reliability,
    network: Callable | None = None,
    exclude: tuple[str, ...] | None = None,
) -> pd.DataFrame:
    """Predict the scans of one or more folds, and score each while the next one is predicted.

    Args:
        run: a trained run, or several whose probabilities are averaged.
        dataset: a dataset with annotations.
        fold: a fold of the dataset, or several.
        count: the number of its scans, for the progress bar.
        shelf: receives the images of the scans.
        reliability: receives their probabilities.
        network: from `run_probabilities`, if it is already loaded.
        exclude: ids of scans to leave out; None is data.exclude_scans.

    Returns:
        The rows of `score_scan`, in the order of the records.

    Raises:
        RunError: a damaged shard.
    """
    predictor = Predictor.of_run(run, network)
    for warning in predictor.warnings:
        logger.warning("check all results: %s", warning)
    folds = [fold] if isinstance(fold, int) else list(fold)
    exclude = run.config.data.exclude_scans if exclude is None else exclude
    labels, tolerance = run.config.label_set, run.config.evaluation.tolerance_mm
    scored: list[Future[list[dict]]] = []

    def score(scan: LoadedScan, prediction: np.ndarray, levels: Any) -> list[dict]:
        annotation = select_labels(scan.reference, dataset.labels, labels)
        scan = replace(scan, annotation=annotation)
        rows = score_scan(
            scan.id, scan.case, annotation, prediction,
            labels=labels, spacing=scan.volume.spacing, numbers=scan.volume.numbers, tolerance_mm=tolerance,
        )  # fmt: skip
        reliability.add(levels, annotation)
        shelf.add(scan.id, rows, lambda: picture_scan(scan, prediction, labels))
        return rows

    with naming_damaged_shards(dataset), ThreadPoolExecutor(1) as scoring:
        scans = read_scans(dataset, folds, exclude)
        for scan in progress(scans, "evaluate", total=count, unit="scan"):
            if doubts := predictor.check(scan.volume):
                logger.warning("%s: check this result: %s", scan.id, "; ".join(doubts))
            predicted = predictor.predict_levels(scan.volume)
            if scored:
                scored[-1].result()  # ensures that at most one scan is waiting
            scored.append(scoring.submit(score, scan, predicted.masks, predicted.levels))
    return pd.DataFrame([row for scores in scored for row in scores.result()])


def summary_of(rows: pd.DataFrame, *, reliability: Reliability, dataset: Dataset, config: Config, facts: dict) -> dict:
    """Build the content of evaluation.json.

    Args:
        rows: rows of `score_scan` of all scans.
        reliability: calibration of their voxels.
        dataset: the dataset of the scans.
        config: the config with which they were scored.
        facts: fold, scope, trained_on and tuned_on.

    Returns:
        The facts, the dataset's fingerprint and name, the post-processing, tolerance_mm, tta, the version, the means of
        `summarize`, their intervals, and the calibration.
    """
    evaluation = config.evaluation
    facts = facts | {"dataset": dataset.source["fingerprint"], "tolerance_mm": evaluation.tolerance_mm}
    facts["tta"] = evaluation.tta.model_dump(mode="json")
    facts |= {"dataset_name": dataset.source["name"], "postprocess": postprocess_facts(config)}
    means = summarize(rows) | {"intervals": mean_intervals(rows), "calibration": reliability.summary()}
    return facts | {"gitseg_tf": __version__} | means


def write_evaluation(
    folder: AnyPath,
    summary: dict,
    rows: pd.DataFrame,
    *,
    labels: LabelSet,
    chosen: list[Chosen],
    curves: pd.DataFrame | None,
    title: str,
    details: dict[str, str],
) -> None:
    """Write evaluation.json, evaluation.csv and report.html.

    Args:
        folder: folder of a run or a cross-validation.
        summary: from `summary_of`.
        rows: the rows that it summarizes.
        labels: labels of the rows.
        chosen: scans to show.
        curves, title, details: for `write_report`.
    """
    write_atomically(folder / "evaluation.json", json.dumps(summary, indent=1, allow_nan=False).encode())
    text = io.StringIO()
    rows.to_csv(text, index=False)
    write_atomically(folder / "evaluation.csv", text.getvalue().encode())
    write_report(
        folder / "report.html", summary, rows,
        labels=labels, chosen=chosen, history=curves, title=title, details=details,
    )  # fmt: skip


def postprocess_facts(config: Config) -> dict:
    """Return thresholds and post-processing of each label, as recorded in evaluation.json."""
    return {
        name: settings.model_dump(mode="json")
        for name, settings in zip(config.label_set.names, label_settings(config), strict=True)
    }


def scans_of_fold(run: Run | RunEnsemble, dataset: Dataset, fold: int | None) -> tuple[int, list[ScanEntry]]:
    """Choose the scans of a single fold, see `choose_scope`; None is the fold that the run held out.

    Raises:
        RunError: see `choose_scope`.
        DataError: see `choose_scope`.
    """
    fold = run.config.data.fold if fold is None else fold
    if fold is None:
        raise RunError(f"{run.path}: no fold was held out; choose the fold to score")
    return fold, list(choose_scope(run, dataset, fold).scans)


def tuned_on_cases(run: Run | RunEnsemble, cases: list[str]) -> list[str]:
    """Find the patients to score on which a run's post-processing was tuned, and log a warning.

    Args:
        run: a trained run.
        cases: the patients to score.

    Returns:
        The patients on which it was tuned, sorted.
    """
    tuned = run.config.provenance.get("tuned")
    if tuned is None:
        return []
    where, scans = tuned_where(tuned), plural(len(tuned["scans"]), "scan")
    is_fused = isinstance(run, RunEnsemble) and run.weights is not None
    file = run.path / (MARKER if is_fused else TUNED)
    logger.info("tuned      by %s, on %s (%s)", file, where, scans)
    both = sorted(set(cases) & set(tuned["cases"]))
    if both:
        logger.warning("post-processing was tuned on %s: these scores are optimistic for new patients", ", ".join(both))
    return both


def postprocess_details(config: Config, tuned_on: list[str]) -> str:
    """Describe the origin of a run's post-processing for the report; `tuned_on` is from `tuned_on_cases`."""
    if "tuned" in config.provenance:
        on = tuned_where(config.provenance["tuned"])
        return f"tuned on {on}" + (", which is scored here: the scores are optimistic" if tuned_on else "")
    return "none" if config.postprocess.is_off else "as set in the run's config.yaml"


def model_details(model: Run | RunEnsemble) -> dict[str, str]:
    """Describe networks, input and test-time augmentation of a model for the report."""
    if not isinstance(model, RunEnsemble) or model.weights is None:
        return network_details(model.config) | {"Test-time augmentation": tta_words(model.config)}
    lines = []
    for run, shares in zip(model.runs, model.weights, strict=True):
        words = list(network_details(run.config).values())
        words += [f"test-time augmentation: {tta_words(run.config)}"] * (tta_words(run.config) != "none")
        low, high = min(shares), max(shares)
        share = f"{low:.0%}" if high - low < 0.005 else f"{low:.0%} to {high:.0%}"
        lines.append(f"{run.config.name} ({share}): {', '.join(words)}")
    return {"Networks": "; ".join(dict.fromkeys(lines))}


def _kind(model: Run | RunEnsemble) -> str:
    if not isinstance(model, RunEnsemble):
        return "Run"
    return "Cross-validation" if model.weights is None else "Ensemble"


def network_details(config: Config) -> dict[str, str]:
    """Describe the network and its input for the report."""
    network, (height, width), patch = config.model.architecture, config.data.input_size, config.data.patch
    if patch is not None:
        shape = " x ".join(map(str, patch))
        return {"Network": network, "Input": f"patches of {shape} voxels from slices of {height} x {width}"}
    slices = "slices" if config.data.plane == "axial" else f"{config.data.plane} slices"
    return {
        "Network": f"{network}, {config.model.backbone} encoder",
        "Input": f"{config.data.window_slices} {slices} of {height} x {width}",
    }


def summary_lines(summary: dict, width: int | None = None) -> list[str]:
    """Format the scores as a table, with intervals of score and Dice and their method.

    Args:
        summary: from `evaluate`; with `folds`, {fold: means}, each fold gets a row.
        width: characters per line, such as the width of the terminal; None sets no limit.

    Returns:
        Lines: headings, one row per label (at most the `MOST_LABELS` worst), per fold and for the mean, and notes.
    """
    intervals = summary["intervals"]
    folds: dict[str, tuple[dict, dict]] = {
        f"fold {fold}": (means, {}) for fold, means in summary.get("folds", {}).items()
    }
    shown = worst_labels({name: means["dice"] for name, means in summary["labels"].items()}, MOST_LABELS)
    labels = {name: (summary["labels"][name], intervals["labels"].get(name, {})) for name in shown}
    gaps = {key: " " * _INTERVAL_WIDTH for key in _WITH_INTERVAL}
    rows = {**labels, **folds, "mean": (summary, intervals)}
    columns = []
    for title, key, form in _COLUMNS:
        cells = [_cell(means[key], title, form) for means, _ in rows.values()]
        between = [_interval(ends.get(key)) if key in _WITH_INTERVAL else "" for _, ends in rows.values()]
        columns.append((title + gaps.get(key, ""), list(map("".join, zip(cells, between, strict=True)))))
    lines = table_lines([f"{name:<13} " for name in rows] if width is None else list(rows), columns, width)
    if summary.get("score_volume") is not None:
        form = "3-D Dice and distance over the diagonal, the form of public notebooks"
        lines.append(f"score_volume {summary['score_volume']:.3f}, from {form}")
    if more := len(summary["labels"]) - len(shown):
        lines.append(f"labels     the {len(shown)} with the lowest Dice; {more} more are in evaluation.csv")
    for name, scans in summary.get("unannotated", {}).items():
        lines.append(
            f"labels     {name} is unannotated in {scans} of {plural(summary['scans'], 'scan')}, which are left out"
        )
    cases, level = summary["cases"], intervals["level"]
    if cases < 2:
        lines.append("intervals  none: at least two patients are needed to estimate the variation between patients")
    else:
        few = "; with fewer than 20 they are too narrow, see docs/how-to/evaluate.md" if cases < 20 else ""
        lines.append(f"intervals  {level:.0%}, from {RESAMPLES:,} resamples of {plural(cases, 'patient')}{few}")
    return [part for line in lines for part in wrapped(line, width)]


def _cell(value: float | None, title: str, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{len(title)}}"


def _interval(ends: list[float] | None) -> str:
    return f"{'' if ends is None else ' ({:.2f}-{:.2f})'.format(*ends):<{_INTERVAL_WIDTH}}"
