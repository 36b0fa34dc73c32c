"""A small cohort drawn by hand, in the competition's layout, and what is made from it once a test run."""

import csv
import os
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import pytest

from gitseg_tf.errors import InputError

ORGANS = ("large_bowel", "small_bowel", "stomach")
WIDE, TALL = (40, 64), (48, 40)
SPACINGS = {WIDE: (3.0, 1.5, 1.25), TALL: (3.0, 1.63, 1.63)}
BRIGHT, MARK_FROM, MARK_STEP = 4000, 1000, 20
SCANS = (
    ("case1_day0", WIDE, range(1, 9)),
    ("case1_day5", WIDE, range(1, 9)),
    ("case2_day0", TALL, range(1, 11)),
    ("case3_day0", TALL, range(1, 7)),
    ("case3_day7", TALL, range(1, 7)),
    ("case4_day0", WIDE, range(1, 8)),
    ("case5_day0", TALL, (1, 2, 3, 7, 8, 9, 10)),
    ("case6_day0", WIDE, range(1, 13)),
    ("case6_day1", WIDE, range(1, 10)),
)


@dataclass
class DrawnScan:
    """What is known of a scan before it is written: numbers, image [D, H, W], masks [3, D, H, W], spacing in mm."""

    id: str
    numbers: list[int]
    image: np.ndarray
    masks: np.ndarray
    spacing: tuple[float, float, float]
    first_mark: int = 0

    @property
    def case(self):
        return self.id.split("_")[0]

    @property
    def marks(self):
        return list(range(self.first_mark, self.first_mark + len(self.numbers)))


@dataclass
class DrawnCohort:
    """A written cohort and the truth about it. The grey in the middle of a slice is a number of its own, its mark."""

    root: Path
    scans: list[DrawnScan] = field(default_factory=list)

    def __getitem__(self, scan_id):
        return next(scan for scan in self.scans if scan.id == scan_id)

    def scan_of(self, mark):
        return next(scan for scan in self.scans if mark in scan.marks)

    def filled_marks(self, cases):
        """The marks of the slices of some patients that show an organ."""
        return {mark for mark in self.all_marks(cases) if self._shown(mark)}

    def all_marks(self, cases):
        return {mark for scan in self.scans if scan.case in cases for mark in scan.marks}

    def _shown(self, mark):
        scan = self.scan_of(mark)
        return scan.masks[:, mark - scan.first_mark].any()

    @staticmethod
    def marks_in(windows):
        """Which slices are in windows [..., H, W, K] of normalised images: int [..., K]."""
        middle = np.asarray(windows)[..., windows.shape[-3] // 2, windows.shape[-2] // 2, :].astype(float)
        return np.rint((middle * BRIGHT - MARK_FROM) / MARK_STEP).astype(int)


def draw_scan(scan_id, shape, numbers, first_mark):
    numbers, (height, width) = list(numbers), shape
    depth = len(numbers)
    image = np.zeros((depth, height, width), np.uint16)
    image[:, :, : width // 8] = BRIGHT
    masks = np.zeros((3, depth, height, width), np.uint8)
    for z in range(depth):
        image[z, height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = MARK_FROM + MARK_STEP * (first_mark + z)
        if 2 <= z < depth - 1:
            masks[0, z, 4:20, 8 : 22 + z] = 1
        if 3 <= z < depth - 1:
            cv2.ellipse(masks[1, z], (width // 2, height - 14), (11, 7), 30, 0, 360, 1, -1)
        if z == depth - 2:
            masks[2, z, 10:30, 12:34] = 1
    if scan_id == "case4_day0":
        masks[2, 1, 20, 30] = 1
    return DrawnScan(scan_id, numbers, image, masks.astype(bool), SPACINGS[shape], first_mark)


def run_lengths(mask):
    """The competition's encoding by counting pixels one after the other."""
    text, at = [], 1
    for inside, run in groupby(np.ravel(mask).tolist()):
        length = len(list(run))
        text += [at, length] if inside else []
        at += length
    return " ".join(map(str, text))


def write_scan(root, scan, folder="train", bits=16):
    height, width = scan.image.shape[1:]
    place = root / folder / scan.case / scan.id / "scans"
    place.mkdir(parents=True)
    for number, plane in zip(scan.numbers, scan.image, strict=True):
        name = f"slice_{number:04d}_{width}_{height}_{scan.spacing[2]:.2f}_{scan.spacing[1]:.2f}.png"
        assert cv2.imwrite(str(place / name), plane.astype(np.uint16 if bits == 16 else np.uint8))


def table_rows(scans):
    return [
        (f"{scan.id}_slice_{number:04d}", organ, run_lengths(scan.masks[k, z]))
        for scan in scans
        for z, number in enumerate(scan.numbers)
        for k, organ in enumerate(ORGANS)
    ]


def write_table(root, rows):
    with open(root / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "class", "segmentation"), *rows])


def draw_cohort(root, scans=SCANS, labelled=True, folder="train"):
    """Draw and write the scans (id, (height, width), slice numbers)."""
    cohort, mark = DrawnCohort(Path(root)), 0
    for scan_id, shape, numbers in scans:
        cohort.scans.append(draw_scan(scan_id, shape, numbers, mark))
        mark += len(cohort.scans[-1].numbers)
        write_scan(cohort.root, cohort.scans[-1], folder)
    if labelled:
        write_table(cohort.root, table_rows(cohort.scans))
    return cohort


def pytest_addoption(parser):
    parser.addoption(
        "--whole-table", action="store_true", help="compile each architecture with each backbone, about an hour"
    )


@pytest.fixture
def whole_table(request):
    """Skips a test of large networks unless they were asked for."""
    if not request.config.getoption("--whole-table"):
        pytest.skip("takes long to trace and compile: --whole-table")


@pytest.fixture(autouse=True)
def no_cluster_is_left():
    """SLURM's variables become TF_CONFIG in the process, which the tests that follow must not see."""
    yield
    os.environ.pop("TF_CONFIG", None)


@pytest.fixture(scope="session")
def draw():
    """draw(root, scans=..., labelled=..., folder=...) writes a drawn cohort."""
    return draw_cohort


@pytest.fixture(scope="session")
def rows_of():
    return table_rows


@pytest.fixture(scope="session")
def save_table():
    return write_table


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """The drawn cohort: six patients, nine scans, two geometries. Read it, leave it as it is."""
    return draw_cohort(tmp_path_factory.mktemp("drawn") / "cohort")


@pytest.fixture(scope="session")
def drawn_dataset(drawn, tmp_path_factory):
    """The drawn cohort as TFRecords in three folds. Read it, leave it as it is."""
    from gitseg_tf.data.convert import convert

    return convert(drawn.root, tmp_path_factory.mktemp("converted") / "dataset", folds=3, seed=0, workers=1)


@pytest.fixture(scope="session")
def refusal():
    """refusal(call, ...) is the one line with which the call refuses its input."""

    def refuse(call, *args, **kwargs):
        with pytest.raises(InputError) as caught:
            call(*args, **kwargs)
        text = str(caught.value)
        assert "\n" not in text
        return text

    return refuse
