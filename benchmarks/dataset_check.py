"""Sensitivity and false alarms of `gitseg inspect` on scans with damaged contours.

    python benchmarks/dataset_check.py [--quick] [--data COHORT]

Every scan of a good cohort is damaged in each of the ways below, one scan at a time, and the cohort is checked. A scan
counts as found if it gets an error or a warning that the good cohort does not have. Without --data, a phantom is
generated. --quick damages every third scan.
"""

import argparse
import json
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from gitseg_tf.data.readers.base import Scan
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.volume import Annotation, LoadedScan
from gitseg_tf.inspection.inspect import find
from gitseg_tf.inspection.measurements import ScanFacts, measure
from gitseg_tf.labels import UWMGI
from gitseg_tf.phantom import make_phantom


def moved(masks: np.ndarray, dz: int = 0, dy: int = 0, dx: int = 0) -> np.ndarray:
    """Shift masks [L, D, H, W]; voxels that leave the field of view are lost."""
    reach = max(abs(dz), abs(dy), abs(dx))
    padded = np.pad(masks, ((0, 0), *[(reach, reach)] * 3))
    depth, height, width = masks.shape[1:]
    z, y, x = reach - dz, reach - dy, reach - dx
    return padded[:, z : z + depth, y : y + height, x : x + width]


def on_slices(slices: slice, change, masks: np.ndarray) -> np.ndarray:
    """Apply `change` to some slices, counted from the middle slice with contours."""
    annotated = np.flatnonzero(masks.any(axis=(0, 2, 3)))
    middle = int(annotated[len(annotated) // 2])
    chosen = slice(middle + (slices.start or 0), None if slices.stop is None else middle + slices.stop)
    result = masks.copy()
    result[:, chosen] = change(masks)[:, chosen]
    return result


def reversed_along_z(masks: np.ndarray) -> np.ndarray:
    """Reverse the order of the slices with contours."""
    annotated = np.flatnonzero(masks.any(axis=(0, 2, 3)))
    result = masks.copy()
    result[:, annotated[0] : annotated[-1] + 1] = masks[:, annotated[0] : annotated[-1] + 1][:, ::-1]
    return result


def repeated(masks: np.ndarray, first: int, last: int) -> np.ndarray:
    """Copy the middle slice's contours to slices `first` to `last`, counted from it."""
    annotated = np.flatnonzero(masks.any(axis=(0, 2, 3)))
    middle = int(annotated[len(annotated) // 2])
    result = masks.copy()
    result[:, middle + first : middle + last + 1] = masks[:, middle : middle + 1]
    return result


def without(label: int, masks: np.ndarray) -> np.ndarray:
    """Remove one label from the masks."""
    return np.where((np.arange(len(masks)) == label)[:, None, None, None], False, masks)


def grown(masks: np.ndarray) -> np.ndarray:
    """Dilate each label by 6 pixels."""
    kernel = np.ones((13, 13), np.uint8)
    return np.array([[cv2.dilate(plane.view(np.uint8), kernel) for plane in mask] for mask in masks]).astype(bool)


EXCHANGED = [1, 0, 2]
DAMAGES = {
    "all contours shifted by 8 pixels": partial(moved, dy=5, dx=6),
    "all contours shifted by 15 pixels": partial(moved, dx=15),
    "one slice shifted by 10 pixels": partial(on_slices, slice(0, 1), partial(moved, dy=6, dx=8)),
    "10 slices shifted by 10 pixels": partial(on_slices, slice(0, 10), partial(moved, dy=6, dx=8)),
    "lower half shifted by 12 pixels": partial(on_slices, slice(0, None), partial(moved, dx=12)),
    "flipped left to right": lambda masks: masks[..., ::-1],
    "flipped top to bottom": lambda masks: masks[..., ::-1, :],
    "lower half flipped left to right": partial(on_slices, slice(0, None), lambda masks: masks[..., ::-1]),
    "reversed along z": reversed_along_z,
    "offset by 3 slices": partial(moved, dz=3),
    "offset by 6 slices": partial(moved, dz=-6),
    "lower half offset by 4 slices": partial(on_slices, slice(0, None), partial(moved, dz=4)),
    "stomach and large bowel exchanged": lambda masks: masks[[2, 1, 0]],
    "small and large bowel exchanged on 5 slices": partial(on_slices, slice(8, 13), lambda masks: masks[EXCHANGED]),
    "small and large bowel exchanged": lambda masks: masks[EXCHANGED],
    "one slice's contours on 6 slices": partial(repeated, first=0, last=5),
    "one slice's contours repeated 15 slices further": partial(repeated, first=15, last=15),
    "large bowel missing on 3 slices": partial(on_slices, slice(0, 3), partial(without, 0)),
    "stomach missing": partial(without, 2),
    "lower half missing": partial(on_slices, slice(0, None), np.zeros_like),
    "all contours 6 pixels too large": grown,
    "contours of another patient": None,
}


def damaged_facts(job: tuple[Scan, Scan]) -> tuple[ScanFacts, dict[str, ScanFacts]]:
    """Measure a scan, unchanged and with each kind of damage."""
    scan, other = job
    masks = scan.read_annotation().masks
    good = LoadedScan(scan.id, scan.case, scan.read_volume(), Annotation.complete(masks))
    versions = {
        name: other.read_annotation().masks if change is None else change(masks) for name, change in DAMAGES.items()
    }
    damaged = {
        name: measure(replace(good, annotation=Annotation.complete(np.ascontiguousarray(version))))
        for name, version in versions.items()
        if not np.array_equal(version, masks)
    }
    return measure(good), damaged


def main() -> None:
    """Print the table, and the fraction of detected damaged scans as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a cohort with good contours (a generated phantom)")
    parser.add_argument("--quick", action="store_true", help="damage every third scan")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or make_phantom(Path(folder) / "phantom", cases=6)
        scans = read_cohort(data).scans
        jobs = []
        for i, scan in enumerate(scans):
            following = scans[i + 1 :] + scans[:i]
            alike = [s for s in following if s.shape == scan.shape and s.case != scan.case]
            jobs.append((scan, alike[0] if alike else scan))
        with ProcessPoolExecutor() as pool:
            results = list(pool.map(damaged_facts, jobs))
    good = [facts for facts, _ in results]
    alarms = {(f.scan, f.check) for f in find(good, UWMGI) if f.severity != "note"}
    print(f"{len(good)} good scans: {len({scan for scan, _ in alarms})} with an error or a warning\n")
    print("| damage | scans | found | by |\n| --- | ---: | ---: | --- |")
    total = hits = 0
    for name in DAMAGES:
        found, checks, tried = 0, Counter(), 0
        for i, (facts, damaged) in list(enumerate(results))[:: 3 if options.quick else 1]:
            if name in damaged:
                cohort = [*good[:i], damaged[name], *good[i + 1 :]]
                own = {f.check for f in find(cohort, UWMGI) if f.scan == facts.id and f.severity != "note"}
                own -= {check for scan, check in alarms if scan == facts.id}
                found, tried = found + bool(own), tried + 1
                checks.update(own)
        by = ", ".join(sorted(checks, key=lambda check: (-checks[check], check))[:3])
        print(f"| {name} | {tried} | {found} | {by} |")
        total, hits = total + tried, hits + found
    claim = {"claim": "share of scans with damaged contours that the dataset check finds", "ours": hits / total}
    print(json.dumps(claim | {"peer": None, "unit": "share", "ratio": None, "false_alarms": len(alarms)}))


if __name__ == "__main__":
    main()
