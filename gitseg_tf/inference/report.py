"""The report of a prediction: volumes, warnings, versions and timings of all scans, as one JSON file."""

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from gitseg_tf import __version__
from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.core.versions import TENSORFLOWS, installed
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.errors import DataError, GitsegError
from gitseg_tf.inference.postprocess import label_settings
from gitseg_tf.inference.prediction import BasePredictor, Prediction
from gitseg_tf.labels import LabelSet

FORMAT = "gitseg-tf prediction report"
VERSION = 1


@dataclass
class Report:
    """Collects the facts of a prediction; see docs/how-to/predict.md for the file.

    Attributes:
        path: the file; None if no report is wanted.
        facts: the fields of the whole prediction.
        scans: the `scan_entry` of each segmented scan.
        failed: {"id", "error"} of each scan that failed.
        timings: seconds of each scan, by id, to "read", "predict" and "write" it.
    """

    path: AnyPath | None
    facts: dict[str, Any] = field(default_factory=dict)
    scans: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    timings: dict[str, dict[str, float]] = field(default_factory=dict)

    def describe(self, cohort: Cohort, predictor: BasePredictor, output: str, out: AnyPath) -> None:
        """Add the facts of the whole prediction."""
        evaluation, post = None, None
        if predictor.config is not None:
            evaluation = predictor.config.evaluation.model_dump(mode="json", include={"tta", "batch_size", "overlap"})
            settings = getattr(predictor, "settings", None) or label_settings(predictor.config)
            post = {
                name: steps.model_dump(mode="json")
                for name, steps in zip(predictor.labels.names, settings, strict=True)
            }
        self.facts |= {
            "model": asdict(predictor.identity) | {"compared_with_training_data": bool(predictor.training_data)},
            "layout": cohort.layout,
            "out": str(out),
            "output": output,
            "labels": list(predictor.labels.names),
            "evaluation": evaluation,
            "postprocess": post,
            "notes": list(cohort.notes),
            "warnings": [*predictor.warnings, *cohort.warnings],
        }

    def tree(self, seconds: float, error: str | None) -> dict[str, Any]:
        """Build the content of the file."""
        tensorflow = installed(TENSORFLOWS)
        each = {scan["id"]: self.timings.get(scan["id"], {}) for scan in self.scans}
        timed = [
            scan | {"seconds": round(sum(each[scan["id"]].values()), 3), "timings": each[scan["id"]]}
            for scan in self.scans
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "gitseg_tf": __version__,
            "tensorflow": tensorflow and tensorflow[1],
            "python": platform.python_version(),
            **self.facts,
            "seconds": round(seconds, 3),
            "error": error,
            "scans": timed,
            "failed": self.failed,
        }


def scan_entry(scan: Scan, prediction: Prediction, labels: LabelSet, warnings: Sequence[str]) -> dict[str, Any]:
    """Describe a segmented scan.

    Args:
        scan: the scan.
        prediction: its masks.
        labels: the labels in the order of the masks.
        warnings: reasons to distrust the masks.

    Returns:
        The scan's entry in the report, without timings. Volumes count the voxels of existing slices.
    """
    voxels = prediction.masks.sum((2, 3))  # [L, D]
    milliliters = scan.spacing[0] * scan.spacing[1] * scan.spacing[2] / 1000
    return {
        "id": scan.id,
        "case": scan.case,
        "source": _source_of(scan),
        "shape": list(scan.shape),
        "spacing_mm": list(scan.spacing),
        "labels": {
            name: {"volume_ml": round(int(of_label.sum()) * milliliters, 6), "slices": int((of_label > 0).sum())}
            for name, of_label in zip(labels.names, voxels, strict=True)
        },
        "warnings": list(warnings),
    }


@contextmanager
def reporting(path: AnyPath | None, source: AnyPath) -> Iterator[Report]:
    """Provide a report, and write it when the `with` block ends, also if it ends with a GitsegError.

    Args:
        path: the file; an earlier report is removed at the start. None writes no file.
        source: the input.

    Raises:
        DataError: the file exists and is not a report, or is a folder.
    """
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    report = Report(path, {"started": started, "source": str(source)})
    if path is None:
        yield report
        return
    _remove_earlier(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    def write(error: str | None) -> None:
        tree = report.tree(time.perf_counter() - start, error)
        write_atomically(path, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())

    try:
        yield report
    except GitsegError as error:
        write(str(error))
        raise
    write(None)


def _remove_earlier(path: AnyPath) -> None:
    """Remove an earlier report, so that it is not mistaken for a new one; refuse anything else."""
    if not path.exists():
        return
    try:
        is_report = path.is_file() and json.loads(path.read_bytes()).get("format") == FORMAT
    except (ValueError, AttributeError):
        is_report = False
    if not is_report:
        raise DataError(f"{path}: exists and is not a report of gitseg predict; choose another file for the report")
    path.unlink()


def _source_of(scan: Scan) -> str:
    """Return the scan's image file, or the folder of its images."""
    images = [path for role, path in scan.source.files() if role == "image"]
    return str(images[0] if len(images) == 1 else images[0].parent)
