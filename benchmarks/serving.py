"""Requests/s and latencies of a served model on loopback, and what gRPC and REST cost over in-process prediction.

    python benchmarks/serving.py EXPORT/1 [--quick] [--minutes 10]

EXPORT/1 is a SavedModel of gitseg export. The server is the one of the tests, in a process of its own: it loads the
model as TensorFlow Serving does and speaks as it does, but in Python. Every answer is compared with that in-process,
and every tenth request is malformed. --minutes keeps 16 clients busy for that long and watches the server's memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "serving")]
SPACING = np.array([3.0, 1.5, 1.5], np.float32)
CLIENTS = (1, 4, 16)
MALFORMED = 10  # one of so many requests
MEMORY_SECONDS = 2.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="EXPORT/1")
    parser.add_argument("--quick", action="store_true", help="a scan of 16 slices, seconds a row")
    parser.add_argument("--minutes", type=float, default=0, help="of full load (%(default)s)")
    parser.add_argument("--data", help="not used: the scan is drawn")
    parser.add_argument("--peer-python", help="not used: in-process prediction is what the others are compared with")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_until_told(options.model)
        return
    from server import Loaded

    depth, seconds, rounds = (16, 5, 3) if options.quick else (144, 60, 5)
    inputs = {"slice": draw(1), "scan": draw(depth)}
    model = Loaded(options.model)
    expected = {what: in_process(model, image) for what, image in inputs.items()}
    with subprocess.Popen(
        [sys.executable, __file__, options.model, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        urls = json.loads(server.stdout.readline())
        claims = compare(model, urls, inputs, rounds)
        del model
        print(
            f"\n{'what':6} {'way':5}{'clients':>8}{'requests/s':>12}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'wrong':>7}"
        )
        wrong = 0
        for what in inputs:
            for way, url in urls.items():
                for clients in CLIENTS:
                    found = load(url, [inputs[what]], [expected[what]], clients, seconds)
                    wrong += found["wrong"]
                    print_row(what, way, clients, found)
        if options.minutes:
            claims.append(endure(server.pid, urls["gRPC"], inputs, expected, options.minutes))
            wrong += claims[-1].pop("wrong")
        server.stdin.close()
    claims.append({"claim": "wrong answers, served", "ours": wrong, "peer": 0, "unit": "answers", "ratio": None})
    print()
    for claim in claims:
        print(json.dumps(claim))


def serve_until_told(path):
    from server import serve

    with serve({"model": {1: path}}) as started:
        started.serving.as_content = True  # as serving/compose.yaml tells TensorFlow Serving to
        print(json.dumps({"gRPC": started.grpc_url("model"), "REST": started.rest_url("model")}), flush=True)
        sys.stdin.read()


def draw(depth):
    """A bright ball in noise, uint16 [depth, 266, 266]."""
    z, y, x = np.ogrid[:depth, :266, :266]
    inside = (z - depth / 2) ** 2 * 9 + (y - 133) ** 2 + (x - 133) ** 2 < 90**2
    noise = np.random.default_rng(depth).integers(0, 300, (depth, 266, 266))
    return (noise + 2000 * inside).astype(np.uint16)


def in_process(model, image):
    masks = model.run("segment_volume", {"image": image, "spacing": SPACING}, None)["masks"]
    return np.moveaxis(masks, -1, 0) != 0


def client(url):
    from gitseg_tf.serving.client import connect

    segment = connect(url, timeout=3600)
    return lambda image: segment(image, range(len(image)), None, SPACING)


def compare(model, urls, inputs, rounds):
    """One request at a time, in-process, gRPC and REST in turn; the first round does not count."""
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
    return claims


def load(url, images, expected, clients, seconds):
    """Keep clients busy with images in turn; a request that was begun is finished."""
    from gitseg_tf.errors import ScanError

    end = time.perf_counter() + seconds

    def busy(number):
        segment, latencies, wrong = client(url), [], 0
        while not latencies or time.perf_counter() < end:
            at = (number + len(latencies)) % len(images)
            begun = time.perf_counter()
            wrong += not np.array_equal(segment(images[at]), expected[at])
            latencies.append(time.perf_counter() - begun)
            if len(latencies) % MALFORMED == number % MALFORMED:
                try:
                    segment(np.zeros((0, 4, 4), np.uint16))
                    wrong += 1
                except ScanError:
                    pass
        return latencies, wrong

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = [*pool.map(busy, range(clients))]
    took = time.perf_counter() - begun
    latencies = np.concatenate([times for times, _ in found])
    quantiles = np.percentile(latencies, [50, 95, 99]) * 1000
    return {"rate": len(latencies) / took, "quantiles": quantiles, "wrong": sum(wrong for _, wrong in found)}


def print_row(what, way, clients, found):
    p50, p95, p99 = found["quantiles"]
    print(
        f"{what:6} {way:5}{clients:8}{found['rate']:12.2f}{p50:9.0f}{p95:9.0f}{p99:9.0f}{found['wrong']:7}", flush=True
    )


def endure(pid, url, inputs, expected, minutes):
    """Full load over gRPC, scans and slices mixed; the server's memory in its second quarter and in its last."""
    process, sizes = psutil.Process(pid), []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(load, url, [*inputs.values()], [*expected.values()], max(CLIENTS), minutes * 60)
        while not running.done():
            sizes.append(process.memory_info().rss / 2**20)
            time.sleep(MEMORY_SECONDS)
        found = running.result()
    print_row("both", "gRPC", max(CLIENTS), found)
    quarter = max(len(sizes) // 4, 1)
    early, late = statistics.median(sizes[quarter : 2 * quarter] or sizes), statistics.median(sizes[-quarter:])
    return {
        "claim": f"server's memory after {minutes:g} minutes of full load against before",
        "ours": round(late),
        "peer": round(early),
        "unit": "MiB",
        "ratio": round(early / late, 3),
        "wrong": found["wrong"],
    }


if __name__ == "__main__":
    main()
