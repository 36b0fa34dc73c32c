"""Damaged DICOM images and structure sets."""

import pydicom
import pytest
from helpers.damage import Tally, damaged_bytes, generator

from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import is_dataset, load_dataset

pytestmark = pytest.mark.slow

VALUES = [
    None,
    "",
    "x",
    "0",
    "-1",
    "nan",
    "1e400",
    "1\\2",
    "1\\2\\3\\4\\5\\6\\7",
    "999999999999",
    "\\\\",
    "é\\",
    "1.2.3",
    "20260101",
    "MR",
    "a/b",
]


@pytest.fixture
def study(write):
    writer = write().write_series().write_structures()
    return writer.root


def with_value(rng, path):
    """The file with the raw value of some element replaced."""
    dataset = pydicom.dcmread(path)
    for _ in range(int(rng.integers(1, 3))):
        item, depth = dataset, int(rng.integers(5))
        for _ in range(depth):
            sequences = [e for e in item if e.VR == "SQ" and len(e.value)]
            if not sequences:
                break
            sequence = sequences[rng.integers(len(sequences))].value
            item = sequence[int(rng.integers(len(sequence)))]
        elements = [e for e in item if e.keyword != "PixelData"]
        if not elements:
            continue
        element = elements[rng.integers(len(elements))]
        kind = rng.integers(4)
        if kind == 0:
            del item[element.tag]
            continue
        value = VALUES[rng.integers(len(VALUES))]
        if element.VR == "SQ":
            if kind == 1:
                item[element.tag].value = []
            elif len(element.value):
                del element.value[0]
            continue
        raw = b"" if value is None else value.encode("latin-1", "replace")
        if element.VR in ("US", "SS", "UL"):
            raw = (
                rng.bytes(int(rng.choice([0, 1, 2, 4, 6])))
                if kind == 1
                else int(rng.choice([0, 1, 65535, 32768, 16, 8])).to_bytes(2, "little")
            )
        raw += b" " * (len(raw) % 2)
        item._dict[element.tag] = pydicom.dataelem.RawDataElement(
            element.tag, element.VR, len(raw), raw, 0, False, True
        )
    dataset.save_as(path)


def read_all(root):
    for scan in read_cohort(root).scans:
        assert len(scan.read_volume().percentiles)
        scan.read_annotation()


@pytest.mark.parametrize("what", ["image", "structures"])
def test_files(study, what):
    rng, tally = generator(20), Tally()
    path = sorted(study.glob("IM*"))[2] if what == "image" else study / "RS.dcm"
    content = path.read_bytes()
    for n in range(300):
        if n % 2:
            with_value(rng, path)
        else:
            path.write_bytes(damaged_bytes(rng, content, 0, 1200 if rng.random() < 0.8 else None))
        damaged = path.read_bytes()
        tally((n, damaged[128:900].hex()), read_all, study)
        path.write_bytes(content)
    tally.check(300, accepted=20, refused=50)


def test_folders_convert_completely_or_not_at_all(study, tmp_path):
    rng, tally = generator(21), Tally()
    files = sorted(study.iterdir())
    for n in range(60):
        path = files[rng.integers(len(files))] if n % 2 else files[-1]
        content = path.read_bytes()
        path.write_bytes(damaged_bytes(rng, content))
        out = tmp_path / f"records{n}"
        tally(path, convert, study, out, folds=1, workers=1)
        if is_dataset(out):
            load_dataset(out, verify=True)
        assert not list(out.glob(".*.tmp"))
        path.write_bytes(content)
    tally.check(60, accepted=5, refused=5)
