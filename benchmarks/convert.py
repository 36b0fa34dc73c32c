"""Speed and memory of `gitseg convert`, compared with only decoding the images and with a plain converter.

Every measurement is a command in a fresh process, as a user runs it; the time for its imports is measured separately.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gitseg_tf.phantom import make_phantom

PEERS = Path(__file__).parent / "peers"
OURS = [sys.executable, "-c", "import sys; from gitseg_tf.cli import main; sys.exit(main())"]
OURS += ["convert", "--folds", "2"]
STARTS = {
    "gitseg convert": "import gitseg_tf.cli, gitseg_tf.data.tfrecords.convert",
    "decode only": "import multiprocessing, cv2",
    "plain converter": "import numpy, pandas, tensorflow",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 scans and no growth; under 3 minutes")
    parser.add_argument("--data", type=Path, help="a cohort with train.csv (a generated phantom)")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="the Python for the peers; needs OpenCV, TensorFlow and pandas"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        cohort = options.data or make_phantom(workspace / "phantom", cases=3, days=2, slices=144)
        claims = compare(
            repeated(cohort, 10 if options.quick else 20, workspace / "cohort"), workspace, options.peer_python
        )
        if not options.quick:
            claims += growth(cohort, workspace)
    for claim in claims:
        print(json.dumps(claim))


def repeated(cohort, scans, out):
    """Create a cohort with a number of scans linked from another cohort, each as a separate patient."""
    with open(cohort / "train.csv", newline="") as file:
        rows = list(csv.reader(file))
    by_scan = {}
    for row in rows[1:]:
        by_scan.setdefault(row[0].rsplit("_slice_", 1)[0], []).append(row)
    folders = sorted(path.parent for path in cohort.glob("train/*/*/scans"))
    out.mkdir()
    with open(out / "train.csv", "w", newline="") as table:
        csv.writer(table).writerow(rows[0])
        for n in range(scans):
            folder = folders[n % len(folders)]
            case, day = folder.name.split("_")
            name = f"{case}{n:03d}_{day}"
            shutil.copytree(folder, out / "train" / name.split("_")[0] / name, copy_function=link)
            csv.writer(table).writerows([row[0].replace(folder.name, name), *row[1:]] for row in by_scan[folder.name])
    return out


def link(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def compare(cohort, workspace, peer_python, rounds=3):
    slices = sum(1 for _ in cohort.glob("train/*/*/scans/*.png"))
    out = str(workspace / "out")
    commands = {
        "gitseg convert": [*OURS, str(cohort), out],
        "decode only": [peer_python, str(PEERS / "decode_png.py"), str(cohort)],
        "plain converter": [peer_python, str(PEERS / "convert_tf.py"), str(cohort), out],
    }
    measured = {name: [] for name in commands}
    starts = {name: [] for name in commands}
    run(commands["decode only"])  # warms the disk cache for all
    for _ in range(rounds):
        for name, command in commands.items():
            python = sys.executable if name == "gitseg convert" else peer_python
            starts[name].append(run([python, "-c", STARTS[name]])[0])
            measured[name].append(run(command))
            shutil.rmtree(out, ignore_errors=True)
    seconds = {name: statistics.median(run[0] for run in runs) for name, runs in measured.items()}
    net = {name: seconds[name] - statistics.median(starts[name]) for name in commands}
    memory = {name: statistics.median(run[1] for run in runs) for name, runs in measured.items()}
    processor = {name: statistics.median(run[2] for run in runs) for name, runs in measured.items()}
    print(f"{slices} slices, medians over {rounds} rounds")
    print(f"{'':18}{'seconds':>9}{'slices/s':>10}{'without start-up':>18}{'CPU s':>13}{'peak MiB':>10}")
    for name in commands:
        rate, bare = slices / seconds[name], slices / net[name]
        print(f"{name:18}{seconds[name]:9.2f}{rate:10.0f}{bare:18.0f}{processor[name]:13.2f}{memory[name]:10.0f}")
    claims = []
    for peer in ("decode only", "plain converter"):
        rate = {name: slices / seconds[name] for name in commands}
        bare = {name: slices / net[name] for name in commands}
        claims.append(claim(f"conversion speed against {peer}", rate["gitseg convert"], rate[peer], "slices/s"))
        claims.append(claim(f"the same without start-up, {peer}", bare["gitseg convert"], bare[peer], "slices/s"))
    ours, peer = memory["gitseg convert"], memory["plain converter"]
    return [*claims, claim("peak memory against plain converter", ours, peer, "MiB", less_is_better=True)]


def growth(cohort, workspace):
    """Measure time and memory for 5, 20 and 80 scans; the claims compare with linear time and constant memory."""
    sizes, measured = (5, 20, 80), {}
    cohorts = {scans: repeated(cohort, scans, workspace / f"growth{scans}") for scans in sizes}
    start = statistics.median(run([sys.executable, "-c", STARTS["gitseg convert"]])[0] for _ in range(3))
    for _ in range(3):
        for scans in sizes:
            measured.setdefault(scans, []).append(run([*OURS, str(cohorts[scans]), str(workspace / "out")]))
            shutil.rmtree(workspace / "out")
    seconds = {scans: statistics.median(run[0] for run in measured[scans]) - start for scans in sizes}
    memory = {scans: max(run[1] for run in measured[scans]) for scans in sizes}
    print(f"\n{'scans':>5}{'seconds without start-up':>26}{'peak MiB':>10}")
    for scans in sizes:
        print(f"{scans:5}{seconds[scans]:26.2f}{memory[scans]:10.0f}")
    return [
        claim("time of 80 scans over 20", seconds[80] / seconds[20], 4.0, "times", less_is_better=True),
        claim("peak memory of 80 scans over 5", memory[80] / memory[5], 1.0, "times", less_is_better=True),
        claim("peak memory of 80 scans, limit 1.5 GiB", memory[80], 1536.0, "MiB", less_is_better=True),
    ]


def run(command):
    """Run a command; return seconds, peak MiB of the process, and CPU seconds of it and its children."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{errors.decode()}")
    return seconds, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def claim(what, ours, peer, unit, less_is_better=False):
    ratio = peer / ours if less_is_better else ours / peer
    return {"claim": what, "ours": round(ours, 2), "peer": round(peer, 2), "unit": unit, "ratio": round(ratio, 2)}


if __name__ == "__main__":
    main()
