"""Add the probabilities of a teacher to a dataset, from which `train` can then distill a single network."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from gitseg_tf.config.loss import TEACHER_MEMBERS
from gitseg_tf.core.paths import AnyPath, as_path, replace_folder
from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.tfrecords.codec import RecordWriter
from gitseg_tf.data.tfrecords.dataset import INDEX, Dataset, is_dataset, load_dataset, save_index
from gitseg_tf.data.tfrecords.example import decode_scan
from gitseg_tf.data.tfrecords.index import ScanEntry, Shard, Teacher
from gitseg_tf.data.tfrecords.teacher import add_teacher
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import ConfigError, DataError, RunError
from gitseg_tf.inference.identity import model_identity, runs_identity
from gitseg_tf.inference.networks import open_model
from gitseg_tf.inference.predictor import Predictor, load_predictor
from gitseg_tf.runs.cross_validation import fold_runs
from gitseg_tf.runs.ensemble import RunEnsemble, load_ensemble, unseen_by
from gitseg_tf.runs.fusion import is_fusion
from gitseg_tf.runs.matching import check_matches

logger = logging.getLogger(__name__)


def distill(
    models: str | AnyPath | Sequence[str | AnyPath],
    dataset: Dataset,
    out: str | AnyPath,
    *,
    members: str = "unseen",
    overrides: dict[str, Any] | None = None,
    force: bool = False,
) -> Dataset:
    """Write a copy of a dataset with the probabilities of a teacher, at the size of each scan.

    A network that was trained on a patient reproduces the annotation instead of adding to it. Each scan is therefore
    predicted by the networks of the teacher that were not trained on its patient: of a cross-validation, by that of the
    patient's fold, or by all if the patient is in none. If all networks were trained on a patient, all predict it, and
    a warning says so.

    Args:
        models: the teacher: an ensemble.yaml or its folder; or runs, exports or cross-validations, whose probabilities
            are averaged, see `load_predictor`.
        dataset: the dataset; it may contain scans without annotation.
        out: the folder of the copy.
        members: "unseen", as described; "all" lets all networks predict all scans.
        overrides: dotted keys of the section evaluation, such as test-time augmentation.
        force: replace an existing dataset.

    Returns:
        The copy. Its annotations, folds and fingerprint are those of the dataset.

    Raises:
        ConfigError: an unknown value of `members`.
        DataError: the folder exists, a record is damaged, or the dataset has pseudo-labels.
        RunError: see `load_predictor`; labels or channels that the dataset lacks; or a model that does not record the
            patients that it was trained on.
    """
    if members not in TEACHER_MEMBERS:
        raise ConfigError(f"members must be {' or '.join(TEACHER_MEMBERS)}, got {members!r}")
    out = as_path(out)
    if dataset.pseudo_labels is not None:
        raise DataError(f"{dataset.root}: has pseudo-labels; distill into the dataset without them")
    if out.resolve() == dataset.root.resolve():
        raise DataError(f"{out}: is the dataset itself; choose another folder")
    if out.exists() and not (force and is_dataset(out)) and (not out.is_dir() or any(out.iterdir())):
        fix = "choose another folder" + (", or force its replacement" if is_dataset(out) else "")
        raise DataError(f"{out}: already exists; {fix}")
    teacher = _open_teacher(models, dataset, members, overrides or {})
    scans = [scan for shard in dataset.shards for scan in shard.scans]
    seen = _log_members(teacher, scans)
    identity = model_identity(models) if teacher.ensemble is None else runs_identity(teacher.ensemble)
    names = tuple(dataset.labels.names[k] for k in sorted(teacher.sources))
    facts = Teacher(identity.name, identity.weights, names, teacher.trained_on, members, seen)
    with replace_folder(out, marker=INDEX) as folder, naming_damaged_shards(dataset):
        shards = []
        with progress(range(len(scans)), "distill", unit="scan") as bar:
            for shard in dataset.shards:
                found = _distilled(dataset, shard, teacher)
                entries = []
                with (folder / shard.file).open("wb") as file:
                    writer = RecordWriter(file)
                    for record, entry in found:
                        writer.write(record)
                        entries.append(entry)
                        bar.update()
                shards.append(Shard(shard.file, shard.fold, writer.size, writer.crc32, tuple(entries)))
        save_index(replace(dataset, root=folder, shards=tuple(shards), teacher=facts))
    return load_dataset(out)


@dataclass
class _Teacher:
    """The networks of a teacher, and the predictor of those that were used last.

    Attributes:
        paths: the models.
        seen_by: the patients that each was trained on.
        members: see `distill`.
        sources: the index in the dataset's labels of each label of the models.
        overrides: see `distill`.
        chosen: the models of `predictor`.
        predictor: averages the chosen models.
        ensemble: the teacher, if it is an ensemble.yaml, whose runs are the models.
    """

    paths: list[AnyPath]
    seen_by: list[frozenset[str]]
    members: str
    sources: list[int]
    overrides: dict[str, Any]
    chosen: tuple[int, ...]
    predictor: Predictor
    ensemble: RunEnsemble | None = None

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The patients that any of the models was trained on."""
        return tuple(sorted(frozenset().union(*self.seen_by)))

    def models_for(self, case: str) -> tuple[int, ...]:
        """Choose the models that predict a patient."""
        everyone = tuple(range(len(self.paths)))
        if self.members == "all":
            return everyone
        return tuple(k for k in everyone if case not in self.seen_by[k]) or everyone

    def probabilities(self, volume: Volume, case: str, labels: int) -> np.ndarray:
        """Predict a scan: float32 [labels, D, H, W] in the order of the dataset's labels, 0 for those not segmented."""
        models = self.models_for(case)
        if models != self.chosen:
            # Scans are sorted by fold, so the networks of a cross-validation are loaded once each.
            self.chosen = models
            if self.ensemble is not None:
                everyone = len(models) == len(self.paths)
                self.predictor = Predictor.of_run(self.ensemble if everyone else unseen_by(self.ensemble, case))
            else:
                self.predictor = load_predictor([self.paths[k] for k in models], overrides=self.overrides)
        found = np.zeros((labels, *volume.shape), np.float32)
        found[self.sources] = self.predictor.probabilities(volume)
        return found


