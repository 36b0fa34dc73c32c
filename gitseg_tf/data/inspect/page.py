"""The dataset check as one HTML file that needs no network."""

import base64
from collections.abc import Callable

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from gitseg_tf.data.dataset import Dataset
from gitseg_tf.data.inspect.facts import ScanFacts, ScanVoxels
from gitseg_tf.data.inspect.findings import SEVERITIES, Finding, ranges
from gitseg_tf.data.inspect.inspection import Inspection, fold_rows, geometry_rows, organ_rows
from gitseg_tf.data.inspect.source import Unreadable, each_scan
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.files import AnyPath, as_path, write_atomically
from gitseg_tf.pages import INK, chart, organ_style, outline, page_environment

# Pictures take 20 kB each: a page of a large cohort stays below 5 MB.
FLAGGED, TYPICAL, SLICES = 24, 2, 6
BINS = 48


def write_page(inspection: Inspection, path: AnyPath | str) -> None:
    """Write what was found, with pictures of the odd slices and of a few typical scans.

    Args:
        inspection: from `inspect_data`; the scans to show are read again.
        path: the file; what was there is replaced, whole or not at all.

    Raises:
        OSError: the file cannot be written.
        InputError: a damaged shard.
    """
    scans, source = inspection.scans, inspection.source
    flagged, hidden = _flagged(inspection)
    galleries = _pictures(inspection, flagged | _typical(inspection))
    html = page_environment("gitseg_tf.data.inspect").get_template("page.html.j2").render(
        title=f"Dataset check: {source.root.resolve().name}",
        kind="Dataset" if isinstance(source, Dataset) else "Cohort",
        patients=len({scan.case for scan in scans}),
        scans=len(scans),
        contoured=sum(scan.contours is not None for scan in scans),
        slices=sum(scan.shape[0] for scan in scans),
        counts=inspection.counts,
        findings=[(finding, ranges(finding.slices)) for finding in inspection.findings],
        geometries=geometry_rows(scans),
        organs=organ_rows(scans),
        folds=fold_rows(scans),
        presence=_presence(scans),
        charts=_charts(inspection),
        flagged=[galleries[scan] for scan in flagged if scan in galleries],
        hidden=hidden,
        typical=[gallery for scan, gallery in galleries.items() if scan not in flagged],
    )  # fmt: skip
    write_atomically(as_path(path), html.encode())


def _flagged(inspection: Inspection) -> tuple[dict[str, list[int]], int]:
    """Slice indices to show of the scans with errors and warnings, the worst scans first; and how many are left out."""
    by_scan: dict[str, list[Finding]] = {}
    for finding in inspection.findings:
        if finding.severity != "note":
            by_scan.setdefault(finding.scan, []).append(finding)
    facts = {scan.id: scan for scan in inspection.scans}
    order = sorted(by_scan.keys() & facts.keys(), key=lambda s: (SEVERITIES.index(by_scan[s][0].severity), s))
    chosen = {scan: _odd_slices(facts[scan], by_scan[scan]) for scan in order[:FLAGGED]}
    return chosen, len(order) - len(chosen)


