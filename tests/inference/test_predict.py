import threading
import weakref
from types import SimpleNamespace

import cv2
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest

from gitseg_tf import cli
from gitseg_tf.data.scans import read_cohort, read_masks
from gitseg_tf.errors import InputError
from gitseg_tf.inference import predict as prediction
from gitseg_tf.inference import predictor
from gitseg_tf.inference.outputs import OUTPUTS, predicted_files, predicted_scans
from gitseg_tf.inference.predict import predict_cohort, predict_scans

GRACE = 30  # seconds after which a test fails instead of waiting


def bright(image, numbers, percentiles, spacing):
    """A network that calls bright voxels stomach; large bowel is the first slice."""
    masks = np.zeros((3, *image.shape), bool)
    masks[2], masks[0, 0] = image > 3000, True
    return masks


@pytest.fixture(autouse=True)
def model(monkeypatch):
    for module in (prediction, predictor):
        monkeypatch.setattr(module, "load_predictor", lambda *_, **__: bright)


@pytest.fixture
def cohort(draw, tmp_path):
    scans = (("case1_day0", (40, 64), range(1, 5)), ("case1_day5", (40, 64), range(1, 4)))
    return draw(tmp_path / "cohort", (*scans, ("case2_day0", (48, 40), range(1, 4))), labelled=False)


def failure(source, out, output="submission"):
    """The lines that are said and the error of a prediction that fails."""
    said = []
    with pytest.raises(InputError) as caught:
        predict_cohort("model", source, out, output, said.append)
    assert "\n" not in str(caught.value)
    return said, str(caught.value)


def test_a_truncated_slice_does_not_stop_the_other_scans(cohort, tmp_path):
    slice_file = sorted((cohort.root / "train/case1/case1_day5").rglob("*.png"))[1]
    slice_file.write_bytes(slice_file.read_bytes()[:-20])
    said, error = failure(cohort.root, tmp_path / "out")
    assert len(said) == 1 and said[0].startswith("case1_day5 failed: ") and f"{slice_file}: the PNG is trunc" in said[0]
    assert "1 of 3 scans failed" in error and "(case1_day5)" in error and str(tmp_path / "out") in error
    table = pd.read_csv(tmp_path / "out/submission.csv")
    assert table["id"].str.replace(r"_slice.*", "", regex=True).value_counts().to_dict() == {
        "case1_day0": 12,
        "case2_day0": 9,
    }


@pytest.mark.parametrize("output", ["nifti", "png", "gif"])
def test_of_a_broken_scan_nothing_is_written(cohort, tmp_path, output):
    slice_file = sorted((cohort.root / "train/case1/case1_day5").rglob("*.png"))[1]
    slice_file.write_bytes(b"")
    failure(cohort.root, tmp_path / "out", output)
    assert sorted({path.name.split(".")[0] for path in (tmp_path / "out").iterdir()}) == ["case1_day0", "case2_day0"]
    assert not [path for path in (tmp_path / "out").rglob(".*")]


@pytest.mark.parametrize("output", ["nifti", "png", "gif"])
def test_the_earlier_prediction_of_a_scan_that_fails_is_removed_and_said(cohort, tmp_path, output):
    out = tmp_path / "out"
    predict_cohort("model", cohort.root, out, output)
    of_scan = {path for path in out.rglob("case1_day5*") if path.is_file()} | set(out.glob("case1_day5/*"))
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    notes = out / "case1_day5_notes.txt"
    notes.touch()
    next((cohort.root / "train/case1/case1_day5").rglob("*.png")).write_bytes(b"")
    said, error = failure(cohort.root, out, output)
    removed = {path for path in of_scan if path.name != "image.nii.gz"}
    assert removed and not any(path.exists() for path in removed) and notes.exists()
    assert said[1].startswith("case1_day5: its earlier prediction is removed (") and str(out / "case1_day5") in said[1]
    assert len(said) == 2 and "earlier calls" not in error
    assert {path for path in kept if path.exists()} == set(kept) - removed


