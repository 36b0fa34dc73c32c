import numpy as np
import pydicom
import pytest

import gitseg_tf
from gitseg_tf.cli import main
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.errors import ConfigError
from gitseg_tf.inspection import inspect_data
from gitseg_tf.labels import UWMGI

# name, label, date, time, approval
DRAFT = ("RS1.dcm", "Draft", "20260101", "100000", "UNAPPROVED")
PLAN = ("RS2.dcm", "Plan A ", "20260105", "093000.5", "APPROVED")
LATE = ("RS3.dcm", "Late", "20260105", "180000", "REJECTED")


def only(root, **options):
    (scan,) = read_cohort(root, **options).scans
    return scan


def mark(path, label="", date="", time="", approval=""):
    dataset = pydicom.dcmread(path)
    dataset.StructureSetLabel, dataset.StructureSetDate, dataset.StructureSetTime = label, date, time
    dataset.ApprovalStatus = approval
    dataset.save_as(path)


@pytest.fixture
def versions(write):
    """versions(*marks) writes a series and structure sets that draw the stomach on slices 1, 2, ..."""

    def make(*marks):
        writer = write().write_series()
        square = np.zeros((40, 64), bool)
        square[10:20, 10:20] = True
        for z, (name, *marked) in enumerate(marks, 1):
            writer.write_structures({"stomach": writer.outline(square, z)}, name)
            mark(writer.root / name, *marked)
        return writer

    return make


def drawn(scan):
    return np.flatnonzero(scan.read_annotation().masks[0].any((1, 2))).tolist()


@pytest.mark.parametrize(
    ("choice", "expected"), [("newest", 3), ("approved", 2), ("Plan A", 2), ("Draft", 1), ("Late", 3)]
)
def test_one_of_several_structure_sets_is_read(versions, clinic, choice, expected):
    versions(DRAFT, PLAN, LATE)
    cohort = gitseg_tf.open_cohort(clinic, structure_set=choice)
    assert drawn(cohort.scans[0]) == [expected]
    assert [path.name for path in cohort.scans[0].source.structures] == [f"RS{expected}.dcm"]


def test_several_structure_sets_with_the_same_label_are_refused_with_all_choices(versions, clinic, refusal):
    writer = versions(DRAFT, PLAN)
    line = refusal(read_cohort, clinic)
    assert "2 structure sets of one series have contours, both RS1.dcm and RS2.dcm of stomach" in line
    assert "choose a structure set (newest, approved or a label)" in line
    assert f"{writer.root / 'RS1.dcm'} (label 'Draft', 20260101 100000, UNAPPROVED)" in line
    assert f"{writer.root / 'RS2.dcm'} (label 'Plan A', 20260105 093000.5, APPROVED)" in line


@pytest.mark.parametrize(
    ("marks", "choice", "expected"),
    [
        ((DRAFT, LATE), "approved", "no structure set is approved"),
        ((DRAFT, PLAN), "Plan B", "no structure set is labeled 'Plan B'"),
        ((PLAN, ("RS2b.dcm", *PLAN[1:])), "newest", "2 structure sets are newest"),
        ((PLAN, ("RS2b.dcm", *PLAN[1:])), "approved", "2 structure sets are approved"),
        ((PLAN, ("RS2b.dcm", *PLAN[1:])), "Plan A", "2 structure sets are labeled 'Plan A'"),
        ((DRAFT, ("RS9.dcm", "x")), "newest", "structure sets without StructureSetDate cannot be compared"),
        ((DRAFT,), "approved", "no structure set is approved"),
    ],
)
def test_a_choice_that_fits_none_or_several_is_refused(versions, clinic, refusal, marks, choice, expected):
    writer = versions(*marks)
    line = refusal(read_cohort, clinic, structure_set=choice)
    assert line.startswith("case1_20260102: ") and expected in line
    assert all(str(writer.root / name) in line for name, *_ in marks)


def test_structure_sets_without_contours_are_no_choice(versions, write, clinic):
    writer = versions(DRAFT, LATE)
    writer.write_structures({"stomach": []}, "RS0.dcm").write_structures({"stomach": []}, "RS9.dcm")
    for name in ("RS0.dcm", "RS9.dcm"):
        mark(writer.root / name, "Empty", "20270101", "120000", "APPROVED")
    assert drawn(only(clinic, structure_set="newest")) == [2]
    (writer.root / "RS3.dcm").unlink()
    assert drawn(only(clinic)) == [1]  # the only one with contours


