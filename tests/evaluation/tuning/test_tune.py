import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import yaml

from gitseg_tf.config import load_config, save_config, with_overrides
from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.evaluation.evaluate import evaluate
from gitseg_tf.evaluation.tuning import tune as tuning
from gitseg_tf.evaluation.tuning.tune import tune
from gitseg_tf.labels import UWMGI
from gitseg_tf.runs.run import load_run


def faint_labels(windows):
    """A network that predicts 0.35 in the marked middle of each slice, which is no label, and 0.9 in the bright bar."""
    middle = windows[..., windows.shape[-1] // 2]
    marked = tf.cast((middle > 0.2) & (middle < 0.5), tf.float32)
    return tf.repeat((0.35 * marked + 0.9 * tf.cast(middle > 0.9, tf.float32))[..., None], 3, -1)


@pytest.fixture
def make_run(tmp_path, tiny_dataset, monkeypatch):
    """make_run(KEY=VALUE, ...) is a run whose network is `faint_labels`, trained on folds 1 and 2."""

    def make(trained_on=None, **overrides):
        settings = {"data.input_size": [64, 64], "data.crop": "none", "data.window_slices": 1}
        settings |= {key.replace("__", "."): value for key, value in overrides.items()}
        known = sorted({entry.case for entry in tiny_dataset.scans_of([1, 2])}) if trained_on is None else trained_on
        provenance = {"provenance.trained_on": known} if known else {}
        config = load_config(overrides=settings | provenance).for_dataset(UWMGI, ("image",))
        save_config(config, tmp_path / "config.yaml")
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints/best.weights.h5").touch()
        return load_run(tmp_path)

    monkeypatch.setattr("gitseg_tf.inference.predictor.run_probabilities", lambda run: faint_labels)
    return make


@pytest.fixture
def lines():
    """The messages that are logged."""
    logger, handler, messages = logging.getLogger("gitseg_tf.evaluation"), logging.Handler(), []
    handler.emit = lambda record: messages.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("of_run", "given", "metric"),
    [("dice", None, "dice"), ("score", None, "score"), ("dice", "score_volume", "score_volume")],
)
def test_tuned_settings_are_saved_with_the_run_and_reach_the_reported_metric(
    make_run, tiny_dataset, lines, of_run, given, metric
):
    run = make_run(evaluation__metric=of_run)
    before = evaluate(run, tiny_dataset)[metric]
    settings, steps = tune(run, tiny_dataset, metric=given)
    assert lines[-2].startswith(f"{metric:10} {steps[0].before:.4f} before, {steps[-1].after:.4f} after")
    assert yaml.safe_load((run.path / "postprocess.yaml").read_text())["provenance"]["tuned"]["metric"] == metric
    assert steps
    tuned = load_run(run.path)
    assert tuned.config.postprocess == settings
    after = evaluate(tuned, tiny_dataset)[metric]
    assert steps[0].before == pytest.approx(before, abs=1e-6)
    assert steps[-1].after == pytest.approx(after, abs=1e-6) and after > before


def test_each_step_is_logged_and_the_file_records_the_tuning_scans(make_run, tiny_dataset, lines):
    run = make_run()
    settings, steps = tune(run, tiny_dataset)
    assert len(lines) == 1 + len(steps) + 2 and lines[-1].endswith(f"{run.path / 'postprocess.yaml'}")
    saved = yaml.safe_load((run.path / "postprocess.yaml").read_text())
    assert saved["postprocess"] == settings.model_dump(mode="json")
    entries = tiny_dataset.scans_of([0])
    facts = saved["provenance"]["tuned"]
    assert facts["fold"] == 0 and facts["scans"] == [entry.id for entry in entries]
    assert facts["cases"] == sorted({entry.case for entry in entries})
    assert facts["score_after"] == pytest.approx(steps[-1].after)
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]


