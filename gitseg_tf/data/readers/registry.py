"""Find the scans of a folder in any supported layout."""

from collections import Counter
from dataclasses import replace
from os import PathLike

from gitseg_tf.core.paths import AnyPath, RemotePath, as_path
from gitseg_tf.core.registry import Registry
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Cohort, FoundLabel, Reader
from gitseg_tf.errors import ConfigError, DataError
from gitseg_tf.labels import LabelSet

MISSING = ("unannotated", "absent")


# Facts: `expected` (what a folder must contain), `remote` (whether SCHEME:// folders are supported), `endings` (of
# single files), `structure_sets` (whether a scan may have several structure sets to choose from).
LAYOUTS = Registry("layout")
LAYOUTS.register(
    "competition",
    "gitseg_tf.data.readers.competition:READER",
    expected="train/CASE/CASE_DAY/scans/slice_*.png with train.csv",
    remote=True,
    endings=(".png",),
)
LAYOUTS.register(
    "NIfTI",
    "gitseg_tf.data.readers.nifti.cohort:READER",
    expected="NIfTI, NRRD or MetaImage files (imagesTr/ and labelsTr/, or a folder per scan with image.nii.gz and one "
    "mask per label)",
    endings=(".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"),
)
LAYOUTS.register(
    "DICOM",
    "gitseg_tf.data.readers.dicom.cohort:READER",
    expected="DICOM series with RTSTRUCT",
    structure_sets=True,
)


def expected_layouts() -> str:
    """Describe what a folder must contain to be read as a cohort, for messages."""
    return "; ".join(LAYOUTS.facts(name)["expected"] for name in LAYOUTS)


def is_cohort(root: str | PathLike) -> bool:
    """Check whether a folder has one of LAYOUTS."""
    root = as_path(root)
    return root.is_dir() and _layout_of(root) is not None


def read_cohort(
    root: str | PathLike,
    *,
    table: bool = True,
    list_orphans: bool = False,
    list_broken: bool = False,
    labels: LabelSet | None = None,
    missing: str = "unannotated",
    structure_set: str | None = None,
) -> Cohort:
    """Find the scans of a folder in any of LAYOUTS, without reading pixels.

    Args:
        root: see docs/how-to/data.md for its layouts. SCHEME:// (gs://...) works for the competition's layout only.
        table: False ignores annotations, and reads the test scans if there are training and test scans.
        list_orphans: True lists rows of train.csv without an image in the cohort instead of rejecting them.
        list_broken: True lists unreadable scans in the cohort instead of rejecting them, if at least one is readable.
        labels: the labels to read, matched by name, aliases and ROI name; None reads all labels found.
        missing: how to treat a label that other scans have and this one lacks: "unannotated" or "absent".
        structure_set: which structure set of a DICOM series to read: "newest" (by StructureSetDate and -Time),
            "approved" (by ApprovalStatus), or a StructureSetLabel; None reads all, and refuses a scan if two of them
            have contours of the same label.

    Returns:
        The cohort, scans sorted by id.

    Raises:
        DataError: no scans, or a file that cannot be read without guessing; the message names it.
        ConfigError: an invalid value of `missing`, or a structure set for a layout without any.
    """
    if missing not in MISSING:
        raise ConfigError(f"missing must be {' or '.join(MISSING)}, got {missing!r}")
    root = as_path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a folder with {expected_layouts()}")
    layout = _layout_of(root)
    if layout is None:
        fix = "; copy NIfTI and DICOM to a local folder" if isinstance(root, RemotePath) else ""
        raise DataError(f"{root}: no slices found; expected {expected_layouts()}{fix}")
    choice = {} if structure_set is None else {"structure_set": structure_set}
    if choice and not LAYOUTS.facts(layout).get("structure_sets"):
        raise ConfigError(f"{root}: has the layout {layout}, so there is no structure set {structure_set!r} to read")
    cohort = LAYOUTS.get(layout).read(root, table, labels, **choice)
    if cohort.broken and not (list_broken and cohort.scans):
        raise DataError(cohort.broken[0][1])
    duplicates = [name for name, n in Counter(scan.id for scan in cohort.scans).items() if n > 1]
    if duplicates:
        raise DataError(f"{root}: scan {duplicates[0]} exists in two folders; remove one")
    if cohort.orphans and not list_orphans:
        raise DataError(f"{root / 'train.csv'}: {cohort.orphans[0]} has no image; add its PNG or remove its rows")
    return _with_missing(cohort, missing)


def found_labels(root: str | PathLike, labels: LabelSet | None = None) -> tuple[FoundLabel, ...]:
    """List the label names in a cohort, how many scans have each, and the label it matches.

    Args:
        root, labels: see `read_cohort`.

    Raises:
        DataError: see `read_cohort`.
    """
    return read_cohort(root, list_orphans=True, list_broken=True, labels=labels).found


def read_file(path: str | PathLike) -> Cohort:
    """Read a single file as a scan without annotation.

    Args:
        path: a PNG slice, a NIfTI image, or a file with an ending of another layout.

    Returns:
        A cohort of one scan, whose root is the file.

    Raises:
        DataError: an unsupported ending, or a file that cannot be read.
    """
    path = as_path(path)
    for name in LAYOUTS:
        facts = LAYOUTS.facts(name)
        if path.name.lower().endswith(facts.get("endings", ())):
            if isinstance(path, RemotePath) and not facts.get("remote"):
                raise DataError(f"{path}: only PNG slices can be read from a bucket; copy the file to a local folder")
            return LAYOUTS.get(name).read_file(path)
    endings = ", ".join(ending for name in LAYOUTS for ending in LAYOUTS.facts(name).get("endings", ()))
    raise DataError(
        f"{path}: does not end in any of {endings}; give such a file, or a folder with {expected_layouts()}"
    )


def _with_missing(cohort: Cohort, missing: str) -> Cohort:
    """Note which annotated scans lack a label, and mark it as annotated if missing means absent."""
    annotated = [scan for scan in cohort.scans if scan.labeled]
    if not annotated:
        return cohort
    notes = []
    lacks = {scan.id: tuple(n for n in cohort.labels.names if n not in scan.annotated) for scan in annotated}
    for name in cohort.labels.names:
        lacking = [scan.id for scan in annotated if name not in scan.annotated]
        if lacking:
            listed = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            have = len(annotated) - len(lacking)
            notes.append(
                f"{name}: has a mask in {have} of {len(annotated)} annotated scans, read as {missing} in {listed}"
            )
    bare = len(cohort.scans) - len(annotated)
    if bare:
        notes.append(f"{bare} of {plural(len(cohort.scans), 'scan')} {'has' if bare == 1 else 'have'} no annotation")
    scans = cohort.scans
    if missing == "absent":
        names = cohort.labels.names
        scans = tuple(replace(scan, annotated=names) if scan.labeled else scan for scan in scans)
    return replace(
        cohort,
        scans=scans,
        label_notes=(*cohort.label_notes, *notes),
        lacking={scan: names for scan, names in lacks.items() if names},
        missing=missing,
    )


def _layout_of(root: AnyPath) -> str | None:
    for name in LAYOUTS:
        if LAYOUTS.facts(name).get("remote") or not isinstance(root, RemotePath):
            reader: Reader = LAYOUTS.get(name)
            if reader.is_here(root):
                return name
    return None
