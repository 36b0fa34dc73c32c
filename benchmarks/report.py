"""Size of the evaluation report, and the time a browser takes to open it.

    python benchmarks/report.py [--quick] [--chromium PATH] [--chromedriver PATH]

A report of `gitseg evaluate` with training curves and reliability on 50 scans of 144 slices of 360 x 310: phantoms
whose prediction is the slightly shifted reference. It is opened five times in headless Chromium. Time is
measured from navigation to the end of the page's load event; then the first slice is awaited. Eight scans are rendered
and repeated under other names; with --quick, two. The targets are 20 MB and 2000 ms. There is no peer.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait
from view import browser

from gitseg_tf.data.volume import Annotation, LoadedScan, Volume
from gitseg_tf.evaluation.calibration import Reliability
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.evaluation.report.report import write_report
from gitseg_tf.evaluation.report.selection import PictureShelf
from gitseg_tf.evaluation.report.slices import picture_scan
from gitseg_tf.evaluation.statistics.intervals import mean_intervals
from gitseg_tf.labels import UWMGI
from gitseg_tf.phantom import render_scan

SCANS, SLICES, DRAWN, LOADS, EPOCHS = 50, 144, 8, 5, 60
TARGET_MB, TARGET_MS = 20, 2000
LOADED = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
SHOWN = "return document.querySelector('.viewer').dataset.slice"


def write(path: Path, drawn: int) -> None:
    """Write a report on SCANS scans, `drawn` of which are different."""
    rows, reliability = [], Reliability(UWMGI)
    sources = [draw(number, reliability) for number in range(drawn)]
    with PictureShelf(SCANS) as shelf:
        for k in range(SCANS):
            pictures, scores = sources[k % drawn]
            name = {"scan": f"case{k + 1}_day0", "case": f"case{k + 1}"}
            scan_rows = [row | name | {"score": row["score"] * (1 - 0.001 * k)} for row in scores]
            shelf.add(
                name["scan"], scan_rows, lambda pictures=pictures, name=name: replace(pictures, scan=name["scan"])
            )
            rows += scan_rows
        table = pd.DataFrame(rows)
        summary = summarize(table)
        summary |= {"intervals": mean_intervals(table), "calibration": reliability.summary()}
        write_report(
            path, summary, table,
            labels=UWMGI, chosen=shelf.chosen(), history=history(), title="A run", details={"Data": "phantoms"},
        )  # fmt: skip


def draw(number: int, reliability: Reliability):
    """Draw and score a scan whose prediction is the shifted reference, with small masks in the last slices."""
    scan = render_scan(2 * number + 2, 0, SLICES)
    prediction = np.roll(scan.masks, (1 + number % 3, 2), (2, 3))
    prediction[:, -SLICES // 3 :] &= np.arange(SLICES // 3)[:, None, None] < 20 + 3 * number
    annotation = Annotation.complete(scan.masks)
    reliability.add(np.where(prediction, 70 + number, 8).astype(np.uint8), annotation)
    loaded = LoadedScan("drawn", "drawn", Volume(scan.image, scan.spacing), annotation)
    scores = score_scan("drawn", "drawn", annotation, prediction, labels=UWMGI, spacing=(3, 1.5, 1.5))
    return picture_scan(loaded, prediction, UWMGI), scores


def history() -> pd.DataFrame:
    """Create the history of a training with EPOCHS epochs."""
    epoch = np.arange(1, EPOCHS + 1)
    loss, dice = np.exp(-epoch / 20), 0.9 - 0.5 * np.exp(-epoch / 15)
    columns = {"epoch": epoch, "loss": loss, "val_loss": 1.1 * loss, "dice": dice, "val_dice": dice - 0.03}
    return pd.DataFrame(columns | {"learning_rate": 1e-3 * loss, "seconds": 60.0})


def load_times(driver: webdriver.Chrome, path: Path) -> list[float]:
    """Measure the milliseconds of each load."""
    times = []
    for _ in range(LOADS):
        driver.get("about:blank")
        driver.get(path.as_uri())
        WebDriverWait(driver, 30).until(lambda page: page.execute_script(SHOWN), "no slice is shown")
        times.append(driver.execute_script(LOADED))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--chromedriver", default=shutil.which("chromedriver"))
    options = parser.parse_args()
    if not (options.chromium and options.chromedriver):
        parser.error("chromium or chromedriver not found; pass --chromium and --chromedriver")
    with tempfile.TemporaryDirectory() as place, browser(options.chromium, options.chromedriver) as driver:
        path = Path(place) / "report.html"
        write(path, 2 if options.quick else DRAWN)
        size, times = path.stat().st_size / 1e6, load_times(driver, path)
    print(f"{SCANS} scans of {SLICES} slices: {size:.1f} MB, opened in ms: {', '.join(f'{ms:.0f}' for ms in times)}")
    for claim, ours, unit, target in (
        ("size of the report, 50 scans of 144 slices", size, "MB", TARGET_MB),
        ("opening of the report, 50 scans of 144 slices", statistics.median(times), "ms", TARGET_MS),
    ):
        line = {"claim": claim, "ours": round(ours, 1), "peer": None, "unit": unit, "ratio": None, "target": target}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