def _odd_slices(scan: ScanFacts, found: list[Finding]) -> list[int]:
    """A few from each finding, so that none is left out."""
    index = {number: z for z, number in enumerate(scan.numbers)}
    places = [[index[n] for n in f.slices if n in index] for f in found]
    lists = [_spread(p, max(2, SLICES // sum(map(bool, places)))) for p in places if p]
    odd = list(dict.fromkeys(z for chosen in sorted(lists, key=len) for z in chosen))
    return sorted(odd[:SLICES]) or _usual_slices(scan)


def _usual_slices(scan: ScanFacts) -> list[int]:
    if scan.contours is not None and scan.contours.areas.any():
        return _spread(np.flatnonzero(scan.contours.areas.any(axis=0)).tolist(), SLICES)
    return _spread(list(range(scan.shape[0])), SLICES)


def _spread(items: list[int], count: int) -> list[int]:
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def _typical(inspection: Inspection) -> dict[str, list[int]]:
    """Scans of different patients, without error or warning, whose organ volumes are nearest to the medians."""
    odd = {finding.scan for finding in inspection.findings if finding.severity != "note"}
    good = [scan for scan in inspection.scans if scan.id not in odd]
    if not good:
        return {}
    logs = np.log1p([scan.volumes_ml for scan in good])
    distance = np.abs(logs - np.median(logs, axis=0)).sum(axis=1)
    nearest = {good[i].case: good[i] for i in np.argsort(-distance, kind="stable")}
    return {scan.id: _usual_slices(scan) for scan in list(nearest.values())[::-1][:TYPICAL]}


def _pictures(inspection: Inspection, slices: dict[str, list[int]]) -> dict[str, dict]:
    facts = {scan.id: scan for scan in inspection.scans}

    def draw(scan: ScanVoxels) -> dict:
        low, high = facts[scan.id].percentiles[[1, 9]]
        found = [finding for finding in inspection.findings if finding.scan == scan.id]
        return {"scan": scan.id, "findings": found, "pictures": [_picture(scan, z, low, high) for z in slices[scan.id]]}

    drawn = each_scan(inspection.source, draw, "pictures", slices.keys()) if slices else ()
    return {gallery["scan"]: gallery for gallery in drawn if not isinstance(gallery, Unreadable)}


def _picture(scan: ScanVoxels, z: int, low: float, high: float) -> dict:
    grey = (np.clip((scan.image[z] - low) / max(high - low, 1), 0, 1) * 255).astype(np.uint8)
    encoded = cv2.imencode(".jpg", grey, (cv2.IMWRITE_JPEG_QUALITY, 85))[1].tobytes()
    outlines = {} if scan.masks is None else dict(zip(ORGANS, map(outline, scan.masks[:, z]), strict=True))
    return {
        "number": scan.numbers[z],
        "width": grey.shape[1],
        "height": grey.shape[0],
        "jpeg": base64.b64encode(encoded).decode("ascii"),
        "outlines": outlines,
    }


def _presence(scans: list[ScanFacts]) -> dict[str, list[float]]:
    """For each organ the share of the scans that show it, in steps from the first slice to the last."""
    contoured = [scan for scan in scans if scan.contours is not None]
    if not contoured:
        return {}
    places = (np.arange(BINS) + 0.5) / BINS
    shown = [scan.contours.areas[:, (places * scan.shape[0]).astype(int)] > 0 for scan in contoured]
    return dict(zip(ORGANS, np.mean(shown, axis=0).tolist(), strict=True))


def _charts(inspection: Inspection) -> list[dict]:
    scans = inspection.scans
    if not scans:
        return []
    drawn: dict[str, Callable[[Axes], None]] = {
        "Intensities of every scan: 1% to 99%, 25% to 75%, median": lambda axes: _draw_intensities(axes, scans)
    }
    if any(scan.volumes_ml.any() for scan in scans):
        drawn["Organ volumes in ml, a point a scan; scans with an odd one are named"] = lambda axes: _draw_volumes(
            axes, inspection
        )
    return [chart(title, draw) for title, draw in drawn.items()]


def _draw_intensities(axes: Axes, scans: list[ScanFacts]) -> None:
    places = np.arange(len(scans))
    percentiles = np.array([scan.percentiles for scan in scans])
    width = float(np.clip(120 / len(scans), 0.6, 6))
    axes.vlines(places, percentiles[:, 2], percentiles[:, 8], color=INK, alpha=0.25, linewidth=width)
    axes.vlines(places, percentiles[:, 4], percentiles[:, 6], color="#2a78d6", alpha=0.8, linewidth=width)
    axes.scatter(places, percentiles[:, 5], s=8, color=INK, linewidths=0, zorder=3)
    axes.set(xlabel="scan, in the order of the ids", ylabel="stored value", ylim=(0, None))
    axes.set_xticks([])
    axes.grid(axis="x", visible=False)


def _draw_volumes(axes: Axes, inspection: Inspection) -> None:
    jitter = np.random.default_rng(0)
    odd = {finding.scan for finding in inspection.findings if finding.check == "odd volume"}
    for place, organ in enumerate(ORGANS):
        for scan in inspection.scans:
            volume = scan.volumes_ml[place]
            if volume > 0:
                y = place + jitter.uniform(-0.22, 0.22)
                axes.scatter(volume, y, s=22, alpha=0.8, linewidths=0, color=organ_style(organ)["color"])
                if scan.id in odd:
                    axes.annotate(scan.id, (volume, y), (3, 3), textcoords="offset points", fontsize=7.5, color=INK)
    axes.set_yticks(range(len(ORGANS)), [organ.replace("_", " ") for organ in ORGANS])
    axes.set_ylim(len(ORGANS) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", visible=False)
