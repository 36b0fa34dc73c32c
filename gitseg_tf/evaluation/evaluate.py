"""Scoring a run on the patients it did not train on."""

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from gitseg_tf import __version__
from gitseg_tf.config import Config
from gitseg_tf.data.dataset import Dataset, ScanEntry, read_scans
from gitseg_tf.data.records import unpack_masks
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.evaluation.chosen import Chosen, PictureShelf
from gitseg_tf.evaluation.intervals import RESAMPLES, mean_intervals
from gitseg_tf.evaluation.reliability import Reliability, make_level_predictor
from gitseg_tf.evaluation.report import write_report
from gitseg_tf.evaluation.scores import score_scan, summarise
from gitseg_tf.evaluation.scroller import picture_scan
from gitseg_tf.files import AnyPath, write_atomically
from gitseg_tf.inference.ensemble import tta_words
from gitseg_tf.inference.predictor import run_probabilities
from gitseg_tf.progress import progress
from gitseg_tf.sections.postprocess import PostprocessConfig
from gitseg_tf.training.callbacks import read_history
from gitseg_tf.training.run_folder import TUNED
from gitseg_tf.training.trainer import Run

# Of the printed table: the title at its width, the key in the summary, the format.
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
_WITH_INTERVAL, _INTERVAL_WIDTH = ("score", "dice"), len(" (0.00-1.00)")


def evaluate(
    run: Run,
    dataset: Dataset,
    fold: int | None = None,
    say: Callable[[str], None] = print,
    network: Callable | None = None,
) -> dict:
    """Predict the scans of a fold, score them and write evaluation.json, evaluation.csv and report.html into the run.

    Args:
        run: a trained run.
        dataset: with contours.
        fold: the fold to score; None is the one that the run held out.
        say: takes lines for the user; one is a warning where the run was trained on patients of the fold.
        network: of `run_probabilities`, where it is there already.

    Returns:
        What evaluation.json holds.

    Raises:
        InputError: no such fold, no contours, or a damaged shard.
    """
    fold, scans = scans_of_fold(run, dataset, fold)
    history = read_history(run.path)
    cases = sorted({scan.case for scan in scans})
    seen = sorted(set(cases) & set(run.config.provenance.get("trained_on", [])))
    if seen:
        say(f"warning    the run was trained on {', '.join(seen)}: these scores say nothing about new patients")
    tuned_on = tuned_on_cases(run, cases, say)
    with PictureShelf(len(scans)) as shelf:
        reliability = Reliability()
        rows = score_fold(run, dataset, fold, len(scans), shelf, reliability, network)
        chosen = shelf.chosen()
    facts = {"fold": fold, "trained_on": seen, "tuned_on": tuned_on}
    details = {
        **network_details(run.config),
        "Data": f"{dataset.source['name']}, fold {fold} of {dataset.folds}",
        "Patients trained on" if seen else "Held-out patients": ", ".join(seen or cases),
        "Surface Dice tolerance": f"{run.config.evaluation.tolerance_mm} mm",
        "Test-time augmentation": tta_words(run.config),
        "Post-processing": postprocess_details(run.config, tuned_on),
    }
    summary = summary_of(rows, reliability, dataset, run.config, facts)
    curves = pd.DataFrame(history) if history else None
    write_evaluation(run.path, summary, rows, chosen, curves, f"Run {run.path.name}", details)
    return summary


def score_fold(
    run: Run,
    dataset: Dataset,
    fold: int,
    count: int,
    shelf: PictureShelf,
    reliability: Reliability,
    network: Callable | None = None,
) -> pd.DataFrame:
    """Predict the scans of a fold, and score each while the next one is predicted.

    Args:
        run: a trained run.
        dataset: with contours.
        fold: one of the dataset's.
        count: of its scans, for the progress bar.
        shelf: takes the scans' pictures.
        reliability: takes their probabilities.
        network: of `run_probabilities`, where it is there already.

    Returns:
        The rows of `score_scan`, in the order of the records.

    Raises:
        InputError: a damaged shard.
    """
    predict = make_level_predictor(network or run_probabilities(run), run.config)
    tolerance = run.config.evaluation.tolerance_mm
    scored = []

    def score(scan: dict, truth: np.ndarray, prediction: np.ndarray, levels: np.ndarray) -> list[dict]:
        spacing = tuple(map(float, scan["spacing"]))
        rows = score_scan(scan["id"], scan["case"], truth, prediction, spacing, tolerance)
        reliability.add(levels, truth)
        shelf.add(scan["id"], rows, lambda: picture_scan(scan, truth, prediction))
        return rows

    with naming_damaged_shards(dataset), ThreadPoolExecutor(1) as scoring:
        scans = read_scans(dataset, [fold], run.config.data.exclude_scans)
        for scan in progress(scans, "evaluate", count, "scan"):
            truth = unpack_masks(scan["bits"])
            prediction, levels = predict(scan["image"], scan["numbers"], scan["percentiles"], scan["spacing"])
            if scored:
                scored[-1].result()  # so that no more than one scan waits
            scored.append(scoring.submit(score, scan, truth, prediction, levels))
    return pd.DataFrame([row for scores in scored for row in scores.result()])


