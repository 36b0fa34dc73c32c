"""What there is to look through: the scans of a cohort or a dataset, with a run's scores and network."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.data.dataset import Dataset, Shard, is_dataset, load_dataset
from gitseg_tf.data.records import decode_scan, intensity_percentiles, pack_masks
from gitseg_tf.data.scans import EXPECTED, Scan, is_cohort, read_cohort, read_file, read_image, read_masks
from gitseg_tf.data.tfrecord import read_record
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path
from gitseg_tf.inference.exported import exported_config, exported_file, exported_version
from gitseg_tf.training.cross_validation import fold_runs, is_cross_validation, read_cross_validation
from gitseg_tf.training.run_folder import has_begun, load_run_config
from gitseg_tf.viewer.folders import GivenFolders

_SCORES = ("score", "dice", "hausdorff", "hausdorff_mm", "hd95_mm", "surface_dice")


@dataclass(frozen=True)
class Voxels:
    """The image of a scan: uint16 [D, H, W], the slices' numbers, (z, y, x) in mm, float32 [11] percentiles."""

    image: np.ndarray
    numbers: tuple[int, ...]
    spacing: tuple[float, float, float]
    percentiles: np.ndarray


@dataclass(frozen=True)
class Entry:
    """A scan of the list.

    Attributes:
        id, case: as in `Scan`; of what cannot be read, its name.
        read_voxels: reads the image; InputError where it cannot be read.
        read_contours: reads uint8 [D, H, W], bit k is organ k of ORGANS; None for a scan without contours.
        broken: why it cannot be read, or "".
        model: the run, cross-validation or export that predicts it, or None.
        trained_on: whether the model has seen the patient.
        scores: means of the scan, and under "organs" those of each organ; empty where it was not scored.
    """

    id: str
    case: str
    read_voxels: Callable[[], Voxels] | None = None
    read_contours: Callable[[], np.ndarray] | None = None
    broken: str = ""
    model: AnyPath | None = None
    trained_on: bool = False
    scores: dict | None = None


@dataclass(frozen=True)
class Library:
    """Scans in the order of their ids, what they are of, and lines for the user."""

    name: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


def open_library(
    path: str | AnyPath, data: str | AnyPath | None = None, allowed: tuple[str | AnyPath, ...] = ()
) -> Library:
    """Find what there is to look through; no pixel is read.

    Args:
        path: a cohort of any layout, a PNG or NIfTI file, a dataset of `gitseg convert`, a run, a cross-validation, or
            what `gitseg export` wrote, as `load_predictor` takes it.
        data: a cohort or dataset, for a run or an export; None is what the run was trained on.
        allowed: further folders that links in the others may lead to.

    Returns:
        The library.

    Raises:
        InputError: nothing of that kind there, a table that lies outside of the folders, or no data for the model.
    """
    path, allowed = as_path(path), tuple(map(as_path, allowed))
    configs = _configs(path, allowed)
    if not configs:
        if data is not None:
            raise InputError(f"{path}: is no run, and --data is for runs alone; leave it out")
        return Library(path.name or str(path), *_entries(path, allowed))
    if data is None:
        data = _own_data(path, configs)
    entries, notes = _entries(as_path(data), (path, *allowed))
    model_of, more = _models(path, configs)
    seen_by = {model: set(config.provenance.get("trained_on", ())) for model, config in configs.items()}
    seen_by[path] = set().union(*seen_by.values())
    trained_here = any(map(has_begun, configs))
    scores = _scores(path) if trained_here else {}
    if trained_here and not scores:
        more = (*more, f"{path}: has no evaluation.json, so the list has no scores; gitseg evaluate makes them")
    listed = []
    for entry in entries:
        model = model_of(entry.case)
        seen = entry.case in seen_by.get(model, ())
        listed.append(replace(entry, model=model, trained_on=seen, scores=scores.get(entry.id)))
    return Library(path.name or str(path), tuple(listed), (*notes, *more))


def _configs(path: AnyPath, allowed: tuple[AnyPath, ...]) -> dict[AnyPath, Config]:
    """The networks that were given, with their configs; none where scans were given."""
    if (file := exported_file(path)) is not None:
        GivenFolders((path, file.parent, *allowed)).check([file, file.parent / "config.yaml"])
        return {file: exported_config(file)}
    folders = GivenFolders((path, *allowed))
    runs = [run for run in fold_runs(path) if has_begun(run)] or ([path] if has_begun(path) else [])
    if runs:
        for folder in (path, *runs):
            folders.check_top(folder)
        return {run: load_run_config(run) for run in runs}
    if is_cross_validation(path):
        raise InputError(f"{path}: no fold has been trained; go on with train.py --fold all --resume --out {path}")
    exported = exported_version(path)
    if exported is None:
        return {}
    for folder in (path, exported / "assets.extra"):
        folders.check_top(folder)
    return {exported: exported_config(exported)}


