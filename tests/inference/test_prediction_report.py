"""`gitseg predict` with --report, --preview and --save-probabilities, through a rule in place of a network."""

import json
import re
from datetime import datetime

import nibabel
import numpy as np
import pytest
import tensorflow as tf

from gitseg_tf import __version__, cli
from gitseg_tf.errors import ConfigError, DataError
from gitseg_tf.inference import predict as predicting
from gitseg_tf.inference import predictor
from gitseg_tf.inference.identity import ModelIdentity
from gitseg_tf.inference.predict import predict_cohort
from gitseg_tf.inference.prediction import BasePredictor, Prediction
from gitseg_tf.labels import UWMGI


class Bright(BasePredictor):
    """The brighter a voxel, the more probable the stomach; distrusts scans of 48 rows."""

    labels, channels, config = UWMGI, None, None
    identity = ModelIdentity("bright", weights="ab" * 32)
    warnings = ("runs/a is not fully trained (1 of its 2 epochs)",)

    def _predict(self, volume, probabilities):
        values = np.zeros((3, *volume.shape), np.float32)
        values[2] = volume.voxels / np.float32(4001)
        return Prediction(values >= 0.5, values if probabilities else None)

    def check(self, volume, *, spacing=None):
        return ["48 rows", "too dark"] if volume.shape[1] == 48 else []


@pytest.fixture(autouse=True)
def model(monkeypatch):
    for module in (predicting, predictor):
        monkeypatch.setattr(module, "load_predictor", lambda *_, **__: Bright())


@pytest.fixture
def cohort(make_cohort, tmp_path):
    scans = (("case1_day0", (40, 64), range(1, 5)), ("case1_day5", (40, 64), range(1, 4)))
    return make_cohort(tmp_path / "cohort", (*scans, ("case2_day0", (48, 40), range(1, 4))), labeled=False)


def predict(cohort, tmp_path, *options):
    out = ["--format", "nifti", "--report", str(tmp_path / "new/report.json")]
    status = cli.main(["predict", "model", str(cohort.root), str(tmp_path / "out"), *out, *options])
    return status, json.loads((tmp_path / "new/report.json").read_text())


def test_the_report_describes_model_scans_and_labels(cohort, tmp_path, capsys):
    status, report = predict(cohort, tmp_path)
    assert status == 0 and report["format"] == "gitseg-tf prediction report" and report["version"] == 1
    assert report["gitseg_tf"] == __version__ and report["tensorflow"] == tf.__version__
    assert report["model"] == {
        "name": "bright", "version": __version__, "weights": "ab" * 32, "compared_with_training_data": False
    }  # fmt: skip
    assert datetime.fromisoformat(report["started"]).tzinfo and report["seconds"] > 0
    assert (report["source"], report["out"]) == (str(cohort.root), str(tmp_path / "out"))
    assert (report["output"], report["layout"]) == ("nifti", "competition")
    assert report["labels"] == list(UWMGI.names) and report["error"] is None and report["failed"] == []
    assert [scan["id"] for scan in report["scans"]] == [scan.id for scan in cohort.scans]
    for entry, scan in zip(report["scans"], cohort.scans, strict=True):
        mask = scan.image / np.float32(4001) >= 0.5
        assert entry["labels"]["stomach"]["volume_ml"] == pytest.approx(mask.sum() * np.prod(scan.spacing) / 1000)
        assert entry["labels"]["stomach"]["slices"] == sum(plane.any() for plane in mask) > 0
        assert entry["labels"]["large_bowel"] == {"volume_ml": 0, "slices": 0}
        assert entry["shape"] == list(scan.image.shape) and entry["spacing_mm"] == pytest.approx(scan.spacing)
        assert entry["source"] == str(cohort.root / "train" / scan.case / scan.id / "scans")
        assert set(entry["timings"]) == {"read", "predict", "write"} and entry["case"] == scan.case
        assert entry["seconds"] == pytest.approx(sum(entry["timings"].values()), abs=1e-6)
    assert not list((tmp_path / "new").glob(".*"))


