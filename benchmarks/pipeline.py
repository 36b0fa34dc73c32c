"""Throughput of the input pipeline in augmented windows/s, compared with a PyTorch DataLoader and albumentations.

Both sides: 5-slice windows at 256 x 256 in batches of 32, with flip, shift-scale-rotate, grid or elastic distortion and
coarse dropout with the same probabilities, on the same cohort, in fresh processes, alternately. The first epoch, or the
first seconds, are warm-up and do not count.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3
OWN_PEER = Path(__file__).parent / "peers" / "loader_torch.py"
OFF = {f"augment.{name}.p": 0.0 for name in ("flip", "affine", "elastic", "grid", "dropout")}
WINDOWS = {"data.input_size": [256, 256], "data.window_slices": 5, "data.window_stride": 2}
OURS = {
    "5 slices, scans in memory": WINDOWS,
    "5 slices, from the shards": WINDOWS | {"data.cache_mib": 0},
    "5 slices, augmented by TensorFlow": WINDOWS | {"augment.backend": "tensorflow"},
    "5 slices, not augmented": WINDOWS | OFF,
    "1 slice, scans in memory": WINDOWS | {"data.window_slices": 1},
    "32 x 128 x 128, scans in memory": WINDOWS | {"data.patch": [32, 128, 128], "data.window_stride": 1},
}
PEERS = {
    "5 slices, PNG": ("png", "5"),
    "5 slices, slices in memory": ("npy", "5"),
    "1 slice, slices in memory": ("npy", "1"),
    "32 x 128 x 128, slices in memory": ("npy", "3d"),
}
CLAIMS = [
    ("5 slices, scans in memory", "5 slices, PNG", "augmented 5-slice windows against PNG"),
    ("5 slices, scans in memory", "5 slices, slices in memory", "the same against slices in memory"),
    ("5 slices, from the shards", "5 slices, PNG", "augmented 5-slice windows, nothing in memory, against PNG"),
    ("1 slice, scans in memory", "1 slice, slices in memory", "augmented 1-slice windows, both in memory"),
    ("32 x 128 x 128, scans in memory", "32 x 128 x 128, slices in memory", "augmented volumes, both in memory"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small cohort and 5 slices only; under 3 minutes")
    parser.add_argument("--data", type=Path, help="a cohort with train.csv (a generated phantom)")
    parser.add_argument("--peer-python", help="a Python with torch, albumentations, OpenCV and pandas")
    parser.add_argument("--peer", help="a script for the peer's 5-slice windows (peers/loader_torch.py)")
    parser.add_argument("--measure", nargs=3, metavar=("DATASET", "NAME", "EPOCHS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    with tempfile.TemporaryDirectory() as place:
        cohort, dataset = prepare(options, Path(place))
        results = compare(options, cohort, dataset)
    report(results)


def prepare(options, place):
    from gitseg_tf.data.tfrecords.convert import convert
    from gitseg_tf.phantom import make_phantom

    scans = {"cases": 3, "days": 1, "slices": 80} if options.quick else {"cases": 5, "days": 2, "slices": 144}
    cohort = options.data or make_phantom(place / "phantom", **scans)
    # With two folds, one of them held out, an epoch has half as many windows as the peer's.
    return cohort, convert(cohort, place / "records", folds=2).root


def compare(options, cohort, dataset):
    ours = [name for name in OURS if name.startswith("5") or not options.quick]
    peers = [name for name in PEERS if name.startswith("5") or not options.quick] if options.peer_python else []
    if not options.peer_python:
        print("without --peer-python, the peer is not measured")
    results = {"ours": {name: [] for name in ours}, "peer": {name: [] for name in peers}}
    for _ in range(ROUNDS):
        for name in ours:
            command = [sys.executable, __file__, "--measure", dataset, name, 2 if options.quick else 4]
            results["ours"][name].append(json.loads(run(command).splitlines()[-1]))
        for name in peers:
            mode, slices = PEERS[name]
            default = [OWN_PEER, cohort, mode, slices, 6 if options.quick else 15]
            # Another script only supports windows of 5 slices.
            text = run(
                [options.peer_python, *([options.peer, cohort, mode] if options.peer and slices == "5" else default)]
            )
            results["peer"][name].append(float(re.search(r"samples/s ([\d.]+)", text)[1]))
    return results


def run(command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return done.stdout


def measure(dataset, name, epochs):
    """Measure windows/s without the first epoch, CPU milliseconds per window, and resident MiB after each epoch."""
    import psutil
    import tensorflow as tf

    from gitseg_tf.config import load_config
    from gitseg_tf.data.augment.tensorflow import augment_batch
    from gitseg_tf.data.pipeline.batches import training_windows
    from gitseg_tf.data.pipeline.epochs import steps_per_epoch
    from gitseg_tf.data.tfrecords.dataset import load_dataset

    epochs = int(epochs)
    overrides = OURS[name] | {"data.batch_size": 32, "data.empty_slice_fraction": 1, "training.epochs": epochs}
    data = load_dataset(dataset)
    config = load_config(None, overrides).for_dataset(data.labels, data.channels)
    steps, batches = steps_per_epoch(data, config), iter(training_windows(data, config))
    with_tensorflow = config.augment.backend == "tensorflow"
    change = tf.function(
        lambda image, mask, step: augment_batch(image, mask, tf.stack([0, step]), config.augment), jit_compile=True
    )
    memory = []
    for epoch in range(epochs):
        if epoch == 1:
            start, processor = time.perf_counter(), time.process_time()
        for step in range(steps):
            batch = next(batches)
            if with_tensorflow:
                change(*batch, tf.constant(step, tf.int64))
        memory.append(psutil.Process().memory_info().rss / 2**20)
    windows = steps * 32 * (epochs - 1)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return {"rate": windows / seconds, "processor_ms": 1e3 * processor / windows, "memory": memory}


def report(results):
    def median(name, key):
        return statistics.median(one[key] for one in results["ours"][name])

    print(f"{'ours':36}{'windows/s':>10}{'CPU ms':>14}  MiB after each epoch")
    for name, rounds in results["ours"].items():
        memory = "  ".join(f"{mib:.0f}" for mib in rounds[-1]["memory"])
        print(f"{name:36}{median(name, 'rate'):10.0f}{median(name, 'processor_ms'):14.2f}  {memory}")
    print(f"\n{'peer':36}{'windows/s':>10}")
    for name, rates in results["peer"].items():
        print(f"{name:36}{statistics.median(rates):10.0f}")
    print()
    for ours, peer, what in CLAIMS:
        if ours in results["ours"]:
            rate = median(ours, "rate")
            other = statistics.median(results["peer"][peer]) if results["peer"].get(peer) else None
            ratio = round(rate / other, 2) if other else None
            claim = {"claim": what, "ours": round(rate, 1), "peer": other, "unit": "windows/s", "ratio": ratio}
            print(json.dumps(claim))


if __name__ == "__main__":
    main()