def test_of_a_series_that_cannot_be_read_earlier_structure_sets_are_named(write, clinic, patients, tmp_path):
    writers = [write(index).write_series() for index in range(3)]
    predict_cohort("model", clinic, tmp_path / "out", "rtstruct")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    header = writers[0].root / "IM0003"  # it cannot tell whose it is
    header.rename(header.with_suffix(".dcm")).write_bytes(b"no")
    pixels = writers[1].root / "IM0003"
    pixels.write_bytes(pixels.read_bytes()[:-400])
    said, error = failure(clinic, tmp_path / "out", "rtstruct")
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    (removed,) = set(names) - set(left)
    assert said[2].endswith(f"is removed ({tmp_path / 'out' / removed})")
    (of_header,) = set(left) - {"case2_20260102.dcm"}
    assert error.endswith(f"beside what earlier calls predicted of {of_header.removesuffix('.dcm')}")


@pytest.mark.parametrize("output", OUTPUTS)
def test_of_each_format_it_is_known_what_it_leaves_of_a_scan(cohort, tmp_path, output):
    assert predicted_files(output, tmp_path / "nowhere", "case1_day0") == []
    if output not in ("submission", "rtstruct"):
        out = predict_cohort("model", cohort.root, tmp_path / "out", output)
        assert predicted_scans(output, out) == [scan.id for scan in cohort.scans]
        assert predicted_files(output, out, "case1") == predicted_files(output, out, str(out / "case1_day0")) == []


def test_what_came_with_the_scans_is_never_removed(cohort, nifti, tmp_path):
    place = tmp_path / "in"
    for scan in cohort.scans:
        nifti.save(place / scan.id / "image.nii.gz", nifti.stored_as(scan.image, "RAS"), nifti.affine_of(scan, "RAS"))
    predict_cohort("model", place, place, "nifti")
    before = (place / "case1_day5/stomach.nii.gz").read_bytes()
    image = place / "case1_day5/image.nii.gz"
    image.write_bytes(image.read_bytes()[:-30])
    said, _ = failure(place, place, "nifti")
    assert (place / "case1_day5/stomach.nii.gz").read_bytes() == before
    assert said[1].startswith("case1_day5: ") and "stays, and is not of this prediction" in said[1]


@pytest.mark.parametrize(("output", "left"), [("gif", "case1_day0 and 2 more"), ("submission", "submission.csv")])
def test_where_nothing_can_be_read_the_error_names_what_earlier_calls_left(cohort, tmp_path, output, left):
    nowhere, out = tmp_path / "nowhere", tmp_path / "out"
    out.mkdir()
    assert "earlier" not in failure(nowhere, out, output)[1]
    predict_cohort("model", cohort.root, out, output)
    kept = sorted(out.iterdir())
    said, error = failure(nowhere, out, output)
    assert error.startswith(f"{nowhere}: no such folder") and said == [] and sorted(out.iterdir()) == kept
    assert error.endswith(f"; {out} holds what earlier calls predicted ({left})")


