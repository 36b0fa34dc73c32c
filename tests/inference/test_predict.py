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
from gitseg_tf.cli.main import build_parser
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.errors import GitsegError
from gitseg_tf.inference import predict as predicting
from gitseg_tf.inference import predictor
from gitseg_tf.inference.identity import ModelIdentity
from gitseg_tf.inference.predict import predict_cohort, predict_scans
from gitseg_tf.inference.prediction import BasePredictor, Prediction
from gitseg_tf.inference.writers.registry import WRITERS, predicted_files, predicted_scans
from gitseg_tf.labels import UWMGI, LabelSet

GRACE = 30  # seconds after which a test fails instead of waiting


class Bright(BasePredictor):
    """Predicts bright voxels as stomach and the first slice as large bowel."""

    labels, channels, config = UWMGI, None, None

    def _predict(self, volume, probabilities):
        masks = np.zeros((3, *volume.shape), bool)
        masks[2], masks[0, 0] = volume.voxels > 3000, True
        return Prediction(masks)


@pytest.fixture(autouse=True)
def model(monkeypatch):
    for module in (predicting, predictor):
        monkeypatch.setattr(module, "load_predictor", lambda *_, **__: Bright())


@pytest.fixture
def cohort(make_cohort, tmp_path):
    scans = (("case1_day0", (40, 64), range(1, 5)), ("case1_day5", (40, 64), range(1, 4)))
    return make_cohort(tmp_path / "cohort", (*scans, ("case2_day0", (48, 40), range(1, 4))), labeled=False)


@pytest.fixture
def failure(caplog):
    """failure(source, out, output) returns the logged messages and the error of a prediction that fails."""
    caplog.set_level("INFO", "gitseg_tf")

    def fail(source, out, output="submission"):
        caplog.clear()
        with pytest.raises(GitsegError) as caught:
            predict_cohort("model", source, out, output=output)
        assert "\n" not in str(caught.value)
        return caplog.messages.copy(), str(caught.value)

    return fail


def test_a_truncated_slice_does_not_stop_the_other_scans(cohort, tmp_path, failure):
    slice_file = sorted((cohort.root / "train/case1/case1_day5").rglob("*.png"))[1]
    slice_file.write_bytes(slice_file.read_bytes()[:-20])
    messages, error = failure(cohort.root, tmp_path / "out")
    assert (
        len(messages) == 1
        and messages[0].startswith("case1_day5 failed: ")
        and f"{slice_file}: the PNG is trunc" in messages[0]
    )
    assert "1 of 3 scans failed" in error and "(case1_day5)" in error and str(tmp_path / "out") in error
    table = pd.read_csv(tmp_path / "out/submission.csv")
    assert table["id"].str.replace(r"_slice.*", "", regex=True).value_counts().to_dict() == {
        "case1_day0": 12,
        "case2_day0": 9,
    }


@pytest.mark.parametrize("output", ["nifti", "labelmap", "png", "gif"])
def test_a_damaged_scan_leaves_no_output(cohort, tmp_path, output, failure):
    slice_file = sorted((cohort.root / "train/case1/case1_day5").rglob("*.png"))[1]
    slice_file.write_bytes(b"")
    failure(cohort.root, tmp_path / "out", output)
    names = {path.name.split(".")[0] for path in (tmp_path / "out").iterdir()}
    assert names - {"dataset"} == {"case1_day0", "case2_day0"} and ("dataset" in names) == (output == "labelmap")
    assert not [path for path in (tmp_path / "out").rglob(".*")]


@pytest.mark.parametrize("output", ["nifti", "labelmap", "png", "gif"])
def test_the_earlier_prediction_of_a_failed_scan_is_removed_and_reported(cohort, tmp_path, output, failure):
    out = tmp_path / "out"
    predict_cohort("model", cohort.root, out, output=output)
    of_scan = {path for path in out.rglob("case1_day5*") if path.is_file()} | set(out.glob("case1_day5/*"))
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    notes = out / "case1_day5_notes.txt"
    notes.touch()
    next((cohort.root / "train/case1/case1_day5").rglob("*.png")).write_bytes(b"")
    messages, error = failure(cohort.root, out, output)
    removed = {path for path in of_scan if path.name != "image.nii.gz"}
    assert removed and not any(path.exists() for path in removed) and notes.exists()
    assert (
        messages[1].startswith("case1_day5: removed its earlier prediction (")
        and str(out / "case1_day5") in messages[1]
    )
    assert [
        line for line in messages[2:] if not line.startswith("labelmap: ")
    ] == [] and "earlier predictions" not in error
    assert {path for path in kept if path.exists()} == set(kept) - removed


