"""A layout registered by code outside the package."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

from gitseg_tf.data.readers.base import Cohort, Reader, Scan, Source, numbered_slice_ids, source_digest
from gitseg_tf.data.readers.grid import records_grid
from gitseg_tf.data.readers.registry import LAYOUTS, expected_layouts, is_cohort, read_cohort, read_file
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import read_scans
from gitseg_tf.data.volume import Annotation
from gitseg_tf.labels import LabelSet

LABELS = LabelSet.of("bright")
# numpy parses headers with ast.literal_eval, which some releases of Python 3.11 break in threads.
ONE_AT_A_TIME = Lock()


@dataclass(frozen=True)
class ArraySource(Source):
    path: Path

    def files(self):
        return [("image", self.path)]

    def digest(self):
        yield f"{self.path.name} {self.path.stat().st_size}".encode()

    def read_image(self, scan):
        with ONE_AT_A_TIME:
            return np.load(self.path)

    def read_annotation(self, scan):
        return Annotation.complete(np.load(self.path)[None] > 500)

    def whole_grid(self, scan):
        return records_grid(scan.shape, scan.spacing)


def array_scan(path):
    shape = np.load(path, mmap_mode="r").shape
    numbers = list(range(1, shape[0] + 1))
    ids = numbered_slice_ids(path.stem, numbers)
    return Scan(path.stem, path.stem, shape, (2.0, 1.0, 1.0), numbers, ids, LABELS, LABELS.names, ArraySource(path))


def read_arrays(root, table=True, labels=None):
    scans = tuple(array_scan(path) for path in sorted(root.glob("*.npy")))
    return Cohort(root, scans, source_digest(list(scans)), "arrays", LABELS)


@pytest.fixture
def arrays(tmp_path):
    """A folder of .npy files whose layout is registered for the duration of the test."""
    reader = Reader(lambda root: any(root.glob("*.npy")), read_arrays, lambda path: read_arrays(path.parent))
    LAYOUTS.register("arrays", reader, expected="a folder of .npy files", endings=(".npy",))
    for n in range(3):
        np.save(tmp_path / f"case{n}.npy", np.random.default_rng(n).integers(0, 1000, (4, 8, 6)).astype(np.uint16))
    yield tmp_path
    LAYOUTS.remove("arrays")


def test_a_registered_layout_is_read(arrays):
    assert is_cohort(arrays)
    cohort = read_cohort(arrays)
    assert (cohort.layout, [scan.id for scan in cohort.scans]) == ("arrays", ["case0", "case1", "case2"])
    for scan in cohort.scans:
        voxels = np.load(arrays / f"{scan.id}.npy")
        assert np.array_equal(scan.read_volume().voxels, voxels)
        assert np.array_equal(scan.read_annotation().masks[0], voxels > 500)
        assert scan.slice_strata() == (voxels > 500).any((1, 2)).astype(int).tolist()


def test_a_registered_layout_is_converted(arrays, tmp_path):
    dataset = convert(arrays, tmp_path / "out", folds=3)
    assert dataset.labels == LABELS and dataset.folds == 3
    for scan in read_scans(dataset, range(3)):
        assert np.array_equal(scan.volume.voxels, np.load(arrays / f"{scan.id}.npy"))


def test_a_single_file_of_a_registered_layout_is_read(arrays):
    assert len(read_file(arrays / "case1.npy").scans) == 3


def test_a_registered_layout_is_named_in_messages(arrays, tmp_path, refusal):
    (tmp_path / "empty").mkdir()
    assert "a folder of .npy files" in refusal(read_cohort, tmp_path / "empty")
    assert "a folder of .npy files" in expected_layouts()


def test_a_folder_with_an_unregistered_layout_is_refused(tmp_path, refusal):
    np.save(tmp_path / "case1.npy", np.zeros((2, 3, 4)))
    assert not is_cohort(tmp_path) and "no slices found" in refusal(read_cohort, tmp_path)


def test_a_layout_name_cannot_be_registered_twice(refusal):
    assert "layout 'DICOM' is already registered" in refusal(LAYOUTS.register, "DICOM", Reader(is_cohort, read_arrays))
