"""A faulty file affects its own scan only, and no damaged file is read as something else."""

import shutil

import numpy as np
import pydicom
import pytest

from gitseg_tf.cli import main
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.errors import GitsegError
from gitseg_tf.inspection import inspect_data
from gitseg_tf.labels import UWMGI


def flat(write, clinic):
    """Write two patients into one folder, and return the paths of the files of the first."""
    paths = []
    for index in (0, 2):
        writer = write(index).write_series().write_structures()
        for path in sorted(writer.root.iterdir()):
            paths.append(clinic / f"{writer.patient}-{path.name}")
            path.rename(paths[-1])
        writer.root.rmdir()
    return {path.name: path for path in paths}


def truncate(path, part=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])


def edit(path, **attributes):
    dataset = pydicom.dcmread(path)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def cut_header(path):
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x28\x00\x10\x00")])  # before Rows


@pytest.mark.parametrize(
    ("name", "fault", "expected"),
    [
        ("case1-IM0003", cut_header, "has no Rows or is truncated"),
        ("case1-IM0003", lambda path: edit(path, Rows=None), "has no Rows"),
        ("case1-IM0003", lambda path: edit(path, PixelSpacing=[1.5, 1.3]), "differ in PixelSpacing"),
        ("case1-RS.dcm", truncate, "is a truncated structure set"),
        ("case1-RS.dcm", lambda path: truncate(path, 0.2), "is a truncated structure set"),
        ("case1-RS.dcm", lambda path: edit(path, StructureSetROISequence=None), ""),
    ],
)
def test_a_faulty_file_concerns_its_own_scan_only(write, clinic, patients, name, fault, expected):
    fault(flat(write, clinic)[name])
    cohort = read_cohort(clinic, list_broken=True, labels=UWMGI)
    other = cohort.scans[-1]
    assert other.id == "case2_20260102" and np.array_equal(other.read_volume().voxels, patients.scans[2].image)
    assert np.array_equal(other.read_annotation().masks, patients.scans[2].masks)
    if expected:
        ((broken, reason),) = cohort.broken
        assert broken == "case1_20260102" and expected in reason
        (finding,) = [one for one in inspect_data(clinic, labels=UWMGI).findings if one.check == "unreadable"]
        assert (finding.severity, finding.scan, finding.text) == ("error", broken, reason)


def test_a_conflicting_copy_concerns_its_own_scan_only(write, clinic, patients):
    paths = flat(write, clinic)
    shutil.copy(paths["case1-IM0003"], clinic / "again")
    edit(clinic / "again", PixelData=bytes(40 * 64 * 2))
    cohort = read_cohort(clinic, list_broken=True)
    assert [scan.id for scan in cohort.scans] == ["case2_20260102"]
    ((name, reason),) = cohort.broken
    assert name == "case1_20260102" and reason.startswith(f"{paths['case1-IM0003']}: has the SOPInstanceUID of ")


@pytest.mark.parametrize("content", [b"", b"no", bytes(900), b"\0" * 128 + b"DICM"])
def test_a_file_without_a_header_makes_the_only_series_of_its_folder_faulty(write, clinic, content):
    for index in (0, 2):
        write(index).write_series()
    path = clinic / "case1_20260102" / "IM0003.dcm"
    path.with_suffix("").rename(path)
    path.write_bytes(content)
    cohort = read_cohort(clinic, list_broken=True)
    assert [scan.id for scan in cohort.scans] == ["case2_20260102"]
    ((name, reason),) = cohort.broken
    assert name == "case1_20260102" and reason.startswith(f"{path}: ")


def test_a_file_without_a_header_beside_several_series_is_said(write, clinic):
    path = flat(write, clinic)["case1-IM0003"]
    path.write_bytes(b"")
    cohort = read_cohort(clinic)
    assert len(cohort.scans) == 2
    (note,) = cohort.notes
    assert note.startswith(f"{path}: is empty; copy it again") and "a slice may be missing" in note
    assert any(finding.text == note for finding in inspect_data(clinic).findings)


def test_a_folder_of_damaged_files_only_is_refused(clinic, refusal):
    clinic.mkdir()
    (clinic / "a.dcm").write_bytes(bytes(128) + b"DICM")
    assert f"{clinic / 'a.dcm'}: " in refusal(read_cohort, clinic)


def test_objects_without_pixels_are_ignored(write, clinic, patients):
    path = write().write_series().root / "RAW"
    shutil.copy(path.with_name("IM0003"), path)
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.RawDataStorage
    for name in ("Rows", "Columns", "PixelData"):
        delattr(dataset, name)
    dataset.save_as(path)
    cohort = read_cohort(clinic)
    assert np.array_equal(cohort.scans[0].read_volume().voxels, patients.scans[0].image)
    assert cohort.ignored == (f"{path}: Raw Data Storage",)


def test_convert_refuses_a_faulty_scan_unless_it_is_excluded(write, clinic, tmp_path, capsys):
    cut_header(flat(write, clinic)["case1-IM0003"])
    out = tmp_path / "out"
    assert main(["convert", str(clinic), str(out), "--folds", "1"]) == 1
    assert "case1-IM0003: has no Rows or is truncated" in capsys.readouterr().err and not out.exists()
    assert main(["convert", str(clinic), str(out), "--folds", "1", "--exclude", "case1_20260102"]) == 0
    assert main(["convert", str(clinic), str(tmp_path / "b"), "--exclude", "case2_20260102"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["case1-IM0003", "case1-RS.dcm"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_truncated_file_is_never_read_as_a_whole_one(write, clinic, patients, name):
    path = flat(write, clinic)[name]
    data = path.read_bytes()
    for length in range(132, len(data), 37):
        path.write_bytes(data[:length])
        cohort = read_cohort(clinic, list_broken=True, labels=UWMGI)
        scans = {scan.id: scan for scan in cohort.scans}
        assert np.array_equal(scans["case2_20260102"].read_annotation().masks, patients.scans[2].masks)
        if "case1_20260102" in scans and not cohort.notes:
            with pytest.raises(GitsegError):
                scans["case1_20260102"].read_volume()
                scans["case1_20260102"].read_annotation()
