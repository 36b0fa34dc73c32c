"""A 3-D network trained on the synthetic cohort, validated, scored, exported and loaded."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, log_expit

from gitseg_tf.config import load_config
from gitseg_tf.data.pipeline.batches import validation_windows
from gitseg_tf.data.volume import Volume
from gitseg_tf.evaluation.evaluate import evaluate
from gitseg_tf.export.savedmodel import export
from gitseg_tf.inference.predictor import load_predictor
from gitseg_tf.labels import UWMGI
from gitseg_tf.runs.network import load_model
from gitseg_tf.training.losses import build_loss
from gitseg_tf.training.metrics import StreamingDice
from gitseg_tf.training.trainer import train

pytestmark = pytest.mark.slow

SETTINGS = {
    "data.input_size": [64, 64],
    "data.patch": [4, 32, 32],
    "data.fold": 1,
    "data.batch_size": 2,
    "augment.dropout.p": 0,
    "model.architecture": "unet3d",
    "model.filters": 4,
    "training.epochs": 3,
    "training.learning_rate": 1e-2,
    "training.strategy": "one_device",
    "training.precision": "float32",
    "evaluation.threshold": 0.3,
    "evaluation.batch_size": 2,
}


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """A run of three epochs. Read-only."""
    config = load_config(None, SETTINGS)
    return train(config, tiny_dataset, tmp_path_factory.mktemp("runs") / "volumes")


@pytest.fixture(scope="module")
def history(trained):
    with open(trained.path / "history.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_training_lowers_the_loss(history):
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


def test_the_validation_dice_counts_every_voxel_once(trained, history, tiny_dataset):
    model, both, sizes, costs = load_model(trained), np.zeros(3), np.zeros(3), []
    for image, mask, weight in validation_windows(tiny_dataset, trained.config).as_numpy_iterator():
        image, mask = image[weight > 0], mask[weight > 0]  # the padding of the last batch does not count
        logits, counted = model(image, training=False).numpy().astype(float), mask >= 0
        inside = (expit(logits) >= 0.3) & counted
        both += (inside & (mask > 0)).sum((0, 1, 2, 3))
        sizes += inside.sum((0, 1, 2, 3)) + (mask > 0).sum((0, 1, 2, 3))
        truth = np.maximum(mask, 0)
        bce = -(truth * log_expit(logits) + (1 - truth) * log_expit(-logits)) * counted
        p, t = (expit(logits) * counted).sum((0, 1, 2, 3)), truth.sum((0, 1, 2, 3))
        dice = 1 - (2 * (expit(logits) * truth).sum((0, 1, 2, 3)) + 1) / (p + t + 1)
        bce = bce.sum((1, 2, 3, 4)) / counted.sum((1, 2, 3, 4))
        costs += (bce + dice.mean()).tolist()
    best = max(history, key=lambda row: row["val_dice"])
    assert best["val_dice"] == pytest.approx(np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1).mean(), abs=1e-3)
    assert best["val_loss"] == pytest.approx(np.mean(costs), abs=1e-3)


def test_a_run_is_scored_and_its_report_names_the_patches(trained, tiny_dataset):
    summary = evaluate(trained, tiny_dataset)
    assert 0 <= summary["score"] <= 1
    assert "patches of 4 x 32 x 32 voxels" in (trained.path / "report.html").read_text()


def test_the_export_accepts_patches_and_segments_like_the_run(trained, tiny_cohort):
    exported = export(trained)
    signature = tf.saved_model.load(str(exported)).signatures["serving_default"]
    patches = np.random.default_rng(0).random((3, 4, 32, 32, 1), np.float32)
    found = signature(windows=tf.constant(patches))["probabilities"]
    assert found.shape == (3, 4, 32, 32, 3) and found.dtype == tf.float32
    assert np.allclose(found, tf.sigmoid(load_model(trained)(patches, training=False)), atol=1e-5)
    scan = tiny_cohort["case5_day0"]  # with a gap
    volume = Volume(scan.image, scan.spacing, scan.numbers)
    masks = load_predictor(exported).predict(volume).masks
    assert masks.shape == scan.masks.shape
    assert np.array_equal(masks, load_predictor(trained.path).predict(volume).masks)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(3)
    mask = (rng.random((2, 4, 6, 6, 3)) < [0.5, 0.2, 0.1]).astype(np.float32)
    return mask, rng.normal(scale=2, size=mask.shape).astype(np.float32)


def bce_dice(bce, dice, smoothing=0.0):
    weights = {"training.loss.bce.weight": bce, "training.loss.dice.weight": dice}
    config = load_config(None, weights | {"training.loss.bce.smoothing": smoothing})
    return build_loss(config.training.loss)


def test_ignored_voxels_do_not_change_the_loss(batch):
    mask, logits = batch
    ignored = np.zeros(mask.shape[:-1], bool)
    ignored[:, :, 3:] = True
    partial = np.where(ignored[..., None], -1, mask)
    for loss in (bce_dice(0, 1), bce_dice(1, 0), bce_dice(1, 0, 0.2)):
        # The loss of only the counted half.
        expected = loss(mask[:, :, :3], logits[:, :, :3]).numpy()
        assert loss(partial, logits).numpy() == pytest.approx(expected, rel=1e-5)


def test_streaming_dice_excludes_ignored_voxels(batch):
    mask, logits = batch
    metric = StreamingDice(UWMGI.names)
    metric.update_state(np.where(np.arange(6)[:, None, None] < 4, mask, -1), logits)
    truth, inside = mask[:, :, :4] > 0, logits[:, :, :4] >= 0
    expected = [2 * (truth & inside)[..., k].sum() / (truth[..., k].sum() + inside[..., k].sum()) for k in range(3)]
    assert float(metric.result()["dice"]) == pytest.approx(np.mean(expected), abs=1e-6)


def test_the_3d_competition_recipe_trains_at_reduced_size_with_tensorflow_augmentation(
    tiny_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr("gitseg_tf.models.volumetric.unet3d._RESIDUAL_BLOCKS", (1, 2, 1, 1, 1))  # fewer to trace
    recipe = Path(__file__).parents[2] / "configs" / "uwmgi_3d.yaml"
    reduced = ("data.input_size", "data.patch", "data.fold", "model.filters", "training.strategy", "training.precision")
    changes = {
        "augment.backend": "tensorflow",
        "augment.affine.p": 1,
        "training.epochs": 1,
        "training.jit_compile": False,
    }
    config = load_config(recipe, {key: SETTINGS[key] for key in reduced} | changes)
    run = train(config, tiny_dataset, tmp_path / "run")
    with open(run.path / "history.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert np.isfinite(float(row["loss"])) and np.isfinite(float(row["val_loss"]))
