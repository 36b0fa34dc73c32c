"""Scoring a run on the patients it did not train on."""

import io
import json
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from gitseg_tf.config import Config
from gitseg_tf.data.dataset import Dataset, read_scans
from gitseg_tf.data.records import unpack_masks
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.evaluation.report import ScanPicture, pick_slices, write_report
from gitseg_tf.evaluation.scores import score_scan, summarise
from gitseg_tf.files import write_atomically
from gitseg_tf.inference.pictures import to_grey
from gitseg_tf.inference.predictor import make_predictor, run_probabilities
from gitseg_tf.progress import progress
from gitseg_tf.training.callbacks import read_history
from gitseg_tf.training.trainer import Run


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
    fold = run.config.data.fold if fold is None else fold
    if fold is None:
        raise InputError(f"{run.path}: no fold was held out; choose one with --fold")
    dataset.check_fold(fold)
    excluded = run.config.data.exclude_scans
    scans, history = dataset.scans_of([fold], excluded), read_history(run.path)
    if not scans:
        raise InputError(f"{run.path}: its data.exclude_scans names all scans of fold {fold}; choose another --fold")
    cases = sorted({scan.case for scan in scans})
    seen = sorted(set(cases) & set(run.config.provenance.get("trained_on", [])))
    if seen:
        say(f"warning    the run was trained on {', '.join(seen)}: these scores say nothing about new patients")
    predict = make_predictor(run_probabilities(run), run.config)
    tolerance = run.config.evaluation.tolerance_mm
    rows, pictures = [], []
    with naming_damaged_shards(dataset):
        for scan in progress(read_scans(dataset, [fold], excluded), "evaluate", len(scans), "scan"):
            truth = unpack_masks(scan["bits"])
            prediction = predict(scan["image"], scan["numbers"], scan["percentiles"], scan["spacing"])
            rows += score_scan(scan["id"], truth, prediction, tuple(map(float, scan["spacing"])), tolerance)
            pictures += _pictures(scan, truth, prediction)
    table = pd.DataFrame(rows)
    summary = {"fold": fold, "trained_on": seen, "dataset": dataset.source["fingerprint"], **summarise(table)}
    details = {
        **_network_details(run.config),
        "Data": f"{dataset.source['name']}, fold {fold} of {dataset.folds}",
        "Patients trained on" if seen else "Held-out patients": ", ".join(seen or cases),
        "Surface Dice tolerance": f"{tolerance} mm",
    }
    write_atomically(run.path / "evaluation.json", json.dumps(summary, indent=1, allow_nan=False).encode())
    text = io.StringIO()
    table.to_csv(text, index=False)
    write_atomically(run.path / "evaluation.csv", text.getvalue().encode())
    curves = pd.DataFrame(history) if history else None
    write_report(run.path / "report.html", summary, table, pictures, curves, f"Run {run.path.name}", details)
    return summary


def _network_details(config: Config) -> dict[str, str]:
    network, (height, width), patch = config.model.architecture, config.data.size, config.data.patch
    if patch is not None:
        shape = " x ".join(map(str, patch))
        return {"Network": network, "Input": f"patches of {shape} voxels, of slices of {height} x {width}"}
    return {
        "Network": f"{network}, {config.model.backbone} encoder",
        "Input": f"{config.data.slices} slices of {height} x {width}",
    }


def _pictures(scan: dict, truth: np.ndarray, prediction: np.ndarray) -> Iterator[ScanPicture]:
    grey = to_grey(scan["image"])
    for z in pick_slices(truth):
        yield ScanPicture(
            scan["id"], int(scan["numbers"][z]), grey[z].copy(), truth[:, z].copy(), prediction[:, z].copy()
        )


def summary_lines(summary: dict, say: Callable[[str], None] = print) -> None:
    """Print the scores as a small table.

    Args:
        summary: from `evaluate`.
        say: takes lines.
    """
    say(f"{'':<14}{'score':>8}{'Dice':>8}{'Hausdorff':>11}{'HD95 mm':>9}{'surface Dice':>14}")
    for name, means in {**summary["organs"], "mean": summary}.items():
        cells = [means[key] for key in ("score", "dice", "hausdorff", "hd95_mm", "surface_dice")]
        text = [f"{value:.3f}" if value is not None else "-" for value in cells]
        say(f"{name:<14}{text[0]:>8}{text[1]:>8}{text[2]:>11}{text[3]:>9}{text[4]:>14}")
