"""The dataset on disk: shards named by fold, and dataset.json that lists them. See tfrecords/README.md."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError, field_validator

from gitseg_tf.data.records import parse_scan
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, file_size, write_atomically

FORMAT = "gitseg-tf scans"
VERSION = 1
INDEX = "dataset.json"
UNLABELLED = -1


@dataclass(frozen=True)
class ScanEntry:
    """What dataset.json says of a scan.

    Attributes:
        id, case: as in `Scan`.
        shape: (depth, height, width).
        spacing: (z, y, x) in mm.
        organ_slices: organ to the number of slices that show it; empty for a scan without contours.
        empty_slices: the number of slices without any organ.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: str
    case: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    organ_slices: dict[str, int]
    empty_slices: int


@dataclass(frozen=True)
class Shard:
    """A TFRecord file: its name, fold (-1: no contours), size in bytes, CRC-32 and scans in the records' order."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    file: str
    fold: int
    bytes: int
    crc32: str
    scans: tuple[ScanEntry, ...]


@dataclass(frozen=True)
class Dataset:
    """A finished dataset: its folder, source, folds and shards."""

    root: AnyPath
    source: dict[str, str]
    folds: int
    seed: int
    shards: tuple[Shard, ...]

    def shards_of(self, folds) -> list[Shard]:
        """The shards that belong to one of the folds."""
        return [shard for shard in self.shards if shard.fold in folds]

    def paths_of(self, folds) -> list[str]:
        """The files of `shards_of`, by absolute paths: a data service's worker has another working directory."""
        return [str(self.root.resolve() / shard.file) for shard in self.shards_of(folds)]

    def scans_of(self, folds, exclude: tuple[str, ...] = ()) -> list[ScanEntry]:
        """The scans of `shards_of`, in the order of the records, without those of the given ids."""
        return [scan for shard in self.shards_of(folds) for scan in shard.scans if scan.id not in exclude]

    def training_folds(self, held_out: int | None) -> list[int]:
        """All folds with contours but the one that is held out; None holds none out.

        Raises:
            InputError: no such fold.
        """
        self.check_fold(held_out or 0)
        return [fold for fold in range(self.folds) if fold != held_out]

    def check_fold(self, fold: int) -> None:
        """Refuse a fold that is not there.

        Raises:
            InputError: no such fold.
        """
        if not self.folds:
            raise InputError(
                f"{self.root}: has no folds, for its scans have no contours; convert a cohort with train.csv"
            )
        if not 0 <= fold < self.folds:
            raise InputError(f"{self.root}: has folds 0 to {self.folds - 1}, not {fold}; choose with --fold")


def read_scans(dataset: Dataset, folds, exclude: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Iterate over whole scans, one in memory at a time.

    Args:
        dataset: from `load_dataset`.
        folds: the folds to read.
        exclude: ids of scans to leave out.

    Returns:
        Iterator of dicts as `parse_scan` gives, as numpy arrays, strings decoded.
    """
    import tensorflow as tf

    records = tf.data.TFRecordDataset(dataset.paths_of(folds)).map(parse_scan, num_parallel_calls=1).prefetch(1)
    for fields in records.as_numpy_iterator():
        scan = fields | {"id": fields["id"].decode(), "case": fields["case"].decode()}
        if scan["id"] not in exclude:
            yield scan


def is_dataset(root: str | AnyPath) -> bool:
    """True for a folder with a finished dataset's dataset.json."""
    return (as_path(root) / INDEX).is_file()


def load_dataset(root: str | AnyPath, verify: bool = False) -> Dataset:
    """Open a finished dataset.

    Args:
        root: the folder that `gitseg convert` wrote.
        verify: read every shard and compare its checksum too, not its size alone.

    Returns:
        The dataset.

    Raises:
        InputError: no finished dataset there, another format or version, a shard that is missing or damaged.
    """
    root = as_path(root)
    try:
        tree = json.loads((root / INDEX).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{root}: holds no finished dataset ({INDEX} is missing); make one with gitseg convert"
        ) from None
    except ValueError as error:
        raise InputError(f"{root / INDEX}: is damaged ({error}); convert again") from None
    name, version = (tree.get("format"), tree.get("version")) if isinstance(tree, dict) else (None, None)
    if (name, version) != (FORMAT, VERSION):
        raise InputError(
            f"{root / INDEX}: is of format {name!r} version {version}, "
            f"this package reads {FORMAT!r} version {VERSION}; convert the cohort again"
        )
    try:
        index = _Index.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise InputError(f"{root / INDEX}: is damaged ({field}: {problem['msg']}); convert again") from None
    shards = index.shards
    dataset = Dataset(root, index.source, index.folds.count, index.folds.seed, shards)
    for shard in shards:
        _check_shard(root / shard.file, shard, verify)
    return dataset


def save_index(dataset: Dataset) -> None:
    """Write dataset.json, the last file of a conversion: with it the dataset is finished.

    Args:
        dataset: all its shards are in place.
    """
    scans = [scan for shard in dataset.shards for scan in shard.scans]
    tree: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "organs": list(ORGANS),
        "source": dataset.source,
        "counts": {
            "cases": len({scan.case for scan in scans}),
            "scans": len(scans),
            "slices": sum(scan.shape[0] for scan in scans),
            "organ_slices": {organ: sum(scan.organ_slices.get(organ, 0) for scan in scans) for organ in ORGANS},
        },
        "geometries": sorted({(*scan.shape[1:], *scan.spacing) for scan in scans}),
        "folds": {
            "count": dataset.folds,
            "seed": dataset.seed,
            "cases": {scan.case: shard.fold for shard in dataset.shards for scan in shard.scans},
        },
        "shards": [asdict(shard) for shard in dataset.shards],
    }
    write_atomically(dataset.root / INDEX, json.dumps(tree, indent=1).encode())


def file_crc32(path: AnyPath) -> str:
    """CRC-32 of a file, eight hexadecimal digits."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


class _Folds(BaseModel):
    count: StrictInt
    seed: StrictInt


class _Index(BaseModel):
    """What load_dataset takes from dataset.json; the rest is for people."""

    organs: tuple[str, ...]
    source: dict[str, str]
    folds: _Folds
    shards: tuple[Shard, ...] = Field(min_length=1)

    @field_validator("organs")
    @classmethod
    def _order_of_the_bits(cls, organs):
        if organs != ORGANS:
            raise ValueError(f"must be {', '.join(ORGANS)} in this order")
        return organs

    @field_validator("source")
    @classmethod
    def _names_its_origin(cls, source):
        if not {"name", "fingerprint"} <= set(source):
            raise ValueError("must have a name and a fingerprint")
        return source


def shard_from_json(tree: dict) -> Shard:
    """Read back what `dataclasses.asdict` made of a shard.

    Raises:
        pydantic.ValidationError: a field is missing or of another type.
    """
    return TypeAdapter(Shard).validate_python(tree)


def _check_shard(path: AnyPath, shard: Shard, verify: bool) -> None:
    if not path.is_file():
        raise InputError(f"{path}: the shard is missing; convert again")
    if file_size(path) != shard.bytes:
        raise InputError(f"{path}: has {file_size(path)} bytes, {INDEX} says {shard.bytes}; convert again")
    if verify and file_crc32(path) != shard.crc32:
        raise InputError(f"{path}: the checksum differs from {INDEX}'s; convert again")