@pytest.mark.parametrize("output", ["rtstruct", "seg"])
def test_dicom_outputs_name_the_model_that_made_them(write, clinic, patients, tmp_path, monkeypatch, output):
    write().write_series()
    monkeypatch.setattr(Bright, "identity", ModelIdentity("bright", "0.1.0", "77aa0c31" + 56 * "0"), raising=False)
    predict_cohort("model", clinic, tmp_path / "out", output=output)
    (path,) = (tmp_path / "out").rglob("*.dcm")
    dataset = pydicom.dcmread(path)
    assert dataset.SeriesDescription == "model bright, weights 77aa0c31, gitseg 0.1.0"


def test_earlier_structure_sets_of_unreadable_series_are_removed(write, clinic, patients, tmp_path, failure):
    writers = [write(index).write_series() for index in range(3)]
    predict_cohort("model", clinic, tmp_path / "out", output="rtstruct")
    header = writers[0].root / "IM0003"  # a file without a readable patient, in the folder of one series
    header.rename(header.with_suffix(".dcm")).write_bytes(b"no")
    pixels = writers[1].root / "IM0003"
    pixels.write_bytes(pixels.read_bytes()[:-400])
    messages, error = failure(clinic, tmp_path / "out", "rtstruct")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case2_20260102.dcm"]
    for scan, message in zip(("case1_20260102", "case1_20260203"), messages[1::2], strict=True):
        assert message.endswith(f"removed its earlier prediction ({tmp_path / 'out' / scan}.dcm)")
    assert "2 of 3 scans failed (case1_20260102, case1_20260203)" in error


@pytest.mark.parametrize("output", WRITERS)
def test_every_writer_can_list_the_files_of_a_scan(cohort, tmp_path, output):
    assert predicted_files(output, tmp_path / "nowhere", "case1_day0") == []
    if output not in ("submission", "table", "rtstruct", "seg"):
        out = predict_cohort("model", cohort.root, tmp_path / "out", output=output)
        assert predicted_scans(output, out) == [scan.id for scan in cohort.scans]
        assert predicted_files(output, out, "case1") == predicted_files(output, out, str(out / "case1_day0")) == []


@pytest.mark.parametrize(
    ("labels", "output", "expected"),
    [
        (UWMGI, "submission", "are the competition's"),
        (UWMGI.subset(["stomach"]), "submission", "are the competition's"),
        (LabelSet.of("liver", "spleen", "stomach"), "nifti", "are not the competition's"),
    ],
)
def test_the_default_format_depends_on_the_labels(cohort, tmp_path, monkeypatch, caplog, labels, output, expected):
    caplog.set_level("INFO", "gitseg_tf")
    monkeypatch.setattr(Bright, "labels", labels)
    out = predict_cohort("model", cohort.root, tmp_path / "out")
    assert caplog.messages == [f"format     {output}, because the labels {expected} and no format was chosen"]
    assert (out / "submission.csv").is_file() == (output == "submission")
    assert (out / "case1_day0" / "liver.nii.gz").is_file() == (output == "nifti")


def test_input_files_are_never_removed(cohort, nifti, tmp_path, failure):
    folder = tmp_path / "in"
    for scan in cohort.scans:
        nifti.save(folder / scan.id / "image.nii.gz", nifti.stored_as(scan.image, "RAS"), nifti.affine_of(scan, "RAS"))
    predict_cohort("model", folder, folder, output="nifti")
    before = (folder / "case1_day5/stomach.nii.gz").read_bytes()
    image = folder / "case1_day5/image.nii.gz"
    image.write_bytes(image.read_bytes()[:-30])
    messages, _ = failure(folder, folder, "nifti")
    assert (folder / "case1_day5/stomach.nii.gz").read_bytes() == before
    assert messages[1].startswith("case1_day5: ") and "which is not from this prediction" in messages[1]


@pytest.mark.parametrize(("output", "left"), [("gif", "case1_day0 and 2 more"), ("submission", "submission.csv")])
def test_the_error_of_an_unreadable_input_names_earlier_predictions(cohort, tmp_path, output, left, failure):
    nowhere, out = tmp_path / "nowhere", tmp_path / "out"
    out.mkdir()
    assert "earlier" not in failure(nowhere, out, output)[1]
    predict_cohort("model", cohort.root, out, output=output)
    kept = sorted(out.iterdir())
    messages, error = failure(nowhere, out, output)
    assert error.startswith(f"{nowhere}: no such folder") and messages == [] and sorted(out.iterdir()) == kept
    assert error.endswith(f"; {out} still contains earlier predictions ({left})")
    if output == "submission":
        assert failure(nowhere, out, None)[1] == error


