import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import yaml

from gitseg_tf.config import load_config, save_config, with_overrides
from gitseg_tf.evaluation import evaluate as evaluation
from gitseg_tf.evaluation import tune as tuning
from gitseg_tf.evaluation.evaluate import evaluate
from gitseg_tf.evaluation.tune import tune
from gitseg_tf.sections.postprocess import OrganConfig
from gitseg_tf.training.trainer import load_run


def faint_organs(windows):
    """A network that finds the marked middle of each slice, which is no organ, at 0.35, and a bright bar at 0.9."""
    middle = windows[..., windows.shape[-1] // 2]
    marked = tf.cast((middle > 0.2) & (middle < 0.5), tf.float32)
    return tf.repeat((0.35 * marked + 0.9 * tf.cast(middle > 0.9, tf.float32))[..., None], 3, -1)


@pytest.fixture
def make_run(tmp_path, drawn_dataset, monkeypatch):
    """make_run(KEY=VALUE, ...) is a run whose network is `faint_organs`, trained on folds 1 and 2."""

    def make(trained_on=None, **overrides):
        settings = {"data.size": [64, 64], "data.crop": "none", "data.slices": 1}
        settings |= {key.replace("__", "."): value for key, value in overrides.items()}
        known = sorted({entry.case for entry in drawn_dataset.scans_of([1, 2])}) if trained_on is None else trained_on
        provenance = {"provenance.trained_on": known} if known else {}
        save_config(load_config(overrides=settings | provenance), tmp_path / "config.yaml")
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints/best.weights.h5").touch()
        return load_run(tmp_path)

    for module in (tuning, evaluation):
        monkeypatch.setattr(module, "run_probabilities", lambda run: faint_organs)
    return make


@pytest.fixture
def lines():
    return []


def test_what_is_found_is_saved_with_the_run_and_scores_as_it_says(make_run, drawn_dataset, lines):
    run = make_run()
    before = evaluate(run, drawn_dataset, say=lines.append)["score"]
    settings, steps = tune(run, drawn_dataset, say=lines.append)
    assert steps
    tuned = load_run(run.path)
    assert tuned.config.postprocess == settings
    after = evaluate(tuned, drawn_dataset, say=lines.append)["score"]
    assert steps[0].before == pytest.approx(before, abs=1e-6)
    assert steps[-1].after == pytest.approx(after, abs=1e-6) and after > before


def test_each_step_is_a_line_and_the_saved_file_says_what_it_was_tuned_on(make_run, drawn_dataset, lines):
    run = make_run()
    settings, steps = tune(run, drawn_dataset, say=lines.append)
    assert len(lines) == 1 + len(steps) + 2 and lines[-1].endswith(f"{run.path / 'postprocess.yaml'}")
    saved = yaml.safe_load((run.path / "postprocess.yaml").read_text())
    assert saved["postprocess"] == settings.model_dump(mode="json")
    entries = drawn_dataset.scans_of([0])
    facts = saved["provenance"]["tuned"]
    assert facts["fold"] == 0 and facts["scans"] == [entry.id for entry in entries]
    assert facts["cases"] == sorted({entry.case for entry in entries})
    assert facts["score_after"] == pytest.approx(steps[-1].after)
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]


