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
        ("slices", [f"{sum(depths)}, from {min(depths)} to {max(depths)} a scan"]),
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
    counts, total = Counter((scan.shape[1:], scan.spacing) for scan in cohort.scans), len(cohort.scans)
    return [
        f"{width} wide and {height} high, pixels of {x:g} x {y:g} mm, slices every {z:g} mm ({n} of {total} scans)"
        for ((height, width), (z, y, x)), n in sorted(counts.items())
    ]


def _organs(cohort: Cohort) -> list[str]:
    if not cohort.labelled:
        return ["no contours"]
    bar = progress(cohort.scans, "labels", unit="scan", delay=2)
    strata = [stratum for scan in bar for stratum in slice_strata(scan)]
    lines = [f"{organ} on {sum(stratum >> k & 1 for stratum in strata)} slices" for k, organ in enumerate(ORGANS)]
    return [*lines, f"none on {strata.count(0)} slices"]


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