def test_warnings_are_one_line_a_scan_and_in_the_report(cohort, tmp_path, capsys):
    _, report = predict(cohort, tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert lines == [
        "warning: check all results: runs/a is not fully trained (1 of its 2 epochs)",
        "warning: case2_day0: check this result: 48 rows; too dark",
    ]
    assert report["warnings"] == list(Bright.warnings)
    assert [scan["warnings"] for scan in report["scans"]] == [[], [], ["48 rows", "too dark"]]


def test_failed_scans_are_in_the_report(cohort, tmp_path):
    broken = sorted((cohort.root / "train/case1/case1_day5").rglob("*.png"))[1]
    broken.write_bytes(broken.read_bytes()[:-20])
    status, report = predict(cohort, tmp_path)
    assert status == 1 and [scan["id"] for scan in report["scans"]] == ["case1_day0", "case2_day0"]
    ((failed),) = report["failed"]
    assert failed["id"] == "case1_day5" and failed["error"].startswith(f"{broken}: the PNG is truncated")
    assert "1 of 3 scans failed (case1_day5)" in report["error"]


def test_the_report_of_an_earlier_call_never_remains(cohort, tmp_path):
    predict(cohort, tmp_path)
    for path in cohort.root.rglob("*.png"):
        path.write_bytes(b"")
    status, report = predict(cohort, tmp_path)
    assert status == 1 and report["scans"] == [] and len(report["failed"]) == 3
    path = tmp_path / "new/report.json"
    with pytest.raises(DataError, match="no such folder"):
        predict_cohort("model", tmp_path / "nowhere", tmp_path / "out", output="nifti", report=path)
    report = json.loads(path.read_text())
    assert "no such folder" in report["error"] and report["scans"] == report["failed"] == []


@pytest.mark.parametrize("content", ['{"labels": {}}', "[1]", "text", None])
def test_another_file_is_never_overwritten(cohort, tmp_path, content, refusal):
    path = tmp_path / "dataset.json"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    text = refusal(predict_cohort, "model", cohort.root, tmp_path / "out", output="nifti", report=path)
    assert text.startswith(f"{path}: exists and is not a report") and not (tmp_path / "out").exists()
    assert path.is_dir() or path.read_text() == content


@pytest.mark.parametrize("output", ["nifti", "labelmap", "submission"])
def test_probabilities_lie_next_to_any_format(cohort, tmp_path, output):
    out = predict_cohort("model", cohort.root, tmp_path / "out", output=output, save_probabilities=True)
    for scan in cohort.scans:
        image = nibabel.load(out / scan.id / "probabilities" / "stomach.nii.gz")
        difference = scan.image / np.float32(4001) - image.get_fdata().transpose(2, 1, 0)
        assert difference.min() >= 0 and difference.max() < 1 / 32768


def test_outdated_extras_are_removed(cohort, tmp_path, caplog):
    out = predict_cohort("model", cohort.root, tmp_path / "out", output="gif", save_probabilities=True, preview=True)
    extras = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".gif"]
    assert len(extras) == 3 * (3 + 1)
    next((cohort.root / "train/case1/case1_day5").rglob("*.png")).write_bytes(b"")
    with pytest.raises(DataError, match="1 of 3 scans failed"):
        predict_cohort("model", cohort.root, out, output="gif", preview=True)
    assert {path for path in extras if path.exists()} == {out / f"previews/case{n}_day0.png" for n in (1, 2)}
    removed = [line for line in caplog.messages if re.match(r"case[12]_day0: removed .*probabilities", line)]
    assert len(removed) == 2


def test_a_server_has_no_probabilities(cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Bright, "has_probabilities", False)
    with pytest.raises(ConfigError, match="masks only"):
        predict_cohort("model", cohort.root, tmp_path / "out", output="nifti", save_probabilities=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["predict", "--server", "grpc://localhost:1/a", "in", "out", "--save-probabilities"])
    assert "--save-probabilities requires MODEL" in capsys.readouterr().err
    predict_cohort("model", cohort.root, tmp_path / "out", output="labelmap")  # overlaps then go by label order
    assert (tmp_path / "out/case1_day0.nii.gz").is_file()