def test_a_table_has_nothing_of_a_scan_that_fails(cohort, tmp_path):
    predict_cohort("model", cohort.root, tmp_path / "out")
    for path in cohort.root.rglob("*.png"):
        path.write_bytes(b"")
    failure(cohort.root, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_name_that_cannot_be_read_does_not_stop_the_other_scans(cohort, tmp_path):
    slice_file = sorted((cohort.root / "train/case1/case1_day0").rglob("*.png"))[1]
    slice_file.rename(slice_file.with_name("slice_2.png"))
    said, error = failure(cohort.root, tmp_path / "out")
    assert "slice_2.png: the name is not" in said[0] and "1 of 3 scans failed" in error
    assert len(pd.read_csv(tmp_path / "out/submission.csv")) == 18


def test_a_damaged_nifti_does_not_stop_the_other_scans(cohort, nifti, tmp_path):
    for scan in cohort.scans:
        nifti.save(tmp_path / f"in/{scan.id}.nii.gz", nifti.stored_as(scan.image, "RAS"), nifti.affine_of(scan, "RAS"))
    header, data = tmp_path / "in/case1_day0.nii.gz", tmp_path / "in/case1_day5.nii.gz"
    header.write_bytes(b"no")
    data.write_bytes(data.read_bytes()[:-30])
    said, error = failure(tmp_path / "in", tmp_path / "out", "nifti")
    assert f"{header}: cannot be read" in said[0] and f"{data}: cannot be read" in said[1] and len(said) == 2
    assert "2 of 3 scans failed" in error
    (read,) = read_cohort(tmp_path / "out").scans
    assert read.id == "case2_day0" and np.array_equal(read_masks(read)[2], cohort["case2_day0"].image > 3000)


def test_a_damaged_dicom_file_does_not_stop_the_other_scans(write, clinic, patients, tmp_path):
    writers = [write(index).write_series() for index in range(3)]
    broken = writers[0].root / "IM0003.dcm"
    (writers[0].root / "IM0003").rename(broken)
    broken.write_bytes(b"no")
    pixels = writers[1].root / "IM0003"
    pixels.write_bytes(pixels.read_bytes()[:-400])
    said, error = failure(clinic, tmp_path / "out", "rtstruct")
    assert f"{broken}: is no DICOM file" in said[0] and f"{pixels}: its pixels cannot be read" in said[1]
    assert "2 of 3 scans failed" in error
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "case2_20260102.dcm" and pydicom.dcmread(path).PatientID == "case2"


def test_studies_of_several_series_do_not_stop_the_others(write, clinic, tmp_path):
    write(2).write_series()
    first, second = write(0).write_series(), write(0)
    second.root, second.series = first.root / "b", second.uid("another series")
    second.root.mkdir()
    second.write_series()
    said, error = failure(clinic, tmp_path / "out", "rtstruct")
    assert "has 2 series" in said[0] and "1 of 2 scans failed" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case2_20260102.dcm"]


def test_when_all_scans_are_broken_nothing_is_written(cohort, tmp_path):
    for path in cohort.root.rglob("*.png"):
        path.write_bytes(b"")
    said, error = failure(cohort.root, tmp_path / "out")
    assert len(said) == 3 and "none of its 3 scans" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_exit_status_is_1_and_the_reasons_are_on_stderr(cohort, tmp_path, capsys):
    next((cohort.root / "train/case2").rglob("*.png")).write_bytes(b"")
    assert cli.main(["predict", "model", str(cohort.root), str(tmp_path / "out"), "--format", "gif"]) == 1
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith(("gitseg:", "case"))]
    assert "case2_day0 failed: " in printed.err and "is no PNG" in printed.err
    assert lines[-1].startswith("gitseg: ") and "1 of 3 scans failed" in lines[-1] and printed.out == ""


def test_structure_sets_are_for_dicom_alone(cohort, tmp_path):
    _, error = failure(cohort.root, tmp_path / "out", "rtstruct")
    assert "is competition; a structure set refers to a DICOM series" in error and not (tmp_path / "out").exists()


def test_a_slice_of_a_cohort_alone_has_its_ids_and_its_row(cohort, tmp_path):
    path = sorted((cohort.root / "train/case1/case1_day0").rglob("*.png"))[2]
    said = []
    predict_cohort("model", path, tmp_path / "out", say=said.append)
    table = pd.read_csv(tmp_path / "out/submission.csv", keep_default_na=False)
    assert table["id"].tolist() == ["case1_day0_slice_0003"] * 3 and said == []
    assert table["predicted"].tolist()[:2] == [f"1 {40 * 64}", ""]
    predict_cohort("model", path, tmp_path / "nifti", "nifti")
    stomach = nibabel.load(tmp_path / "nifti/case1_day0/stomach.nii.gz")
    assert stomach.header.get_zooms() == pytest.approx((1.25, 1.5, 3))
    assert np.array_equal(np.asarray(stomach.dataobj)[..., 0].T > 0, cohort["case1_day0"].image[2] > 3000)


