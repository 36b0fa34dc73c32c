"""What a folder of scans holds, before it is converted."""

from collections import Counter
from os import PathLike

from gitseg_tf.data.scans import ORGANS, Cohort, read_cohort, slice_strata
from gitseg_tf.progress import progress

_LISTED = 5


def describe(root: str | PathLike) -> list[str]:
    """Read a cohort's headers and labels, write nothing.

    Args:
        root: as of `read_cohort`.

    Returns:
        Lines for people: the layout, counts, geometries, organs, files and what they were taken as, what was ignored.

    Raises:
        InputError: as `read_cohort` and `read_masks`.
    """
    cohort = read_cohort(root)
    depths = [scan.shape[0] for scan in cohort.scans]
    rows = [
        ("layout", [cohort.layout]),
        ("patients", [str(len({scan.case for scan in cohort.scans}))]),
        ("scans", [str(len(cohort.scans))]),
        ("slices", [f"{sum(depths)}, {min(depths)} to {max(depths)} a scan"]),
        ("gaps", _gaps(cohort)),
        ("geometry", _geometries(cohort)),
        ("labels", _first(cohort.labels, len(cohort.labels))),
        ("organs", _organs(cohort)),
        ("files", _files(cohort)),
        ("ignored", _first(cohort.ignored)),
    ]
    return [f"{name if i == 0 else '':<10} {line}" for name, lines in rows for i, line in enumerate(lines)]


def _gaps(cohort: Cohort) -> list[str]:
    gaps = [scan.id for scan in cohort.scans if scan.numbers[-1] - scan.numbers[0] >= len(scan.numbers)]
    return _first([f"{scan}: slices are missing" for scan in gaps])


def _geometries(cohort: Cohort) -> list[str]:
    counts = Counter((scan.shape[1:], scan.spacing) for scan in cohort.scans)
    return [
        f"{n} scans: {width} wide and {height} high, pixels of {x:g} x {y:g} mm, {z:g} mm from slice to slice"
        for ((height, width), (z, y, x)), n in sorted(counts.items())
    ]


def _organs(cohort: Cohort) -> list[str]:
    if not cohort.labelled:
        return ["no contours"]
    strata = [
        stratum for scan in progress(cohort.scans, "labels", unit="scan", delay=2) for stratum in slice_strata(scan)
    ]
    lines = [f"{organ} on {sum(stratum >> k & 1 for stratum in strata)} slices" for k, organ in enumerate(ORGANS)]
    return [*lines, f"none on {strata.count(0)} slices"]


def _files(cohort: Cohort) -> list[str]:
    scan = cohort.scans[0]
    taken = [f"{scan.id}, {role}: {path}" for role, path in scan.source.files()]
    others = sum(len(other.source.files()) for other in cohort.scans[1:])
    return [*_first(taken), *([f"and {others} files of {len(cohort.scans) - 1} other scans"] if others else [])]


def _first(lines, limit: int = _LISTED) -> list[str]:
    more = len(lines) - limit
    return [*lines[:limit], *([f"and {more} more"] if more > 0 else [])]
