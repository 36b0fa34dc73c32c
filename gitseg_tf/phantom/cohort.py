"""A synthetic cohort in the layout of the UW-Madison GI Tract competition, for examples, tests and first steps."""

import functools
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2

from gitseg_tf.core.progress import progress
from gitseg_tf.data.readers.rle import mask_to_rle
from gitseg_tf.labels import UWMGI
from gitseg_tf.phantom.preview import save_preview
from gitseg_tf.phantom.scan import PIXEL_MM, PhantomScan, _check, _require, render_scan

PREVIEW_CASES = PREVIEW_DAYS = 2


def make_phantom(
    out: str | Path, *, cases: int = 10, days: int = 2, slices: int = 80, seed: int = 0, workers: int | None = None
) -> Path:
    """Write a synthetic cohort in the competition's layout.

    `out` will contain train.csv (id, class, segmentation), train/caseC/caseC_dayD/scans/slice_NNNN_W_H_1.50_1.50.png
    and preview.png. It is created atomically: everything is written to `out` + ".partial" first.

    Args:
        out: the folder to create.
        cases: number of patients. A patient looks the same in a cohort of any size.
        days: number of scans per patient.
        slices: number of slices per scan, 3 mm apart, at least 24; fewer than 80 compress the anatomy along z.
        seed: the same seed gives the same bytes for any number of workers.
        workers: number of processes; by default one per core.

    Returns:
        `out`.

    Raises:
        DataError: an argument out of range, or `out` is a file or a folder that is not empty.

    Example:
        >>> make_phantom("phantom", cases=1, days=1, slices=24)  # doctest: +SKIP
        PosixPath('phantom')
    """
    out = Path(out)
    _require(cases >= 1, f"cases must be >= 1, got {cases}")
    _require(days >= 1, f"days must be >= 1, got {days}")
    _require(workers is None or workers >= 1, f"workers must be >= 1, got {workers}")
    _check(slices, seed)
    free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    _require(free, f"{out}: exists and is not an empty folder; choose another folder or remove it")
    partial = out.absolute().with_name(out.absolute().name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    jobs = [(case, day) for case in range(1, cases + 1) for day in range(days)]
    lines, shown = _write_scans(partial, jobs, slices, seed, min(workers or os.cpu_count() or 1, len(jobs)))
    save_preview(partial / "preview.png", shown)
    with open(partial / "train.csv", "w", newline="", encoding="ascii") as table:
        table.writelines(["id,class,segmentation\n", *lines])
        table.flush()
        os.fsync(table.fileno())
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return out


def _write_scans(root, jobs, slices, seed, workers) -> tuple[list[str], dict[str, PhantomScan]]:
    lines, shown = [], {}
    # Forking a process that runs TensorFlow's threads can hang; spawning is safe.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        written = pool.map(functools.partial(_write_scan, root, slices, seed), jobs)
        bar = progress(written, "phantom", total=len(jobs), unit="scan")
        for (case, day), (rows, scan) in zip(jobs, bar, strict=True):
            lines += rows
            if scan is not None:
                shown[f"case{case} day{day}"] = scan
    return lines, shown


def _write_scan(root: Path, slices: int, seed: int, job: tuple[int, int]) -> tuple[list[str], PhantomScan | None]:
    # The pool of processes already uses all cores, so OpenCV's threads would only compete with each other.
    cv2.setNumThreads(1)
    case, day = job
    scan = render_scan(case, day, slices, seed)
    folder = root / "train" / f"case{case}" / f"case{case}_day{day}" / "scans"
    folder.mkdir(parents=True)
    height, width = scan.image.shape[1:]
    rows = []
    for number, plane in enumerate(scan.image, start=1):
        name = f"slice_{number:04d}_{width}_{height}_{PIXEL_MM:.2f}_{PIXEL_MM:.2f}.png"
        if not cv2.imwrite(str(folder / name), plane, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise OSError(f"{folder / name} could not be written")
        for label, mask in zip(UWMGI, scan.masks[:, number - 1], strict=True):
            rows.append(f"case{case}_day{day}_slice_{number:04d},{label.name},{mask_to_rle(mask)}\n")
    return rows, scan if case <= PREVIEW_CASES and day < PREVIEW_DAYS else None