def test_the_choice_concerns_each_series_on_its_own(write, clinic, patients, refusal):
    writer = write(0).write_series().write_structures()
    mark(writer.root / "RS.dcm", "A", "20260101")
    writer.write_structures(name="RS2.dcm")
    mark(writer.root / "RS2.dcm", "B", "20260102")
    write(2).write_series().write_structures()
    cohort = read_cohort(clinic, list_broken=True)
    assert [scan.id for scan in cohort.scans] == ["case2_20260102"]
    assert [name for name, _ in cohort.broken] == ["case1_20260102"]
    assert len(read_cohort(clinic, structure_set="newest").scans) == 2
    cohort = read_cohort(clinic, structure_set="B", list_broken=True)
    assert [scan.id for scan in cohort.scans] == ["case1_20260102"] and "case2_20260102" in dict(cohort.broken)


def test_labels_can_be_split_over_two_structure_sets_and_a_note_says_so(write, clinic, patients):
    writer = write().write_series()
    lines = writer.polygons()
    writer.write_structures({"stomach": lines.pop("stomach")}, "RS1.dcm").write_structures(lines, "RS2.dcm")
    cohort = read_cohort(clinic, labels=UWMGI)
    assert np.array_equal(cohort.scans[0].read_annotation().masks, patients.scans[0].masks)
    paths = ", ".join(str(writer.root / name) for name in ("RS1.dcm", "RS2.dcm"))
    assert cohort.notes == (f"case1_20260102: labels are read from 2 structure sets: {paths}",)


def test_commands_take_the_choice(versions, clinic, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    versions(DRAFT, PLAN, LATE)
    assert main(["convert", str(clinic), "--dry-run"]) == 1
    assert "RS1.dcm" in capsys.readouterr().err
    assert main(["convert", str(clinic), "--dry-run", "--structure-set", "newest"]) == 0
    assert "RS3.dcm" in capsys.readouterr().out
    assert main(["labels", str(clinic), "--structure-set", "approved"]) == 0
    assert main(["inspect", str(clinic), "--structure-set", "Draft"]) == 0
    assert main(["inspect", str(clinic), "--structure-set", "Nothing"]) == 1
    assert main(["convert", str(clinic), "out", "--folds", "1", "--structure-set", "Plan A"]) == 0
    dataset = gitseg_tf.open_dataset(tmp_path / "out")
    assert dataset.shards[0].scans[0].label_slices["stomach"] == 1
    first, second = (gitseg_tf.open_dataset(clinic, 1, structure_set=name) for name in ("newest", "approved"))
    assert first.root != second.root


def test_a_layout_without_structure_sets_takes_no_choice(tiny_cohort):
    with pytest.raises(ConfigError, match="has the layout competition, so there is no structure set 'newest'"):
        read_cohort(tiny_cohort.root, structure_set="newest")


def test_a_structure_set_without_its_series_is_said(write, clinic, patients):
    path = write(0).write_series().write_structures(series="1.2.3.4").root / "RS.dcm"
    write(2).write_series().write_structures()
    cohort = read_cohort(clinic, list_broken=True)
    assert cohort.notes == (f"{path}: refers to a series that is not here; ignored",)
    assert [scan.id for scan in cohort.scans] == ["case2_20260102"]
    assert "no RTSTRUCT refers to it" in dict(cohort.broken)["patient case1"]
    assert any(finding.text == cohort.notes[0] for finding in inspect_data(clinic).findings)
    assert np.array_equal(read_cohort(clinic, table=False).scans[0].read_volume().voxels, patients.scans[0].image)


def test_a_scan_whose_only_structure_set_is_of_another_series_has_no_annotation(write, clinic):
    write().write_series().write_structures(series="1.2.3.4")
    cohort = read_cohort(clinic)
    assert not cohort.labeled and len(cohort.notes) == 1


def test_an_ambiguous_frame_of_reference_concerns_its_series_only(write, clinic):
    writer = write(0).write_series().write_structures(by_frame=True)
    other = write(0)
    other.root, other.series = other.root / "b", other.uid("another series")
    other.root.mkdir()
    other.write_series(change=lambda dataset, i: setattr(dataset, "SOPInstanceUID", other.uid("other", i)))
    write(2).write_series().write_structures()
    cohort = read_cohort(clinic, list_broken=True)
    assert [scan.id for scan in cohort.scans] == ["case2_20260102"]
    reason = f"{writer.root / 'RS.dcm'}: refers to a frame of reference with 2 series; keep one of them"
    assert dict(cohort.broken) == {"case1_20260102": reason, "case1_20260102_2": reason}