def left_sided(windows):
    """`faint_labels` with lower probabilities on the right."""
    width = windows.shape[-2]
    return faint_labels(windows) * tf.where(tf.range(width) < width // 2, 1.0, 0.4)[:, None]


def test_the_augmentation_used_for_tuning_is_saved(make_run, tiny_dataset, lines, monkeypatch):
    run = make_run(evaluation__batch_size=4)
    monkeypatch.setattr("gitseg_tf.inference.predictor.run_probabilities", lambda run: left_sided)
    monkeypatch.setattr("gitseg_tf.evaluation.tuning.search.GRID", {"threshold": (None, 0.1, 0.15, 0.2, 0.25, 0.3)})
    flipping = replace(run, config=with_overrides(run.config, {"evaluation.tta.flip": True}, run.path))
    _, steps = tune(flipping, tiny_dataset)
    assert lines[-1].endswith("postprocess.yaml, with test-time augmentation (horizontal flip)")
    tuned = load_run(run.path)
    assert tuned.config.evaluation == flipping.config.evaluation != run.config.evaluation
    assert evaluate(tuned, tiny_dataset)["dice"] == pytest.approx(steps[-1].after, abs=1e-6)
    # Thresholds tuned with flip averaging do not suit plain predictions.
    plain = replace(tuned, config=with_overrides(tuned.config, {"evaluation.tta.flip": False}, run.path))
    assert evaluate(plain, tiny_dataset)["dice"] != pytest.approx(steps[-1].after, abs=1e-3)


def test_a_file_without_augmentation_keeps_that_of_the_config(make_run, tiny_dataset):
    run = make_run(evaluation__tta={"scales": [0.9]})
    tuned = {
        "postprocess": {"stomach": {"max_gap_mm": 9}},
        "provenance": {"tuned": {"fold": 0, "cases": [], "scans": []}},
    }
    (run.path / "postprocess.yaml").write_text(yaml.safe_dump(tuned))
    config = load_run(run.path).config
    assert config.postprocess.stomach.max_gap_mm == 9 and config.evaluation.tta.scales == (0.9,)
    (run.path / "postprocess.yaml").write_text(yaml.safe_dump(tuned | {"evaluation": {"tta": {"scales": []}}}))
    assert load_run(run.path).config.evaluation.tta.scales == ()


@pytest.mark.parametrize("version", [1, 3])
def test_an_older_export_is_reported_as_stale(make_run, tiny_dataset, lines, version, monkeypatch):
    monkeypatch.setattr(tuning, "search", lambda *_: ({"stomach": LabelPostprocess(max_gap_mm=9)}, [], 0.5))
    run = make_run()
    exported = run.path / "export" / str(version)
    (exported / "assets.extra").mkdir(parents=True)
    (exported / "saved_model.pb").touch()
    save_config(run.config, exported / "assets.extra" / "config.yaml")
    tune(run, tiny_dataset, dry_run=True)
    assert "dry run" in lines[-1]
    tune(run, tiny_dataset)
    assert lines[-1].startswith(f"stale      {exported} ")
    assert lines[-1].endswith(f"; export {run.path} again as version {version}")
    save_config(load_run(run.path).config, exported / "assets.extra" / "config.yaml")  # as export writes it
    tune(load_run(run.path), tiny_dataset)
    assert lines[-1].startswith("saved ")


def test_a_dry_run_prints_the_steps_and_saves_nothing(make_run, tiny_dataset, lines):
    run = make_run()
    _, steps = tune(run, tiny_dataset, dry_run=True)
    assert len(lines) == 1 + len(steps) + 2
    assert not (run.path / "postprocess.yaml").exists()


def test_tuning_again_finds_the_same_settings(make_run, tiny_dataset, lines):
    run = make_run()
    first = tune(run, tiny_dataset)
    assert tune(load_run(run.path), tiny_dataset) == first


def test_a_dataset_without_a_label_of_the_run_or_with_other_channels_is_refused(make_run, tiny_dataset, refusal):
    run = make_run()
    fewer = replace(tiny_dataset, labels=UWMGI.subset(["stomach", "large_bowel"]))
    assert "choose a dataset with small_bowel" in refusal(tune, run, fewer)
    assert "has the input channels image" in refusal(tune, run, replace(tiny_dataset, channels=("t1", "t2")))
    assert not (run.path / "postprocess.yaml").exists()


def test_tuning_on_training_patients_is_refused(make_run, tiny_dataset, refusal):
    run = make_run()
    message = refusal(tune, run, tiny_dataset, 1)
    assert tiny_dataset.scans_of([1])[0].case in message and "fold 1" in message
    assert not (run.path / "postprocess.yaml").exists()


def test_a_run_without_recorded_training_patients_is_refused(make_run, tiny_dataset, refusal):
    assert "does not record which patients" in refusal(tune, make_run(trained_on=[]), tiny_dataset)


def test_a_run_without_a_held_out_fold_asks_for_one(make_run, tiny_dataset, refusal):
    assert "choose the fold" in refusal(tune, make_run(data__fold=None), tiny_dataset)


def test_an_evaluation_reports_tuning_and_warns_on_the_tuning_fold(make_run, tiny_dataset, lines):
    run = make_run()
    evaluate(run, tiny_dataset)
    assert all("is not fully trained" in line for line in lines)  # the run has no history
    assert json.loads((run.path / "evaluation.json").read_text())["tuned_on"] == []
    tune(run, tiny_dataset)
    lines.clear()
    tuned = load_run(run.path)
    cases = sorted({entry.case for entry in tiny_dataset.scans_of([0])})
    assert evaluate(tuned, tiny_dataset)["tuned_on"] == cases
    assert lines[0].startswith("tuned ") and "fold 0" in lines[0]
    assert cases[0] in lines[1] and "optimistic" in lines[1]
    assert "optimistic" in (run.path / "report.html").read_text()
    lines.clear()
    assert evaluate(tuned, tiny_dataset, 1)["tuned_on"] == []
    assert not any("optimistic" in line for line in lines) and any("tuned " in line for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postprocess: {liver: {}}", "postprocess.liver: unknown label"),
        (
            "postprocess: {stomach: {max_gap_mm: -1}}",
            "postprocess.stomach.max_gap_mm must be greater than or equal to 0, got -1",
        ),
        ("postprocess: {stomach: {max_gap_mm: 9}}", "gitseg tune"),
        ("provenance: {tuned: {fold: 0}}", "gitseg tune"),
        ("postprocess: [", "invalid YAML"),
    ],
)
def test_an_invalid_postprocess_file_is_named(make_run, refusal, text, expected):
    run = make_run()
    (run.path / "postprocess.yaml").write_text(text)
    message = refusal(load_run, run.path)
    assert str(run.path / "postprocess.yaml") in message and expected in message


