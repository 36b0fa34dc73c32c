"""Time that `gitseg view` takes to show a scan's first image and the next slice.

    python benchmarks/view.py [--quick] [--data COHORT] [--chromium PATH] [--chromedriver PATH]

Headless Chromium opens each scan by its link, with a server that has not read the scan yet; time is measured from
navigation until the slice and its contours are drawn. Then it steps through slices with the keyboard, at ten per second
and as fast as they are drawn, and jumps to slices that were not prefetched. Without --data, a phantom is generated.
--quick uses three scans. The targets are 1000 and 100 ms.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.phantom import make_phantom

FIRST_MS, NEXT_MS = 1000, 100
DRAWN = """
window.drawn = [];
document.addEventListener("DOMContentLoaded", () => {
  const canvas = document.querySelector("#main canvas");
  new MutationObserver(() => {
    if (canvas.dataset.shown) drawn.push([performance.now(), canvas.dataset.shown, canvas.dataset.layers]);
  }).observe(canvas, { attributes: true, attributeFilter: ["data-shown"] });
});
"""
FIRST = """
const done = arguments[arguments.length - 1];
(function look() {
  const bare = library && !library.scans.some((scan) => scan.annotated);
  const whole = drawn.find(([, , layers]) => bare || layers === "truth");
  if (whole) done(whole[0]); else setTimeout(look, 5);
})();
"""
# Press a key, wait until the slice is drawn with its contours, rest, and press again.
STEPS = """
const [keys, rest, done] = arguments, times = [];
const annotated = library.scans[state.scan].annotated;
(async () => {
  for (const key of keys) {
    const begun = performance.now(), count = drawn.length;
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const whole = () => drawn.slice(count).find(([, , layers]) => !annotated || layers === "truth");
    while (!whole() && performance.now() - begun < 10000) await new Promise((go) => setTimeout(go, 1));
    times.push(whole()[0] - begun);
    await new Promise((go) => setTimeout(go, rest));
  }
  done(times);
})();
"""
FAR = """
const [indices, done] = arguments, times = [];
const annotated = library.scans[state.scan].annotated;
(async () => {
  for (const index of indices) {
    const begun = performance.now(), count = drawn.length;
    goTo(index);
    const whole = () => drawn.slice(count).find(([, , layers]) => !annotated || layers === "truth");
    while (!whole() && performance.now() - begun < 10000) await new Promise((go) => setTimeout(go, 1));
    times.push(whole()[0] - begun);
  }
  done(times);
})();
"""


@contextmanager
def browser(chromium: str, chromedriver: str) -> Iterator[webdriver.Chrome]:
    """Start headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for name in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-background-networking",
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{name}")
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
        try:
            driver.set_window_size(1440, 900)
            driver.set_script_timeout(120)
            yield driver
        finally:
            driver.quit()


@contextmanager
def viewer(data: Path) -> Iterator[str]:
    """Start a server that has not read any scan; yield its address."""
    command = [sys.executable, "-u", "-m", "gitseg_tf", "view", str(data), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            match = next(filter(None, (re.search(r"http://\S+", line) for line in process.stdout)))
            yield match[0]
        finally:
            process.kill()


def measure(driver: webdriver.Chrome, data: Path, ids: list[str]) -> dict[str, list[float]]:
    """Measure the milliseconds of each kind of step over all scans."""
    times: dict[str, list[float]] = {}
    with viewer(data) as address:
        for scan_id in ids:
            driver.get("about:blank")
            driver.get(f"{address}#scan={scan_id}")
            times.setdefault("first picture", []).append(driver.execute_async_script(FIRST))
            for plane, key in (("axial", "a"), ("coronal", "c"), ("sagittal", "s")):
                if plane != "axial":
                    driver.execute_async_script(STEPS, [key], 0)
                steps = driver.execute_async_script(STEPS, ["ArrowDown"] * 20, 100)
                times.setdefault(f"next slice, {plane}, ten per second", []).extend(steps)
                steps = driver.execute_async_script(STEPS, ["ArrowUp"] * 40, 0)
                times.setdefault(f"next slice, {plane}, as fast as drawn", []).extend(steps)
                steps = driver.execute_async_script(FAR, [5, 120, 20, 100, 35])
                times.setdefault(f"far slice, {plane}", []).extend(steps)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--chromedriver", default=shutil.which("chromedriver"))
    options = parser.parse_args()
    if not (options.chromium and options.chromedriver):
        parser.error("chromium or chromedriver not found; pass --chromium and --chromedriver")
    with tempfile.TemporaryDirectory() as place, browser(options.chromium, options.chromedriver) as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": DRAWN})
        data = options.data or Path(place) / "phantom"
        if options.data is None:
            make_phantom(data, cases=3)
        ids = [scan.id for scan in read_cohort(data).scans][: 3 if options.quick else None]
        times = measure(driver, data, ids)
    print(f"{len(ids)} scans of {data.name}, ms{'':<24} median    95 %     max   (n)")
    for name, values in times.items():
        high = sorted(values)[int(0.95 * (len(values) - 1))]
        print(f"{name:<40} {statistics.median(values):7.0f} {high:7.0f} {max(values):7.0f}   ({len(values)})")
    for claim, prefix, target in (("first picture", "first", FIRST_MS), ("next slice", "next", NEXT_MS)):
        values = [value for name, group in times.items() if name.startswith(prefix) for value in group]
        ours = statistics.median(values)
        line = {
            "claim": claim,
            "ours": ours,
            "peer": None,
            "unit": "ms",
            "ratio": None,
            "target": target,
            "max": max(values),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
