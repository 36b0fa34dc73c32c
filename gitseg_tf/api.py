"""The functions of the public API; gitseg_tf imports this module on first use, and it does not import TensorFlow."""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from gitseg_tf.config import Config
from gitseg_tf.core.paths import as_path
from gitseg_tf.core.tensorflow_import import import_tensorflow
from gitseg_tf.data.readers.base import Cohort
from gitseg_tf.data.sources import open_dataset
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import ConfigError
from gitseg_tf.labels import LabelSet, read_labels

if TYPE_CHECKING:
    from gitseg_tf.inference.predictor import Predictor
    from gitseg_tf.planning.plan import PlannedConfig
    from gitseg_tf.runs.run import Run

__all__ = ["convert", "evaluate", "load", "open_cohort", "open_dataset", "plan", "score", "train"]


def open_cohort(
    path: str | PathLike,
    labels: LabelSet | Sequence[str] | str | PathLike | None = None,
    *,
    missing: str = "unannotated",
    structure_set: str | None = None,
    table: bool = True,
) -> Cohort:
    """Find the scans of a folder, or open a single file as a scan, without reading voxels.

    Args:
        path: a folder in the competition's layout, of NIfTI files or of DICOM series; or a PNG or NIfTI file.
        labels: the labels to read: a LabelSet, a list of names, a YAML file of `gitseg labels`, or the name of a
            preset ("uwmgi"); None reads all labels of the cohort.
        missing: how to treat a label that other scans have and this one lacks: "unannotated" or "absent".
        structure_set: which structure set of a DICOM series to read: "newest", "approved", or a StructureSetLabel;
            None reads all, and refuses a scan if two of them have contours of the same label.
        table: False ignores annotations, and reads the test scans if there are training and test scans.

    Returns:
        The cohort; its scans read their Volume and Annotation on request.

    Raises:
        DataError: no scans, or data that is damaged or ambiguous.
        ConfigError: invalid labels.

    Example:
        >>> import gitseg_tf
        >>> cohort = gitseg_tf.open_cohort("cohort")
        >>> cohort.labels.names
        ('large_bowel', 'small_bowel', 'stomach')
        >>> scan = cohort.scans[0]
        >>> scan.read_volume().voxels.shape == scan.shape
        True
        >>> scan.read_annotation().masks.dtype
        dtype('bool')
    """
    from gitseg_tf.data.readers.registry import read_cohort, read_file

    if as_path(path).is_file():
        return read_file(path)
    return read_cohort(path, table=table, labels=_label_set(labels), missing=missing, structure_set=structure_set)


def _label_set(labels: LabelSet | Sequence[str] | str | PathLike | None) -> LabelSet | None:
    if isinstance(labels, str | PathLike):
        return read_labels(labels)
    return None if labels is None else LabelSet.from_tree(labels if isinstance(labels, LabelSet) else list(labels))


def plan(
    dataset: Dataset | str | PathLike,
    *,
    minutes: float = 20.0,
    memory_gib: float | None = None,
    fold: int | None = 0,
    out: str | PathLike | None = None,
) -> "PlannedConfig":
    """Choose a config for a dataset, this machine, and limits of time and memory.

    Networks are measured on this machine for up to a minute; the measurements are kept for the next plan.

    Args:
        dataset: a dataset with annotations; or a folder, see `open_dataset`.
        minutes: time for training; conversion, scoring and export come on top.
        memory_gib: most resident memory; None is 80% of the machine's.
        fold: the fold that training will hold out, or None.
        out: a YAML file to write, with the reason of each choice as a comment; None writes none.

    Returns:
        The plan: its `config` for `train`, and its `text`, the commented YAML.

    Raises:
        ConfigError: the limits are too low for any network; the message says what would fit.
        DataError: no annotation, or damaged data.

    Example:
        >>> import gitseg_tf
        >>> planned = gitseg_tf.plan("cohort", minutes=20, out="plan.yaml")  # doctest: +SKIP
        >>> planned.config.model.architecture  # doctest: +SKIP
        'unet'
    """
    from gitseg_tf.planning.plan import make_plan

    opened = dataset if isinstance(dataset, Dataset) else open_dataset(as_path(dataset))
    planned = make_plan(opened, minutes=minutes, memory_gib=memory_gib, fold=fold)
    if out is not None:
        planned.save(as_path(out))
    return planned


def train(config: Config, dataset: Dataset, run: str | PathLike, *, resume: bool = False) -> "Run | None":
    """Train a network, and write the run's folder.

    Args:
        config: the experiment, from `load_config`.
        dataset: the dataset, from `open_dataset` or `convert`.
        run: a new folder, or with `resume` the folder of an interrupted run.
        resume: continue an interrupted run at the exact step; a run that has not started is started.

    Returns:
        The run with its best weights; None on a worker other than the chief.

    Raises:
        RunError: the folder exists, belongs to another experiment or dataset, or training diverged.
        ConfigError: the config does not fit the dataset or the hardware.

    Example:
        >>> import gitseg_tf
        >>> config = gitseg_tf.load_config(overrides={"training.epochs": 2})
        >>> run = gitseg_tf.train(config, gitseg_tf.open_dataset("cohort"), "runs/first")  # doctest: +SKIP
    """
    import_tensorflow()
    from gitseg_tf.training.trainer import train as train_run

    return train_run(config, dataset, as_path(run), resume=resume)