def test_an_earlier_table_is_removed_when_all_scans_fail(cohort, tmp_path, failure):
    predict_cohort("model", cohort.root, tmp_path / "out")
    for path in cohort.root.rglob("*.png"):
        path.write_bytes(b"")
    failure(cohort.root, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_invalid_file_name_does_not_stop_the_other_scans(cohort, tmp_path, failure):
    slice_file = sorted((cohort.root / "train/case1/case1_day0").rglob("*.png"))[1]
    slice_file.rename(slice_file.with_name("slice_2.png"))
    messages, error = failure(cohort.root, tmp_path / "out")
    assert "slice_2.png: invalid name" in messages[0] and "1 of 3 scans failed" in error
    assert len(pd.read_csv(tmp_path / "out/submission.csv")) == 18


def test_a_damaged_nifti_does_not_stop_the_other_scans(cohort, nifti, tmp_path, failure):
    for scan in cohort.scans:
        nifti.save(tmp_path / f"in/{scan.id}.nii.gz", nifti.stored_as(scan.image, "RAS"), nifti.affine_of(scan, "RAS"))
    header, data = tmp_path / "in/case1_day0.nii.gz", tmp_path / "in/case1_day5.nii.gz"
    header.write_bytes(b"no")
    data.write_bytes(data.read_bytes()[:-30])
    messages, error = failure(tmp_path / "in", tmp_path / "out", "nifti")
    assert (
        f"{header}: cannot be read" in messages[0] and f"{data}: cannot be read" in messages[1] and len(messages) == 2
    )
    assert "2 of 3 scans failed" in error
    (read,) = read_cohort(tmp_path / "out").scans
    stomach = read.read_annotation().masks[2]
    assert read.id == "case2_day0" and np.array_equal(stomach, cohort["case2_day0"].image > 3000)


def test_a_damaged_dicom_file_does_not_stop_the_other_scans(write, clinic, patients, tmp_path, failure):
    writers = [write(index).write_series() for index in range(3)]
    broken = writers[0].root / "IM0003.dcm"
    (writers[0].root / "IM0003").rename(broken)
    broken.write_bytes(b"no")
    pixels = writers[1].root / "IM0003"
    pixels.write_bytes(pixels.read_bytes()[:-400])
    messages, error = failure(clinic, tmp_path / "out", "rtstruct")
    assert f"{broken}: is not a DICOM file" in messages[0] and f"{pixels}: its pixels cannot be read" in messages[1]
    assert "2 of 3 scans failed" in error
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "case2_20260102.dcm" and pydicom.dcmread(path).PatientID == "case2"


def test_a_study_with_several_series_does_not_stop_the_others(write, clinic, tmp_path, failure):
    write(2).write_series()
    first, second = write(0).write_series(), write(0)
    second.root, second.series = first.root / "b", second.uid("another series")
    second.root.mkdir()
    second.write_series()
    messages, error = failure(clinic, tmp_path / "out", "rtstruct")
    assert "has 2 series" in messages[0] and "1 of 2 scans failed" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case2_20260102.dcm"]


def test_nothing_is_written_when_all_scans_are_damaged(cohort, tmp_path, failure):
    for path in cohort.root.rglob("*.png"):
        path.write_bytes(b"")
    messages, error = failure(cohort.root, tmp_path / "out")
    assert len(messages) == 3 and "none of its 3 scans" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_exit_status_is_1_and_the_reasons_are_on_stderr(cohort, tmp_path, capsys):
    next((cohort.root / "train/case2").rglob("*.png")).write_bytes(b"")
    assert cli.main(["predict", "model", str(cohort.root), str(tmp_path / "out"), "--format", "gif"]) == 1
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith(("gitseg:", "case"))]
    assert "case2_day0 failed: " in printed.err and "is not a PNG" in printed.err
    assert lines[-1].startswith("gitseg: ") and "1 of 3 scans failed" in lines[-1] and printed.out == ""


def test_structure_sets_require_dicom_input(cohort, tmp_path, failure):
    _, error = failure(cohort.root, tmp_path / "out", "rtstruct")
    assert "has the layout competition, but a structure set needs DICOM" in error and not (tmp_path / "out").exists()


def test_a_single_slice_of_a_cohort_keeps_its_id_and_spacing(cohort, tmp_path, caplog):
    path = sorted((cohort.root / "train/case1/case1_day0").rglob("*.png"))[2]
    caplog.set_level("INFO", "gitseg_tf")
    predict_cohort("model", path, tmp_path / "out", output="submission")
    table = pd.read_csv(tmp_path / "out/submission.csv", keep_default_na=False)
    assert table["id"].tolist() == ["case1_day0_slice_0003"] * 3 and caplog.messages == []
    assert table["predicted"].tolist()[:2] == [f"1 {40 * 64}", ""]
    predict_cohort("model", path, tmp_path / "nifti", output="nifti")
    stomach = nibabel.load(tmp_path / "nifti/case1_day0/stomach.nii.gz")
    assert stomach.header.get_zooms() == pytest.approx((1.25, 1.5, 3))
    assert np.array_equal(np.asarray(stomach.dataobj)[..., 0].T > 0, cohort["case1_day0"].image[2] > 3000)