def test_a_png_of_any_name_is_a_scan_whose_pixel_size_is_assumed_and_said(tmp_path):
    image = np.zeros((30, 50), np.uint16)
    image[5:9, 10:20] = 4000
    cv2.imwrite(str(tmp_path / "abdomen.png"), image)
    said = []
    predict_cohort("model", tmp_path / "abdomen.png", tmp_path / "out", say=said.append)
    assert len(said) == 1 and "its name says no pixel size, 1.5 x 1.5 mm is taken" in said[0]
    table = pd.read_csv(tmp_path / "out/submission.csv")
    assert table["id"].tolist() == ["abdomen"] * 3 and table["predicted"][2] == "261 10 311 10 361 10 411 10"


def test_a_nifti_file_alone_is_a_scan(cohort, nifti, tmp_path):
    scan = cohort.scans[0]
    nifti.save(tmp_path / "in/anna.nii.gz", nifti.stored_as(scan.image, "RAS"), nifti.affine_of(scan, "RAS"))
    predict_cohort("model", tmp_path / "in/anna.nii.gz", tmp_path / "out", "nifti")
    assert np.array_equal(read_masks(read_cohort(tmp_path / "out").scans[0])[2], scan.image > 3000)


@pytest.mark.parametrize(("name", "said"), [("a.jpg", "ends in none of .png, .nii, .nii.gz"), ("a.png", "is no PNG")])
def test_a_file_of_another_kind_is_refused(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"no")
    assert said in failure(tmp_path / name, tmp_path / "out")[1]


def test_the_command_offers_all_formats():
    (choices,) = (
        action.choices
        for action in cli._parser()._subparsers._group_actions[0].choices["predict"]._actions
        if action.dest == "format"
    )
    assert list(choices) == list(OUTPUTS)


class Pixels:
    """Stands for a scan's voxels, and can be waited for to leave memory."""


def fake_scans(monkeypatch, read):
    monkeypatch.setattr(prediction, "read_image", read)
    monkeypatch.setattr(prediction, "intensity_percentiles", lambda image: None)
    return [SimpleNamespace(id=i, numbers=[1], spacing=(1, 1, 1)) for i in range(12)]


def test_the_next_scan_is_read_and_the_last_one_written_while_one_is_segmented(monkeypatch):
    begun_reading = [threading.Event() for _ in range(13)]
    begun_writing = [threading.Event() for _ in range(13)]
    segmented = [threading.Event() for _ in range(13)]
    begun_reading[12].set(), segmented[12].set(), begun_writing[-1].set()

    def read(scan):
        begun_reading[scan.id].set()
        return scan.id

    def predict(image, *_):
        assert begun_reading[image + 1].wait(GRACE) and begun_writing[image - 1].wait(GRACE)
        segmented[image].set()
        return image

    def write(scan, image, masks):
        begun_writing[image].set()
        assert segmented[image + 1].wait(GRACE)  # it is not waited for before the next one is segmented
        written.append((scan.id, image, masks))

    written, scans = [], fake_scans(monkeypatch, read)
    assert [(scan.id, error) for scan, error in predict_scans(scans, predict, write)] == [(i, None) for i in range(12)]
    assert written == [(i, i, i) for i in range(12)]


def test_no_more_than_four_scans_are_in_memory(monkeypatch):
    alive, most = weakref.WeakSet(), []

    def read(scan):
        pixels = Pixels()
        alive.add(pixels)
        most.append(len(alive))
        return pixels

    scans = fake_scans(monkeypatch, read)
    list(predict_scans(scans, lambda image, *_: None, lambda scan, image, masks: None))
    assert len(most) == 12 and max(most) <= 4


def test_a_disk_that_is_full_stops_everything(monkeypatch):
    def write(scan, image, masks):
        raise OSError(28, "No space left on device", "out")

    scans = fake_scans(monkeypatch, lambda scan: None)
    with pytest.raises(OSError, match="No space left"):
        list(predict_scans(scans, lambda image, *_: None, write))
