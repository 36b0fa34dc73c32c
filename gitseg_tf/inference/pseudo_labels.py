"""Pseudo-labels: predictions of a run or an ensemble, for scans in which labels are not annotated."""

import logging

import numpy as np

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Cohort
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.index import PseudoSource
from gitseg_tf.data.tfrecords.pseudo_labels import write_pseudo_labeled
from gitseg_tf.data.volume import LoadedScan, PseudoLabels
from gitseg_tf.errors import ConfigError, ScanError
from gitseg_tf.inference.predictor import Predictor
from gitseg_tf.labels import LabelSet
from gitseg_tf.runs.ensemble import RunEnsemble
from gitseg_tf.runs.matching import check_matches
from gitseg_tf.runs.run import Run

logger = logging.getLogger(__name__)

CONFIDENCE = 0.9


def pseudo_label(
    model: Run | RunEnsemble,
    base: Dataset,
    out: str | AnyPath,
    *,
    more: Cohort | None = None,
    confidence: float = CONFIDENCE,
    resume: bool = False,
) -> Dataset:
    """Write a dataset for training in which predictions take the place of missing annotations.

    A label that is annotated in a scan keeps its annotation. A label of the model that is not gets the prediction,
    without the voxels of which the model is not certain: those whose probability, averaged over the runs of an
    ensemble, lies between 1 - confidence and confidence, and those that post-processing changed. They are left out of
    the loss of that label only. Hard pseudo-labels are from Lee 2013 ("Pseudo-Label", ICML workshop), the confidence
    threshold from FixMatch (Sohn et al. 2020, arXiv:2001.07685).

    Pseudo-labels are used in training only, see `Dataset.training_scans`. A scan that keeps an annotation stays in its
    fold, where only the annotation is scored.

    Args:
        model: a trained run, or the runs of an ensemble or a cross-validation, whose probabilities are averaged.
        base: the dataset with the annotations; its scans that lack labels are predicted.
        out: a new folder for the dataset.
        more: scans to add, all of whose labels are predicted.
        confidence: 0.5 to 1; 0.5 leaves out no voxel because of its probability.
        resume: continue an interrupted call.

    Returns:
        The new dataset.

    Raises:
        ConfigError: a confidence that is out of range.
        RunError: the dataset lacks the model's labels, or has other channels.
        DataError: see `write_pseudo_labeled`; or a scan cannot be predicted.

    Example:
        >>> dataset = pseudo_label(load_ensemble("runs/ensemble"), base, "tfrecords/pseudo")  # doctest: +SKIP
    """
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"confidence must be >= 0.5 and < 1, got {confidence}")
    check_matches(model.config, base)
    predictor = Predictor.of_run(model)
    names = tuple(_name_in(base.labels, name) for name in predictor.labels.names)
    trained_on = tuple(sorted(map(str, model.config.provenance.get("trained_on", ()))))
    source = PseudoSource(model.path.resolve().name, predictor.identity.weights, confidence, trained_on)

    def label(scan: LoadedScan) -> PseudoLabels | None:
        return label_scan(predictor, scan, base.labels, confidence)

    dataset = write_pseudo_labeled(base, out, label, source=source, labels=names, more=more, resume=resume)
    for name, count in _counts(dataset).items():
        logger.info("label      %s: predicted in %s", name, plural(count, "scan"))
    return dataset


def label_scan(predictor: Predictor, scan: LoadedScan, labels: LabelSet, confidence: float) -> PseudoLabels | None:
    """Predict the labels of a scan that are not annotated.

    Args:
        predictor: the model.
        scan: the scan, with its annotation if it has one.
        labels: the labels of the annotation and of the result.
        confidence: see `pseudo_label`.

    Returns:
        The pseudo-labels; None if all labels of the model are annotated.

    Raises:
        ScanError: the model cannot predict the scan.
    """
    annotated = np.zeros(len(labels), bool) if scan.annotation is None else scan.annotation.annotated
    index = [labels.index(_name_in(labels, name)) for name in predictor.labels.names]
    wanted = [(k, target) for k, target in enumerate(index) if not annotated[target]]
    if not wanted:
        return None
    try:
        prediction = predictor.predict(scan.volume, probabilities=True)
    except ScanError as error:
        raise ScanError(f"{scan.id}: {error}") from None
    if doubts := predictor.check(scan.volume):
        logger.warning("%s: check this prediction: %s", scan.id, "; ".join(doubts))
    probabilities = prediction.probabilities
    assert probabilities is not None
    predicted = np.zeros(len(labels), bool)
    masks, uncertain = (np.zeros((len(labels), *scan.volume.shape), bool) for _ in range(2))
    for k, target in wanted:
        predicted[target], masks[target] = True, prediction.masks[k]
        low, high = np.float32(1 - confidence), np.float32(confidence)
        between = (probabilities[k] > low) & (probabilities[k] < high)
        uncertain[target] = between | (prediction.masks[k] != (probabilities[k] >= 0.5))
    return PseudoLabels(predicted, masks, uncertain)


def _name_in(labels: LabelSet, name: str) -> str:
    match = labels.match(name)
    assert match is not None  # see check_matches
    return match.name


def _counts(dataset: Dataset) -> dict[str, int]:
    scans = [scan for shard in dataset.shards for scan in shard.scans if scan.pseudo is not None]
    return {name: sum(name in scan.pseudo.labels for scan in scans if scan.pseudo) for name in dataset.labels.names}
