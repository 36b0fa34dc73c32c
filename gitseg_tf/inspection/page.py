"""The inspection as a self-contained HTML file."""

import base64
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from gitseg_tf.core.paths import AnyPath, as_path, write_atomically
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.volume import LoadedScan
from gitseg_tf.html.pages import INK, MOST_LABELS, chart, outline, page_environment, short_title, to_gray
from gitseg_tf.inspection.findings import SEVERITIES, Finding, ranges
from gitseg_tf.inspection.inspect import Inspection, fold_rows, geometry_rows, label_rows
from gitseg_tf.inspection.measurements import ScanFacts
from gitseg_tf.inspection.source import Unreadable, each_scan
from gitseg_tf.labels import LabelSet

# An image takes about 20 kB, so that the page of a large cohort stays below 5 MB.
FLAGGED, TYPICAL, SLICES = 24, 2, 6
BINS = 48


def write_page(inspection: Inspection, path: AnyPath | str) -> None:
    """Write the findings, with images of the suspicious slices and of a few typical scans.

    Args:
        inspection: from `inspect_data`; the scans to show are read again.
        path: the file; an existing one is replaced atomically.

    Raises:
        OSError: the file cannot be written.
        DataError: a damaged shard.
    """
    scans, source, labels = inspection.scans, inspection.source, inspection.labels
    charted = _charted(inspection)
    flagged, hidden = _flagged(inspection)
    galleries = _pictures(inspection, flagged | _typical(inspection))
    html = page_environment("gitseg_tf.inspection", labels).get_template("page.html.j2").render(
        title=f"Dataset check: {source.root.resolve().name}",
        kind="Dataset" if isinstance(source, Dataset) else "Cohort",
        patients=len({scan.case for scan in scans}),
        scans=len(scans),
        contoured=sum(scan.contours is not None for scan in scans),
        slices=sum(scan.shape[0] for scan in scans),
        counts=inspection.counts,
        findings=[(finding, ranges(finding.slices)) for finding in inspection.findings],
        geometries=geometry_rows(scans),
        label_rows=label_rows(scans, labels),
        folds=fold_rows(scans, labels),
        presence=_presence(scans, labels),
        charts=_charts(inspection, charted),
        charted=len(charted),
        flagged=[galleries[scan] for scan in flagged if scan in galleries],
        hidden=hidden,
        typical=[gallery for scan, gallery in galleries.items() if scan not in flagged],
    )  # fmt: skip
    write_atomically(as_path(path), html.encode())


def _flagged(inspection: Inspection) -> tuple[dict[str, list[int]], int]:
    """Choose slices of the scans with errors and warnings, worst scans first, and count the scans left out."""
    by_scan: dict[str, list[Finding]] = {}
    for finding in inspection.findings:
        if finding.severity != "note" and finding.scan:
            by_scan.setdefault(finding.scan, []).append(finding)
    facts = {scan.id: scan for scan in inspection.scans}
    order = sorted(by_scan.keys() & facts.keys(), key=lambda s: (SEVERITIES.index(by_scan[s][0].severity), s))
    chosen = {scan: _odd_slices(facts[scan], by_scan[scan]) for scan in order[:FLAGGED]}
    return chosen, len(order) - len(chosen)


