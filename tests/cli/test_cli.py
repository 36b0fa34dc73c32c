"""The commands as a user runs them, from a cohort to an exported model, in one folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import tf_keras as keras
import yaml

from gitseg_tf.cli import main
from gitseg_tf.evaluation.tuning.search import GRID
from gitseg_tf.inference.predictor import load_predictor
from gitseg_tf.runs.network import load_model
from gitseg_tf.runs.run import load_run

TINY = ["--epochs", "2", "--batch-size", "4", "--precision", "float32", "--set", "data.input_size=[32, 32]"]
TINY += ["--set", "model.filters=4", "--set", "data.folds=3", "--set", "evaluation.threshold=0.3"]
EXPORT_USER = """
import sys
sys.modules.update(dict.fromkeys(["gitseg_tf", "keras", "tf_keras"]))
import numpy as np
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
windows = np.load(sys.argv[2])
parts = [tf.constant(part) for part in np.split(windows, [1])]
np.save(sys.argv[3], np.concatenate([serve(windows=part)["probabilities"] for part in parts]))
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_cohort):
    """A working directory in which `train` has run on the synthetic cohort."""
    folder = tmp_path_factory.mktemp("workplace")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    status = main(["train", "--data", str(tiny_cohort.root), "--strategy", "mirrored", *TINY])
    yield folder if status == 0 else None
    patch.undo()


def error_line(capsys, *arguments):
    """Run a command that must fail, and return its error line."""
    status = main([str(a) for a in arguments])
    printed = capsys.readouterr().err.strip().splitlines()
    assert status == 1
    assert "Traceback" not in "\n".join(printed)
    return printed[-1]