def test_tuning_predicts_each_scan_once(make_run, tiny_dataset, monkeypatch):
    run, predicted = make_run(), []
    find = tuning.Predictor.measure

    def counted(predictor, volume):
        predicted.append(volume.shape)
        return find(predictor, volume)

    monkeypatch.setattr(tuning.Predictor, "measure", counted)
    tune(run, tiny_dataset)
    assert predicted == [entry.shape for entry in tiny_dataset.scans_of([0])]


def test_negligible_smoothing_does_not_change_the_masks(make_run, tiny_dataset):
    from gitseg_tf.data.tfrecords.dataset import read_scans
    from gitseg_tf.inference.predictor import Predictor

    scan = next(read_scans(tiny_dataset, [0]))
    found = []
    for smooth in (0, 1e-3):  # weights of the neighbors: exp(-4.5e6)
        config = make_run(postprocess__stomach__smooth_mm=smooth, evaluation__threshold=0.3).config
        found.append(Predictor.of_network(faint_labels, config).predict(scan.volume).masks)
    assert found[0].any() and found[0].dtype == bool
    np.testing.assert_array_equal(*found)


def test_an_unknown_metric_is_refused(make_run, tiny_dataset, refusal):
    assert "unknown metric 'dise'; did you mean dice?" in refusal(tune, make_run(), tiny_dataset, metric="dise")
