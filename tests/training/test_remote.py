"""From training to prediction in a bucket, simulated by TensorFlow's in-memory file system."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from gitseg_tf.cli import main
from gitseg_tf.core.paths import as_path, write_atomically
from gitseg_tf.training.callbacks.recorder import EpochBars

pytestmark = pytest.mark.slow

BUCKET = as_path("ram://test-remote")
RUN, MODEL = BUCKET / "runs/first", BUCKET / "model"
TINY = ["--epochs", "2", "--batch-size", "4", "--precision", "float32", "--strategy", "one_device"]
TINY += [
    "--set",
    "data.input_size=[32, 32]",
    "--set",
    "data.window_slices=3",
    "--set",
    "model.filters=4",
    "--set",
    "model.levels=2",
]
TINY += ["--set", "evaluation.threshold=0.15", "--set", "training.learning_rate=3e-2"]


def called(*arguments):
    return main([str(argument) for argument in arguments])


def table_at(path):
    return pd.read_csv(io.BytesIO(path.read_bytes()))


@pytest.fixture(scope="module")
def records(tiny_dataset):
    """The synthetic dataset in the bucket."""
    root = BUCKET / "records"
    root.mkdir(parents=True)
    for path in tiny_dataset.root.iterdir():
        write_atomically(root / path.name, path.read_bytes())
    return root


@pytest.fixture(scope="module")
def finished(records):
    """A run in the bucket that was interrupted in its second epoch, resumed, scored and exported."""

    def stop(self, batch, logs=None):
        if (RUN / "history.csv").exists():
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochBars, "on_train_batch_end", stop)
        assert called("train", "--data", records, "--out", RUN, *TINY) == 130
    assert len(table_at(RUN / "history.csv")) == 1 and not (RUN / "export").exists()
    assert called("train", "--out", RUN, "--resume") == 0
    return RUN


def test_an_interrupted_run_in_a_bucket_finishes_like_an_uninterrupted_local_one(finished, tiny_dataset, tmp_path):
    assert called("train", "--data", tiny_dataset.root, "--out", tmp_path / "run", *TINY) == 0
    columns = ["epoch", "loss", "dice", "val_loss", "val_dice", "learning_rate"]
    local, remote = pd.read_csv(tmp_path / "run/history.csv"), table_at(finished / "history.csv")
    pd.testing.assert_frame_equal(remote[columns], local[columns], atol=1e-6)
    scores = [json.loads((run / "evaluation.json").read_text()) for run in (finished, tmp_path / "run")]
    assert scores[0]["dice"] == pytest.approx(scores[1]["dice"], abs=1e-3) and scores[0]["dice"] > 0
    names = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*")}
    assert {path.name for path in finished.iterdir()} == names


def test_no_temporary_file_is_left_in_the_bucket(finished):
    kept = [path.name for path in BUCKET.glob("**/*")]
    assert "best.weights.h5" in kept and "saved_model.pb" in kept
    assert not [name for name in kept if name.startswith((".", "new.")) or name.endswith((".tmp", ".partial"))]


def test_tensorboard_reads_the_losses_from_the_bucket(finished):
    (log, *_) = (finished / "logs" / "train").iterdir()
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(log)) for value in event.summary.value}
    assert "epoch_loss" in tags


def test_evaluate_writes_its_report_to_the_bucket(finished):
    for name in ("evaluation.json", "evaluation.csv", "report.html"):
        (finished / name).unlink()
    assert called("evaluate", finished) == 0
    assert table_at(finished / "evaluation.csv")["scan"].nunique() > 1
    assert (finished / "report.html").read_text().lstrip().startswith("<!DOCTYPE html>")


def test_a_run_and_its_export_in_the_bucket_predict_the_same_table(finished, tiny_cohort):
    assert called("export", finished, MODEL) == 0
    for model, out in ((finished, "of-run"), (MODEL, "of-export")):
        assert called("predict", model, tiny_cohort.root, BUCKET / out) == 0
    tables = [table_at(BUCKET / out / "submission.csv") for out in ("of-run", "of-export")]
    assert len(tables[0]) == 3 * sum(len(scan.numbers) for scan in tiny_cohort.scans)
    assert tables[0]["predicted"].notna().any()
    pd.testing.assert_frame_equal(*tables)


def test_pictures_are_written_to_the_bucket(finished, tiny_cohort):
    import cv2

    assert called("predict", finished, tiny_cohort.root, BUCKET / "pictures", "--format", "png") == 0
    pictures = list((BUCKET / "pictures").glob("*/*.png"))
    assert len(pictures) == sum(len(scan.numbers) for scan in tiny_cohort.scans)
    assert cv2.imdecode(np.frombuffer(pictures[0].read_bytes(), np.uint8), cv2.IMREAD_COLOR).ndim == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", BUCKET / "nowhere"], "ram://test-remote/nowhere: is not a run"),
        (["predict", BUCKET / "nowhere", "nowhere", BUCKET / "out"], "nowhere"),
        (["train", "--data", BUCKET / "nowhere"], "ram://test-remote/nowhere: contains no data"),
        (["train", "--config", BUCKET / "nowhere.yaml"], "ram://test-remote/nowhere.yaml: cannot be read"),
        (["train", "--out", "nosuch://bucket/run"], "nosuch://bucket/run"),
    ],
)
def test_missing_remote_paths_are_a_one_line_error(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert called(*arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert expected in lines[-1] and "Traceback" not in "\n".join(lines)
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_the_bucket_is_not_overwritten(finished, records, capsys):
    assert called("train", "--data", records, "--out", finished, *TINY) == 1
    assert "already contains a run" in capsys.readouterr().err


def test_damaged_weights_and_savedmodels_in_the_bucket_are_named(finished, tiny_cohort, capsys):
    for path in (finished / "checkpoints/best.weights.h5", finished / "export/1/saved_model.pb"):
        whole = path.read_bytes()
        path.write_bytes(whole[:50])
        model = finished if path.suffix == ".h5" else finished / "export"
        assert called("predict", model, tiny_cohort.root, BUCKET / "out") == 1
        path.write_bytes(whole)
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(path if path.suffix == ".h5" else path.parent) in message
