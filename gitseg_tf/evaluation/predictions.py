"""Score masks of any tool against the annotations of a cohort."""

import json
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd

from gitseg_tf import __version__
from gitseg_tf.config.evaluation import EvaluationConfig
from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.data.readers.predictions.base import PredictedScan, Predictions, match_names
from gitseg_tf.data.readers.predictions.registry import read_predictions
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.selection import select_labels
from gitseg_tf.data.tfrecords.dataset import is_dataset
from gitseg_tf.data.volume import Annotation, LoadedScan
from gitseg_tf.errors import DataError
from gitseg_tf.evaluation.evaluate import write_evaluation
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.evaluation.report.selection import PictureShelf
from gitseg_tf.evaluation.report.slices import picture_scan
from gitseg_tf.evaluation.statistics.intervals import mean_intervals
from gitseg_tf.labels import LabelSet

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions"
_LISTED = 5


def score_predictions(
    predictions: str | PathLike,
    reference: str | PathLike,
    out: str | PathLike | None = None,
    *,
    labels: LabelSet | None = None,
    missing: str = "unannotated",
    force: bool = False,
) -> dict[str, Any]:
    """Score predicted masks, as `evaluate` does, and write evaluation.json, evaluation.csv and report.html.

    The labels are those of the reference that any prediction names, by a file, an ROI, a row, or a value of its label
    map. Where a scan's prediction lacks a label that others name, it is scored as empty, which is logged; so are scans
    and labels that only one of the two has.

    Args:
        predictions: NIfTI label maps or masks, a table of run-length strings, or structure sets, see `PREDICTIONS`.
        reference: a cohort with annotations, in any layout.
        out: the folder for the files; None writes none.
        labels, missing: how to read the reference, see `read_cohort`.
        force: replace files in `out` that were not written for these predictions and this reference.

    Returns:
        The content of evaluation.json, with `format`, `only_in_predictions`, `only_in_reference` and
        `labels_left_out`.

    Raises:
        DataError: no scan or no label in common, different grids, a reference without annotations, invalid files, or
            `out` contains something else.
    """
    cohort = _read_reference(as_path(reference), labels, missing)
    folder = None if out is None else as_path(out)
    facts: dict[str, Any] = {
        "scope": PREDICTIONS,
        "predictions": str(as_path(predictions).resolve()),
        "dataset": cohort.fingerprint,
        "dataset_name": cohort.root.resolve().name,
    }
    if folder is not None and not force:
        _check_folder(folder, facts)
    name, found = read_predictions(predictions, cohort, labels)
    for note in found.notes:
        logger.info("assumed    %s", note)
    scans, only = _common_scans(found, cohort)
    scored, left_out = _scored_labels(found, cohort, scans)
    tolerance = EvaluationConfig().tolerance_mm
    with ExitStack() as stack:
        shelf = stack.enter_context(PictureShelf(len(scans))) if folder is not None else None
        rows = _score(found, scans, scored, shelf, tolerance)
        chosen = shelf.chosen() if shelf is not None else []
    facts |= only | {"format": name, "labels_left_out": left_out, "trained_on": [], "tuned_on": []}
    facts |= {"tolerance_mm": tolerance, "gitseg_tf": __version__}
    summary = facts | summarize(rows) | {"intervals": mean_intervals(rows)}
    if folder is None:
        return summary
    folder.mkdir(parents=True, exist_ok=True)
    details = {
        "Predictions": f"{as_path(predictions)} ({name})",
        "Reference": f"{cohort.root}, {plural(len(scans), 'scan')}",
        "Surface Dice tolerance": f"{tolerance} mm",
    }
    details |= {title.replace("_", " ").capitalize(): ", ".join(ids) for title, ids in only.items() if ids}
    title = f"{as_path(predictions).name} against {facts['dataset_name']}"
    write_evaluation(folder, summary, rows, labels=scored, chosen=chosen, curves=None, title=title, details=details)
    return summary


def _read_reference(path: AnyPath, labels: LabelSet | None, missing: str) -> Cohort:
    if path.is_dir() and is_dataset(path):
        raise DataError(f"{path}: is a converted dataset; give the cohort that it was converted from")
    cohort = read_cohort(path, labels=labels, missing=missing, list_broken=True)
    if not cohort.labeled:
        raise DataError(f"{path}: has no annotations to compare with; give a cohort with annotations")
    for note in (*cohort.label_notes, *cohort.notes):
        logger.info("reference  %s", note)
    for scan, reason in cohort.broken:
        logger.warning("%s is not scored: %s", scan, reason)
    return cohort


