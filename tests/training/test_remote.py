"""From training to prediction in a bucket: TensorFlow's file system in memory stands for it."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from gitseg_tf.cli import main
from gitseg_tf.files import as_path, write_atomically
from gitseg_tf.training.callbacks import EpochBars

BUCKET = as_path("ram://test-remote")
RUN, MODEL = BUCKET / "runs/first", BUCKET / "model"
TINY = ["--epochs", "2", "--batch-size", "4", "--precision", "float32", "--strategy", "one_device"]
TINY += ["--set", "data.size=[32, 32]", "--set", "data.slices=3", "--set", "model.filters=4", "--set", "model.levels=2"]
TINY += ["--set", "evaluation.threshold=0.15", "--set", "training.learning_rate=3e-2"]


def called(*arguments):
    return main([str(argument) for argument in arguments])


def table_at(path):
    return pd.read_csv(io.BytesIO(path.read_bytes()))


@pytest.fixture(scope="module")
def records(drawn_dataset):
    """The drawn dataset in the bucket."""
    root = BUCKET / "records"
    root.mkdir(parents=True)
    for path in drawn_dataset.root.iterdir():
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


def test_an_interrupted_run_in_a_bucket_ends_like_an_undisturbed_one_on_the_disk(finished, drawn_dataset, tmp_path):
    assert called("train", "--data", drawn_dataset.root, "--out", tmp_path / "run", *TINY) == 0
    columns = ["epoch", "loss", "dice", "val_loss", "val_dice", "learning_rate"]
    here, there = pd.read_csv(tmp_path / "run/history.csv"), table_at(finished / "history.csv")
    pd.testing.assert_frame_equal(there[columns], here[columns], atol=1e-6)
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


def test_evaluate_writes_its_report_into_the_bucket(finished):
    for name in ("evaluation.json", "evaluation.csv", "report.html"):
        (finished / name).unlink()
    assert called("evaluate", finished) == 0
    assert table_at(finished / "evaluation.csv")["scan"].nunique() > 1
    assert (finished / "report.html").read_text().lstrip().startswith("<!DOCTYPE html>")


def test_run_and_export_in_the_bucket_predict_the_same_table_into_it(finished, drawn):
    assert called("export", finished, MODEL) == 0
    for model, out in ((finished, "of-run"), (MODEL, "of-export")):
        assert called("predict", model, drawn.root, BUCKET / out) == 0
    tables = [table_at(BUCKET / out / "submission.csv") for out in ("of-run", "of-export")]
    assert len(tables[0]) == 3 * sum(len(scan.numbers) for scan in drawn.scans)
    assert tables[0]["predicted"].notna().any()
    pd.testing.assert_frame_equal(*tables)


def test_pictures_are_written_into_the_bucket(finished, drawn):
    import cv2

    assert called("predict", finished, drawn.root, BUCKET / "pictures", "--format", "png") == 0
    pictures = list((BUCKET / "pictures").glob("*/*.png"))
    assert len(pictures) == sum(len(scan.numbers) for scan in drawn.scans)
    assert cv2.imdecode(np.frombuffer(pictures[0].read_bytes(), np.uint8), cv2.IMREAD_COLOR).ndim == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", BUCKET / "nowhere"], "ram://test-remote/nowhere: is no run"),
        (["predict", BUCKET / "nowhere", "nowhere", BUCKET / "out"], "nowhere"),
        (["train", "--data", BUCKET / "nowhere"], "ram://test-remote/nowhere: holds no data"),
        (["train", "--config", BUCKET / "nowhere.yaml"], "ram://test-remote/nowhere.yaml: cannot be read"),
        (["train", "--out", "nosuch://bucket/run"], "nosuch://bucket/run"),
    ],
)
def test_what_is_missing_in_the_bucket_is_said_in_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert called(*arguments) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1] and "Traceback" not in "\n".join(said)
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_the_bucket_is_not_overwritten(finished, records, capsys):
    assert called("train", "--data", records, "--out", finished, *TINY) == 1
    assert "a run is there already" in capsys.readouterr().err


def test_weights_and_savedmodels_that_are_damaged_in_the_bucket_are_named(finished, drawn, capsys):
    for path in (finished / "checkpoints/best.weights.h5", finished / "export/1/saved_model.pb"):
        whole = path.read_bytes()
        path.write_bytes(whole[:50])
        model = finished if path.suffix == ".h5" else finished / "export"
        assert called("predict", model, drawn.root, BUCKET / "out") == 1
        path.write_bytes(whole)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(path if path.suffix == ".h5" else path.parent) in said
