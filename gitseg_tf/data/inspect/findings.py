"""What is odd in a cohort: sentences that say what, where and how far from usual."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from gitseg_tf.data.inspect.facts import ScanFacts
from gitseg_tf.data.inspect.source import Unreadable
from gitseg_tf.data.scans import Cohort

Severity = Literal["error", "warning", "note"]
SEVERITIES = ("error", "warning", "note")
# With fewer scans, usual is not known.
COHORT = 5


@dataclass(frozen=True)
class Finding:
    """Something odd.

    Attributes:
        severity: "error": it cannot be right; "warning": look at it before training; "note": good to know.
        check: what found it, in a word or two.
        scan: the scan's id, "" for the cohort.
        slices: the slice numbers where it is, rising; empty where it is the whole scan.
        text: what is odd, and how far from usual.
    """

    severity: Severity
    check: str
    scan: str
    slices: tuple[int, ...]
    text: str

    @property
    def place(self) -> str:
        """Scan and slices, for people."""
        return " ".join(filter(None, (self.scan, f"slices {ranges(self.slices)}" if self.slices else "")))


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as people write them: "3-5, 9"."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def robust_z(values: np.ndarray, least_spread: float) -> np.ndarray:
    """How far each value is from the median, in robust standard deviations.

    Args:
        values: float [N], NaN is left out.
        least_spread: a standard deviation below which differences are no matter.

    Returns:
        float [N]: (value - median) / max(1.4826 * median absolute deviation, least_spread).
    """
    if not np.isfinite(values).any():
        return np.full(len(values), np.nan)
    median = np.nanmedian(values)
    return (values - median) / max(1.4826 * np.nanmedian(np.abs(values - median)), least_spread)


def unreadable_scans(scans: list[Unreadable]) -> Iterator[Finding]:
    """Scans of which a file or a contour cannot be read."""
    for scan in scans:
        yield Finding("error", "unreadable", scan.scan, (), scan.reason)


def left_aside(cohort: Cohort) -> Iterator[Finding]:
    """What the reader of a cohort did not take: files, and rows without image, which a conversion refuses."""
    for line in cohort.ignored:
        yield Finding("note", "left alone", "", (), line)
    by_scan: dict[str, list[int]] = defaultdict(list)
    for slice_id in cohort.orphans:
        scan, found, number = slice_id.rpartition("_slice_")
        by_scan[scan if found else slice_id] += [int(number)] if found and number.isdecimal() else []
    for scan, numbers in by_scan.items():
        yield Finding(
            "error", "row without image", scan, tuple(sorted(numbers)),
            "rows in the table and no image; add the images or remove the rows",
        )  # fmt: skip


def missing_slices(scan: ScanFacts) -> Iterator[Finding]:
    """Gaps in the slice numbers."""
    gaps = [n for a, b in pairwise(scan.numbers) for n in range(a + 1, b)]
    if gaps:
        text = "these numbers between the first and the last slice are missing"
        yield Finding("note", "missing slices", scan.id, tuple(gaps), text)


def blank_slices(scan: ScanFacts) -> Iterator[Finding]:
    """Slices of one intensity."""
    blank = [n for n, digest in zip(scan.numbers, scan.image_digests, strict=True) if digest is None]
    if blank:
        yield Finding("warning", "blank image", scan.id, tuple(blank), "the slice is of one intensity")


def repeated_images(scans: list[ScanFacts]) -> Iterator[Finding]:
    """Slices and scans whose pixels are there more than once."""
    places = defaultdict(list)
    for scan in scans:
        for number, digest in zip(scan.numbers, scan.image_digests, strict=True):
            if digest is not None:
                places[digest].append((scan.id, number))
    within: dict[str, set[int]] = defaultdict(set)
    between: dict[tuple[str, str], list[int]] = defaultdict(list)
    for group in places.values():
        for scan, count in Counter(scan for scan, _ in group).items():
            if count > 1:
                within[scan] |= {number for other, number in group if other == scan}
        first, number = group[0]
        for other in sorted({scan for scan, _ in group} - {first}):
            between[first, other].append(number)
    for scan, numbers in within.items():
        text = "the pixels are those of another of these slices"
        yield Finding("warning", "repeated image", scan, tuple(sorted(numbers)), text)
    by_id = {scan.id: scan for scan in scans}
    for (first, other), numbers in between.items():
        whole = len(numbers) == len(by_id[first].numbers) == len(by_id[other].numbers)
        apart = by_id[first].case != by_id[other].case
        what = "all slices are" if whole else f"{len(numbers)} slices are"
        leak = ", of another patient: folds cannot keep them apart" if apart else ""
        severity = "error" if apart or whole else "warning"
        places_there = () if whole else tuple(sorted(numbers))
        yield Finding(severity, "repeated image", first, places_there, f"{what} those of {other}{leak}")


def odd_intensities(scans: list[ScanFacts]) -> Iterator[Finding]:
    """Scans whose intensities are of another order than the cohort's."""
    if len(scans) < COHORT:
        return
    p99 = np.array([max(float(scan.percentiles[8]), 1.0) for scan in scans])
    for scan, value, z in zip(scans, p99, robust_z(np.log(p99), 0.3), strict=True):
        if abs(z) > 6:
            text = f"99% of the voxels are below {value:.0f}, in the cohort's median scan below {np.median(p99):.0f}"
            yield Finding("note", "intensity", scan.id, (), f"{text} (robust z {z:+.1f})")


def unbalanced_folds(scans: list[ScanFacts], organs: tuple[str, ...]) -> Iterator[Finding]:
    """Folds that lack an organ which the others have."""
    folds = sorted({scan.fold for scan in scans if scan.fold is not None and scan.contours})
    volumes = {f: sum(scan.volumes_ml for scan in scans if scan.fold == f) for f in folds}
    for k, organ in enumerate(organs):
        without = [f for f in folds if not volumes[f][k]]
        if without and len(without) < len(folds):
            text = f"fold {ranges(without)} has no {organ.replace('_', ' ')}; scores on it say nothing about that organ"
            yield Finding("warning", "folds", "", (), text)
