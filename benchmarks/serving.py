"""Throughput and latency of a served model on loopback, and the overhead of gRPC and REST over in-process prediction.

    python benchmarks/serving.py [EXPORT/1] [--quick] [--minutes 10] [--picture FILE]

EXPORT/1 is a SavedModel from gitseg export; without it, a randomly initialized U-Net ResNet-34 for 5 slices of
256 x 256 is exported first. The server is the one from the tests, in its own process: it loads the model like
TensorFlow Serving and speaks its protocol, but is written in Python. Every answer is compared with the in-process
result. Every fifth request is one of the malformed requests of malformed.py and must be rejected with a given status.
--minutes keeps 16 gRPC and REST clients busy for that long, with slices, scans and malformed requests, and monitors the
server's memory. The exit status is 1 if an answer or a refusal was wrong, memory grew, or gRPC cost more than 10% over
in-process prediction for a whole scan.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from malformed import SPACING as SPACING_LIST
from malformed import malformed
from predict import environment, sources, write_cohort, write_run
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SPACING = np.array(SPACING_LIST, np.float32)
CLIENTS = (1, 4, 16)
ONE_MALFORMED_OF = 5
MEMORY_SECONDS = 2.0
# Accepted growth of memory over the last three quarters of the time, relative to its median; more indicates a leak.
MOST_GROWTH = 0.02
# Accepted overhead of gRPC over in-process prediction for a whole scan.
MOST_OVERHEAD = 0.10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="EXPORT/1")
    parser.add_argument("--quick", action="store_true", help="a scan of 16 slices, 3 s per row; under 3 minutes")
    parser.add_argument("--seconds", type=float, help="seconds per row of the table (60)")
    parser.add_argument("--minutes", type=float, default=0, help="minutes of full load (%(default)s)")
    parser.add_argument("--picture", help="PNG with memory and latencies under full load")
    parser.add_argument("--data", type=Path, help="a cohort in the competition's layout (the phantom)")
    parser.add_argument("--peer-python", help="not used: the baseline is in-process prediction")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_until_closed(options.model)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or export_untrained(Path(folder), options.data)
        claims, faults = measure(path, options)
    print()
    for claim in claims:
        print(json.dumps(claim))
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def measure(path, options):
    """Measure everything; return the claims, and one line per failed check."""
    from helpers.server import Loaded

    depth, seconds, rounds = (16, 3, 3) if options.quick else (144, 60, 5)
    seconds = seconds if options.seconds is None else options.seconds
    scan = next(sources(options.data, 1))
    scan = scan[np.arange(depth) % len(scan)]
    inputs = {"slice": scan[depth // 2 : depth // 2 + 1], "scan": scan}
    model = Loaded(path)
    expected = {what: in_process(model, image) for what, image in inputs.items()}
    if not all(0 < masks.mean() < 1 for masks in expected.values()):
        sys.exit(f"{path}: its masks are empty or full, so wrong answers would go unnoticed; choose another model")
    command = [sys.executable, __file__, str(path), "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        answer = next((line for line in server.stdout if line.startswith("{")), None)
        if answer is None:
            sys.exit(f"{path}: the server did not start (exit status {server.wait()}); see its output above")
        urls = json.loads(answer)
        claims, overhead = compare(model, urls, inputs, rounds)
        del model
        print(f"\n{'what':6} {'way':6}{'clients':>8}{'answers/s':>12}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}", end="")
        print(f"{'answers':>9}{'refused':>9}{'wrong':>7}")
        wrong = 0
        for what in inputs:
            for way, url in urls.items():
                for clients in CLIENTS:
                    found = load([url], [inputs[what]], [expected[what]], clients, seconds)
                    wrong += found["wrong"]
                    print_row(what, way, clients, found)
        growth = None
        if options.minutes:
            found, memory = endure(server.pid, [*urls.values()], [*inputs.values()], [*expected.values()], options)
            print_row("both", "both", max(CLIENTS), found)
            wrong, growth = wrong + found["wrong"], growth_of(memory)
            claims.append(memory_claim(memory, growth, options.minutes))
            if options.picture:
                draw(options.picture, memory, found)
        server.stdin.close()
    claims.append({"claim": "wrong answers and refusals", "ours": wrong, "peer": 0, "unit": "answers", "ratio": None})
    # The short scan of a quick run says little about a whole one.
    return claims, faults_of(wrong, growth, None if options.quick else overhead)


def faults_of(wrong, growth, overhead):
    """List one line per failed check.

    Args:
        wrong: number of wrong answers and refusals.
        growth: growth of memory, from `growth_of`; None if it was not monitored.
        overhead: overhead of gRPC for a scan, relative to in-process prediction; None if it was not measured.
    """
    faults = [f"{wrong} answers or refusals were wrong"] if wrong else []
    if growth is not None and not growth <= MOST_GROWTH:
        faults.append(f"the server's memory grew by {growth:.1%}, more than {MOST_GROWTH:.0%}")
    if overhead is not None and not overhead <= MOST_OVERHEAD:
        faults.append(f"gRPC costs {overhead:.1%} over in-process prediction for a scan, more than {MOST_OVERHEAD:.0%}")
    return faults


def export_untrained(folder, data):
    cohort = write_cohort(folder / "cohort", data, 1, 16)
    run = write_run(folder / "run", cohort)
    command = [sys.executable, "-m", "gitseg_tf", "export", str(run), str(folder / "export"), "--force"]
    subprocess.run(command, check=True, env=environment(), stdout=sys.stderr)
    return folder / "export" / "1"


def serve_until_closed(path):
    from helpers.server import serve

    with serve({"model": {1: path}}) as started:
        print(json.dumps({"gRPC": started.grpc_url("model"), "REST": started.rest_url("model")}), flush=True)
        sys.stdin.read()


def in_process(model, image):
    inputs = {"image": image.astype(np.float32), "spacing": SPACING}
    masks = model.run("segment_volume", inputs, None)["masks"]
    return np.moveaxis(masks, -1, 0) != 0


def client(url):
    from gitseg_tf.client.client import connect

    predictor = connect(url, timeout=3600)
    return lambda image: predictor.predict(image, spacing=SPACING.tolist()).masks


def compare(model, urls, inputs, rounds):
    """Time one request at a time, in-process, over gRPC and over REST in turn; the first round is warm-up.

    Returns:
        Claims, and the relative overhead of gRPC over in-process prediction for a scan.
    """
    claims = []
    print(f"{'what':6}{'in-process s':>14}{'gRPC s':>10}{'REST s':>10}")
    for what, image in inputs.items():
        ways = {"in-process": lambda image: in_process(model, image)}
        ways |= {way: client(url) for way, url in urls.items()}
        seconds = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, call in ways.items():
                begun = time.perf_counter()
                call(image)
                if number:
                    seconds[way].append(time.perf_counter() - begun)
        median = {way: statistics.median(values) for way, values in seconds.items()}
        print(f"{what:6}{median['in-process']:14.3f}{median['gRPC']:10.3f}{median['REST']:10.3f}")
        for way in urls:
            claims.append(
                {
                    "claim": f"a {what} over {way} against in-process",
                    "ours": round(median[way], 4),
                    "peer": round(median["in-process"], 4),
                    "unit": "s",
                    "ratio": round(median["in-process"] / median[way], 3),
                }
            )
    return claims, median["gRPC"] / median["in-process"] - 1


def load(urls, images, expected, clients, seconds):
    """Keep clients busy for a while; requests in flight are finished.

    Args:
        urls: distributed over the clients.
        images, expected: scans and their masks; each client sends them in turn.
        clients: number of concurrent clients.
        seconds: duration.

    Returns:
        dict: `rate`, answers per second; `times` [N] of the answers and their `latencies` in s; and counts: `answers`,
        `refused` (correctly) and `wrong`.
    """
    from gitseg_tf.errors import GitsegError, ScanError

    start = time.perf_counter()

    def busy(number):
        url = urls[number % len(urls)]
        segment, refusals = client(url), [*malformed(url).values()]
        answered, refused, wrong, sent = [], 0, 0, number
        while not answered or time.perf_counter() < start + seconds:
            sent += 1
            if sent % ONE_MALFORMED_OF == 0:
                found, right = refusals[(number + sent // ONE_MALFORMED_OF) % len(refusals)]()
                refused, wrong = refused + (found == right), wrong + (found != right)
                continue
            at = sent % len(images)
            begun = time.perf_counter()
            try:
                wrong += not np.array_equal(segment(images[at]), expected[at])
            except (ScanError, GitsegError) as error:
                tqdm.write(str(error), file=sys.stderr)
                wrong += 1
            now = time.perf_counter()
            answered.append((now - start, now - begun))
        return answered, refused, wrong

    with ThreadPoolExecutor(clients) as pool:
        found = [*pool.map(busy, range(clients))]
    took = time.perf_counter() - start
    times, latencies = np.array([one for answered, *_ in found for one in answered]).T
    refused, wrong = (sum(one[k] for one in found) for k in (1, 2))
    return {
        "rate": len(times) / took,
        "times": times,
        "latencies": latencies,
        "answers": len(times),
        "refused": refused,
        "wrong": wrong,
    }


def print_row(what, way, clients, found):
    p50, p95, p99 = np.percentile(found["latencies"], [50, 95, 99]) * 1000
    print(f"{what:6} {way:6}{clients:8}{found['rate']:12.2f}{p50:9.0f}{p95:9.0f}{p99:9.0f}", end="")
    print(f"{found['answers']:9}{found['refused']:9}{found['wrong']:7}", flush=True)


def endure(pid, urls, images, expected, options):
    """Return the result of `load` under full load, and the server's memory over time: [T, 2] of s and MiB.

    Three slices are sent per scan, so that there are many requests of both kinds.
    """
    process, memory, seconds = psutil.Process(pid), [], options.minutes * 60
    mixed = [0, 0, 0, 1] if len(images) > 1 else [0]
    with ThreadPoolExecutor(1) as pool, tqdm(total=round(seconds), unit="s", desc="full load") as bar:
        begun = time.perf_counter()
        running = pool.submit(
            load, urls, [images[k] for k in mixed], [expected[k] for k in mixed], max(CLIENTS), seconds
        )
        while not running.done():
            now = time.perf_counter() - begun
            memory.append((now, process.memory_info().rss / 2**20))
            bar.set_postfix_str(f"{memory[-1][1]:.0f} MiB", refresh=False)
            bar.update(min(round(now), bar.total) - bar.n)
            time.sleep(min(MEMORY_SECONDS, seconds / 20))
        return running.result(), np.array(memory)


def growth_of(memory):
    """Compute the rise of a line fitted to the last three quarters of the memory curve, relative to their median."""
    seconds, sizes = memory[len(memory) // 4 :].T
    slope, _ = np.polyfit(seconds, sizes, 1)
    return slope * np.ptp(seconds) / np.median(sizes)


def memory_claim(memory, growth, minutes):
    early, late = (np.median(part[:, 1]) for part in np.array_split(memory, 4)[1::2])
    return {
        "claim": f"server's memory in the last quarter of {minutes:g} minutes of full load against the second, "
        f"a line through it grows by {growth:.1%}",
        "ours": round(float(late)),
        "peer": round(float(early)),
        "unit": "MiB",
        "ratio": round(float(early / late), 3),
    }


def draw(path, memory, found):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    above.plot(memory[:, 0] / 60, memory[:, 1], color="#0072b2")
    above.set(ylabel="server's memory, MiB", ylim=(0, None))
    below.semilogy(found["times"] / 60, found["latencies"], ".", markersize=2, color="#d55e00")
    below.set(ylabel="latency, s", xlabel="minutes of full load")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
