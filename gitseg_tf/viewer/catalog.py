"""List the scans of the page: those of a cohort or a dataset, with a run's scores and network."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from gitseg_tf.config import Config
from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.core.text import plural
from gitseg_tf.core.trees import parse_json
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.data.readers.registry import expected_layouts, is_cohort, read_cohort, read_file
from gitseg_tf.data.tfrecords.codec import read_record
from gitseg_tf.data.tfrecords.dataset import Dataset, is_dataset, load_dataset
from gitseg_tf.data.tfrecords.example import decode_scan
from gitseg_tf.data.tfrecords.index import Shard
from gitseg_tf.data.volume import LoadedScan, Volume
from gitseg_tf.errors import ConfigError, DataError, GitsegError
from gitseg_tf.inference.exported import exported_config, exported_file, exported_version
from gitseg_tf.labels import LabelSet
from gitseg_tf.runs.cross_validation import fold_runs, is_cross_validation, read_cross_validation
from gitseg_tf.runs.folder import has_begun, load_run_config
from gitseg_tf.runs.fusion import is_fusion
from gitseg_tf.viewer.contours import Contours, of_annotation
from gitseg_tf.viewer.folders import GivenFolders

_SCORES = ("score", "score_volume", "dice", "hausdorff", "hausdorff_mm", "hd95_mm", "surface_dice")


@dataclass(frozen=True)
class Entry:
    """A scan in the list.

    Attributes:
        id, case: as in `Scan`; for an unreadable scan, its name.
        read_volume: function that reads the image, or raises DataError.
        read_contours: function that reads the reference masks of the library's labels; None for a scan without
            annotation.
        broken: why the scan cannot be read, or "".
        model: the run, cross-validation or export that predicts it, or None.
        trained_on: whether the model was trained on the patient.
        scores: means of the scan, and under "labels" those of each label; None if it was not scored.
    """

    id: str
    case: str
    read_volume: Callable[[], Volume] | None = None
    read_contours: Callable[[], Contours] | None = None
    broken: str = ""
    model: AnyPath | None = None
    trained_on: bool = False
    scores: dict | None = None


@dataclass(frozen=True)
class Library:
    """The content of the page.

    Attributes:
        name: name of the data or the run.
        entries: the scans, sorted by id.
        labels: labels of the contours and predictions.
        channels: names of the image's channels; empty if they have none.
        notes: lines for the user.
    """

    name: str
    entries: tuple[Entry, ...]
    labels: LabelSet
    channels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def open_library(
    path: str | AnyPath, data: str | AnyPath | None = None, allowed: tuple[str | AnyPath, ...] = (), **reading
) -> Library:
    """List the scans to browse, without reading pixels.

    Args:
        path: a cohort of any layout, a PNG or NIfTI file, a dataset of `gitseg convert`, a run, a cross-validation, or
            an export for `load_predictor`.
        data: a cohort or dataset, for a run or an export; None is the dataset on which the run was trained.
        allowed: further folders to which links may lead.
        **reading: how to read a cohort, see `read_cohort`: labels, missing and structure_set.

    Returns:
        The library.

    Raises:
        DataError: nothing of that kind at the path, a table outside the folders, or no data for the model.
        ConfigError: data is given without a model, or labels are given for a dataset, which has its own.
    """
    path, others = as_path(path), tuple(map(as_path, allowed))
    configs = _configs(path, others)
    if not configs:
        if data is not None:
            raise ConfigError(f"{path}: is not a run or an exported model; only those take separate data")
        return _library_of_data(path, others, None, reading)
    if data is None:
        data = _training_data(path, configs)
    model_labels = next(iter(configs.values())).labels
    library = _library_of_data(as_path(data), (path, *others), model_labels, reading)
    model_of, more = _models(path, configs)
    seen_by = {model: set(config.provenance.get("trained_on", ())) for model, config in configs.items()}
    seen_by[path] = set().union(*seen_by.values())
    trained_here = any(map(has_begun, configs))
    scores = _scores(path) if trained_here else {}
    if trained_here and not scores:
        more = (
            *more,
            f"{path}: has no evaluation.json, so the list shows no scores; run gitseg evaluate to write them",
        )
    listed = []
    for entry in library.entries:
        model = model_of(entry.case)
        seen = entry.case in seen_by.get(model, ())
        listed.append(replace(entry, model=model, trained_on=seen, scores=scores.get(entry.id)))
    return replace(library, name=path.name or str(path), entries=tuple(listed), notes=(*library.notes, *more))


def _configs(path: AnyPath, allowed: tuple[AnyPath, ...]) -> dict[AnyPath, Config]:
    """Read the configs of the given networks; empty if scans were given."""
    if (file := exported_file(path)) is not None:
        GivenFolders((path, file.parent, *allowed)).check([file, file.parent / "config.yaml"])
        return {file: exported_config(file)}
    folders = GivenFolders((path, *allowed))
    if is_fusion(path):
        fix = "write its predictions with gitseg predict and view those, or view one of its runs"
        raise DataError(f"{path}: is an ensemble, which cannot be viewed; {fix}")
    runs = [run for run in fold_runs(path) if has_begun(run)] or ([path] if has_begun(path) else [])
    if runs:
        for folder in (path, *runs):
            folders.check_top(folder)
        return {run: load_run_config(run) for run in runs}
    if is_cross_validation(path):
        raise DataError(f"{path}: no fold has been trained yet; resume the cross-validation")
    exported = exported_version(path)
    if exported is None:
        return {}
    for folder in (path, exported / "assets.extra"):
        folders.check_top(folder)
    return {exported: exported_config(exported)}


def _training_data(path: AnyPath, configs: dict[AnyPath, Config]) -> AnyPath:
    """Find the dataset on which a run was trained; an export has none, because it may have been moved elsewhere."""
    model, config = next(iter(configs.items()))
    if not has_begun(model):
        raise DataError(f"{path}: is an exported model, which has no scans; give data as well")
    if "records" not in config.provenance:
        raise DataError(f"{path}: does not record what it was trained on; give the data as well")
    records = as_path(config.provenance["records"])
    if not is_dataset(records) and not is_cohort(records):
        raise DataError(f"{path}: was trained on {records}, which no longer contains scans; give the data as well")
    return records


def _models(path: AnyPath, configs: dict[AnyPath, Config]) -> tuple[Callable, tuple[str, ...]]:
    """Return a function from a patient to the model that predicts it, or None, and lines for the user."""
    silent = [model for model, config in configs.items() if "trained_on" not in config.provenance]
    notes = tuple(f"{model}: does not record which patients it was trained on, so none are marked" for model in silent)
    if not is_cross_validation(path):
        (model,) = configs
        return (lambda case: model), notes
    # The data may be split differently, so rely on the patients that the runs have seen.
    folds = read_cross_validation(path)
    held_out_by = {case: run for run, cases in zip(folds.runs, folds.cases, strict=True) for case in cases}
    missing = [run for run in folds.runs if run not in configs]
    notes += tuple(
        f"{run}: has not been trained, so the patients that it holds out have no prediction" for run in missing
    )

    def model_of(case: str) -> AnyPath | None:
        model = held_out_by.get(case, path)  # a patient that is not in any fold is new to all runs
        return None if model in missing else model

    return model_of, notes


def _library_of_data(path: AnyPath, others: tuple[AnyPath, ...], wanted: LabelSet | None, reading: dict) -> Library:
    """List the scans of a cohort or a dataset; `wanted` are a model's labels, which replace those of the data."""
    name = path.name or str(path)
    folders = GivenFolders((path, *others))
    folders.check_top(path)
    if is_dataset(path):
        if reading:
            raise ConfigError(
                f"{path}: the labels of a dataset are fixed; {' and '.join(reading)} can be given for a cohort only"
            )
        dataset = load_dataset(path)
        labels = wanted or dataset.labels
        return Library(name, tuple(_of_dataset(dataset, folders, labels)), labels, dataset.channels)
    if path.is_file():
        cohort = read_file(path)
    elif is_cohort(path):
        cohort = read_cohort(path, list_orphans=True, list_broken=True, **reading)
    else:
        raise DataError(
            f"{path}: contains no scans; give a run, TFRecords made by gitseg convert, or {expected_layouts()}"
        )
    labels = wanted or cohort.labels
    entries = [_of_cohort(scan, cohort, folders, labels) for scan in cohort.scans]
    entries += [Entry(name, name, broken=why) for name, why in cohort.broken]
    notes = (*cohort.notes, *cohort.warnings)
    if cohort.orphans:
        notes += (
            f"{plural(len(cohort.orphans), 'slice')} of {path / 'train.csv'} without an image; "
            f"the first is {cohort.orphans[0]}",
        )
    return Library(name, tuple(sorted(entries, key=lambda entry: entry.id)), labels, notes=notes)