def _own_data(path: AnyPath, configs: dict[AnyPath, Config]) -> AnyPath:
    """The dataset that a run was trained on. An export is for other places than the one where that lies."""
    model, config = next(iter(configs.items()))
    if not has_begun(model):
        raise InputError(f"{path}: is an exported network, which has no scans; name some with --data")
    if "records" not in config.provenance:
        raise InputError(f"{path}: does not say what it was trained on; name the data with --data")
    records = as_path(config.provenance["records"])
    if not is_dataset(records) and not is_cohort(records):
        raise InputError(f"{path}: was trained on {records}, which holds no scans any more; name the data with --data")
    return records


def _models(path: AnyPath, configs: dict[AnyPath, Config]) -> tuple[Callable, tuple[str, ...]]:
    """A function of a patient to what predicts it, or None, and lines for the user."""
    silent = [model for model, config in configs.items() if "trained_on" not in config.provenance]
    notes = tuple(f"{model}: does not say whom it was trained on, so no patient of its is marked" for model in silent)
    if not is_cross_validation(path):
        (model,) = configs
        return (lambda case: model), notes
    # Not the folds of the data, which may be cut otherwise: what counts is whom the runs have seen.
    folds = read_cross_validation(path)
    held_out_by = {case: run for run, cases in zip(folds.runs, folds.cases, strict=True) for case in cases}
    missing = [run for run in folds.runs if run not in configs]
    notes += tuple(
        f"{run}: has not been trained, so the patients that it holds out have no prediction" for run in missing
    )

    def model_of(case: str) -> AnyPath | None:
        model = held_out_by.get(case, path)  # a patient of no fold is new to all runs
        return None if model in missing else model

    return model_of, notes


def _entries(path: AnyPath, others: tuple[AnyPath, ...]) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    folders = GivenFolders((path, *others))
    folders.check_top(path)
    if is_dataset(path):
        return tuple(_of_dataset(load_dataset(path), folders)), ()
    if path.is_file():
        cohort = read_file(path)
    elif is_cohort(path):
        cohort = read_cohort(path, list_orphans=True, list_broken=True)
    else:
        raise InputError(f"{path}: holds no scans; give a run, TFRecords made by gitseg convert, or {EXPECTED}")
    entries = [_of_cohort(scan, folders) for scan in cohort.scans]
    entries += [Entry(name, name, broken=why) for name, why in cohort.broken]
    notes = cohort.notes
    if cohort.orphans:
        notes += (
            f"{len(cohort.orphans)} slices of {path / 'train.csv'} have no image, {cohort.orphans[0]} is the first",
        )
    return tuple(sorted(entries, key=lambda entry: entry.id)), notes


def _of_cohort(scan: Scan, folders: GivenFolders) -> Entry:
    try:
        folders.check(_files(scan))
    except InputError as error:
        return Entry(scan.id, scan.case, broken=str(error))
    contours = partial(_read_contours, scan, folders) if scan.labelled else None
    return Entry(scan.id, scan.case, partial(_read_voxels, scan, folders), contours)


def _files(scan: Scan) -> list[AnyPath]:
    return [path for _, path in scan.source.files()]


def _read_voxels(scan: Scan, folders: GivenFolders) -> Voxels:
    folders.check(_files(scan))  # a link may have changed since the scans were listed
    image = read_image(scan)
    return Voxels(image, tuple(scan.numbers), scan.spacing, intensity_percentiles(image))


def _read_contours(scan: Scan, folders: GivenFolders) -> np.ndarray:
    folders.check(_files(scan))
    return pack_masks(read_masks(scan))


def _of_dataset(dataset: Dataset, folders: GivenFolders) -> Iterator[Entry]:
    shards = [(shard, n, scan) for shard in dataset.shards for n, scan in enumerate(shard.scans)]
    for shard, number, scan in sorted(shards, key=lambda item: item[2].id):
        read = partial(_read_scan, dataset, shard, number, folders)
        contours = (lambda read=read: read()["bits"]) if scan.organ_slices else None
        yield Entry(scan.id, scan.case, partial(_voxels_of_record, read), contours)


def _voxels_of_record(read: Callable[[], dict]) -> Voxels:
    fields = read()
    spacing = tuple(float(mm) for mm in fields["spacing"])
    return Voxels(fields["image"], tuple(fields["numbers"].tolist()), spacing, fields["percentiles"])


def _read_scan(dataset: Dataset, shard: Shard, number: int, folders: GivenFolders) -> dict:
    path = dataset.root / shard.file
    folders.check([path])
    try:
        with path.open("rb") as file:
            fields = decode_scan(read_record(file, number))
    except ValueError as error:
        raise InputError(f"{path}: {error}; convert again") from None
    if fields["id"] != shard.scans[number].id:
        raise InputError(f"{path}: record {number} is {fields['id']}, not {shard.scans[number].id}; convert again")
    return fields


def _scores(run: AnyPath) -> dict[str, dict]:
    path = run / "evaluation.json"
    if not path.is_file():
        return {}
    try:
        per_scan = json.loads(path.read_bytes())["per_scan"]
        return {scan: _picked(means) | {"organs": _by_organ(means)} for scan, means in per_scan.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: is damaged; run gitseg evaluate again") from None


def _by_organ(means: dict) -> dict[str, dict]:
    return {organ: _picked(own) for organ, own in means["organs"].items()}


def _picked(means: dict) -> dict:
    return {name: means.get(name) for name in _SCORES}