def summary_of(rows: pd.DataFrame, reliability: Reliability, dataset: Dataset, config: Config, facts: dict) -> dict:
    """What evaluation.json holds.

    Args:
        rows: of all scans.
        reliability: of their voxels.
        dataset: that they are of.
        config: that they were scored by.
        facts: fold, trained_on and tuned_on.

    Returns:
        The facts, the dataset's fingerprint, tolerance_mm, tta, the version, the means of `summarise`, their
        intervals, and the calibration.
    """
    evaluation = config.evaluation
    facts = facts | {"dataset": dataset.source["fingerprint"], "tolerance_mm": evaluation.tolerance_mm}
    facts["tta"] = evaluation.tta.model_dump(mode="json")
    means = summarise(rows) | {"intervals": mean_intervals(rows), "calibration": reliability.summary()}
    return facts | {"gitseg_tf": __version__} | means


def write_evaluation(
    folder: AnyPath,
    summary: dict,
    rows: pd.DataFrame,
    chosen: list[Chosen],
    curves: pd.DataFrame | None,
    title: str,
    details: dict[str, str],
) -> None:
    """Write evaluation.json, evaluation.csv and report.html.

    Args:
        folder: of a run or of a cross-validation.
        summary: from `summary_of`.
        rows: that it summarises.
        chosen: scans to show.
        curves, title, details: for `write_report`.
    """
    write_atomically(folder / "evaluation.json", json.dumps(summary, indent=1, allow_nan=False).encode())
    text = io.StringIO()
    rows.to_csv(text, index=False)
    write_atomically(folder / "evaluation.csv", text.getvalue().encode())
    write_report(folder / "report.html", summary, rows, chosen, curves, title, details)


def scans_of_fold(run: Run, dataset: Dataset, fold: int | None) -> tuple[int, list[ScanEntry]]:
    """Which scans of a dataset a run is judged by.

    Args:
        run: a trained run.
        dataset: with contours.
        fold: the fold; None is the one that the run held out.

    Returns:
        The fold, and its scans without those of data.exclude_scans.

    Raises:
        InputError: no such fold, or no scan is left of it.
    """
    fold = run.config.data.fold if fold is None else fold
    if fold is None:
        raise InputError(f"{run.path}: no fold was held out; choose one with --fold")
    dataset.check_fold(fold)
    scans = dataset.scans_of([fold], run.config.data.exclude_scans)
    if not scans:
        raise InputError(f"{run.path}: its data.exclude_scans names all scans of fold {fold}; choose another --fold")
    return fold, scans


def tuned_on_cases(run: Run, cases: list[str], say: Callable[[str], None]) -> list[str]:
    """Those of some patients that a run's post-processing was tuned on.

    Args:
        run: a trained run.
        cases: that are scored.
        say: takes a line where the run was tuned, and a warning where that was on one of the patients.
    """
    tuned = run.config.provenance.get("tuned")
    if tuned is None:
        return []
    say(f"tuned      by {run.path / TUNED}, on fold {tuned['fold']} ({len(tuned['scans'])} scans)")
    both = sorted(set(cases) & set(tuned["cases"]))
    if both:
        say(f"warning    post-processing was tuned on {', '.join(both)}: these scores are optimistic for new patients")
    return both


def postprocess_details(config: Config, tuned_on: list[str]) -> str:
    """Where a run's post-processing comes from, for the report; `tuned_on` is from `tuned_on_cases`."""
    if "tuned" in config.provenance:
        on = f"fold {config.provenance['tuned']['fold']}"
        return f"tuned on {on}" + (", which is scored here: the scores are optimistic" if tuned_on else "")
    return "none" if config.postprocess == PostprocessConfig() else "as the run's config.yaml has it"


def network_details(config: Config) -> dict[str, str]:
    """Network and input of a config in words, for the report."""
    network, (height, width), patch = config.model.architecture, config.data.size, config.data.patch
    if patch is not None:
        shape = " x ".join(map(str, patch))
        return {"Network": network, "Input": f"patches of {shape} voxels, of slices of {height} x {width}"}
    return {
        "Network": f"{network}, {config.model.backbone} encoder",
        "Input": f"{config.data.slices} slices of {height} x {width}",
    }


def summary_lines(summary: dict, say: Callable[[str], None] = print) -> None:
    """Print the scores as a small table, with the intervals of score and Dice, and how these were found.

    Args:
        summary: from `evaluate`, or with `folds`, {fold: means}, which get a row each.
        say: takes lines.
    """
    intervals = summary["intervals"]
    folds = {f"fold {fold}": (means, {}) for fold, means in summary.get("folds", {}).items()}
    organs = {organ: (means, intervals["organs"][organ]) for organ, means in summary["organs"].items()}
    gaps = {key: " " * _INTERVAL_WIDTH for key in _WITH_INTERVAL}
    say(f"{'':<14}" + "".join(title + gaps.get(key, "") for title, key, _ in _COLUMNS))
    for name, (means, own) in {**organs, **folds, "mean": (summary, intervals)}.items():
        cells = (_cell(means[key], title, form) for title, key, form in _COLUMNS)
        between = (_interval(own.get(key)) if key in _WITH_INTERVAL else "" for _, key, _ in _COLUMNS)
        say(f"{name:<14}" + "".join(map("".join, zip(cells, between, strict=True))))
    cases, level = summary["cases"], intervals["level"]
    if cases < 2:
        say("intervals  none, for these are scans of one patient, and how patients differ takes two or more")
    else:
        few = "; with fewer than 20 they are too narrow, see docs/evaluation.md" if cases < 20 else ""
        say(f"intervals  {level:.0%}, from {RESAMPLES:,} draws of the {cases} patients{few}")


def _cell(value: float | None, title: str, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{len(title)}}"


def _interval(ends: list[float] | None) -> str:
    return f"{'' if ends is None else ' ({:.2f}-{:.2f})'.format(*ends):<{_INTERVAL_WIDTH}}"