def _open_teacher(models, dataset: Dataset, members: str, overrides: dict[str, Any]) -> _Teacher:
    """Load all networks, which checks that they are complete and agree with each other and with the dataset."""
    predictor = load_predictor(models, overrides=overrides)
    check_matches(predictor.config, dataset)
    listed = [models] if isinstance(models, str) or not isinstance(models, Sequence) else models
    ensemble = load_ensemble(listed[0], overrides) if is_fusion(listed[0]) else None
    if ensemble is not None:
        paths = [run.path for run in ensemble.runs]
    else:
        paths = [one for path in map(as_path, listed) for one in (fold_runs(path) or [path])]
    seen_by = []
    for path in paths:
        trained_on = open_model(path)[1].provenance.get("trained_on")
        if trained_on is None:
            raise RunError(f"{path}: does not record which patients the model was trained on; train again")
        seen_by.append(frozenset(trained_on))
    matched = [dataset.labels.match(name) for name in predictor.labels.names]
    sources = [dataset.labels.index(label.name) for label in matched if label is not None]
    return _Teacher(paths, seen_by, members, sources, overrides, tuple(range(len(paths))), predictor, ensemble)


def _log_members(teacher: _Teacher, scans: Sequence[ScanEntry]) -> tuple[str, ...]:
    """Log how many networks predict the scans; return the ids of the scans of patients whom they were trained on."""
    chosen = {scan.id: teacher.models_for(scan.case) for scan in scans}
    seen = tuple(s.id for s in scans if all(s.case in teacher.seen_by[k] for k in chosen[s.id]))
    for count in sorted({len(models) for models in chosen.values()}):
        predicted = sum(len(models) == count for models in chosen.values())
        logger.info("teacher    %s predicted by %s", plural(predicted, "scan"), plural(count, "network"))
    if seen:
        fix = "a cross-validation predicts each patient with a network that was not trained on it"
        logger.warning(
            "%s of patients that the teacher was trained on: its probabilities repeat the annotation there; %s",
            plural(len(seen), "scan"),
            fix,
        )
    return seen


def _distilled(dataset: Dataset, shard: Shard, teacher: _Teacher):
    """Yield the records of a shard with the teacher's probabilities, and their entries in dataset.json."""
    path = dataset.root / shard.file
    records = tf.data.TFRecordDataset(str(path)).prefetch(1).as_numpy_iterator()
    for record, entry in zip(records, shard.scans, strict=True):
        try:
            volume = decode_scan(record).volume
        except ValueError as error:
            raise DataError(f"{path}, {entry.id}: is damaged ({error}); convert again") from None
        probabilities = teacher.probabilities(volume, entry.case, len(dataset.labels))
        yield add_teacher(record, entry, probabilities, dataset.labels.names)
