"""Summary of a folder of scans, before it is converted."""

from collections import Counter
from os import PathLike

from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Cohort
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.labels import LabelSet

_LISTED = 5
_LISTED_LABELS = 8


def describe(root: str | PathLike, *, labels: LabelSet | None = None, missing: str = "unannotated") -> list[str]:
    """Describe a cohort from its headers and labels; writes nothing.

    Args:
        root, labels, missing: see `read_cohort`.

    Returns:
        Lines on the layout, counts, geometries, labels, files with their roles, and what was ignored.

    Raises:
        DataError: see `read_cohort` and `Scan.read_annotation`.
    """
    cohort = read_cohort(root, labels=labels, missing=missing)
    depths = [scan.shape[0] for scan in cohort.scans]
    rows = [
        ("layout", [cohort.layout]),
        ("patients", [str(len({scan.case for scan in cohort.scans}))]),
        ("scans", [str(len(cohort.scans))]),
        ("slices", [f"{sum(depths)}, {min(depths)} to {max(depths)} per scan"]),
        ("gaps", _gaps(cohort)),
        ("geometry", _geometries(cohort)),
        ("labels", _labels(cohort)),
        ("annotated", _annotated(cohort)),
        ("files", _files(cohort)),
        ("ignored", _first(cohort.ignored)),
        ("notes", _first(cohort.notes)),
    ]
    return [f"{name if i == 0 else '':<10} {line}" for name, lines in rows for i, line in enumerate(lines)]


def _gaps(cohort: Cohort) -> list[str]:
    gaps = [scan.id for scan in cohort.scans if scan.numbers[-1] - scan.numbers[0] >= len(scan.numbers)]
    return _first([f"{scan}: slices are missing" for scan in gaps])


def _geometries(cohort: Cohort) -> list[str]:
    counts, total = Counter((scan.shape[1:], scan.spacing) for scan in cohort.scans), len(cohort.scans)
    return _first(
        [
            f"{width} x {height} pixels of {x:g} x {y:g} mm, slices every {z:g} mm ({n} of {plural(total, 'scan')})"
            for ((height, width), (z, y, x)), n in sorted(counts.items())
        ]
    )


def _labels(cohort: Cohort) -> list[str]:
    names = cohort.labels.names
    more = len(names) - _LISTED_LABELS
    listed = ", ".join(names[:_LISTED_LABELS]) + (f" and {more} more" if more > 0 else "")
    return [*([listed] if names else []), *cohort.label_notes]


def _annotated(cohort: Cohort) -> list[str]:
    if not cohort.labeled:
        return ["nothing"]
    scans = [scan for scan in cohort.scans if scan.labeled]
    bar = progress(scans, "labels", unit="scan", delay=2)
    strata = [stratum for scan in bar for stratum in scan.slice_strata()]
    lines = []
    for k, label in enumerate(cohort.labels):
        lacking = sum(label.name not in scan.annotated for scan in scans)
        unannotated = f", unannotated in {plural(lacking, 'scan')}" if lacking else ""
        lines.append(f"{label.name} on {plural(sum(stratum >> k & 1 for stratum in strata), 'slice')}{unannotated}")
    return [*lines, f"none on {plural(strata.count(0), 'slice')}"]


def _files(cohort: Cohort) -> list[str]:
    lines = []
    for scan in cohort.scans:
        roles: dict[str, list] = {}
        for role, path in scan.source.files():
            roles.setdefault(role, []).append(path)
        for role, paths in roles.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            lines.append(f"{scan.id}, {role}: {paths[0]}{more}")
    return _first(lines)


def _first(lines, limit: int = _LISTED) -> list[str]:
    more = len(lines) - limit
    return [*lines[:limit], *([f"and {more} more"] if more > 0 else [])]
