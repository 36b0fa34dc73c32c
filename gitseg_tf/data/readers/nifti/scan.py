"""Build a scan from the headers of its image files."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gitseg_tf.data.readers.base import (
    NO_LABELS,
    FoundLabel,
    Scan,
    numbered_slice_ids,
)
from gitseg_tf.data.readers.nifti.files import open_image
from gitseg_tf.data.readers.nifti.source import NiftiSource, check_agreement
from gitseg_tf.labels import LabelSet


class Found(NamedTuple):
    """The contents of a folder, before headers are read."""

    builds: list[tuple[str, Callable[[], Scan]]]
    labels: LabelSet = NO_LABELS
    found: tuple[FoundLabel, ...] = ()
    kind: str = "label"
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    channels: tuple[str, ...] | None = None


def build_scan(
    scan_id: str,
    patient: str,
    images: tuple[Path, ...],
    label_map: Path | None = None,
    numbers: dict[str, tuple[int, ...]] | None = None,
    ignored: tuple[int, ...] = (),
    known: tuple[int, ...] = (),
    *,
    masks: dict[str, Path] | None = None,
    labels: LabelSet = NO_LABELS,
) -> Scan:
    masks = masks or {}
    opened = [open_image(path, channels=len(images) == 1) for path in images]
    others = [open_image(path) for path in [*([label_map] if label_map else []), *masks.values()]]
    grid = opened[0].grid
    for file in [*opened[1:], *others]:
        check_agreement(file.path, file.grid, images[0], grid)
    files = [*opened, *others]
    source = NiftiSource(
        images, grid, label_map, numbers or {}, ignored, known, masks,
        voxel_bytes=max(file.voxel_bytes for file in opened),
        channels=opened[0].channels or len(images),
        assumed=tuple(dict.fromkeys(line for file in files for line in file.assumed)),
        warnings=tuple(line for file in files for line in file.warnings),
    )  # fmt: skip
    slices = list(range(1, grid.records_shape[0] + 1))
    ids = numbered_slice_ids(scan_id, slices)
    present = set(numbers or {}) if label_map else set(masks)
    annotated = tuple(label.name for label in labels if label.name in present)
    case = patient.split("_day")[0]
    return Scan(scan_id, case, grid.records_shape, grid.spacing, slices, ids, labels, annotated, source)