def _odd_slices(scan: ScanFacts, findings: list[Finding]) -> list[int]:
    """Choose a few slices of each finding, so that every finding is represented."""
    index = {number: z for z, number in enumerate(scan.numbers)}
    slices = [[index[n] for n in finding.slices if n in index] for finding in findings]
    lists = [_spread(group, max(2, SLICES // sum(map(bool, slices)))) for group in slices if group]
    odd = list(dict.fromkeys(z for chosen in sorted(lists, key=len) for z in chosen))
    return sorted(odd[:SLICES]) or _usual_slices(scan)


def _usual_slices(scan: ScanFacts) -> list[int]:
    if scan.contours is not None and scan.contours.areas.any():
        return _spread(np.flatnonzero(scan.contours.areas.any(axis=0)).tolist(), SLICES)
    return _spread(list(range(scan.shape[0])), SLICES)


def _spread(items: list[int], count: int) -> list[int]:
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def _typical(inspection: Inspection) -> dict[str, list[int]]:
    """Choose scans of different patients, without errors or warnings, whose label volumes are nearest the medians."""
    odd = {finding.scan for finding in inspection.findings if finding.severity != "note"}
    good = [scan for scan in inspection.scans if scan.id not in odd]
    if not good:
        return {}
    # Unannotated labels and scans without contours count as lying at the median.
    count = len(inspection.labels)
    logs = np.array([np.where(s.contours.annotated, np.log1p(s.volumes_ml), np.nan) if s.contours else [np.nan] * count
                     for s in good])  # fmt: skip
    known = np.isfinite(logs).any(axis=0)
    medians = np.zeros(count)
    medians[known] = np.nanmedian(logs[:, known], axis=0)
    distance = np.nan_to_num(np.abs(logs - medians)).sum(axis=1)
    nearest = {good[i].case: good[i] for i in np.argsort(-distance, kind="stable")}
    return {scan.id: _usual_slices(scan) for scan in list(nearest.values())[::-1][:TYPICAL]}


def _pictures(inspection: Inspection, slices: dict[str, list[int]]) -> dict[str, dict]:
    facts = {scan.id: scan for scan in inspection.scans}

    def draw(scan: LoadedScan) -> dict:
        shades = tuple(facts[scan.id].percentiles[0, [1, 9]])
        of_scan = [finding for finding in inspection.findings if finding.scan == scan.id]
        pictures = [_picture(scan, z, shades, inspection.labels) for z in slices[scan.id]]
        return {"scan": scan.id, "findings": of_scan, "pictures": pictures}

    galleries = each_scan(inspection.source, draw, "pictures", slices.keys()) if slices else ()
    return {gallery["scan"]: gallery for gallery in galleries if not isinstance(gallery, Unreadable)}


def _picture(scan: LoadedScan, z: int, shades: tuple[float, float], labels: LabelSet) -> dict:
    gray = to_gray(scan.volume.with_channels[z, ..., 0], *map(float, shades))
    encoded = cv2.imencode(".jpg", gray, (cv2.IMWRITE_JPEG_QUALITY, 85))[1].tobytes()
    masks = () if scan.annotation is None else scan.annotation.masks[:, z]
    outlines = {name: outline(mask) for name, mask in zip(labels.names, masks, strict=False) if mask.any()}
    return {
        "number": scan.volume.numbers[z],
        "width": gray.shape[1],
        "height": gray.shape[0],
        "jpeg": base64.b64encode(encoded).decode("ascii"),
        "outlines": outlines,
    }


def _presence(scans: list[ScanFacts], labels: LabelSet) -> dict[str, list[float]]:
    """Compute for each label the fraction of annotated scans that show it, in bins from the first to the last slice."""
    positions = (np.arange(BINS) + 0.5) / BINS
    presence = {}
    for k, name in enumerate(labels.names):
        shown = [
            scan.contours.areas[k, (positions * scan.shape[0]).astype(int)] > 0
            for scan in scans
            if scan.contours is not None and scan.contours.annotated[k]
        ]
        if shown:
            presence[name] = np.mean(shown, axis=0).tolist()
    return presence


def _charted(inspection: Inspection) -> LabelSet:
    """Choose the labels for the chart of volumes: if there are many, those whose volumes vary most."""
    labels = inspection.labels
    if len(labels) <= MOST_LABELS:
        return labels
    volumes = np.array([scan.volumes_ml for scan in inspection.scans if scan.contours is not None])
    spread = [
        float(np.std(np.log(column[column > 0]))) if (column > 0).any() else -1.0
        for column in volumes.reshape(-1, len(labels)).T
    ]
    chosen = sorted(np.argsort(-np.array(spread), kind="stable")[:MOST_LABELS].tolist())
    return labels.subset(labels.names[k] for k in chosen)


def _charts(inspection: Inspection, charted: LabelSet) -> list[dict]:
    scans = inspection.scans
    if not scans:
        return []
    channels = min(len(scan.percentiles) for scan in scans)
    charts: dict[str, Callable[[Axes], None]] = {}
    for c in range(channels):
        of = "" if channels == 1 else f" in channel {c + 1}"
        title = f"Intensities of every scan{of}: percentiles 1 to 99, 25 to 75, and the median"
        charts[title] = partial(_draw_intensities, scans=scans, channel=c)
    if any(scan.volumes_ml.any() for scan in scans):
        title = "Label volumes in ml, one point per scan; scans with an unusual one are named"
        charts[title] = lambda axes: _draw_volumes(axes, inspection, charted)
    return [chart(title, draw) for title, draw in charts.items()]


def _draw_intensities(axes: Axes, scans: list[ScanFacts], channel: int) -> None:
    positions = np.arange(len(scans))
    percentiles = np.array([scan.percentiles[channel] for scan in scans])
    width = float(np.clip(120 / len(scans), 0.6, 6))
    axes.vlines(positions, percentiles[:, 2], percentiles[:, 8], color=INK, alpha=0.25, linewidth=width)
    axes.vlines(positions, percentiles[:, 4], percentiles[:, 6], color="#2a78d6", alpha=0.8, linewidth=width)
    axes.scatter(positions, percentiles[:, 5], s=8, color=INK, linewidths=0, zorder=3)
    axes.set(xlabel="scans, ordered by ID", ylabel="intensity")
    if percentiles[:, 2].min() >= 0:
        axes.set_ylim(0, None)
    axes.set_xticks([])
    axes.grid(axis="x", visible=False)


def _draw_volumes(axes: Axes, inspection: Inspection, charted: LabelSet) -> None:
    jitter = np.random.default_rng(0)
    odd = {finding.scan for finding in inspection.findings if finding.check == "unusual volume"}
    contoured = [scan for scan in inspection.scans if scan.contours is not None]
    for row, label in enumerate(charted):
        k = inspection.labels.index(label.name)
        for scan in contoured:
            volume = scan.volumes_ml[k]
            if volume > 0:
                y = row + jitter.uniform(-0.22, 0.22)
                axes.scatter(volume, y, s=22, alpha=0.8, linewidths=0, color=label.hex_color)
                if scan.id in odd:
                    axes.annotate(scan.id, (volume, y), (3, 3), textcoords="offset points", fontsize=7.5, color=INK)
    axes.set_yticks(range(len(charted)), [short_title(label) for label in charted])
    axes.set_ylim(len(charted) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", visible=False)