def _check_folder(folder: AnyPath, facts: dict[str, Any]) -> None:
    """Reject a folder that contains anything but an earlier evaluation of the same masks."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        before = json.loads((folder / "evaluation.json").read_bytes())
        same = all(before.get(key) == facts[key] for key in ("scope", "predictions", "dataset"))
    except (OSError, ValueError, AttributeError):
        same = False
    if not same:
        raise DataError(f"{folder}: contains other files; choose another folder, or force their replacement")


def _common_scans(found: Predictions, cohort: Cohort) -> tuple[list[Scan], dict[str, list[str]]]:
    """Choose the scans to score, and log those that only one side has."""
    of_reference = {scan.id: scan for scan in cohort.scans}
    common = [scan for scan in cohort.scans if scan.id in found.scans]
    if not common:
        theirs, ours = _some(sorted(found.scans)), _some(list(of_reference))
        raise DataError(f"{found.path}: has no scan in common with {cohort.root} ({theirs}; {ours}); rename the scans")
    scans = [scan for scan in common if scan.labeled]
    if not scans:
        raise DataError(f"{cohort.root}: none of the {plural(len(common), 'predicted scan')} has an annotation")
    only = {
        "only_in_predictions": sorted(found.scans.keys() - of_reference.keys()),
        "only_in_reference": [scan.id for scan in cohort.scans if scan.id not in found.scans and scan.labeled],
        "without_annotation": [scan.id for scan in common if not scan.labeled],
    }
    for name, ids in only.items():
        if ids:
            logger.warning("%s not scored, %s: %s", plural(len(ids), "scan"), name.replace("_", " "), _some(ids))
    return scans, only


def _scored_labels(found: Predictions, cohort: Cohort, scans: list[Scan]) -> tuple[LabelSet, dict[str, list[str]]]:
    """Choose the labels that any of the scans' predictions names, and log the others and those missing in a scan."""
    names = [match_names(found.scans[scan.id], cohort.labels) for scan in scans]
    counts = {label: sum(label in of_scan for of_scan in names) for label in cohort.labels.names}
    scored = [label for label, count in counts.items() if count]
    other = sorted({name for scan in scans for name in found.scans[scan.id].names if not cohort.labels.match(name)})
    absent = [label for label, count in counts.items() if not count]
    if not scored:
        ours = _some(list(cohort.labels.names))
        raise DataError(
            f"{found.path}: none of its labels ({_some(other)}) is one of {cohort.root} ({ours}); add aliases"
        )
    for label in absent:
        logger.warning("labels     %s is left out, because no prediction has it", label)
    if other:
        logger.info("labels     not in the reference, left out: %s", _some(other))
    for label in scored:
        without = [scan.id for scan, of_scan in zip(scans, names, strict=True) if label not in of_scan]
        if without:
            which = f"{len(without)} of {plural(len(scans), 'scan')} ({_some(without)})"
            logger.warning("labels     %s is missing in the predictions of %s, scored as empty", label, which)
    return cohort.labels.subset(scored), {"no_prediction": absent, "not_in_reference": other}


def _score(
    found: Predictions, scans: list[Scan], labels: LabelSet, shelf: PictureShelf | None, tolerance: float
) -> pd.DataFrame:
    rows: list[dict] = []
    for scan in progress(scans, "score", total=len(scans), unit="scan"):
        masks = _read_masks(found.scans[scan.id], scan, labels)
        read = scan.read_annotation()
        assert read is not None
        annotation = select_labels(read, scan.labels, labels)
        own = score_scan(
            scan.id, scan.case, annotation, masks,
            labels=labels, spacing=scan.spacing, numbers=scan.numbers, tolerance_mm=tolerance,
        )  # fmt: skip
        rows += own
        if shelf is not None:
            shelf.add(scan.id, own, partial(_picture, scan, annotation, masks, labels))
    return pd.DataFrame(rows)


def _picture(scan: Scan, annotation: Annotation, masks: np.ndarray, labels: LabelSet):
    return picture_scan(LoadedScan(scan.id, scan.case, scan.read_volume(), annotation), masks, labels)


def _read_masks(predicted: PredictedScan, scan: Scan, labels: LabelSet) -> np.ndarray:
    """Read masks bool [L, D, H, W]; a label that the prediction lacks is empty."""
    name_of = {label: name for label, name in match_names(predicted, scan.labels).items() if label in labels.names}
    found, notes = predicted.read(scan, name_of)
    for note in notes:
        logger.warning("%s", note)
    masks = np.zeros((len(labels), *scan.shape), bool)
    for label, mask in found.items():
        masks[labels.index(label)] = mask
    return masks


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more if listed else "none"
