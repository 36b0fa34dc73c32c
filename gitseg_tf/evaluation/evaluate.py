"""Scoring a run on the patients it did not train on."""

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from gitseg_tf.config import Config
from gitseg_tf.data.dataset import Dataset, ScanEntry, read_scans
from gitseg_tf.data.records import unpack_masks
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.evaluation.chosen import PictureShelf
from gitseg_tf.evaluation.reliability import Reliability, make_level_predictor
from gitseg_tf.evaluation.report import write_report
from gitseg_tf.evaluation.scores import score_scan, summarise
from gitseg_tf.evaluation.scroller import picture_scan
from gitseg_tf.files import write_atomically
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


def evaluate(run: Run, dataset: Dataset, fold: int | None = None, say: Callable[[str], None] = print) -> dict:
    """Predict the scans of a fold, score them and write evaluation.json, evaluation.csv and report.html into the run.

    Args:
        run: a trained run.
        dataset: with contours.
        fold: the fold to score; None is the one that the run held out.
        say: takes lines for the user; one is a warning where the run was trained on patients of the fold.

    Returns:
        What evaluation.json holds.

    Raises:
        InputError: no such fold, no contours, or a damaged shard.
    """
    fold, scans = scans_of_fold(run, dataset, fold)
    excluded, history = run.config.data.exclude_scans, read_history(run.path)
    cases = sorted({scan.case for scan in scans})
    seen = sorted(set(cases) & set(run.config.provenance.get("trained_on", [])))
    if seen:
        say(f"warning    the run was trained on {', '.join(seen)}: these scores say nothing about new patients")
    tuned_on = _tuned_on(run, cases, say)
    predict = make_level_predictor(run_probabilities(run), run.config)
    tolerance = run.config.evaluation.tolerance_mm
    scored, reliability = [], Reliability()

    def score(scan: dict, truth: np.ndarray, prediction: np.ndarray, levels: np.ndarray) -> list[dict]:
        rows = score_scan(scan["id"], truth, prediction, tuple(map(float, scan["spacing"])), tolerance)
        reliability.add(levels, truth)
        shelf.add(scan["id"], rows, lambda: picture_scan(scan, truth, prediction))
        return rows

    with naming_damaged_shards(dataset), PictureShelf(len(scans)) as shelf, ThreadPoolExecutor(1) as scoring:
        for scan in progress(read_scans(dataset, [fold], excluded), "evaluate", len(scans), "scan"):
            truth = unpack_masks(scan["bits"])
            prediction, levels = predict(scan["image"], scan["numbers"], scan["percentiles"], scan["spacing"])
            if scored:
                scored[-1].result()  # so that no more than one scan waits
            scored.append(scoring.submit(score, scan, truth, prediction, levels))
        table = pd.DataFrame([row for scores in scored for row in scores.result()])
        chosen = shelf.chosen()
    summary = {"fold": fold, "trained_on": seen, "tuned_on": tuned_on, "dataset": dataset.source["fingerprint"]}
    summary |= summarise(table) | {"calibration": reliability.summary()}
    details = {
        **_network_details(run.config),
        "Data": f"{dataset.source['name']}, fold {fold} of {dataset.folds}",
        "Patients trained on" if seen else "Held-out patients": ", ".join(seen or cases),
        "Surface Dice tolerance": f"{tolerance} mm",
        "Post-processing": _postprocess_details(run.config, tuned_on),
    }
    write_atomically(run.path / "evaluation.json", json.dumps(summary, indent=1, allow_nan=False).encode())
    text = io.StringIO()
    table.to_csv(text, index=False)
    write_atomically(run.path / "evaluation.csv", text.getvalue().encode())
    curves = pd.DataFrame(history) if history else None
    write_report(run.path / "report.html", summary, table, chosen, curves, f"Run {run.path.name}", details)
    return summary


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


def _tuned_on(run: Run, cases: list[str], say: Callable[[str], None]) -> list[str]:
    """The patients that the post-processing was tuned on; say that it was tuned, and what that does to the scores."""
    tuned = run.config.provenance.get("tuned")
    if tuned is None:
        return []
    say(f"tuned      by {run.path / TUNED}, on fold {tuned['fold']} ({len(tuned['scans'])} scans)")
    both = sorted(set(cases) & set(tuned["cases"]))
    if both:
        say(f"warning    post-processing was tuned on {', '.join(both)}: these scores are optimistic for new patients")
    return both


def _postprocess_details(config: Config, tuned_on: list[str]) -> str:
    if "tuned" in config.provenance:
        on = f"fold {config.provenance['tuned']['fold']}"
        return f"tuned on {on}" + (", which is scored here: the scores are optimistic" if tuned_on else "")
    return "none" if config.postprocess == PostprocessConfig() else "as the run's config.yaml has it"


def _network_details(config: Config) -> dict[str, str]:
    network, (height, width), patch = config.model.architecture, config.data.size, config.data.patch
    if patch is not None:
        shape = " x ".join(map(str, patch))
        return {"Network": network, "Input": f"patches of {shape} voxels, of slices of {height} x {width}"}
    return {
        "Network": f"{network}, {config.model.backbone} encoder",
        "Input": f"{config.data.slices} slices of {height} x {width}",
    }


def summary_lines(summary: dict, say: Callable[[str], None] = print) -> None:
    """Print the scores as a small table.

    Args:
        summary: from `evaluate`.
        say: takes lines.
    """
    say(f"{'':<14}" + "".join(title for title, *_ in _COLUMNS))
    for name, means in {**summary["organs"], "mean": summary}.items():
        cells = [
            f"{'-' if means[key] is None else format(means[key], form):>{len(title)}}" for title, key, form in _COLUMNS
        ]
        say(f"{name:<14}" + "".join(cells))
