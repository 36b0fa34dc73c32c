"""Inspect a dataset: read and measure every scan once, and report anomalies."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Cohort
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.html.pages import MOST_LABELS
from gitseg_tf.inspection import contour_checks, findings
from gitseg_tf.inspection.contour_fit import LEAST_PIXELS
from gitseg_tf.inspection.findings import COHORT, SEVERITIES, Finding, Severity
from gitseg_tf.inspection.measurements import ScanFacts, measure
from gitseg_tf.inspection.source import Unreadable, each_scan, open_source
from gitseg_tf.labels import LabelSet


@dataclass(frozen=True)
class Inspection:
    """Measurements and findings of a cohort or dataset.

    Attributes:
        source: the inspected cohort or dataset.
        scans: measurements of the readable scans, in the order of the source.
        findings: anomalies; errors first, then warnings, then notes.
    """

    source: Cohort | Dataset
    scans: list[ScanFacts]
    findings: list[Finding]

    @property
    def labels(self) -> LabelSet:
        """The labels of the source."""
        return self.source.labels

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings by severity."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity: counted[severity] for severity in SEVERITIES}

    def counted(self, *severities: Severity) -> str:
        """Format the number of findings: "1 error, 2 warnings"."""
        return ", ".join(f"{self.counts[s]} {s}{'' if self.counts[s] == 1 else 's'}" for s in severities)


def inspect_data(root: str | Path, **reading) -> Inspection:
    """Inspect a cohort or a dataset.

    An unreadable scan becomes a finding and does not stop the inspection. At most one scan per core is in memory.

    Args:
        root: a cohort for `read_cohort`, or a folder that `gitseg convert` wrote.
        **reading: how to read a cohort, see `read_cohort`: labels, missing and structure_set.

    Returns:
        Measurements and findings.

    Raises:
        DataError: nothing readable at the path, or a damaged shard.
    """
    source = open_source(root, **reading)
    results = list(each_scan(source, measure, "inspect"))
    scans = [result for result in results if isinstance(result, ScanFacts)]
    unreadable = [result for result in results if isinstance(result, Unreadable)]
    if isinstance(source, Cohort):
        unreadable += [Unreadable(name, reason) for name, reason in source.broken]
    all_findings = [
        *findings.unreadable_scans(unreadable),
        *(findings.left_aside(source) if isinstance(source, Cohort) else findings.pseudo_labels(source)),
        *find(scans, source.labels),
    ]
    all_findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.scan))
    return Inspection(source, scans, all_findings)


def find(scans: list[ScanFacts], labels: LabelSet) -> Iterator[Finding]:
    """Run all checks, on each scan and across scans.

    Args:
        scans: measurements of the scans of a cohort.
        labels: the labels of their contours.

    Returns:
        Iterator over the findings, not sorted by severity.
    """
    # A copy is attributed to the first scan by id, whatever the order of the source.
    scans = sorted(scans, key=lambda scan: scan.id)
    contoured = [scan for scan in scans if scan.contours is not None]
    for scan in contoured:
        for check in contour_checks.ALONE:
            yield from check(scan, labels)
    for check_together in contour_checks.TOGETHER:
        yield from check_together(contoured, labels)
    for scan in scans:
        yield from findings.blank_slices(scan)
        yield from findings.missing_slices(scan)
        yield from findings.unread_contours(scan)
    yield from findings.repeated_images(scans)
    yield from findings.odd_intensities(scans)
    yield from findings.unannotated_scans(scans)
    yield from findings.unannotated_labels(contoured, labels)
    yield from findings.unbalanced_folds(scans, labels)
    if small := sum(min(scan.shape[1:]) < LEAST_PIXELS for scan in contoured):
        having = "has" if small == 1 else "have"
        text = f"{plural(small, 'scan')} {having} slices less than {LEAST_PIXELS} pixels high or wide"
        yield Finding("note", "small slices", "", (), f"{text}; whether their contours fit the image is not checked")
    whole = sum(scan.shape[0] >= contour_checks.WHOLE for scan in contoured)
    if contoured and whole < COHORT:
        having = "has" if whole == 1 else "have"
        text = f"{plural(whole, 'scan')} with contours {having} {contour_checks.WHOLE} slices or more"
        yield Finding(
            "note", "small cohort", "", (), f"{text}; positions and volumes are compared only if {COHORT} or more do"
        )


def summary_lines(inspection: Inspection, most: int = 40) -> list[str]:
    """Summarize an inspection as text.

    Args:
        inspection: from `inspect_data`.
        most: maximum number of findings to list; the others are only counted.

    Returns:
        Lines: counts, geometries, intensities, labels, folds, findings.
    """
    scans, labels = inspection.scans, inspection.labels
    contoured = sum(scan.contours is not None for scan in scans)
    kind = "dataset" if isinstance(inspection.source, Dataset) else "cohort"
    counts = (len({s.case for s in scans}), "patient"), (len(scans), "scan"), (sum(s.shape[0] for s in scans), "slice")
    lines = [f"{kind:10s} {inspection.source.root}: {', '.join(plural(*count) for count in counts)}"]
    for row in geometry_rows(scans):
        lines.append(f"geometry   {row['size']} pixels, {row['spacing']} mm: {plural(row['scans'], 'scan')}")
    lines += _intensity_lines(scans)
    for row in label_rows(scans, labels):
        having = plural(row["scans"], "scan")
        if row["annotated"] < contoured:
            having = f"{row['scans']} of {plural(row['annotated'], 'annotated scan')}"
        lines.append(
            f"label      {row['label'].title}: {having}, {plural(row['slices'], 'slice')}, "
            f"median {row['median']:.0f} ml ({row['low']:.0f} to {row['high']:.0f})"
        )
    for row in fold_rows(scans, labels):
        shares = zip(labels, row["shares"], strict=True)
        listed = ", ".join(f"{label.title} {share:.0%}" for label, share in shares if np.isfinite(share))
        in_words = f": {listed}" if len(labels) <= MOST_LABELS else ""
        lines.append(
            f"fold {row['fold']}     {plural(row['patients'], 'patient')}, {plural(row['scans'], 'scan')}, "
            f"{plural(row['slices'], 'slice')}{in_words}"
        )
    shown = inspection.findings[:most]
    lines += [f"{finding.severity:10s} {finding.check}: {finding.place or kind}: {finding.text}" for finding in shown]
    if len(inspection.findings) > most:
        lines.append(f"...        and {len(inspection.findings) - most} more")
    return [*lines, f"findings   {inspection.counted(*SEVERITIES)}"]


def _intensity_lines(scans: list[ScanFacts]) -> Iterator[str]:
    channels = min((len(scan.percentiles) for scan in scans), default=0)
    for c in range(channels):
        values = np.median([scan.percentiles[c, [2, 5, 8]] for scan in scans], axis=0)
        of = "" if channels == 1 else f" of channel {c + 1}"
        low, middle, high = map(findings.amount, values.tolist())
        yield f"intensity  1st, 50th and 99th percentiles{of}, median over scans: {low}, {middle}, {high}"


def geometry_rows(scans: list[ScanFacts]) -> list[dict]:
    """Tabulate the geometries, the most frequent first: size, spacing, patients, scans, slices."""
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


def label_rows(scans: list[ScanFacts], labels: LabelSet) -> list[dict]:
    """Tabulate the labels that occur in any scan.

    Args:
        scans: measurements of scans with or without contours.
        labels: the labels of the contours.

    Returns:
        One row per label: label; annotated (the number of scans in which it is annotated); scans and slices that show
        it; share (fraction of the slices of the annotated scans); median, low and high (volume in ml, over the scans
        that show it).
    """
    rows = []
    for k, label in enumerate(labels):
        annotated = [scan for scan in scans if scan.contours is not None and scan.contours.annotated[k]]
        volumes = [scan.volumes_ml[k] for scan in annotated if scan.volumes_ml[k] > 0]
        if volumes:
            slices = sum(int((scan.contour_facts.areas[k] > 0).sum()) for scan in annotated)
            rows.append(
                {"label": label, "annotated": len(annotated), "scans": len(volumes), "slices": slices}
                | {"share": slices / sum(scan.shape[0] for scan in annotated)}
                | {"median": np.median(volumes), "low": min(volumes), "high": max(volumes)}
            )
    return rows


def fold_rows(scans: list[ScanFacts], labels: LabelSet) -> list[dict]:
    """Tabulate the folds of a dataset.

    Args:
        scans: measurements of the scans of a dataset.
        labels: the labels of their contours.

    Returns:
        One row per fold: fold; patients, scans and slices; shares (for each label the fraction of the annotated slices
        that show it, NaN if it is annotated in no scan).
    """
    rows = []
    for fold in sorted({scan.fold for scan in scans if scan.contours is not None and scan.fold is not None}):
        members = [scan for scan in scans if scan.fold == fold]
        slices = np.array([scan.shape[0] for scan in members])
        shown = np.array([(scan.contour_facts.areas > 0).sum(axis=1) for scan in members])
        annotated = slices @ np.array([scan.contour_facts.annotated for scan in members])
        shares = np.where(annotated > 0, shown.sum(axis=0) / np.maximum(annotated, 1), np.nan)
        rows.append(
            {"fold": fold, "patients": len({scan.case for scan in members}), "scans": len(members)}
            | {"slices": int(slices.sum()), "shares": shares.tolist()}
        )
    return rows
