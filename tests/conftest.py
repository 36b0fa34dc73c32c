"""A small synthetic cohort in the competition's layout, and fixtures that are shared by all tests."""

import csv
import logging
import os
import sys
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.clinic import clinic, dicom_writer, nifti, patients, write  # noqa: F401
from helpers.served import rule_models, running, server, url  # noqa: F401

from gitseg_tf.errors import GitsegError
from gitseg_tf.labels import UWMGI

LABELS = UWMGI.names
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
class SyntheticScan:
    """A scan before it is written: slice numbers, image [D, H, W], masks [3, D, H, W], spacing in mm."""

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
class SyntheticCohort:
    """A written cohort and its ground truth. The gray value in the middle of a slice is unique, its mark."""

    root: Path
    scans: list[SyntheticScan] = field(default_factory=list)

    def __getitem__(self, scan_id):
        return next(scan for scan in self.scans if scan.id == scan_id)

    def scan_of(self, mark):
        return next(scan for scan in self.scans if mark in scan.marks)

    def filled_marks(self, cases):
        """The marks of the slices of these patients that show a label."""
        return {mark for mark in self.all_marks(cases) if self._shows_label(mark)}

    def all_marks(self, cases):
        return {mark for scan in self.scans if scan.case in cases for mark in scan.marks}

    def _shows_label(self, mark):
        scan = self.scan_of(mark)
        return scan.masks[:, mark - scan.first_mark].any()

    @staticmethod
    def marks_in(windows):
        """The marks of the slices in windows [..., H, W, K] of normalized images: int [..., K]."""
        middle = np.asarray(windows)[..., windows.shape[-3] // 2, windows.shape[-2] // 2, :].astype(float)
        return np.rint((middle * BRIGHT - MARK_FROM) / MARK_STEP).astype(int)


def make_scan(scan_id, shape, numbers, first_mark):
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
    return SyntheticScan(scan_id, numbers, image, masks.astype(bool), SPACINGS[shape], first_mark)


def run_lengths(mask):
    """The run-length encoding of the competition, by counting pixel by pixel."""
    text, at = [], 1
    for inside, run in groupby(np.ravel(mask).tolist()):
        length = len(list(run))
        text += [at, length] if inside else []
        at += length
    return " ".join(map(str, text))


def write_scan(root, scan, folder="train", bits=16):
    height, width = scan.image.shape[1:]
    scan_folder = root / folder / scan.case / scan.id / "scans"
    scan_folder.mkdir(parents=True)
    for number, plane in zip(scan.numbers, scan.image, strict=True):
        name = f"slice_{number:04d}_{width}_{height}_{scan.spacing[2]:.2f}_{scan.spacing[1]:.2f}.png"
        assert cv2.imwrite(str(scan_folder / name), plane.astype(np.uint16 if bits == 16 else np.uint8))


def table_rows(scans):
    return [
        (f"{scan.id}_slice_{number:04d}", label, run_lengths(scan.masks[k, z]))
        for scan in scans
        for z, number in enumerate(scan.numbers)
        for k, label in enumerate(LABELS)
    ]


def write_table(root, rows):
    with open(root / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "class", "segmentation"), *rows])


def write_cohort(root, scans=SCANS, labeled=True, folder="train"):
    """Generate and write the scans (id, (height, width), slice numbers)."""
    cohort, mark = SyntheticCohort(Path(root)), 0
    for scan_id, shape, numbers in scans:
        cohort.scans.append(make_scan(scan_id, shape, numbers, mark))
        mark += len(cohort.scans[-1].numbers)
        write_scan(cohort.root, cohort.scans[-1], folder)
    if labeled:
        write_table(cohort.root, table_rows(cohort.scans))
    return cohort


def pytest_addoption(parser):
    parser.addoption(
        "--whole-table",
        action="store_true",
        help="with -m slow or xla: build every architecture with every backbone",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests with whole_table as slow, before tests are selected by marker."""
    for item in items:
        if "whole_table" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def whole_table(request):
    """Skips a test of large networks unless --whole-table is given."""
    if not request.config.getoption("--whole-table"):
        pytest.skip("takes long to trace and compile; run with --whole-table")


@pytest.fixture(autouse=True)
def tf_config_is_removed():
    """Code under test turns SLURM variables into TF_CONFIG, which later tests must not see."""
    yield
    os.environ.pop("TF_CONFIG", None)


@pytest.fixture(autouse=True)
def op_determinism_is_reset():
    """Training with training.deterministic turns it on for the process; XLA cannot compile some gradients with it."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import config

        config.disable_op_determinism()


@pytest.fixture(autouse=True)
def package_log_level_is_reset():
    """The level of the package logger set in one test must not affect what the next test records."""
    logging.getLogger("gitseg_tf").setLevel(logging.NOTSET)
    yield
    logging.getLogger("gitseg_tf").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def make_cohort():
    """make_cohort(root, scans=..., labeled=..., folder=...) writes a synthetic cohort."""
    return write_cohort


@pytest.fixture(scope="session")
def rows_of():
    return table_rows


@pytest.fixture(scope="session")
def save_table():
    return write_table


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory):
    """The synthetic cohort: six patients, nine scans, two geometries. Read-only."""
    return write_cohort(tmp_path_factory.mktemp("tiny") / "cohort")


@pytest.fixture(scope="session")
def tiny_dataset(tiny_cohort, tmp_path_factory):
    """The synthetic cohort as TFRecords in three folds. Read-only."""
    from gitseg_tf.data.tfrecords.convert import convert

    return convert(tiny_cohort.root, tmp_path_factory.mktemp("converted") / "dataset", folds=3, seed=0, workers=1)


@pytest.fixture(scope="session")
def refusal():
    """refusal(call, ...) is the one-line message of the GitsegError that the call raises."""

    def refuse(call, *args, **kwargs):
        with pytest.raises(GitsegError) as caught:
            call(*args, **kwargs)
        text = str(caught.value)
        assert "\n" not in text
        return text

    return refuse
