"""Images/s and memory from PNG files to the rows of a submission.

U-Net ResNet-34 with random weights in float32, windows of 5 x 256 x 256, batches of 8, two threads; the threshold is
chosen so that 3 % of a scan's voxels are inside. Our side reads, segments and writes whole scans with `predict_scans`;
the peer is a plain PyTorch loop with segmentation-models-pytorch and a DataLoader that reads the next scan. Loading the
network does not count. Each side also runs the network alone, on a batch in memory. One process per side, measured
alternately. Memory is the peak of `gitseg predict` in its own process, over 2 and 8 scans of 144 slices.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from models import Side, say

ROUNDS = 3
BATCH, SLICES, SIZE = 8, 5, 256
INSIDE = 0.03
# Height, width and slices of a large scan of the competition.
LARGE = (310, 360, 144)
PEER = Path(__file__).parent / "peers" / "predict_torch.py"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="parts of 3 scans, memory for 1 scan; under 3 minutes")
    parser.add_argument("--data", type=Path, help="a cohort in the competition's layout (the phantom)")
    parser.add_argument("--peer-python", help="a Python with torch and segmentation-models-pytorch")
    parser.add_argument("--scans", type=int, default=4, help="scans of the cohort to time (%(default)s)")
    parser.add_argument("--serve", nargs=2, metavar=("RUN", "COHORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans, depth = (3, 16) if options.quick else (options.scans, LARGE[2])
        cohort = write_cohort(folder / "cohort", options.data, scans, depth)
        run = write_run(folder / "run", cohort)
        claims = speed(run, cohort, options)
        claims += memory(run, folder, options.data, (1,) if options.quick else (2, 8))
    print()
    for claim in claims:
        print(json.dumps(claim))


def write_cohort(root, data, count, depth, large=False):
    """Write the middle `depth` slices of some scans, or `count` copies of one scan of size LARGE."""
    for number, source in enumerate(sources(data, 1 if large else count)):
        first = (len(source) - depth) // 2 if len(source) > depth else 0
        scans = root / "train" / f"case{number + 1}" / f"case{number + 1}_day0" / "scans"
        scans.mkdir(parents=True)
        for z in range(depth):
            plane = source[(first + z) % len(source)]
            plane = cv2.resize(plane, LARGE[1::-1]) if large else plane
            height, width = plane.shape
            cv2.imwrite(str(scans / f"slice_{z + 1:04d}_{width}_{height}_1.50_1.50.png"), plane)
    for copy in range(2, count + 1 if large else 0):
        target = root / "train" / f"case{copy}" / f"case{copy}_day0" / "scans"
        target.mkdir(parents=True)
        for file in scans.iterdir():
            os.link(file, target / file.name)
    return root


def sources(data, count):
    """Yield scans as uint16 [D, H, W]; from a cohort, one of each size in turn."""
    from gitseg_tf.data.readers.registry import read_cohort
    from gitseg_tf.phantom import render_scan

    if data is None:
        return (render_scan(case, 0).image for case in range(1, count + 1))
    by_size = {}
    for scan in read_cohort(data, table=False).scans:
        by_size.setdefault(scan.shape, []).append(scan)
    turns = max(map(len, by_size.values()))
    in_turn = [scans[turn] for turn in range(turns) for scans in by_size.values() if turn < len(scans)]
    return (scan.read_volume().voxels for scan in in_turn[:count])


def write_run(path, cohort):
    """Write a run with random weights and the threshold for its first scan."""
    code = f"import predict; predict.make_run({str(path)!r}, {str(cohort)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, env=environment())
    return path


def environment():
    root = str(Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def make_run(path, cohort):
    from dataclasses import replace

    from gitseg_tf.config import load_config, save_config
    from gitseg_tf.data.readers.registry import read_cohort
    from gitseg_tf.inference.predictor import Predictor
    from gitseg_tf.labels import UWMGI
    from gitseg_tf.models.build import build_model
    from gitseg_tf.runs.folder import best_weights_path
    from gitseg_tf.runs.run import load_run

    chosen = {"model.architecture": "unet", "model.backbone": "resnet34", "data.crop": "none"}
    chosen |= {"data.input_size": [SIZE, SIZE], "data.window_slices": SLICES, "evaluation.batch_size": BATCH}
    config, path = load_config(None, chosen).for_dataset(UWMGI, ("mr",)), Path(path)
    best_weights_path(path).parent.mkdir(parents=True)
    build_model(config).save_weights(best_weights_path(path))
    save_config(config, path / "config.yaml")
    scan = read_cohort(cohort, table=False).scans[0]
    volume = scan.read_volume()
    part = volume.voxels[volume.shape[0] // 2 :][: 2 * BATCH]
    statistics = volume.percentiles, volume.moments
    part = replace(volume, voxels=part, numbers=volume.numbers[: len(part)], stored_statistics=statistics)
    probabilities = Predictor.of_run(load_run(path)).probabilities(part)
    chosen |= {"evaluation.threshold": float(np.quantile(probabilities, 1 - INSIDE))}
    save_config(load_config(None, chosen).for_dataset(UWMGI, ("mr",)), path / "config.yaml")


def speed(run, cohort, options):
    sides = {"ours": [sys.executable, __file__, "--serve", str(run), str(cohort)]}
    if options.peer_python:
        sides["peer"] = [options.peer_python, str(PEER), str(cohort), str(INSIDE)]
    else:
        print("without --peer-python, the peer is not measured")
    os.environ.update(environment())
    sides = {side: Side(command) for side, command in sides.items()}
    batches = 2 if options.quick else 8
    try:
        rounds = [
            {(side, what): process.ask(f"{what} {batches}") for side, process in sides.items()}
            for _ in range(ROUNDS)
            for what in ("bare", "files")
        ]
    finally:
        for process in sides.values():
            process.close()
    seen = {}
    for one in rounds:
        for key, answer in one.items():
            seen.setdefault(key, []).append(answer["images"])
    rates = {key: statistics.median(values) for key, values in seen.items()}
    rows = {side: next(one[side, "files"]["runs"] for one in rounds if (side, "files") in one) for side in sides}
    print(f"{'images/s':12}{'network':>10}{'files':>10}{'ratio':>8}{'runs per image':>16}")
    for side in sides:
        bare, files = rates[side, "bare"], rates[side, "files"]
        print(f"{side:12}{bare:10.2f}{files:10.2f}{files / bare:8.2f}{rows[side]:16.0f}")
    # Use the ratio of each round, because the machine's load changes over time.
    share = statistics.median(
        files / bare for bare, files in zip(seen["ours", "bare"], seen["ours", "files"], strict=True)
    )
    ours, peer = rates["ours", "files"], rates.get(("peer", "files"))
    return [
        claim("PNG files to rows, share of the bare network's images/s", share, None, "1", target=0.8),
        claim("PNG files to rows, U-Net ResNet-34", ours, peer, "images/s"),
    ]


def memory(run, folder, data, counts):
    peaks = {}
    for count in counts:
        cohort = write_cohort(folder / f"large{count}", data, count, LARGE[2], large=True)
        command = [sys.executable, "-m", "gitseg_tf", "predict", str(run), str(cohort), str(folder / f"out{count}")]
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)} ended with exit status {os.waitstatus_to_exitcode(status)}")
        peaks[count] = usage.ru_maxrss / 1024
        print(f"peak MiB for {count} scans of {LARGE[2]} x {LARGE[0]} x {LARGE[1]}: {peaks[count]:.0f}")
    claims = [claim(f"peak memory, {counts[-1]} large scans", peaks[counts[-1]], None, "MiB", target=2048)]
    if len(counts) > 1:
        few, many = counts
        growth = peaks[many] / peaks[few]
        claims.append(claim(f"peak memory over {many} scans to that over {few}", growth, None, "1", target=1.1))
    return claims


def claim(name, ours, peer, unit, target=None):
    line = {
        "claim": name,
        "ours": round(ours, 3),
        "peer": peer and round(peer, 3),
        "unit": unit,
        "ratio": peer and round(ours / peer, 2),
    }
    return line if target is None else line | {"target": target}


def serve(run, cohort):
    """Serve our side with the protocol of peers/predict_torch.py: an answer to each input line."""
    from gitseg_tf.core.tensorflow_import import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    from gitseg_tf.inference.networks import run_probabilities
    from gitseg_tf.inference.predictor import load_predictor
    from gitseg_tf.runs.run import load_run

    predictor, network = load_predictor(run), run_probabilities(load_run(run))
    batch = tf.random.uniform([BATCH, SIZE, SIZE, SLICES])
    files(predictor, cohort), network(batch).numpy()
    say({"ready": True})
    for line in sys.stdin:
        what, count = line.split()
        start = time.perf_counter()
        answer = files(predictor, cohort) if what == "files" else bare(network, batch, int(count))
        answer["images"] /= time.perf_counter() - start
        say(answer)


def bare(network, batch, count):
    for _ in range(count):
        network(batch).numpy()
    return {"images": BATCH * count}


def files(predictor, cohort):
    from gitseg_tf.data.readers.registry import read_cohort
    from gitseg_tf.inference.predict import predict_scans
    from gitseg_tf.inference.writers.registry import open_writer

    with tempfile.TemporaryDirectory() as out:
        source = read_cohort(cohort, table=False)
        with open_writer("submission", source, Path(out), predictor.labels) as writer:
            for scan, error in predict_scans(source.scans, predictor, writer.write):
                if error:
                    sys.exit(f"{scan.id}: {error}")
        numbers = (Path(out) / "submission.csv").read_text().count(" ")
    images = sum(scan.shape[0] for scan in source.scans)
    return {"images": images, "runs": numbers / 2 / images}


if __name__ == "__main__":
    main()
