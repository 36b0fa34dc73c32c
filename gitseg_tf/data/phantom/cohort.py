"""A synthetic cohort in the layout of the UW-Madison GI Tract competition, for examples, tests and a first training."""

import functools
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from gitseg_tf.data.phantom.anatomy import Anatomy, build_anatomy, trunk_box
from gitseg_tf.data.phantom.geometry import Box, Shape, carve, fine_box, make_grid, upsample
from gitseg_tf.data.phantom.image import draw_tissue, scan_image
from gitseg_tf.data.phantom.preview import save_preview
from gitseg_tf.data.rle import mask_to_rle
from gitseg_tf.data.scans import ORGANS, SLICE_MM
from gitseg_tf.errors import InputError
from gitseg_tf.progress import progress

PIXEL_MM = 1.5
SIZES = ((310, 360), (266, 266))
MIN_SLICES = 24
LOOP_GAP_MM = 1.6
PREVIEW_CASES = PREVIEW_DAYS = 2


@dataclass(frozen=True)
class PhantomScan:
    """One synthetic scan.

    Attributes:
        image: uint16 [depth, height, width]; slices from head to feet, the front at the top,
            the patient's left at the right.
        masks: bool [3, depth, height, width] in the order of `ORGANS`.
        spacing: (z, y, x) in mm.
    """

    image: np.ndarray
    masks: np.ndarray
    spacing: tuple[float, float, float]


def render_scan(case: int, day: int, slices: int = 80, seed: int = 0) -> PhantomScan:
    """Draw one scan of a synthetic patient.

    The anatomy is 240 mm long. It is centred in a scan of more than 80 slices and squeezed along z into one of fewer.

    Args:
        case: the patient, from 1; even ones are 360 x 310 pixels, odd ones 266 x 266.
        day: the day of the scan, from 0: the same patient with other filling, position and course of the loops.
        slices: number of slices, 3 mm apart.
        seed: of the cohort.

    Returns:
        The scan. The same arguments give the same voxels.

    Raises:
        InputError: an argument out of range.
    """
    _require(case >= 1, f"case {case} is no patient; cases count from 1")
    _require(day >= 0, f"day {day} is negative; days count from 0")
    _check(slices, seed)
    size = SIZES[case % 2]
    patient = np.random.default_rng((seed, case, 0))
    today, scanner = (np.random.default_rng((seed, case, day + 1, stream)) for stream in (0, 1))
    shift = today.normal(0, (1.5, 3, 3)).clip((-4, -8, -8), (4, 8, 8))
    grid = make_grid((slices, *size), PIXEL_MM, SLICE_MM, shift)
    # Most of the image is air, and drawing air costs as much as drawing bowel.
    box = trunk_box(grid)
    anatomy = build_anatomy(grid.crop(box), patient, today)
    image = np.zeros((slices, *size), np.float32)
    image[fine_box(box)] = draw_tissue(anatomy, scanner)
    masks = np.zeros((len(ORGANS), slices, *size), bool)
    for mask, (at, inside) in zip(masks, _organ_masks(anatomy), strict=True):
        mask[fine_box(box)][at] = inside
    return PhantomScan(scan_image(image, grid, scanner), masks, (SLICE_MM, PIXEL_MM, PIXEL_MM))


def make_phantom(
    out: str | Path, cases: int = 10, days: int = 2, slices: int = 80, seed: int = 0, workers: int | None = None
) -> Path:
    """Write a synthetic cohort in the competition's layout.

    `out` gets train.csv (id, class, segmentation), train/caseC/caseC_dayD/scans/slice_NNNN_W_H_1.50_1.50.png and
    preview.png. It appears complete or not at all: everything is written to `out` + ".partial" first.

    Args:
        out: the folder to make.
        cases: number of patients. A patient looks the same in a cohort of any size.
        days: scans of every patient.
        slices: slices of every scan, 3 mm apart, at least 24; fewer than 80 squeeze the anatomy along z.
        seed: the same seed gives the same bytes, whatever the number of workers.
        workers: processes; as many as there are cores by default.

    Returns:
        `out`.

    Raises:
        InputError: an argument out of range, or an `out` that is a file or a folder with something in it.
    """
    out = Path(out)
    _require(cases >= 1, f"cases is {cases}; a cohort needs at least 1 patient")
    _require(days >= 1, f"days is {days}; every patient needs at least 1 scan")
    _require(workers is None or workers >= 1, f"workers is {workers}; at least 1 process has to do the work")
    _check(slices, seed)
    free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    _require(free, f"{out} exists and is no empty folder; name another, or remove it first")
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


def _organ_masks(anatomy: Anatomy) -> Iterator[tuple[Box, np.ndarray]]:
    # The fat between two loops that nearly touch belongs to the organ, as in contours drawn by hand.
    bowel = Shape(np.minimum(anatomy.bowel.shape.sdf, anatomy.bowel.gap - LOOP_GAP_MM), anatomy.bowel.shape.box)
    colon = carve(anatomy.colon.shape, [anatomy.bowel.shape], 0.0)
    stomach = carve(anatomy.stomach.shape, [anatomy.bowel.shape, anatomy.colon.shape], 0.0)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    for organ in (colon, bowel, stomach):
        inside = (upsample(organ.sdf) < 0).view(np.uint8)
        yield fine_box(organ.box), np.stack([cv2.morphologyEx(plane, cv2.MORPH_OPEN, disc) for plane in inside]) > 0


def _check(slices: int, seed: int) -> None:
    _require(slices >= MIN_SLICES, f"slices is {slices}; an abdomen needs at least {MIN_SLICES}")
    _require(seed >= 0, f"seed is {seed}; a seed is 0 or more")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"phantom: {message}")


def _write_scans(root, jobs, slices, seed, workers) -> tuple[list[str], dict[str, PhantomScan]]:
    lines, shown = [], {}
    # Forking a process that runs TensorFlow's threads can hang; a spawned one starts clean.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        written = pool.map(functools.partial(_write_scan, root, slices, seed), jobs)
        bar = progress(written, "phantom", total=len(jobs), unit="scan")
        for (case, day), (rows, scan) in zip(jobs, bar, strict=True):
            lines += rows
            if scan is not None:
                shown[f"case{case} day{day}"] = scan
    return lines, shown


def _write_scan(root: Path, slices: int, seed: int, job: tuple[int, int]) -> tuple[list[str], PhantomScan | None]:
    # A pool of processes uses the cores already; OpenCV's own threads would only get in each other's way.
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
        for organ, mask in zip(ORGANS, scan.masks[:, number - 1], strict=True):
            rows.append(f"case{case}_day{day}_slice_{number:04d},{organ},{mask_to_rle(mask)}\n")
    return rows, scan if case <= PREVIEW_CASES and day < PREVIEW_DAYS else None