def _of_cohort(scan: Scan, cohort: Cohort, folders: GivenFolders, labels: LabelSet) -> Entry:
    try:
        folders.check(_files(scan))
    except GitsegError as error:
        return Entry(scan.id, scan.case, broken=str(error))
    contours = partial(_read_contours, scan, cohort.labels, folders, labels) if scan.labeled else None
    return Entry(scan.id, scan.case, partial(_read_volume, scan, folders), contours)


def _files(scan: Scan) -> list[AnyPath]:
    return [path for _, path in scan.source.files()]


def _read_volume(scan: Scan, folders: GivenFolders) -> Volume:
    folders.check(_files(scan))  # links may have changed since the scans were listed
    return scan.read_volume()


def _read_contours(scan: Scan, own: LabelSet, folders: GivenFolders, labels: LabelSet) -> Contours:
    folders.check(_files(scan))
    annotation = scan.read_annotation()
    if annotation is None:
        raise DataError(f"{scan.id}: no longer has an annotation; open the cohort again")
    return of_annotation(annotation, own, labels)


def _of_dataset(dataset: Dataset, folders: GivenFolders, labels: LabelSet) -> Iterator[Entry]:
    shards = [(shard, n, scan) for shard in dataset.shards for n, scan in enumerate(shard.scans)]
    for shard, number, scan in sorted(shards, key=lambda item: item[2].id):
        read = partial(_read_scan, dataset, shard, number, folders)
        contours = partial(_contours_of_record, read, dataset.labels, labels) if shard.fold >= 0 else None
        yield Entry(scan.id, scan.case, partial(_volume_of_record, read), contours)


