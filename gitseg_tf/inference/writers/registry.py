"""The output formats of predictions. A format is a module with a `Writer`, and a row in WRITERS."""

import glob
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.registry import Registry

if TYPE_CHECKING:  # the names of the formats are needed to parse any command
    from gitseg_tf.data.readers.base import Cohort, Scan
    from gitseg_tf.data.volume import Volume
    from gitseg_tf.inference.identity import ModelIdentity
    from gitseg_tf.inference.prediction import Prediction
    from gitseg_tf.labels import LabelSet

_WRITERS = "gitseg_tf.inference.writers"

# Facts: `folder` is the scan's folder below OUT (missing if there is none); `files` are patterns of the files in it
# with the predictions, where {scan} is the scan's id and {label} each label's name; `table` is the name of a file with
# the predictions of all scans; `probabilities` means that the writer uses them.
WRITERS = Registry("output format")
WRITERS.register("submission", f"{_WRITERS}.tables:Submission", table="submission.csv")
WRITERS.register("table", f"{_WRITERS}.tables:Table", table="predictions.csv")
WRITERS.register("nifti", f"{_WRITERS}.nifti:NiftiMasks", folder="{scan}", files=("{label}.nii.gz",))
WRITERS.register("labelmap", f"{_WRITERS}.labelmap:Labelmap", files=("{scan}.nii.gz",), probabilities=True)
WRITERS.register("rtstruct", f"{_WRITERS}.rtstruct:StructureSets", files=("{scan}.dcm",))
WRITERS.register("seg", f"{_WRITERS}.seg:Segmentations", folder="{scan}", files=("segmentation.dcm",))
WRITERS.register("png", f"{_WRITERS}.pictures:Pngs", folder="{scan}", files=("{scan}_slice_*.png",))
WRITERS.register("gif", f"{_WRITERS}.pictures:Gifs", files=("{scan}.gif",))


class Writer(ABC):
    """Writes the predictions of a cohort, scan by scan.

    Args:
        cohort: the cohort whose scans are predicted.
        out: the folder for the files; it need not exist, and nothing is written before the first scan.
        labels: the labels of the predictions.
        model: the model that makes them, for formats that name it; None for masks that no model made.

    Raises:
        DataError, ConfigError: the cohort or the labels cannot be written in this format.
    """

    def __init__(self, cohort: "Cohort", out: AnyPath, labels: "LabelSet", model: "ModelIdentity | None" = None):
        self.cohort, self.out, self.labels, self.model = cohort, out, labels, model
        self.check()

    def check(self) -> None:  # noqa: B027
        """Check that the cohort and the labels can be written in this format."""

    @abstractmethod
    def write(self, scan: "Scan", volume: "Volume", prediction: "Prediction") -> None:
        """Write a scan; called for one scan at a time, possibly in another thread."""

    def finish(self) -> None:  # noqa: B027
        """Write files that need all scans; called once at the end unless there was an error."""


@contextmanager
def open_writer(
    name: str, cohort: "Cohort", out: AnyPath, labels: "LabelSet", model: "ModelIdentity | None" = None
) -> Iterator[Writer]:
    """Open the writer of a format; leaving the context without an error calls `finish`.

    Args:
        name: a name in WRITERS.
        cohort, out, labels, model: as for `Writer`.

    Raises:
        ConfigError: an unknown format, or labels that it does not support.
        DataError: a cohort that the format does not support.
    """
    writer = WRITERS.get(name)(cohort, out, labels, model)
    yield writer
    writer.finish()


def predicted_files(name: str, out: AnyPath, scan_id: str, labels: "LabelSet | None" = None) -> list[AnyPath]:
    """List the prediction files of a scan in a folder, without the image next to the masks.

    Args:
        name: a name in WRITERS.
        out: the folder.
        scan_id: id of the scan; an id that is not a valid file name has no files.
        labels: labels whose files are listed; None is any.

    Returns:
        The files that exist.
    """
    facts = WRITERS.facts(name)
    if "/" in scan_id or not out.is_dir():
        return []
    scan = glob.escape(scan_id)
    folder = out / facts["folder"].format(scan=scan_id) if facts.get("folder") else out
    if not folder.is_dir():
        return []
    names = [glob.escape(label) for label in labels.names] if labels else ["*"]
    patterns = [
        pattern.format(scan=scan, label=label)
        for pattern in facts.get("files", ())
        for label in (names if "{label}" in pattern else [""])
    ]
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return [path for path in paths if not (facts.get("folder") and path.name.startswith("image."))]


def predicted_scans(name: str, out: AnyPath) -> list[str]:
    """List the ids of all scans for which `predicted_files` finds files."""
    facts = WRITERS.facts(name)
    if not facts.get("files") or not out.is_dir():
        return []
    ending = "" if facts.get("folder") else facts["files"][0].removeprefix("{scan}")
    ids = [path.name.removesuffix(ending) for path in out.iterdir() if path.name.endswith(ending)]
    return sorted(scan_id for scan_id in ids if predicted_files(name, out, scan_id))