def evaluate(
    run: "Run | str | PathLike", dataset: Dataset | str | PathLike | None = None, fold: int | None = None
) -> dict[str, Any]:
    """Score a run, and write evaluation.json, evaluation.csv and report.html.

    On the dataset of its training, a run is scored on the fold that it held out, and a cross-validation out of fold;
    the files go into its folder. On another dataset, all scans are scored, and the files go to
    RUN/evaluations/NAME-FINGERPRINT.

    Args:
        run: a Run, or the folder of a run or a cross-validation.
        dataset: a dataset with annotations; or a folder, see `open_dataset`; None is the dataset of the training.
        fold: the fold to score; of a cross-validation, the fold whose run is scored.

    Returns:
        The content of evaluation.json.

    Raises:
        RunError: no such run or fold, or a dataset without the run's labels or channels.
        DataError: a dataset without annotations.

    Example:
        >>> import gitseg_tf
        >>> scores = gitseg_tf.evaluate("runs/first", gitseg_tf.open_dataset("cohort"))  # doctest: +SKIP
        >>> scores["dice"]  # doctest: +SKIP
        0.92
    """
    import_tensorflow()
    from gitseg_tf.evaluation.cross_validation import score_cross_validation
    from gitseg_tf.evaluation.evaluate import evaluate as evaluate_run
    from gitseg_tf.runs.cross_validation import is_cross_validation, read_cross_validation
    from gitseg_tf.runs.run import Run, load_run

    if not isinstance(run, Run) and is_cross_validation(as_path(run)):
        folds = read_cross_validation(as_path(run))
        if fold is None:
            return score_cross_validation(folds.path, _opened(dataset, folds.config, len(folds.cases)))[0]
        run, fold = folds.run_of(fold), None
    run = run if isinstance(run, Run) else load_run(as_path(run))
    return evaluate_run(run, _opened(dataset, run.config, run.config.data.folds), fold)


def _opened(dataset: Dataset | str | PathLike | None, config: Config, folds: int) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    records = config.provenance.get("records") if dataset is None else dataset
    if records is None:
        raise ConfigError("the run does not record its training data; give the dataset")
    return open_dataset(as_path(records), folds)


def score(
    predictions: str | PathLike,
    reference: str | PathLike,
    out: str | PathLike | None = None,
    *,
    labels: LabelSet | Sequence[str] | str | PathLike | None = None,
    missing: str = "unannotated",
    force: bool = False,
) -> dict[str, Any]:
    """Score the masks of any tool against the annotations of a cohort.

    Args:
        predictions: NIfTI label maps SCAN.nii.gz or masks SCAN/LABEL.nii.gz, a table such as submission.csv, or DICOM
            structure sets.
        reference: a cohort with annotations, in any layout.
        out: a folder for evaluation.json, evaluation.csv and report.html; None writes none.
        labels, missing: how to read the reference, see `open_cohort`.
        force: replace other files in `out`.

    Returns:
        The content of evaluation.json.

    Raises:
        DataError: no scan or no label in common, different grids, or invalid files.

    Example:
        >>> import gitseg_tf
        >>> scores = gitseg_tf.score("predictions", "cohort")  # doctest: +SKIP
        >>> scores["labels"]["stomach"]["dice"]  # doctest: +SKIP
        0.92
    """
    import_tensorflow()
    from gitseg_tf.evaluation.predictions import score_predictions

    return score_predictions(predictions, reference, out, labels=_label_set(labels), missing=missing, force=force)


def load(models: str | PathLike | Sequence[str | PathLike]) -> "Predictor":
    """Load a predictor from a run, an export, a cross-validation or an ensemble; several models are averaged.

    Args:
        models: the folder of a run, an export (SavedModel, ONNX, TFLite) or a cross-validation, or a sequence of them;
            or the folder of a single ensemble of `gitseg ensemble`.

    Returns:
        The predictor, which averages the probabilities of its models.

    Raises:
        RunError: a model is missing or damaged, or the models are incompatible.

    Example:
        >>> import gitseg_tf
        >>> predictor = gitseg_tf.load("runs/first")  # doctest: +SKIP
        >>> scan = gitseg_tf.open_cohort("cohort").scans[0]
        >>> masks = predictor.predict(scan.read_volume()).masks  # doctest: +SKIP
    """
    import_tensorflow()
    from gitseg_tf.inference.predictor import load_predictor

    listed = [models] if isinstance(models, str | PathLike) else models
    return load_predictor([as_path(model) for model in listed])