def _volume_of_record(read: Callable[[], LoadedScan]) -> Volume:
    return read().volume


def _contours_of_record(read: Callable[[], LoadedScan], own: LabelSet, labels: LabelSet) -> Contours:
    scan = read()
    if scan.annotation is None:
        raise DataError(f"{scan.id}: has no annotation")
    return of_annotation(scan.annotation, own, labels)


def _read_scan(dataset: Dataset, shard: Shard, number: int, folders: GivenFolders) -> LoadedScan:
    path = dataset.root / shard.file
    folders.check([path])
    try:
        with path.open("rb") as file:
            scan = decode_scan(read_record(file, number))
    except ValueError as error:
        raise DataError(f"{path}: {error}; convert again") from None
    if scan.id != shard.scans[number].id:
        raise DataError(f"{path}: record {number} is {scan.id}, not {shard.scans[number].id}; convert again")
    return scan


def _scores(run: AnyPath) -> dict[str, dict]:
    path = run / "evaluation.json"
    if not path.is_file():
        return {}
    try:
        per_scan = parse_json(path.read_bytes())["per_scan"]
        return {scan: _select_scores(means) | {"labels": _by_label(means)} for scan, means in per_scan.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: is damaged or of an older version; run gitseg evaluate again") from None


def _by_label(means: dict) -> dict[str, dict]:
    return {name: _select_scores(own) for name, own in means["labels"].items()}


def _select_scores(means: dict) -> dict:
    return {name: means.get(name) for name in _SCORES}
