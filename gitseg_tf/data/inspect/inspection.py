"""The dataset check: read every scan once, measure it, and say what is odd."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gitseg_tf.data.dataset import Dataset
from gitseg_tf.data.inspect import contour_checks, findings
from gitseg_tf.data.inspect.facts import ScanFacts, measure
from gitseg_tf.data.inspect.findings import COHORT, SEVERITIES, Finding, Severity
from gitseg_tf.data.inspect.source import Unreadable, each_scan, open_source
from gitseg_tf.data.scans import ORGANS, Cohort


@dataclass(frozen=True)
class Inspection:
    """What is known of a cohort or dataset.

    Attributes:
        source: what was inspected.
        scans: the facts of the scans that can be read, in the order of the source.
        findings: what is odd; errors first, then warnings, then notes.
    """

    source: Cohort | Dataset
    scans: list[ScanFacts]
    findings: list[Finding]

    @property
    def counts(self) -> dict[str, int]:
        """Severity to the number of findings."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in SEVERITIES}

    def counted(self, *severities: Severity) -> str:
        """Numbers of findings for people: "1 error, 2 warnings"."""
        return ", ".join(f"{self.counts[s]} {s}{'' if self.counts[s] == 1 else 's'}" for s in severities)


def inspect_data(root: str | Path) -> Inspection:
    """Inspect a source cohort or a finished dataset.

    What is wrong with a scan is a finding and stops nothing. Memory holds a scan for each processor, however many there
    are.

    Args:
        root: a source cohort as `read_cohort` takes it, or a folder that `gitseg convert` wrote.

    Returns:
        Facts and findings.

    Raises:
        InputError: nothing there that can be opened; a damaged shard.
    """
    source = open_source(root)
    results = list(each_scan(source, measure, "inspect"))
    scans = [result for result in results if isinstance(result, ScanFacts)]
    unreadable = [result for result in results if isinstance(result, Unreadable)]
    if isinstance(source, Cohort):
        unreadable += [Unreadable(name, reason) for name, reason in source.broken]
    found = [
        *findings.unreadable_scans(unreadable),
        *(findings.left_aside(source) if isinstance(source, Cohort) else ()),
        *find(scans),
    ]
    found.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.scan))
    return Inspection(source, scans, found)


def find(scans: list[ScanFacts]) -> Iterator[Finding]:
    """Look for what is odd in each scan, and in the scans together.

    Args:
        scans: of a cohort.

    Returns:
        Iterator of findings, in no order of severity.
    """
    # A copy is said to be one of the scan that comes first, whatever the order of the source.
    scans = sorted(scans, key=lambda scan: scan.id)
    contoured = [scan for scan in scans if scan.contours is not None]
    for scan in contoured:
        for check in contour_checks.ALONE:
            yield from check(scan)
    for check in contour_checks.TOGETHER:
        yield from check(contoured)
    for scan in scans:
        yield from findings.blank_slices(scan)
        yield from findings.missing_slices(scan)
    yield from findings.repeated_images(scans)
    yield from findings.odd_intensities(scans)
    yield from findings.unbalanced_folds(scans, ORGANS)
    whole = sum(scan.shape[0] >= contour_checks.WHOLE for scan in contoured)
    if contoured and whole < COHORT:
        text = f"{whole} scans of {contour_checks.WHOLE} slices or more have contours"
        yield Finding("note", "small cohort", "", (), f"{text}; places and volumes are compared from {COHORT} on")


def summary_lines(inspection: Inspection, most: int = 40) -> list[str]:
    """What the terminal shows.

    Args:
        inspection: from `inspect_data`.
        most: findings to list; the others are counted.

    Returns:
        Lines: counts, geometries, intensities, organs, folds, findings.
    """
    scans = inspection.scans
    kind = "dataset" if isinstance(inspection.source, Dataset) else "cohort"
    lines = [
        f"{kind:10s} {inspection.source.root}: {len({s.case for s in scans})} patients, {len(scans)} scans, "
        f"{sum(s.shape[0] for s in scans)} slices"
    ]
    for row in geometry_rows(scans):
        lines.append(f"geometry   {row['size']} pixels, {row['spacing']} mm: {row['scans']} scans")
    if scans:
        p1, p50, p99 = np.median([scan.percentiles[[2, 5, 8]] for scan in scans], axis=0)
        lines.append(f"intensity  1%, 50% and 99% of the voxels of a median scan below {p1:.0f}, {p50:.0f}, {p99:.0f}")
    for row in organ_rows(scans):
        lines.append(
            f"organ      {row['organ'].replace('_', ' ')}: {row['scans']} scans, {row['slices']} slices, "
            f"median {row['median']:.0f} ml ({row['low']:.0f} to {row['high']:.0f})"
        )
    for row in fold_rows(scans):
        shares = ", ".join(f"{organ.replace('_', ' ')} {row[organ]:.0%}" for organ in ORGANS)
        lines.append(
            f"fold {row['fold']}     {row['patients']} patients, {row['scans']} scans, {row['slices']} slices: {shares}"
        )
    shown = inspection.findings[:most]
    lines += [f"{finding.severity:10s} {finding.check}: {finding.place or kind}: {finding.text}" for finding in shown]
    if len(inspection.findings) > most:
        lines.append(f"...        and {len(inspection.findings) - most} more")
    return [*lines, f"findings   {inspection.counted(*SEVERITIES)}"]


def geometry_rows(scans: list[ScanFacts]) -> list[dict]:
    """A row a geometry, the most frequent first: size, spacing, patients, scans, slices."""
    groups: dict[tuple, list[ScanFacts]] = {}
    for scan in scans:
        groups.setdefault((scan.shape[1:], scan.spacing), []).append(scan)
    return [
        {
            "size": f"{width} x {height}",
            "spacing": " x ".join(f"{mm:g}" for mm in spacing[::-1]),
            "patients": len({scan.case for scan in group}),
            "scans": len(group),
            "slices": sum(scan.shape[0] for scan in group),
        }
        for ((height, width), spacing), group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def organ_rows(scans: list[ScanFacts]) -> list[dict]:
    """A row an organ: scans and slices that show it, their share, and median, lowest and highest volume in ml."""
    contoured = [scan for scan in scans if scan.contours is not None]
    total = sum(scan.shape[0] for scan in contoured)
    rows = []
    for k, organ in enumerate(ORGANS):
        volumes = [scan.volumes_ml[k] for scan in contoured if scan.volumes_ml[k] > 0]
        if volumes:
            slices = sum(int((scan.contours.areas[k] > 0).sum()) for scan in contoured)
            rows.append(
                {"organ": organ, "scans": len(volumes), "slices": slices, "share": slices / total}
                | {"median": np.median(volumes), "low": min(volumes), "high": max(volumes)}
            )
    return rows


def fold_rows(scans: list[ScanFacts]) -> list[dict]:
    """A row a fold of a dataset: patients, scans, slices, and for each organ the share of the slices that show it."""
    rows = []
    for fold in sorted({scan.fold for scan in scans if scan.contours is not None and scan.fold is not None}):
        own = [scan for scan in scans if scan.fold == fold]
        slices = sum(scan.shape[0] for scan in own)
        shares = sum((scan.contours.areas > 0).sum(axis=1) for scan in own) / slices
        rows.append(
            {"fold": fold, "patients": len({scan.case for scan in own}), "scans": len(own), "slices": slices}
            | dict(zip(ORGANS, map(float, shares), strict=True))
        )
    return rows