def left_sided(windows):
    """`faint_organs`, less sure on the right."""
    width = windows.shape[-2]
    return faint_organs(windows) * tf.where(tf.range(width) < width // 2, 1.0, 0.4)[:, None]


def test_the_augmentation_that_it_was_tuned_under_is_used_from_then_on(make_run, drawn_dataset, lines, monkeypatch):
    run = make_run(evaluation__batch_size=4)
    for module in (tuning, evaluation):
        monkeypatch.setattr(module, "run_probabilities", lambda run: left_sided)
    monkeypatch.setattr("gitseg_tf.evaluation.tuning.GRID", {"threshold": (None, 0.1, 0.15, 0.2, 0.25, 0.3)})
    flipping = replace(run, config=with_overrides(run.config, {"evaluation.tta.flip": True}, run.path))
    _, steps = tune(flipping, drawn_dataset, say=lines.append)
    assert lines[-1].endswith("postprocess.yaml, with test-time augmentation (left and right changed)")
    tuned = load_run(run.path)
    assert tuned.config.evaluation == flipping.config.evaluation != run.config.evaluation
    assert evaluate(tuned, drawn_dataset, say=lines.append)["score"] == pytest.approx(steps[-1].after, abs=1e-6)
    # Thresholds for what is averaged over both sides suit nothing else.
    plain = replace(tuned, config=with_overrides(tuned.config, {"evaluation.tta.flip": False}, run.path))
    assert evaluate(plain, drawn_dataset, say=lines.append)["score"] != pytest.approx(steps[-1].after, abs=1e-3)


def test_a_file_that_says_nothing_of_augmentation_leaves_it_to_the_config(make_run, drawn_dataset):
    run = make_run(evaluation__tta={"scales": [0.9]})
    tuned = {"postprocess": {"stomach": {"gap_mm": 9}}, "provenance": {"tuned": {"fold": 0, "cases": [], "scans": []}}}
    (run.path / "postprocess.yaml").write_text(yaml.safe_dump(tuned))
    config = load_run(run.path).config
    assert config.postprocess.stomach.gap_mm == 9 and config.evaluation.tta.scales == (0.9,)
    (run.path / "postprocess.yaml").write_text(yaml.safe_dump(tuned | {"evaluation": {"tta": {"scales": []}}}))
    assert load_run(run.path).config.evaluation.tta.scales == ()


@pytest.mark.parametrize(("version", "command"), [(1, "export {} --force"), (3, "export {} --model-version 3 --force")])
def test_an_export_of_before_is_called_stale(make_run, drawn_dataset, lines, version, command, monkeypatch):
    monkeypatch.setattr(tuning, "search", lambda *_: ({"stomach": OrganConfig(gap_mm=9)}, [], 0.5))
    run = make_run()
    exported = run.path / "export" / str(version)
    (exported / "assets.extra").mkdir(parents=True)
    (exported / "saved_model.pb").touch()
    save_config(run.config, exported / "assets.extra" / "config.yaml")
    tune(run, drawn_dataset, dry_run=True, say=lines.append)
    assert "dry run" in lines[-1]
    tune(run, drawn_dataset, say=lines.append)
    assert lines[-1].startswith(f"stale      {exported} ") and command.format(run.path) in lines[-1]
    save_config(load_run(run.path).config, exported / "assets.extra" / "config.yaml")  # as export writes it
    tune(load_run(run.path), drawn_dataset, say=lines.append)
    assert lines[-1].startswith("saved ")


def test_a_dry_run_shows_and_saves_nothing(make_run, drawn_dataset, lines):
    run = make_run()
    _, steps = tune(run, drawn_dataset, dry_run=True, say=lines.append)
    assert len(lines) == 1 + len(steps) + 2
    assert not (run.path / "postprocess.yaml").exists()


def test_tuning_again_finds_the_same(make_run, drawn_dataset, lines):
    run = make_run()
    first = tune(run, drawn_dataset, say=lines.append)
    assert tune(load_run(run.path), drawn_dataset, say=lines.append) == first


def test_patients_that_the_run_was_trained_on_are_refused(make_run, drawn_dataset, refusal):
    run = make_run()
    said = refusal(tune, run, drawn_dataset, 1)
    assert drawn_dataset.scans_of([1])[0].case in said and "fold 1" in said
    assert not (run.path / "postprocess.yaml").exists()


def test_a_run_that_does_not_know_its_patients_is_refused(make_run, drawn_dataset, refusal):
    assert "does not say which patients" in refusal(tune, make_run(trained_on=[]), drawn_dataset)


def test_a_run_without_held_out_fold_asks_for_one(make_run, drawn_dataset, refusal):
    assert "--fold" in refusal(tune, make_run(data__fold=None), drawn_dataset)


def test_an_evaluation_says_that_it_is_tuned_and_where_it_is_optimistic(make_run, drawn_dataset, lines):
    run = make_run()
    evaluate(run, drawn_dataset, say=lines.append)
    assert not lines and json.loads((run.path / "evaluation.json").read_text())["tuned_on"] == []
    tune(run, drawn_dataset, say=lambda line: None)
    tuned = load_run(run.path)
    cases = sorted({entry.case for entry in drawn_dataset.scans_of([0])})
    assert evaluate(tuned, drawn_dataset, say=lines.append)["tuned_on"] == cases
    assert lines[0].startswith("tuned ") and "fold 0" in lines[0]
    assert lines[1].startswith("warning ") and cases[0] in lines[1] and "optimistic" in lines[1]
    assert "optimistic" in (run.path / "report.html").read_text()
    lines.clear()
    assert evaluate(tuned, drawn_dataset, 1, lines.append)["tuned_on"] == []
    assert not any("optimistic" in line for line in lines) and any("tuned " in line for line in lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("postprocess: {liver: {}}", "postprocess.liver is no known key"),
        ("postprocess: {stomach: {gap_mm: -1}}", "postprocess.stomach.gap_mm is -1"),
        ("postprocess: {stomach: {gap_mm: 9}}", "gitseg tune"),
        ("provenance: {tuned: {fold: 0}}", "gitseg tune"),
        ("postprocess: [", "is no YAML"),
    ],
)
def test_a_damaged_file_is_named(make_run, refusal, text, says):
    run = make_run()
    (run.path / "postprocess.yaml").write_text(text)
    said = refusal(load_run, run.path)
    assert str(run.path / "postprocess.yaml") in said and says in said


def test_the_scans_are_predicted_once(make_run, drawn_dataset, monkeypatch):
    run, predicted = make_run(), []
    made = tuning.make_scan_function

    def counting(*arguments):
        find = made(*arguments)

        def counted(image, *rest):
            predicted.append(image.shape)
            return find(image, *rest)

        return counted

    monkeypatch.setattr(tuning, "make_scan_function", counting)
    tune(run, drawn_dataset, say=lambda line: None)
    assert predicted == [entry.shape for entry in drawn_dataset.scans_of([0])]


def test_smoothed_and_plain_predictions_agree_where_smoothing_does_nothing(make_run, drawn_dataset):
    from gitseg_tf.data.dataset import read_scans
    from gitseg_tf.inference.predictor import make_predictor

    scan = next(read_scans(drawn_dataset, [0]))
    found = []
    for smooth in (0, 1e-3):  # weights of the neighbours: exp(-4.5e6)
        config = make_run(postprocess__stomach__smooth_mm=smooth, evaluation__threshold=0.3).config
        found.append(
            make_predictor(faint_organs, config)(scan["image"], scan["numbers"], scan["percentiles"], scan["spacing"])
        )
    assert found[0].any() and found[0].dtype == bool
    np.testing.assert_array_equal(*found)
