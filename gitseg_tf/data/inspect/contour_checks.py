"""Scans whose contours are implausible: shifted, flipped, exchanged, copied, lost, in air, or those of another scan.

Limits are absolute where anatomy or geometry gives them, and robust z-scores where only the cohort tells what is usual.
The documentation of the dataset check says how many damaged scans they find.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from gitseg_tf.data.inspect.contour_fit import REACH, ContourFit
from gitseg_tf.data.inspect.facts import ScanFacts
from gitseg_tf.data.inspect.findings import COHORT, Finding, robust_z
from gitseg_tf.data.scans import ORGANS

NAMES = [organ.replace("_", " ") for organ in ORGANS]
STOMACH, BOWEL = ORGANS.index("stomach"), [k for k, organ in enumerate(ORGANS) if organ != "stomach"]

# On real slices, one to four at a time: 1.35 to 2.3; on drawn scans: 1.5 to 1.9; contours of others: up to 1.12.
UNRELATED, DOUBTFUL, DOUBTFUL_BLOCK = 1.15, 1.25, 1.2
# Two steps of the search, and more than chance: a block of a good drawn scan gains 2 % at the most.
LEAST_SHIFT, LEAST_GAIN, LARGE_GAIN = 6, 1.12, 1.3
LEAST_SHIFT_Z = 2
# Contrast that moved contours must reach for the move to be the explanation.
EXPLAINED = 1.3
# Findings of a kind to list for one scan.
MOST = 4
# The fit is a mean over outlines: on fewer slices chance decides.
FIT_SLICES = 8
# Fewer slices are a piece of a scan: volumes and places in it say nothing.
WHOLE = 20


def outside_body(scan: ScanFacts) -> Iterator[Finding]:
    """Contours that lie in air."""
    areas, outside = scan.contours.areas, scan.contours.outside
    for k, name in enumerate(NAMES):
        share = outside[k].sum() / areas[k].sum() if areas[k].any() else 0
        slices = _numbers(scan, outside[k] > np.maximum(0.05 * areas[k], 100))
        if share > 0.01 and slices:
            severity = "error" if share > 0.2 else "warning"
            text = f"{share:.0%} of the {name} lies outside of the body; none should"
            yield Finding(severity, "outside body", scan.id, slices, text)


def poor_fit(scan: ScanFacts) -> Iterator[Finding]:
    """Contours that do not follow what the image shows, or would if they were moved."""
    fits = [fit for fit in scan.contours.fits if fit.slices >= FIT_SLICES]
    whole = [finding for fit in fits[:1] for finding in _misfit(scan, fit, DOUBTFUL, "")]
    # What holds for the whole scan need not be said of each of its parts.
    yield from whole or (f for fit in fits[1:] for f in _misfit(scan, fit, DOUBTFUL_BLOCK, " here"))


def _misfit(scan: ScanFacts, fit: ContourFit, limit: float, where: str) -> Iterator[Finding]:
    slices = tuple(scan.numbers[fit.first : fit.last + 1])
    dy, dx = fit.shift
    # A best place at the end of the search is none: beyond it may be a better one, often the skin.
    in_plane = LEAST_SHIFT <= max(abs(dy), abs(dx)) < REACH and fit.gain >= fit.gain_z
    gain = fit.gain if in_plane else fit.gain_z if abs(fit.shift_z) >= LEAST_SHIFT_Z else 1.0
    if gain >= LEAST_GAIN and gain * fit.contrast >= EXPLAINED:
        moves = [f"{abs(n)} pixels {way[n > 0]}" for n, way in ((dy, ("up", "down")), (dx, ("left", "right"))) if n]
        along = f"{abs(fit.shift_z)} slices {'higher' if fit.shift_z > 0 else 'lower'}"
        move = " and ".join(moves) if in_plane else along
        text = f"the contours{where} would fit the image {gain - 1:.0%} better {move}"
        severity = "error" if gain >= LARGE_GAIN else "warning"
        check = "shifted" if in_plane else "offset along z"
        yield Finding(severity, check, scan.id, slices, f"{text}; usual is a gain below 2%")
    elif fit.contrast < limit:
        severity = "error" if fit.contrast < UNRELATED and not where else "warning"
        text = (
            f"the image changes along the contours{where} {fit.contrast:.2f} times as much as along moved copies; "
            "usual is 1.3 to 2.3, and 1 for contours that have nothing to do with the image"
        )
        yield Finding(severity, "poor fit", scan.id, slices, text)


def jumps(scan: ScanFacts) -> Iterator[Finding]:
    """Contours that move, change places or change altogether from one slice to the next."""
    steps = scan.contours.steps
    distance, undone = np.hypot(*steps.shift.T), steps.overlap + steps.gain
    moved = (steps.gain > 0.1) & (undone > 0.6) & (distance > 6) & (steps.area > 200)
    exchanged = steps.exchange > 0.5
    broken = (steps.overlap < 0.4) & (steps.area > 1500) & ~moved & ~exchanged
    for z, more in _first(moved):
        text = f"between these slices all contours move {distance[z]:.0f} mm together; undone, they overlap"
        text += f" {undone[z]:.2f} instead of {steps.overlap[z]:.2f} (Dice)"
        yield Finding("warning", "jump", scan.id, tuple(scan.numbers[z : z + 2]), text + more)
    for z, more in _first(broken):
        usual = np.nanmedian(steps.overlap)
        text = f"the contours of these slices overlap {steps.overlap[z]:.2f} (Dice); the scan's median is {usual:.2f}"
        yield Finding("warning", "jump", scan.id, tuple(scan.numbers[z : z + 2]), text + more)
    for z, more in _first(exchanged):
        a, b = (NAMES[k] for k in steps.exchanged[z])
        text = f"{a} and {b} change places between these slices: exchanged, they overlap {steps.exchange[z]:.2f} better"
        yield Finding("warning", "exchanged", scan.id, tuple(scan.numbers[z : z + 2]), text + more)


def _first(places: np.ndarray) -> Iterator[tuple[int, str]]:
    """The first few places where something is, and with the last of them how many more there are."""
    where = np.flatnonzero(places)
    for i, z in enumerate(where[:MOST]):
        yield int(z), f"; so at {len(where) - MOST} more places" if i == MOST - 1 and len(where) > MOST else ""


def interruptions(scan: ScanFacts) -> Iterator[Finding]:
    """Organs that end and begin again, and slices of an organ that stand alone."""
    for k, name in enumerate(NAMES):
        shown = np.flatnonzero(scan.contours.areas[k] > 0)
        runs = np.split(shown, np.flatnonzero(np.diff(shown) > 1) + 1)
        if len(runs) < 2:
            continue
        largest = max(runs, key=len)
        alone = [z for run in runs for z in run if len(run) <= 2 and len(largest) >= 8]
        if alone:
            text = f"the {name} is on {len(alone)} slices apart from its other {shown.size - len(alone)}"
            yield Finding("warning", "stands alone", scan.id, _at(scan, alone), text)
        for a, b in pairwise(runs):
            if len(a) > 2 and len(b) > 2:
                gap = range(a[-1] + 1, b[0])
                severity = "warning" if len(gap) <= 5 else "note"
                text = f"the {name} is missing on {len(gap)} slices and is there before and after"
                yield Finding(severity, "interrupted", scan.id, _at(scan, gap), text)


def repeated_contours(scans: list[ScanFacts]) -> Iterator[Finding]:
    """Masks that are the same, pixel by pixel, on several slices, for several organs or in several scans."""
    owners = defaultdict(list)
    for scan in scans:
        for (k, z), digest in scan.contours.digests.items():
            owners[scan.shape[1:], digest].append((scan, k, z))
    on_slices, of_organs, between = defaultdict(set), defaultdict(set), defaultdict(set)
    for group in owners.values():
        first = group[0][0]
        for scan in {scan.id: scan for scan, _, _ in group}.values():
            own = [(k, z) for other, k, z in group if other is scan]
            if _repeats(sorted({z for _, z in own})):
                on_slices[scan.id, own[0][0]] |= {z for _, z in own}
            of_organs[scan.id] |= {z for _, z in own if len({k for k, at in own if at == z}) > 1}
        # The same pixels in both scans are a repeated image, which is said elsewhere.
        images = {first.image_digests[z] for scan, _, z in group if scan is first}
        for scan, k, z in group:
            if scan is not first and scan.image_digests[z] not in images and scan.contours.areas[k, z] > 200:
                between[scan.id, first.id].add(z)
    by_id = {scan.id: scan for scan in scans}
    for (scan_id, k), slices in on_slices.items():
        text = f"the contour of the {NAMES[k]} is, pixel by pixel, that of another of these slices"
        yield Finding("warning", "repeated contour", scan_id, _at(by_id[scan_id], slices), text)
    for scan_id, slices in of_organs.items():
        if slices:
            text = "two organs have the same contour, pixel by pixel"
            yield Finding("warning", "repeated contour", scan_id, _at(by_id[scan_id], slices), text)
    for (scan_id, other), slices in between.items():
        if len(slices) > 1:
            text = f"the contours of {len(slices)} slices are, pixel by pixel, those of {other} on another image"
            most = 2 * len(slices) >= len({z for _, z in by_id[scan_id].contours.digests})
            severity = "error" if most else "warning"
            yield Finding(severity, "repeated contour", scan_id, _at(by_id[scan_id], slices), text)


def _repeats(slices: list[int]) -> bool:
    """One contour on two neighbouring slices is a habit of contouring; on three, or on two apart, it is a copy."""
    return len(slices) > 2 or (len(slices) == 2 and slices[1] - slices[0] > 2)


def wrong_places(scans: list[ScanFacts]) -> Iterator[Finding]:
    """Organs that lie elsewhere than in the cohort: mirrored, upside down, in the wrong order."""
    scans = [scan for scan in scans if scan.shape[0] >= WHOLE]
    if len(scans) < COHORT:
        return
    centres = np.array([scan.contours.centres for scan in scans])
    side = centres[:, STOMACH, 2]
    order = _mean_known(centres[:, BOWEL, 0]) - centres[:, STOMACH, 0]
    for what, check, values in (
        ("the stomach is {:.0f} mm on the other side of the body's middle; its usual place is {:.0f} mm on this side",
         "mirrored", side),
        ("the stomach's centre is {:.0f} mm on the wrong side of the bowel's along z; usual are {:.0f} mm on the other",
         "wrong order", order),
    ):  # fmt: skip
        usual = np.nanmedian(values) if np.isfinite(values).any() else 0.0
        if abs(usual) < 10:
            continue
        for scan, value in zip(scans, values * np.sign(usual), strict=True):
            if value < (-15 if check == "mirrored" else 0):
                yield Finding("warning", check, scan.id, (), what.format(-value, abs(usual)))
    weights = np.array([scan.volumes_ml for scan in scans])
    for axis, least, direction in ((1, 15.0, ("up", "down")), (2, 15.0, ("left", "right"))):
        total = np.maximum(weights.sum(axis=1), 1e-9)
        place = np.where(weights.any(axis=1), np.nansum(centres[:, :, axis] * weights, axis=1) / total, np.nan)
        for scan, value, z in zip(scans, place, robust_z(place, least), strict=True):
            if abs(z) > 4:
                text = f"the organs lie {abs(value - np.nanmedian(place)):.0f} mm further {direction[int(z > 0)]} in"
                yield Finding("warning", "odd place", scan.id, (), f"{text} the body than usual (robust z {z:+.1f})")


def odd_volumes(scans: list[ScanFacts]) -> Iterator[Finding]:
    """Organs far smaller or larger than in the cohort, and organs that are missing where most scans have them."""
    scans = [scan for scan in scans if scan.shape[0] >= WHOLE]
    if len(scans) < COHORT:
        return
    volumes = np.array([scan.volumes_ml for scan in scans])
    for k, name in enumerate(NAMES):
        there = volumes[:, k] > 0
        usual = np.median(volumes[there, k]) if there.any() else 0.0
        logs = np.full(len(scans), np.nan)
        logs[there] = np.log(volumes[there, k])
        for scan, z in zip(scans, robust_z(logs, 0.25), strict=True):
            volume = scan.volumes_ml[k]
            if abs(z) > 4:
                text = f"the {name} has {volume:.0f} ml, in the cohort's median scan {usual:.0f} ml (robust z {z:+.1f})"
                yield Finding("warning", "odd volume", scan.id, (), text)
            elif not volume and there.mean() >= 0.8:
                text = f"there is no {name}; {there.sum()} of {len(scans)} scans have one"
                yield Finding("warning", "missing organ", scan.id, (), text)


def _mean_known(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known.any(axis=1), np.nansum(values, axis=1) / np.maximum(known.sum(axis=1), 1), np.nan)


def _at(scan: ScanFacts, indices) -> tuple[int, ...]:
    return tuple(scan.numbers[int(z)] for z in sorted(indices))


def _numbers(scan: ScanFacts, chosen: np.ndarray) -> tuple[int, ...]:
    return _at(scan, np.flatnonzero(chosen))


ALONE = (outside_body, poor_fit, jumps, interruptions)
TOGETHER = (repeated_contours, wrong_places, odd_volumes)
