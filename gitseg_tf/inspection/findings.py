"""Findings of the inspection, and the checks that do not need contours."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Cohort
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.inspection.measurements import ScanFacts
from gitseg_tf.inspection.source import Unreadable
from gitseg_tf.labels import LabelSet

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
# With fewer scans there is no basis for what is usual.
COHORT = 5
# Maximum number of scans that a finding about the whole cohort lists.
_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """An anomaly in a scan or cohort.

    Attributes:
        severity: "error": cannot be correct; "warning": check before training; "note": good to know.
        check: the name of the check.
        scan: the scan's id, "" for the cohort.
        slices: the affected slice numbers in ascending order; empty for the whole scan.
        text: what is unusual, and how unusual it is.
    """

    severity: Severity
    check: str
    scan: str
    slices: tuple[int, ...]
    text: str

    @property
    def place(self) -> str:
        """The scan and its slices as text."""
        return " ".join(filter(None, (self.scan, f"slices {ranges(self.slices)}" if self.slices else "")))


def ranges(numbers: Iterable[int]) -> str:
    """Format numbers as ranges: "3-5, 9"."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def robust_z(values: np.ndarray, least_spread: float) -> np.ndarray:
    """Compute the distance of each value from the median in robust standard deviations.

    Args:
        values: float [N]; NaN is ignored.
        least_spread: lower bound on the standard deviation, so that irrelevant differences do not count.

    Returns:
        float [N]: (value - median) / max(1.4826 * median absolute deviation, least_spread).
    """
    if not np.isfinite(values).any():
        return np.full(len(values), np.nan)
    median = np.nanmedian(values)
    return (values - median) / max(1.4826 * np.nanmedian(np.abs(values - median)), least_spread)


def unreadable_scans(scans: list[Unreadable]) -> Iterator[Finding]:
    """Report scans with an unreadable file or contour."""
    for scan in scans:
        yield Finding("error", "unreadable", scan.scan, (), scan.reason)


def left_aside(cohort: Cohort) -> Iterator[Finding]:
    """Report what the reader of a cohort skipped and assumed, and rows without an image, which a conversion rejects."""
    for line in cohort.ignored:
        yield Finding("note", "ignored", "", (), line)
    for line in cohort.notes:
        yield Finding("note", "assumption", "", (), line)
    for line in cohort.warnings:
        yield Finding("warning", "contradiction", "", (), line)
    for line in cohort.left_over:
        yield Finding("warning", "left over", "", (), f"{line}; it is not read")
    by_scan: dict[str, list[int]] = defaultdict(list)
    for slice_id in cohort.orphans:
        scan, separator, number = slice_id.rpartition("_slice_")
        by_scan[scan if separator else slice_id] += [int(number)] if separator and number.isdecimal() else []
    for scan, numbers in by_scan.items():
        yield Finding(
            "error", "row without image", scan, tuple(sorted(numbers)),
            "the table has rows without an image; add the images or remove the rows",
        )  # fmt: skip


def missing_slices(scan: ScanFacts) -> Iterator[Finding]:
    """Find gaps in the slice numbers."""
    gaps = [n for a, b in pairwise(scan.numbers) for n in range(a + 1, b)]
    if gaps:
        text = "these slice numbers are missing between the first and the last slice"
        yield Finding("note", "missing slices", scan.id, tuple(gaps), text)


def unread_contours(scan: ScanFacts) -> Iterator[Finding]:
    """Report parts of the annotation that could not be read."""
    if scan.contours is not None:
        for note in scan.contours.notes:
            yield Finding("warning", "contours not read", scan.id, (), note)


def blank_slices(scan: ScanFacts) -> Iterator[Finding]:
    """Find slices of constant intensity."""
    for c, blank in enumerate(scan.blank):
        if blank.any():
            numbers = tuple(n for n, dull in zip(scan.numbers, blank, strict=True) if dull)
            text = "all voxels of the slice have the same intensity" + _in_channel(scan, c)
            yield Finding("warning", "blank image", scan.id, numbers, text)