def test_a_png_with_any_name_is_predicted_with_an_assumed_pixel_size(tmp_path, caplog):
    image = np.zeros((30, 50), np.uint16)
    image[5:9, 10:20] = 4000
    cv2.imwrite(str(tmp_path / "abdomen.png"), image)
    caplog.set_level("INFO", "gitseg_tf")
    predict_cohort("model", tmp_path / "abdomen.png", tmp_path / "out", output="submission")
    assert len(caplog.messages) == 1 and "assuming a pixel size of 1.5 x 1.5 mm" in caplog.messages[0]
    table = pd.read_csv(tmp_path / "out/submission.csv")
    assert table["id"].tolist() == ["abdomen"] * 3 and table["predicted"][2] == "261 10 311 10 361 10 411 10"


def test_a_single_nifti_file_is_predicted(cohort, nifti, tmp_path):
    scan = cohort.scans[0]
    nifti.save(tmp_path / "in/anna.nii.gz", nifti.stored_as(scan.image, "RAS"), nifti.affine_of(scan, "RAS"))
    predict_cohort("model", tmp_path / "in/anna.nii.gz", tmp_path / "out", output="nifti")
    assert np.array_equal(read_cohort(tmp_path / "out").scans[0].read_annotation().masks[2], scan.image > 3000)


@pytest.mark.parametrize(
    ("name", "expected"), [("a.jpg", "does not end in any of .png, .nii, .nii.gz"), ("a.png", "is not a PNG")]
)
def test_an_unsupported_file_is_refused(tmp_path, name, expected, failure):
    (tmp_path / name).write_bytes(b"no")
    assert expected in failure(tmp_path / name, tmp_path / "out")[1]


def test_the_cli_offers_every_format():
    (choices,) = (
        action.choices
        for action in build_parser()._subparsers._group_actions[0].choices["predict"]._actions
        if action.dest == "format"
    )
    assert list(choices) == list(WRITERS)


class Scan:
    """A stand-in for a scan whose volume is the result of `read`."""

    def __init__(self, number, read):
        self.id, self._read = number, read

    def read_volume(self):
        return self._read(self)


class Pixels:
    """A stand-in for a volume, which can be referenced weakly."""

    percentiles = None


def scans_of(read):
    return [Scan(number, read) for number in range(12)]


def test_reading_segmenting_and_writing_overlap():
    reading_started = [threading.Event() for _ in range(13)]
    writing_started = [threading.Event() for _ in range(13)]
    segmented = [threading.Event() for _ in range(13)]
    reading_started[12].set(), segmented[12].set(), writing_started[-1].set()

    def read(scan):
        reading_started[scan.id].set()
        return SimpleNamespace(number=scan.id, percentiles=None)

    def predict(volume, probabilities):
        assert reading_started[volume.number + 1].wait(GRACE) and writing_started[volume.number - 1].wait(GRACE)
        segmented[volume.number].set()
        return volume.number

    def write(scan, volume, prediction):
        writing_started[volume.number].set()
        assert segmented[volume.number + 1].wait(GRACE)  # the next scan is segmented without waiting for this write
        written.append((scan.id, volume.number, prediction))

    written, model = [], SimpleNamespace(predict=predict)
    assert [(s.id, e) for s, e in predict_scans(scans_of(read), model, write)] == [(i, None) for i in range(12)]
    assert written == [(i, i, i) for i in range(12)]


def test_at_most_four_scans_are_in_memory():
    alive, most = weakref.WeakSet(), []

    def read(scan):
        pixels = Pixels()
        alive.add(pixels)
        most.append(len(alive))
        return pixels

    model = SimpleNamespace(predict=lambda volume, probabilities: None)
    list(predict_scans(scans_of(read), model, lambda scan, volume, prediction: None))
    assert len(most) == 12 and max(most) <= 4


def test_a_full_disk_aborts_the_prediction():
    def write(scan, volume, prediction):
        raise OSError(28, "No space left on device", "out")

    model = SimpleNamespace(predict=lambda volume, probabilities: None)
    with pytest.raises(OSError, match="No space left"):
        list(predict_scans(scans_of(lambda scan: Pixels()), model, write))


def test_a_scan_with_the_wrong_channels_fails(cohort, tmp_path, failure, monkeypatch):
    monkeypatch.setattr(Bright, "channels", ("t1", "t2"))
    messages, error = failure(cohort.root, tmp_path / "out")
    assert "none of its 3 scans" in error
    assert messages[0] == "case1_day0 failed: the volume has 1 channel, but the model takes 2 (t1, t2)"
