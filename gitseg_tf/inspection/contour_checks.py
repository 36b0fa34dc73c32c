"""Find implausible contours: shifted, flipped, exchanged, copied, missing, in air, or from another scan.

Limits are absolute where anatomy or geometry determines them, and robust z-scores where only the cohort shows what is
usual. Geometric checks run for any label, anatomical checks only for stomach, large bowel and small bowel.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from gitseg_tf.core.text import plural
from gitseg_tf.inspection.contour_fit import REACH, ContourFit
from gitseg_tf.inspection.findings import COHORT, Finding, Severity, robust_z
from gitseg_tf.inspection.measurements import ScanFacts
from gitseg_tf.labels import UWMGI, LabelSet

# Observed contrast: 1.35 to 2.3 on one to four real slices, 1.5 to 1.9 on phantoms, up to 1.12 with another scan's
# contours.
UNRELATED, DOUBTFUL, DOUBTFUL_BLOCK = 1.15, 1.25, 1.2
# At least two steps of the search, and more than chance: a block of a good phantom gains at most 2%.
LEAST_SHIFT, LEAST_GAIN, LARGE_GAIN = 6, 1.12, 1.3
LEAST_SHIFT_Z = 2
# The contrast that shifted contours must reach for the shift to be the explanation.
EXPLAINED = 1.3
# Maximum number of findings of one kind that are listed for a scan.
MOST = 4
# The fit is a mean over outlines: with fewer slices it is too noisy.
FIT_SLICES = 8
# A scan with fewer slices is incomplete, so its volumes and positions are meaningless.
WHOLE = 20


def known_labels(labels: LabelSet) -> dict[str, int]:
    """Map the names in the preset of the labels that the anatomical checks know to their indices in `labels`."""
    indices = {}
    for known in UWMGI:
        match = labels.match(known.name) or next((label for label in labels if known.is_named(label.name)), None)
        if match is not None:
            indices[known.name] = labels.index(match.name)
    return indices


def outside_body(scan: ScanFacts, labels: LabelSet) -> Iterator[Finding]:
    """Find contours that lie in air."""
    areas, outside = scan.contour_facts.areas, scan.contour_facts.outside
    for k, name in enumerate(label.title for label in labels):
        share = outside[k].sum() / areas[k].sum() if areas[k].any() else 0
        slices = _numbers(scan, outside[k] > np.maximum(0.05 * areas[k], 100))
        if share > 0.01 and slices:
            severity: Severity = "error" if share > 0.2 else "warning"
            text = f"{share:.0%} of the {name} lies outside the body; none should"
            yield Finding(severity, "outside body", scan.id, slices, text)


def poor_fit(scan: ScanFacts, labels: LabelSet) -> Iterator[Finding]:
    """Find contours that do not follow the image, or only would if they were shifted."""
    fits = [fit for fit in scan.contour_facts.fits if fit.slices >= FIT_SLICES]
    whole = [finding for fit in fits[:1] for finding in _misfit(scan, fit, DOUBTFUL, "")]
    # A finding about the whole scan need not be repeated for each block.
    yield from whole or (f for fit in fits[1:] for f in _misfit(scan, fit, DOUBTFUL_BLOCK, " here"))


def _misfit(scan: ScanFacts, fit: ContourFit, limit: float, where: str) -> Iterator[Finding]:
    slices = tuple(scan.numbers[fit.first : fit.last + 1])
    dy, dx = fit.shift
    # An optimum at the edge of the search range does not count: there may be a better one beyond it, often the skin.
    in_plane = LEAST_SHIFT <= max(abs(dy), abs(dx)) < REACH and fit.gain >= fit.gain_z
    gain = fit.gain if in_plane else fit.gain_z if abs(fit.shift_z) >= LEAST_SHIFT_Z else 1.0
    if gain >= LEAST_GAIN and gain * fit.contrast >= EXPLAINED:
        moves = [
            f"{plural(abs(n), 'pixel')} {way[n > 0]}" for n, way in ((dy, ("up", "down")), (dx, ("left", "right"))) if n
        ]
        along = f"{plural(abs(fit.shift_z), 'slice')} {'higher' if fit.shift_z > 0 else 'lower'}"
        move = " and ".join(moves) if in_plane else along
        text = f"the contours{where} would fit the image {gain - 1:.0%} better if moved {move}"
        severity: Severity = "error" if gain >= LARGE_GAIN else "warning"
        check = "shifted" if in_plane else "offset along z"
        yield Finding(severity, check, scan.id, slices, f"{text}; a gain below 2% is usual")
    elif fit.contrast < limit:
        severity = "error" if fit.contrast < UNRELATED and not where else "warning"
        text = (
            f"the image changes {fit.contrast:.2f} times as much along the contours{where} as along shifted copies; "
            "1.3 to 2.3 is usual, and 1 means that the contours are unrelated to the image"
        )
        yield Finding(severity, "poor fit", scan.id, slices, text)


def jumps(scan: ScanFacts, labels: LabelSet) -> Iterator[Finding]:
    """Find contours that jump, swap labels or change completely from one slice to the next."""
    steps = scan.contour_facts.steps
    distance, undone = np.hypot(*steps.shift.T), steps.overlap + steps.gain
    moved = (steps.gain > 0.1) & (undone > 0.6) & (distance > 6) & (steps.area > 200)
    exchanged = steps.exchange > 0.5
    broken = (steps.overlap < 0.4) & (steps.area > 1500) & ~moved & ~exchanged
    for z, more in _first(moved):
        text = f"all contours shift by {distance[z]:.0f} mm between these slices; without the shift, their overlap "
        text += f"would be {undone[z]:.2f} instead of {steps.overlap[z]:.2f} (Dice)"
        yield Finding("warning", "jump", scan.id, tuple(scan.numbers[z : z + 2]), text + more)
    for z, more in _first(broken):
        usual = np.nanmedian(steps.overlap)
        text = (
            f"the contours of these slices overlap by {steps.overlap[z]:.2f} (Dice); the scan's median is {usual:.2f}"
        )
        yield Finding("warning", "jump", scan.id, tuple(scan.numbers[z : z + 2]), text + more)
    for z, more in _first(exchanged):
        a, b = (labels[k].title for k in steps.exchanged[z])
        text = f"{a} and {b} are swapped between these slices; "
        text += f"swapping them back raises their Dice by {steps.exchange[z]:.2f}"
        yield Finding("warning", "swapped", scan.id, tuple(scan.numbers[z : z + 2]), text + more)


def _first(flags: np.ndarray) -> Iterator[tuple[int, str]]:
    """Yield the first few indices that are set, and with the last of them the number of remaining ones as text."""
    where = np.flatnonzero(flags)
    for i, z in enumerate(where[:MOST]):
        yield int(z), f"; the same at {len(where) - MOST} more places" if i == MOST - 1 and len(where) > MOST else ""


def interruptions(scan: ScanFacts, labels: LabelSet) -> Iterator[Finding]:
    """Find gaps in a label and isolated slices of a label; for labels such as lesions these are only notes."""
    known = known_labels(labels).values()
    for k, name in enumerate(label.title for label in labels):
        shown = np.flatnonzero(scan.contour_facts.areas[k] > 0)
        runs = np.split(shown, np.flatnonzero(np.diff(shown) > 1) + 1)
        if len(runs) < 2:
            continue
        largest = max(runs, key=len)
        alone = [z for run in runs for z in run if len(run) <= 2 and len(largest) >= 8]
        if alone:
            verb = "is" if len(alone) == 1 else "are"
            text = f"{len(alone)} of the {shown.size} slices with the {name} {verb} isolated from the others"
            yield Finding("warning" if k in known else "note", "isolated slices", scan.id, _at(scan, alone), text)
        for a, b in pairwise(runs):
            if len(a) > 2 and len(b) > 2:
                gap = range(a[-1] + 1, b[0])
                severity: Severity = "warning" if k in known and len(gap) <= 5 else "note"
                text = f"the {name} is missing on {plural(len(gap), 'slice')}, but present before and after them"
                yield Finding(severity, "interrupted", scan.id, _at(scan, gap), text)


def repeated_contours(scans: list[ScanFacts], labels: LabelSet) -> Iterator[Finding]:
    """Find masks that are identical on several slices, for several labels or in several scans."""
    owners = defaultdict(list)
    for scan in scans:
        for (k, z), digest in scan.contour_facts.digests.items():
            owners[scan.shape[1:], digest].append((scan, k, z))
    on_slices: dict[tuple[str, int], set[int]] = defaultdict(set)
    of_labels: dict[str, set[int]] = defaultdict(set)
    between: dict[tuple[str, str], set[int]] = defaultdict(set)
    for group in owners.values():
        first = group[0][0]
        for scan in {scan.id: scan for scan, _, _ in group}.values():
            members = [(k, z) for other, k, z in group if other is scan]
            if _repeats(sorted({z for _, z in members})):
                on_slices[scan.id, members[0][0]] |= {z for _, z in members}
            of_labels[scan.id] |= {z for _, z in members if len({k for k, slice_ in members if slice_ == z}) > 1}
        # If the images are identical too, `repeated_images` reports them.
        images = {first.image_digests[z] for scan, _, z in group if scan is first}
        for scan, k, z in group:
            if scan is not first and scan.image_digests[z] not in images and scan.contour_facts.areas[k, z] > 200:
                between[scan.id, first.id].add(z)
    by_id = {scan.id: scan for scan in scans}
    for (scan_id, k), slices in on_slices.items():
        text = f"the contour of the {labels[k].title} is identical, pixel by pixel, to that of another of these slices"
        yield Finding("warning", "repeated contour", scan_id, _at(by_id[scan_id], slices), text)
    for scan_id, slices in of_labels.items():
        if slices:
            text = "two labels have the same contour, pixel by pixel"
            yield Finding("warning", "repeated contour", scan_id, _at(by_id[scan_id], slices), text)
    for (scan_id, other), slices in between.items():
        if len(slices) > 1:
            text = f"the contours of {len(slices)} slices are, pixel by pixel, those of {other} on a different image"
            most = 2 * len(slices) >= len({z for _, z in by_id[scan_id].contour_facts.digests})
            severity: Severity = "error" if most else "warning"
            yield Finding(severity, "repeated contour", scan_id, _at(by_id[scan_id], slices), text)


def _repeats(slices: list[int]) -> bool:
    """Check for copies: a contour is often the same on two adjacent slices, but not on three or on two distant ones."""
    return len(slices) > 2 or (len(slices) == 2 and slices[1] - slices[0] > 2)


def wrong_places(scans: list[ScanFacts], labels: LabelSet) -> Iterator[Finding]:
    """Find labels at unusual positions for the cohort: mirrored, upside down, or in the wrong order."""
    scans = [scan for scan in scans if scan.shape[0] >= WHOLE]
    if len(scans) < COHORT:
        return
    known, centers = known_labels(labels), np.array([scan.contour_facts.centers for scan in scans])
    stomach, bowel = known.get("stomach"), [k for name, k in known.items() if name != "stomach"]
    if stomach is not None:
        yield from _mirrored(scans, centers[:, stomach, 2])
        if bowel:
            yield from _wrong_order(scans, _mean_known(centers[:, bowel, 0]) - centers[:, stomach, 0])
    # The joint position of the labels can only be compared over labels that are annotated in every scan.
    common = np.flatnonzero(np.all([scan.contour_facts.annotated for scan in scans], axis=0))
    weights, centers = np.array([scan.volumes_ml[common] for scan in scans]), centers[:, common]
    for axis, least, direction in ((1, 15.0, ("up", "down")), (2, 15.0, ("left", "right"))):
        total = np.maximum(weights.sum(axis=1), 1e-9)
        position = np.where(weights.any(axis=1), np.nansum(centers[:, :, axis] * weights, axis=1) / total, np.nan)
        for scan, value, z in zip(scans, position, robust_z(position, least), strict=True):
            if abs(z) > 4:
                text = f"the labels lie {abs(value - np.nanmedian(position)):.0f} mm farther {direction[int(z > 0)]} in"
                yield Finding(
                    "warning", "unusual position", scan.id, (), f"{text} the body than usual (robust z {z:+.1f})"
                )


def _mirrored(scans: list[ScanFacts], side: np.ndarray) -> Iterator[Finding]:
    for scan, value, usual in _against_usual(scans, side):
        if value < -15:
            text = f"the stomach is {-value:.0f} mm from the body's midline, on the wrong side; the cohort's median is "
            yield Finding("warning", "mirrored", scan.id, (), f"{text}{usual:.0f} mm on the other side")


def _wrong_order(scans: list[ScanFacts], order: np.ndarray) -> Iterator[Finding]:
    for scan, value, usual in _against_usual(scans, order):
        if value < 0:
            text = f"the stomach's center is {-value:.0f} mm from the bowel's along z, on the wrong side; the cohort's "
            yield Finding("warning", "wrong order", scan.id, (), f"{text}median is {usual:.0f} mm on the other side")


def _against_usual(scans: list[ScanFacts], values: np.ndarray) -> Iterator[tuple[ScanFacts, float, float]]:
    """Yield each scan's value, signed relative to the cohort's median, and the absolute value of that median."""
    usual = np.nanmedian(values) if np.isfinite(values).any() else 0.0
    if abs(usual) >= 10:
        for scan, value in zip(scans, values * np.sign(usual), strict=True):
            yield scan, float(value), abs(float(usual))


def odd_volumes(scans: list[ScanFacts], labels: LabelSet) -> Iterator[Finding]:
    """Find labels that are far smaller or larger than usual in the cohort, or absent although most scans have them."""
    scans = [scan for scan in scans if scan.shape[0] >= WHOLE]
    for k, name in enumerate(label.title for label in labels):
        annotated = [scan for scan in scans if scan.contour_facts.annotated[k]]
        if len(annotated) < COHORT:
            continue
        volumes = np.array([scan.volumes_ml[k] for scan in annotated])
        present = volumes > 0
        usual = np.median(volumes[present]) if present.any() else 0.0
        logs = np.full(len(annotated), np.nan)
        logs[present] = np.log(volumes[present])
        for scan, volume, z in zip(annotated, volumes, robust_z(logs, 0.25), strict=True):
            if abs(z) > 4:
                text = f"the {name} has {volume:.0f} ml; the cohort's median is {usual:.0f} ml (robust z {z:+.1f})"
                yield Finding("warning", "unusual volume", scan.id, (), text)
            elif not volume and present.mean() >= 0.8:
                text = f"the {name} is absent; it is present in {present.sum()} of {plural(len(annotated), 'scan')}"
                yield Finding("warning", "missing label", scan.id, (), text)


def _mean_known(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known.any(axis=1), np.nansum(values, axis=1) / np.maximum(known.sum(axis=1), 1), np.nan)


def _at(scan: ScanFacts, indices) -> tuple[int, ...]:
    return tuple(scan.numbers[int(z)] for z in sorted(indices))


def _numbers(scan: ScanFacts, chosen: np.ndarray) -> tuple[int, ...]:
    return _at(scan, np.flatnonzero(chosen))


ALONE = (outside_body, poor_fit, jumps, interruptions)
TOGETHER = (repeated_contours, wrong_places, odd_volumes)