def repeated_images(scans: list[ScanFacts]) -> Iterator[Finding]:
    """Find slices and scans whose pixels occur more than once."""
    occurrences = defaultdict(list)
    for scan in scans:
        for number, digest in zip(scan.numbers, scan.image_digests, strict=True):
            if digest is not None:
                occurrences[digest].append((scan.id, number))
    within: dict[str, set[int]] = defaultdict(set)
    between: dict[tuple[str, str], list[int]] = defaultdict(list)
    for group in occurrences.values():
        for scan_id, count in Counter(scan for scan, _ in group).items():
            if count > 1:
                within[scan_id] |= {number for other, number in group if other == scan_id}
        first, number = group[0]
        for other in sorted({scan for scan, _ in group} - {first}):
            between[first, other].append(number)
    for scan_id, repeated in within.items():
        text = "the pixels are identical to those of another of these slices"
        yield Finding("warning", "repeated image", scan_id, tuple(sorted(repeated)), text)
    by_id = {scan.id: scan for scan in scans}
    for (first, other), numbers in between.items():
        whole = len(numbers) == len(by_id[first].numbers) == len(by_id[other].numbers)
        apart = by_id[first].case != by_id[other].case
        what = "all slices are" if whole else f"{len(numbers)} slices are"
        leak = ", which belongs to another patient, so they can end up in different folds" if apart else ""
        severity: Severity = "error" if apart or whole else "warning"
        slices = () if whole else tuple(sorted(numbers))
        yield Finding(severity, "repeated image", first, slices, f"{what} identical to those of {other}{leak}")


def odd_intensities(scans: list[ScanFacts]) -> Iterator[Finding]:
    """Find scans whose intensities differ from the cohort's by a large factor."""
    if len(scans) < COHORT:
        return
    for c in range(min(len(scan.percentiles) for scan in scans)):
        p99 = np.array([float(scan.percentiles[c, 8]) for scan in scans])
        # HU and normalized intensities can be negative, so use their range.
        heights = p99 - np.minimum([float(scan.percentiles[c, 2]) for scan in scans], 0)
        z_scores = robust_z(np.log(np.maximum(heights, 1e-6)), 0.3)
        for scan, value, z in zip(scans, p99, z_scores, strict=True):
            if abs(z) > 6:
                usual = amount(float(np.median(p99)))
                text = f"the 99th percentile{_in_channel(scan, c)} is {amount(value)}; the cohort's median is {usual}"
                yield Finding("note", "intensity", scan.id, (), f"{text} (robust z {z:+.1f})")


def amount(value: float) -> str:
    """Format an intensity: without decimals unless it is small."""
    return f"{value:.0f}" if abs(value) >= 10 or value == round(value) else f"{value:.3g}"


def _in_channel(scan: ScanFacts, channel: int) -> str:
    return "" if len(scan.percentiles) == 1 else f" in channel {channel + 1}"


def pseudo_labels(dataset: Dataset) -> Iterator[Finding]:
    """Say which scans have predictions, which are not inspected, in place of annotations."""
    if dataset.pseudo_line:
        yield Finding("note", "pseudo-labels", "", (), dataset.pseudo_line)


def unannotated_scans(scans: list[ScanFacts]) -> Iterator[Finding]:
    """Find scans without any annotation among annotated ones."""
    without = [scan.id for scan in scans if scan.contours is None]
    if without and len(without) < len(scans):
        text = f"{len(without)} of {len(scans)} scans {'has' if len(without) == 1 else 'have'} no annotation"
        yield Finding(
            "warning",
            "no annotation",
            "",
            (),
            f"{text}, so {'it is' if len(without) == 1 else 'they are'} in no fold: {_some(without)}",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def unannotated_labels(scans: list[ScanFacts], labels: LabelSet) -> Iterator[Finding]:
    """Find labels that are unannotated in some of the scans with contours."""
    for k, label in enumerate(labels):
        without = [scan.id for scan in scans if not scan.contour_facts.annotated[k]]
        if without:
            share = f"{len(scans) - len(without)} of {plural(len(scans), 'scan')}"
            text = f"{label.title} is annotated in {share}; it is neither trained on nor scored in the others: "
            yield Finding("warning", "unannotated", "", (), f"{text}{_some(without)}")


def unbalanced_folds(scans: list[ScanFacts], labels: LabelSet) -> Iterator[Finding]:
    """Find folds without a label that other folds have."""
    folds = sorted({scan.fold for scan in scans if scan.fold is not None and scan.contours})
    volumes = {f: np.sum([s.volumes_ml for s in scans if s.fold == f and s.contours], axis=0) for f in folds}
    for k, label in enumerate(labels):
        without = [f for f in folds if not volumes[f][k]]
        if without and len(without) < len(folds):
            text = f"no scan of fold {ranges(without)} shows the {label.title}; scores there say nothing about it"
            yield Finding("warning", "folds", "", (), text)
