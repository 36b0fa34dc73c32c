"""The scores of a scan, compared with DeepMind's surface-distance and MONAI: agreement, seconds per scan, peak memory.

Predictions are derived from the reference masks: shifted, smoothed, eroded, dilated, with added blobs, touching the
border; in two more variants, one or both masks are empty. Our side computes everything that `gitseg evaluate` needs,
the peers compute what they support: Hausdorff, HD95, mean distances, surface Dice and Dice, and with MONAI IoU. Each
side scores all pairs in a fresh process, alternately.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

ROUNDS = 3
TOLERANCE_MM = 3.0
PEER = Path(__file__).parent / "peers" / "scores_torch.py"
PEERS = ("surface-distance", "MONAI")
EMPTY = ("one empty", "both empty")
DISTANCES = ("hausdorff_voxels", "hausdorff_mm", "hd95_mm", "surfel_hausdorff_mm", "surfel_hd95_mm")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one scan; under 3 minutes")
    parser.add_argument("--data", type=Path, help="a table of contours with width, height, pw, ph (the phantom)")
    parser.add_argument("--peer-python", help="a Python with torch, monai and surface-distance")
    parser.add_argument("--scans", type=int, default=15, help="maximum number of scans of the table (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="1 is enough to check agreement (%(default)s)")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as name:
        count = write_pairs(options.data, 1 if options.quick else options.scans, Path(name))
        print(f"{count} scans, {len(VARIANTS)} predictions each, {options.rounds} rounds")
        sides = {"ours": [sys.executable, __file__, "--measure", name]}
        if options.peer_python:
            sides |= {peer: [options.peer_python, str(PEER), name, str(TOLERANCE_MM), peer] for peer in PEERS}
        else:
            print("without --peer-python, the peers are not measured")
        rounds = [{side: run(command) for side, command in sides.items()} for _ in range(options.rounds)]
    for claim in [
        *speed(rounds, "seconds"),
        *speed(rounds, "processor_seconds"),
        *memory(rounds),
        *agreement(rounds[0]),
    ]:
        print(json.dumps(claim))


def write_pairs(contours, count, folder):
    """Write a file per scan and variant; return the number of scans."""
    scans = real_masks(contours, count) if contours else phantom_masks(count)
    for n, (truth, spacing) in enumerate(scans):
        for variant, change in VARIANTS.items():
            pair = change(truth, np.random.default_rng(n))
            packed = {name: np.packbits(mask) for name, mask in zip(("truth", "prediction"), pair, strict=True)}
            np.savez(folder / f"{n:03d} {variant}.npz", shape=pair[0].shape, spacing=spacing, **packed)
    return n + 1


def real_masks(contours, count):
    from gitseg_tf.data.readers.base import SLICE_MM
    from gitseg_tf.data.readers.rle import rle_to_mask
    from gitseg_tf.labels import UWMGI

    table = pd.read_csv(contours, keep_default_na=False)
    scans = table["id"].str.rsplit("_slice_", n=1).str
    for _, rows in list(table.groupby(scans[0]))[:count]:
        height, width, pixel_height, pixel_width = rows[["height", "width", "ph", "pw"]].iloc[0]
        numbers = rows["id"].str.rsplit("_", n=1).str[1].astype(int) - 1
        masks = np.zeros((len(UWMGI), numbers.max() + 1, int(height), int(width)), bool)
        for number, name, rle in zip(numbers, rows["class"], rows["segmentation"], strict=True):
            masks[UWMGI.index(name), number] = rle_to_mask(rle, masks.shape[2:])
        yield masks, (SLICE_MM, pixel_height, pixel_width)


def phantom_masks(count):
    from gitseg_tf.phantom import render_scan

    for case in range(1, min(count, 4) + 1):
        scan = render_scan(case, 0)
        yield scan.masks, scan.spacing


def each(change):
    return lambda truth, rng: (truth, np.stack([change(mask) for mask in truth]))


def with_blobs(truth, rng):
    ball = np.linalg.norm(np.indices((7, 15, 15)) - np.reshape([3, 7, 7], (3, 1, 1, 1)), axis=0) < 7
    prediction = truth.copy()
    for mask in prediction:
        for _ in range(3):
            z, y, x = (rng.integers(n - size) for n, size in zip(mask.shape, ball.shape, strict=True))
            mask[z : z + 7, y : y + 15, x : x + 15] |= ball
    return truth, prediction


def at_the_border(truth, rng):
    z, y, x = (
        slice(int(np.quantile(occupied, 0.1)), int(np.quantile(occupied, 0.9))) for occupied in truth.nonzero()[1:]
    )
    cut = truth[:, z, y, x].copy()
    return cut, each(lambda mask: ndimage.shift(mask, (1, 2, -3), order=0))(cut, rng)[1]


def one_empty(truth, rng):
    """Remove the first label from the prediction, and the second from the reference."""
    truth, prediction = truth.copy(), truth.copy()
    prediction[0], truth[1] = False, False
    return truth, prediction


def both_empty(truth, rng):
    return np.zeros_like(truth), np.zeros_like(truth)


VARIANTS = {
    "shifted": each(lambda mask: ndimage.shift(mask, (1, 2, -3), order=0)),
    "smoothed": each(lambda mask: ndimage.gaussian_filter(mask.astype(np.float32), (1, 3, 3)) > 0.5),
    "eroded": each(ndimage.binary_erosion),
    "dilated": each(ndimage.binary_dilation),
    "blobs added": with_blobs,
    "touching the border": at_the_border,
    "one empty": one_empty,
    "both empty": both_empty,
}


def measure(folder):
    """Measure our side, with the output format of peers/scores_torch.py."""
    from gitseg_tf.evaluation.metrics.scores import score_scan
    from gitseg_tf.labels import UWMGI

    seconds, processor_seconds, figures = {}, {}, {}
    files = sorted(folder.glob("*.npz"))
    for file in [files[0], *files]:  # the first file is scored twice, as warm-up
        truth, prediction, spacing = load(file)
        start, start_of_threads = time.perf_counter(), time.process_time()
        rows = score_scan(
            "case1_day0", "case1", truth, prediction, labels=UWMGI, spacing=spacing, tolerance_mm=TOLERANCE_MM
        )
        seconds[file.stem] = time.perf_counter() - start
        processor_seconds[file.stem] = time.process_time() - start_of_threads
        figures[file.stem] = rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for file in files:
        truth, prediction, spacing = load(file)
        figures[file.stem] = [
            detail(t, p, spacing, row) for t, p, row in zip(truth, prediction, figures[file.stem], strict=True)
        ]
    return {"seconds": seconds, "processor_seconds": processor_seconds, "mib": peak, "figures": figures}


def load(file):
    stored = np.load(file)
    shape = tuple(stored["shape"])
    masks = (
        np.unpackbits(stored[name], count=int(np.prod(shape))).view(bool).reshape(shape)
        for name in ("truth", "prediction")
    )
    return *masks, tuple(map(float, stored["spacing"]))


def detail(truth, prediction, spacing, row):
    """Collect the row's scores, the functions' values if a mask is empty, and scores that only surface-distance has."""
    from gitseg_tf.evaluation.metrics.distances import MaskPair
    from gitseg_tf.evaluation.metrics.scores import dice, iou

    pair = MaskPair.of(truth, prediction, spacing)
    if truth.any() and prediction.any():
        names = "hausdorff_voxels", "hausdorff_mm", "hd95_mm", "mean_surface_mm", "dice", "iou", "surface_dice"
        scores = {name: row[name] for name in names}
    else:
        in_mm, in_voxels = pair.voxel_distances_and_steps()
        scores = {"hausdorff_voxels": in_voxels, "hausdorff_mm": in_mm.hausdorff(), "hd95_mm": in_mm.hausdorff(95)}
        scores |= {"mean_surface_mm": in_mm.mean(), "surface_dice": pair.surface_dice(TOLERANCE_MM)}
        scores |= {"dice": dice(truth, prediction), "iou": iou(truth, prediction)}
    scores["hd95_mm_float32"] = scores["hd95_mm"]
    surfels = pair.surfel_distances()
    from_truth, from_prediction = surfels.means()
    return scores | {
        "surfel_hausdorff_mm": surfels.hausdorff(),
        "surfel_hd95_mm": surfels.hausdorff(95),
        "surfel_mean_from_truth_mm": from_truth,
        "surfel_mean_from_prediction_mm": from_prediction,
    }


def run(command):
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with exit status {process.returncode}")
    return json.loads(process.stdout.splitlines()[-1])


def speed(rounds, what):
    """Compare "seconds", or "processor_seconds" of all threads, which other load on the machine hardly affects."""
    sides = list(rounds[0])
    title = what.replace("processor", "CPU").replace("_", " ")
    print(f"\n{title + ' per scan':28}" + "".join(f"{side:>18}" for side in sides))
    medians = {}
    for variant in VARIANTS:
        for side in sides:
            own = [
                seconds
                for one in rounds
                for name, seconds in one[side][what].items()
                if name.split(" ", 1)[1] == variant
            ]
            medians[side, variant] = statistics.median(own)
        print(f"{variant:28}" + "".join(f"{medians[side, variant]:18.4f}" for side in sides))
    scored = [variant for variant in VARIANTS if variant not in EMPTY]
    total = {side: statistics.mean(medians[side, variant] for variant in scored) for side in sides}
    print(f"{'mean without empty masks':28}" + "".join(f"{total[side]:18.4f}" for side in sides))
    return [
        {
            "claim": f"all scores of a scan, {title}, against {peer}",
            "ours": round(total["ours"], 4),
            "peer": round(total[peer], 4) if peer in total else None,
            "unit": "s/scan",
            "ratio": round(total[peer] / total["ours"], 2) if peer in total else None,
        }
        for peer in PEERS
    ]


def memory(rounds):
    peaks = {side: max(one[side]["mib"] for one in rounds) for side in rounds[0]}
    print("\npeak MiB of the process  " + "  ".join(f"{side} {peak:.0f}" for side, peak in peaks.items()))
    ours = round(peaks["ours"])
    return [{"claim": "peak memory", "ours": ours, "peer": None, "unit": "MiB", "ratio": None, "target": 1024}]


def agreement(one):
    claims = []
    for peer in PEERS:
        if peer not in one:
            claim = {"claim": f"largest difference from {peer}", "ours": None, "peer": None, "unit": "mm"}
            claims.append(claim | {"ratio": None})
            continue
        differences, empties, mismatches = compare(one["ours"]["figures"], one[peer]["figures"])
        print(f"\n{'largest difference from ' + peer:42}{'pairs':>7}    one or both masks empty: ours, {peer}")
        for name, found in differences.items():
            seen = sorted({f"{state} {ours:g}, {other:g}" for state, ours, other in empties[name]})
            print(f"{name:30}{max(found):12.2e}{len(found):7}    {'; '.join(seen)}")
        for mismatch in mismatches:
            print(f"NOT EQUAL  {mismatch}")
        worst = max(max(found) for name, found in differences.items() if not name.endswith("float32"))
        claims.append(
            {
                "claim": f"largest difference from {peer}, of {sum(map(len, differences.values()))} scores",
                "ours": float(f"{worst:.2e}"),
                "peer": None,
                "unit": "mm or 1",
                "ratio": None,
                "target": 1e-4,
            }
        )
    return claims


def compare(ours, peer):
    """Compare both sides score by score.

    Returns:
        By score, the differences if neither mask is empty, and both values if one or both are empty; and the pairs for
        which only one side has a distance.
    """
    names = list(next(iter(peer.values()))[0])
    differences, empties, mismatches = {name: [] for name in names}, {name: set() for name in names}, []
    for file, rows in peer.items():
        for label, (own, other) in enumerate(zip(ours[file], rows, strict=True)):
            distance = own["hausdorff_mm"]
            state = "both" if math.isnan(distance) else "one" if math.isinf(distance) else "none"
            for name in names:
                if state != "none":
                    empties[name].add((state, own[name], other[name]))
                elif math.isfinite(own[name]) and math.isfinite(other[name]):
                    differences[name].append(abs(own[name] - other[name]))
                if name in DISTANCES and (state == "none") != math.isfinite(other[name]):
                    mismatches.append(f"{file}, label {label}, {name}: ours {own[name]:g}, peer {other[name]:g}")
    return differences, empties, mismatches


if __name__ == "__main__":
    main()