def test_help_does_not_import_tensorflow():
    code = (
        "import sys, gitseg_tf.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print('tensorflow' in sys.modules)"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train" in completed.stdout and completed.stdout.splitlines()[-1] == "False"


def test_a_keras_version_mismatch_is_a_one_line_error_for_a_remote_path_too(capsys, monkeypatch):
    monkeypatch.setattr("gitseg_tf.core.versions.installed", lambda names: (names[0], f"2.{len(names)}.0"))
    assert "does not match" in error_line(capsys, "inspect", "gs://bucket/cohort")


def test_train_writes_a_complete_run_folder(workplace):
    run = workplace / "runs" / "default"
    files = [
        "config.yaml",
        "history.csv",
        "evaluation.json",
        "evaluation.csv",
        "report.html",
        "export/1/saved_model.pb",
        "training_data.json",
    ]
    assert [name for name in files if not (run / name).is_file()] == []


@pytest.mark.parametrize("model", ["runs/default", "runs/default/export/1"])
def test_a_trained_model_distrusts_ct_and_accepts_its_own_scans(workplace, tiny_cohort, model):
    predictor = load_predictor(workplace / model)
    index = json.loads(next(workplace.glob("tfrecords/*/dataset.json")).read_text())
    assert predictor.warnings == ()
    for scan in tiny_cohort.scans:
        if index["folds"]["cases"][scan.case] != 0:
            assert predictor.check(scan.image, spacing=scan.spacing) == []
    ct = scan.image.astype(np.int16) - 1013
    (warning, *_) = predictor.check(ct, spacing=scan.spacing)
    assert warning == "intensities from -1013, as in CT (training data: from 0, not CT)"


def test_train_evaluates_the_held_out_patients(workplace):
    run = workplace / "runs" / "default"
    index = json.loads(next(workplace.glob("tfrecords/*/dataset.json")).read_text())
    held_out = {case for case, fold in index["folds"]["cases"].items() if fold == 0}
    assert set(pd.read_csv(run / "evaluation.csv")["case"]) == held_out
    assert {"score", "dice", "hausdorff", "labels", "per_scan"} <= set(
        json.loads((run / "evaluation.json").read_text())
    )


@pytest.mark.slow
def test_a_second_training_run_does_not_modify_the_first(workplace, tiny_cohort):
    before = (workplace / "runs/default/history.csv").read_bytes()
    assert main(["train", "--data", str(tiny_cohort.root), *TINY, "--epochs", "1"]) == 0
    assert (workplace / "runs/default/history.csv").read_bytes() == before
    assert len(pd.read_csv(workplace / "runs/default-2/history.csv")) == 1
    shutil.rmtree(workplace / "runs/default-2")


def test_evaluate_scores_another_fold(workplace, tmp_path):
    shutil.copytree(workplace / "runs/default", tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--fold", "1"]) == 0
    index = json.loads(next(workplace.glob("tfrecords/*/dataset.json")).read_text())
    expected = {case for case, fold in index["folds"]["cases"].items() if fold == 1}
    (folder,) = (tmp_path / "run/evaluations").iterdir()
    assert set(pd.read_csv(folder / "evaluation.csv")["case"]) == expected
    own = (workplace / "runs/default/evaluation.csv").read_bytes()
    assert (tmp_path / "run/evaluation.csv").read_bytes() == own


def test_predict_writes_the_same_submission_from_a_run_and_from_its_export(workplace, tiny_cohort, tmp_path):
    for model in ("runs/default", "runs/default/export"):
        assert main(["predict", model, str(tiny_cohort.root), str(tmp_path / model)]) == 0
    tables = [pd.read_csv(tmp_path / m / "submission.csv") for m in ("runs/default", "runs/default/export")]
    assert len(tables[0]) == 3 * sum(len(scan.numbers) for scan in tiny_cohort.scans)
    pd.testing.assert_frame_equal(*tables)


def test_predict_on_nifti_matches_predict_on_png(workplace, tiny_cohort, tmp_path):
    whole = [scan for scan in tiny_cohort.scans if len(scan.numbers) == scan.numbers[-1]]
    (tmp_path / "images").mkdir()
    for scan in whole:
        # Axes point to the left, posterior and inferior, as in the slices of the competition.
        affine = np.diag([*-np.array(scan.spacing[::-1]), 1])
        nibabel.save(nibabel.Nifti1Image(scan.image.transpose(2, 1, 0), affine), tmp_path / f"images/{scan.id}.nii.gz")
    run = str(shutil.copytree("runs/default", tmp_path / "run"))
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    config["evaluation"]["threshold"] = 0.02  # after two epochs few probabilities exceed 0.5
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    assert main(["predict", run, str(tmp_path / "images"), str(tmp_path / "nifti")]) == 0
    assert main(["predict", run, str(tiny_cohort.root), str(tmp_path / "png")]) == 0
    ours, theirs = (pd.read_csv(tmp_path / name / "submission.csv") for name in ("nifti", "png"))
    ids = {f"{scan.id}_slice_{number:04d}" for scan in whole for number in scan.numbers}
    assert set(ours["id"]) == ids and ours["predicted"].notna().any()
    pd.testing.assert_frame_equal(ours, theirs[theirs["id"].isin(ids)].reset_index(drop=True))


def test_the_export_runs_with_plain_tensorflow_and_matches_the_model(workplace, tmp_path):
    windows = np.random.default_rng(0).random((4, 32, 32, 5)).astype(np.float32)
    np.save(tmp_path / "windows.npy", windows)
    out = tmp_path / "probabilities.npy"
    command = [sys.executable, "-c", EXPORT_USER, workplace / "runs/default/export/1", tmp_path / "windows.npy", out]
    subprocess.run(list(map(str, command)), check=True, cwd=tmp_path)
    logits = load_model(load_run(workplace / "runs/default")).predict(windows, verbose=0).astype(np.float64)
    served = np.load(out)
    assert served.dtype == np.float32
    np.testing.assert_allclose(served, 1 / (1 + np.exp(-logits)), atol=1e-4)


def test_export_does_not_overwrite_an_existing_folder(workplace, tmp_path, capsys):
    assert main(["export", "runs/default", str(tmp_path / "model")]) == 0
    assert "already exists" in error_line(capsys, "export", "runs/default", tmp_path / "model")


@pytest.mark.slow
def test_predict_and_export_use_the_tuned_postprocessing(workplace, tiny_cohort, tmp_path, capsys, monkeypatch):
    # After two epochs few probabilities exceed 0.1.
    monkeypatch.setitem(GRID, "threshold", (None, 0.02, 0.05, 0.1))
    run = str(shutil.copytree(workplace / "runs/default", tmp_path / "run"))
    plain = submission(run, tiny_cohort.root, tmp_path / "plain")
    assert main(["tune", run, "--dry-run"]) == 0
    assert "dry run" in capsys.readouterr().out and not (tmp_path / "run/postprocess.yaml").exists()
    assert main(["tune", run]) == 0
    printed = capsys.readouterr().out
    assert "gain" in printed and str(tmp_path / "run/postprocess.yaml") in printed
    assert main(["export", run, str(tmp_path / "exported")]) == 0
    exported = yaml.safe_load((tmp_path / "exported/1/assets.extra/config.yaml").read_text())
    assert exported["postprocess"] == yaml.safe_load((tmp_path / "run/postprocess.yaml").read_text())["postprocess"]
    tuned = submission(run, tiny_cohort.root, tmp_path / "tuned")
    assert not tuned.equals(plain)
    pd.testing.assert_frame_equal(
        tuned, submission(str(tmp_path / "exported"), tiny_cohort.root, tmp_path / "from_export")
    )


def submission(model, source, out):
    assert main(["predict", model, str(source), str(out)]) == 0
    return pd.read_csv(out / "submission.csv", keep_default_na=False)


def test_a_tuned_run_cannot_be_resumed_with_stale_postprocessing(workplace, tiny_cohort, tmp_path, capsys):
    run = shutil.copytree(workplace / "runs/default", tmp_path / "run")
    (run / "postprocess.yaml").write_text("postprocess: {stomach: {threshold: 0.4}}")
    line = error_line(
        capsys,
        "train",
        "--data",
        tiny_cohort.root,
        *TINY,
        "--epochs",
        "3",
        "--strategy",
        "mirrored",
        "--resume",
        "--out",
        run,
    )
    assert "postprocess.yaml" in line and "tune again" in line
    assert len(pd.read_csv(run / "history.csv")) == 2


def test_tune_refuses_training_patients(workplace, tmp_path, capsys):
    shutil.copytree(workplace / "runs/default", tmp_path / "run")
    assert "was trained on case" in error_line(capsys, "tune", tmp_path / "run", "--fold", "1")


def test_png_output_is_one_image_per_slice(workplace, tiny_cohort, tmp_path):
    assert main(["predict", "runs/default", str(tiny_cohort.root), str(tmp_path / "out"), "--format", "png"]) == 0
    assert len(list((tmp_path / "out").glob("*/*.png"))) == sum(len(scan.numbers) for scan in tiny_cohort.scans)


@pytest.mark.slow
def test_resume_continues_the_newest_run(workplace, tiny_cohort):
    shutil.copytree(workplace / "runs/default", workplace / "runs/default-2")
    assert main(["train", "--data", str(tiny_cohort.root), *TINY, "--epochs", "3", "--resume"]) == 0
    assert len(pd.read_csv(workplace / "runs/default-2/history.csv")) == 3
    assert len(pd.read_csv(workplace / "runs/default/history.csv")) == 2
    shutil.rmtree(workplace / "runs/default-2")


def test_tfrecords_convert_py_runs_the_convert_command(tiny_cohort, tmp_path):
    script = Path(__file__).parents[2] / "tfrecords" / "convert.py"
    subprocess.run([sys.executable, script, tiny_cohort.root, tmp_path / "records", "--folds", "2"], check=True)
    index = json.loads((tmp_path / "records/dataset.json").read_text())
    assert index["counts"]["scans"] == len(tiny_cohort.scans) and index["folds"]["count"] == 2


def test_doctor_prints_versions_devices_and_the_auto_strategy(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert keras.__version__ in printed and "one_device" in printed and "auto" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--data", "nowhere"], "nowhere: contains no data"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--epochs", "0"], "training.epochs must be greater than or equal to 1, got 0"),
        (["train", "--set", "training.epoch=3"], "did you mean training.epochs"),
        (["train", "--strategy", "eight_gpus"], "'tpu', got 'eight_gpus'"),
        (["train", "--set", "epochs"], "epochs: must have the form dotted.key=value"),
        (["convert", "nowhere", "out"], "nowhere: no such folder"),
        (["convert", "nowhere", "out", "--workers", "0"], "workers must be >= 1, got 0"),
        (["evaluate", "nowhere"], "config.yaml is missing"),
        (["tune", "nowhere"], "config.yaml is missing"),
        (["export", "nowhere"], "config.yaml is missing"),
        (["predict", "nowhere", "nowhere", "out"], "nowhere"),
        (["phantom", "new", "--cases", "0"], "cases must be >= 1, got 0"),
    ],
)
def test_invalid_input_prints_one_line_and_exits_with_status_1(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert expected in error_line(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_slice_is_named_and_leaves_no_dataset(tiny_cohort, tmp_path, capsys):
    shutil.copytree(tiny_cohort.root, tmp_path / "cohort")
    slice_file = sorted((tmp_path / "cohort").glob("train/*/*/scans/*.png"))[3]
    slice_file.write_bytes(slice_file.read_bytes()[:-20])
    line = error_line(capsys, "convert", tmp_path / "cohort", tmp_path / "out", "--folds", "2")
    assert slice_file.name in line and "truncated" in line
    assert not (tmp_path / "out/dataset.json").exists()


def test_fewer_patients_than_folds_is_reported(tiny_cohort, tmp_path, capsys):
    assert "too few patients (6) for 50 folds" in error_line(
        capsys, "convert", tiny_cohort.root, tmp_path / "out", "--folds", "50"
    )


def test_an_unwritable_output_folder_is_named(tiny_cohort, capsys):
    assert "/proc/records" in error_line(capsys, "convert", tiny_cohort.root, "/proc/records", "--folds", "2")


@pytest.mark.slow
def test_a_damaged_shard_is_named_by_training_and_evaluation(workplace, tmp_path, capsys):
    shutil.copytree(next(workplace.glob("tfrecords/*")), tmp_path / "records")
    shutil.copytree(workplace / "runs/default", tmp_path / "run")
    shards = sorted((tmp_path / "records").glob("*.tfrecord"))
    for shard in shards:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    for command in (["evaluate", tmp_path / "run"], ["train", *TINY, "--out", tmp_path / "new"]):
        line = error_line(capsys, *command, "--data", tmp_path / "records")
        assert ".tfrecord: the checksum differs" in line


def test_scores_of_training_patients_carry_a_warning(workplace, tmp_path, capsys):
    shutil.copytree(workplace / "runs/default", tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "warning" not in "".join(capsys.readouterr())
    assert main(["evaluate", str(tmp_path / "run"), "--fold", "1"]) == 0
    printed = capsys.readouterr()
    assert "was trained on case" in printed.out + printed.err
    (folder,) = (tmp_path / "run/evaluations").iterdir()
    assert folder.name.endswith("-fold1") and "Patients trained on" in (folder / "report.html").read_text()


def test_a_run_without_a_recorded_dataset_asks_for_data(workplace, tmp_path, capsys):
    shutil.copytree(workplace / "runs/default", tmp_path / "run")
    settings = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(settings[: settings.index("provenance:")])
    assert "--data" in error_line(capsys, "evaluate", tmp_path / "run")


def test_train_does_not_write_into_a_folder_that_is_not_a_run(workplace, tiny_cohort, tmp_path, capsys):
    shutil.copytree(tiny_cohort.root, tmp_path / "cohort")
    line = error_line(
        capsys, "train", "--data", next(workplace.glob("tfrecords/*")), *TINY, "--out", tmp_path / "cohort"
    )
    assert "is not empty and is not a run" in line
    assert not (tmp_path / "cohort/config.yaml").exists()


def test_predict_uses_the_test_folder_and_ignores_train_csv(workplace, tiny_cohort, tmp_path):
    shutil.copytree(tiny_cohort.root, tmp_path / "cohort")
    (tmp_path / "cohort/train.csv").write_text("no table")
    case = sorted((tmp_path / "cohort/train").iterdir())[0]
    shutil.copytree(case, tmp_path / "cohort/test" / case.name)
    assert main(["predict", "runs/default", str(tmp_path / "cohort"), str(tmp_path / "out")]) == 0
    ids = pd.read_csv(tmp_path / "out/submission.csv")["id"]
    assert set(ids.str.split("_").str[0]) == {case.name}


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_a_damaged_savedmodel_is_reported(workplace, tiny_cohort, tmp_path, capsys, name):
    shutil.copytree(workplace / "runs/default/export/1", tmp_path / "model")
    (tmp_path / "model" / name).write_bytes((tmp_path / "model" / name).read_bytes()[:50])
    assert "the SavedModel is damaged" in error_line(
        capsys, "predict", tmp_path / "model", tiny_cohort.root, tmp_path / "out"
    )


def test_wrong_usage_exits_with_2():
    with pytest.raises(SystemExit) as exit_info:
        main(["convert"])
    assert exit_info.value.code == 2


@pytest.mark.parametrize("arguments", [[], ["cohort"], ["--verify", "records", "cohort"]])
def test_convert_without_its_folders_is_a_usage_error(capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(["convert", *arguments])
    assert exit_info.value.code == 2 and "--verify OUT alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, expected",
    [
        ("formats run --scans 0", "--scans: must be a positive integer, got '0'"),
        ("export run --representative x", "--representative: must be a positive integer, got 'x'"),
        ("export run --model-version 1.5", "--model-version: must be a positive integer, got '1.5'"),
        (
            "predict in out --server grpc://host/m --timeout x",
            "--timeout: must be a positive number, got 'x'",
        ),
        (
            "predict in out --server grpc://host/m --timeout inf",
            "--timeout: must be a positive number, got 'inf'",
        ),
    ],
)
def test_an_invalid_number_is_a_usage_error(capsys, command, expected):
    with pytest.raises(SystemExit) as exit_info:
        main(command.split())
    assert exit_info.value.code == 2 and expected in capsys.readouterr().err
