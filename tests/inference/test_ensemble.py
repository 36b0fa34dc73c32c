"""An ensemble: the mean of the probabilities of several models at the size of the scan."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.known_networks import KINDS, labeled, noise, probabilities_by, repeat_middle_slice

from gitseg_tf import cli
from gitseg_tf.config import load_config, save_config
from gitseg_tf.data.volume import Volume
from gitseg_tf.export.savedmodel import export
from gitseg_tf.inference import predict as prediction
from gitseg_tf.inference.ensemble import Member, agreed_settings
from gitseg_tf.inference.postprocess import label_settings
from gitseg_tf.inference.predictor import Predictor, load_predictor
from gitseg_tf.inference.sliding_window import views
from gitseg_tf.labels import UWMGI, LabelSet
from gitseg_tf.models.build import build_model
from gitseg_tf.runs.cross_validation import MARKER
from gitseg_tf.runs.folder import best_weights_path
from gitseg_tf.runs.network import load_model
from gitseg_tf.runs.run import load_run

BASE = {"data.input_size": [32, 64], "evaluation.batch_size": 2}


def member(probability, kind="2-D", **settings):
    """A network with the same probability everywhere."""
    return Member(
        f"{probability}",
        lambda windows: probability * tf.ones_like(repeat_middle_slice(windows)),
        config_of(kind, **settings),
    )


def config_of(kind="2-D", **settings):
    overrides = BASE | KINDS[kind] | {key.replace("__", "."): value for key, value in settings.items()}
    return labeled({"data.crop": "none"} | overrides)


def scan_of(image):
    return Volume(image, (3.0, 1.5, 1.5))


def mean_of(members, image):
    return Predictor(members).probabilities(scan_of(image))


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_has_equal_weight_whatever_its_windows_and_augmentation(kind):
    members = [
        member(0.9, kind),
        member(0.6, kind),
        member(0.3, "2.5-D", data__input_size=[64, 64], evaluation__batch_size=3, evaluation__tta__scales=[0.8, 1.2]),
        member(0.0, "3-D", evaluation__tta__flip=True),
    ]
    image = noise((5, 40, 80))
    assert mean_of(members, image) == pytest.approx(np.full((3, *image.shape), 0.45), abs=1e-6)


def test_an_ensemble_averages_the_probabilities_at_scan_size():
    def squared(windows):
        return repeat_middle_slice(windows) ** 2

    settings = (
        (repeat_middle_slice, "2.5-D", {}),
        (squared, "2.5-D", {}),
        (squared, "2-D", {"data__input_size": [64, 32], "data__crop": "body"}),
        (repeat_middle_slice, "3-D", {"data__input_size": [96, 96], "data__pixel_mm": 1.0}),
    )
    image = noise((5, 75, 110))
    alone = [probabilities_by(network, image, kind, **more) for network, kind, more in settings]
    members = [Member(kind, network, config_of(kind, **more)) for network, kind, more in settings]
    np.testing.assert_allclose(mean_of(members, image), np.mean(alone, 0), atol=1e-5)


def test_many_views_share_few_traced_graphs(monkeypatch):
    """TensorFlow warns about functions that are traced repeatedly."""
    traced = []
    to_model = views.to_model
    monkeypatch.setattr(views, "to_model", lambda *given: traced.append(given) or to_model(*given))
    inputs = (([32, 64], None), ([64, 64], None), ([64, 64], 2), ([64, 64], 3))
    members = [
        member(0.5, kind, data__input_size=size, data__pixel_mm=mm, evaluation__tta__scales=[0.9])
        for kind in ("2-D", "3-D")
        for size, mm in inputs
    ]
    image = noise((3, 40, 80))
    assert mean_of(members, image) == pytest.approx(np.full((3, *image.shape), 0.5), abs=1e-6)
    assert len(traced) == 8  # once for each kind of windows, not for each scale
    assert views.at_scan_size.experimental_get_tracing_count() == 1


def test_the_threshold_is_applied_to_the_mean_probability():
    image = noise((4, 32, 64))
    votes = [
        member(0.9),
        member(0.35, "2.5-D"),
        member(0.35, "3-D"),
    ]  # two of three are below the threshold, the mean is 0.533
    for threshold, inside in ((0.5, True), (0.54, False)):
        settings = label_settings(config_of(evaluation__threshold=threshold))
        masks = Predictor(votes, settings).predict(scan_of(image)).masks
        assert masks.dtype == bool and masks.shape == (3, *image.shape) and (masks == inside).all()


@pytest.mark.parametrize("smooth_mm", [0, 1e-3])
def test_ensemble_masks_are_postprocessed_once_with_the_common_settings(smooth_mm):
    image = np.full((6, 32, 64), 100, np.uint16)
    image[1:4, 5:25, 5:40] = 3000
    image[5, 28:30, 60:63] = 3000
    config = config_of(postprocess__stomach__keep_largest_component=True, postprocess__stomach__smooth_mm=smooth_mm)
    members = [Member("a", repeat_middle_slice, config), Member("b", repeat_middle_slice, config)]
    masks = Predictor(members, agreed_settings([("a", config), ("b", config)])).predict(scan_of(image)).masks
    assert masks[1, 5].sum() == 6 and not masks[2, 5].any() and masks[2, 1:4].sum() == 3 * 20 * 35
    alone = Predictor.of_network(repeat_middle_slice, config)
    np.testing.assert_array_equal(masks, alone.predict(scan_of(image)).masks)


def test_models_with_different_postprocessing_need_explicit_settings(refusal):
    one, other = config_of(), config_of(postprocess__stomach__threshold=0.4)
    message = refusal(agreed_settings, [("runs/a", one), ("runs/b", one), ("runs/c", other)])
    assert "runs/a and runs/c: stomach has threshold 0.5 in one and 0.4 in the other" in message
    assert "set the post-processing of the ensemble explicitly" in message
    # An explicit threshold equals one that falls back to evaluation.threshold.
    same = config_of(evaluation__threshold=0.4)
    spelled = {f"postprocess__{name}__threshold": 0.4 for name in UWMGI.names}
    assert [s.threshold for s in agreed_settings([("a", same), ("b", config_of(**spelled))])] == [0.4] * 3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A cross-validation of two folds and a run with another input size, with random weights; the run is exported."""
    root = tmp_path_factory.mktemp("models")
    # Kernels with 16 or more filters are large enough to stay out of the frozen graph.
    small = {"model.filters": 16, "model.levels": 3, "augment.flip.p": 0}
    for seed, (name, size) in enumerate((("cv/fold0", [32, 64]), ("cv/fold1", [32, 64]), ("wide", [64, 64]))):
        config = labeled(BASE | small | {"data.input_size": size, "seed": seed})
        (root / name).mkdir(parents=True)
        save_config(config, root / name / "config.yaml")
        weights = best_weights_path(root / name)
        weights.parent.mkdir(exist_ok=True)
        keras.utils.set_random_seed(seed)
        build_model(config).save_weights(weights)
    for fold in range(2):
        _finish(root / "cv" / f"fold{fold}")
    save_config(config.model_copy(update={"provenance": {"folds": [["case1"], ["case2"]]}}), root / "cv" / MARKER)
    export(load_run(root / "wide"), force=True)
    return root


def _finish(run):
    """Write the files that distinguish a finished run from an interrupted one."""
    config = load_run(run).config
    (run / "evaluation.json").write_text("{}")
    pd.DataFrame({"epoch": range(config.training.epochs)}).to_csv(run / "history.csv")
    (run / "export/1/assets.extra").mkdir(parents=True)
    save_config(config, run / "export/1/assets.extra/config.yaml")
    (run / "export/1/saved_model.pb").touch()


def alone(path, image):
    """Predict with the network itself, without the ensemble code."""
    run = load_run(path)
    model = load_model(run)
    network = lambda windows: tf.sigmoid(model(windows, training=False))  # noqa: E731
    return Predictor.of_network(network, run.config).probabilities(scan_of(image))


@pytest.mark.slow
def test_runs_exports_and_cross_validations_are_averaged(models, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    image = noise((5, 40, 80))
    runs = [models / "cv" / "fold0", models / "cv" / "fold1", models / "wide"]
    mean = np.mean([alone(path, image) for path in runs], 0)
    threshold = float(np.median(mean))
    assert 0.001 < threshold < 0.999 and np.ptp(mean) > 0.001
    settings = {"evaluation.threshold": threshold}
    for given in ([models / "cv", models / "wide" / "export"], [str(path) for path in runs]):
        masks = load_predictor(given, overrides=settings).predict(scan_of(image)).masks
        sure = np.abs(mean - threshold) > 1e-5
        assert sure.mean() > 0.99
        np.testing.assert_array_equal(masks[sure], mean[sure] >= threshold)
    messages = caplog.messages
    assert len(messages) == 2 and "mean of 3 models: " in messages[0] and str(models / "cv" / "fold1") in messages[0]
    single, listed = (
        load_predictor(given, overrides=settings).predict(scan_of(image)).masks
        for given in (models / "wide", [models / "wide"])
    )
    np.testing.assert_array_equal(listed, single)


def test_postprocessing_of_an_ensemble_can_be_read_from_a_file(models, tmp_path, refusal):
    tuned = {"a.yaml": "{postprocess: {stomach: {threshold: 0.01}}}", "b.yaml": "seed: 3"}
    for name, text in tuned.items():
        (tmp_path / name).write_text(text)
    image = noise((3, 32, 64))
    tuned = {"overrides": {"evaluation.threshold": 0.99}, "postprocess": tmp_path / "a.yaml"}
    masks = load_predictor(models / "cv", **tuned).predict(scan_of(image)).masks
    assert not masks[:2].any() and masks[2].all()
    assert "has no postprocess section" in refusal(load_predictor, models / "cv", postprocess=tmp_path / "b.yaml")


def test_settings_fixed_by_training_cannot_be_overridden(models, refusal):
    message = refusal(load_predictor, models / "wide", overrides={"data.input_size": [96, 96]})
    assert "data.input_size is fixed by training" in message
    assert "evaluation.overlap" in refusal(load_predictor, models / "wide", overrides={"evaluation.overlap": 1.5})


def test_flips_not_seen_in_training_are_logged_once_per_model(models, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    load_predictor(models / "cv", overrides={"evaluation.tta.flip": True})
    messages = caplog.messages
    assert [line.split(": ")[0] for line in messages[:2]] == [str(models / "cv/fold0"), str(models / "cv/fold1")]
    assert all("without flips" in line for line in messages[:2]) and "mean of 2" in messages[2] and len(messages) == 3


@pytest.mark.parametrize("missing", ["fold1", "fold1/history.csv", "fold0/export"])
def test_a_cross_validation_with_an_unfinished_fold_is_refused(models, tmp_path, refusal, missing):
    path = shutil.copytree(models / "cv", tmp_path / "cv")
    (shutil.rmtree if (path / missing).is_dir() else os.remove)(path / missing)
    message = refusal(load_predictor, path)
    assert f"{path}: fold {missing[4]} of 2 is not finished; " in message
    assert "resume the cross-validation" in message and "list its finished runs" in message
    load_predictor([path / "fold0"])


def test_predicting_without_a_model_is_refused(refusal):
    assert "no model given" in refusal(load_predictor, [])


def test_the_highest_exported_version_predicts(models, tmp_path, refusal):
    """The highest version is damaged, so that loading another one would be noticed."""
    path = shutil.copytree(models / "wide/export", tmp_path / "served")
    shutil.copytree(path / "1", path / "2")
    (path / "2/saved_model.pb").write_bytes(b"damaged")
    assert f"{path / '2'}: the SavedModel is damaged" in refusal(load_predictor, path)
    load_predictor(path / "1")
    shutil.rmtree(path / "2")
    (path / "1").rename(path / "2")
    load_predictor(path)


def test_a_savedmodel_that_contradicts_its_config_is_refused(models, tmp_path, refusal):
    path = shutil.copytree(models / "wide/export/1", tmp_path / "1")
    config = path / "assets.extra/config.yaml"
    save_config(load_config(config, {"data.window_slices": 7}), config)
    message = refusal(load_predictor, path)
    assert (
        message.startswith(f"{path}: takes windows of [")
        and "its config.yaml says [" in message
        and "7]; export" in message
    )


def test_predict_accepts_several_models_and_overrides(monkeypatch, tmp_path, capsys):
    calls = []

    def predict_cohort(*given, output, load, **reading):
        calls.append(((*given, output), load.keywords))
        return "out"

    monkeypatch.setattr(prediction, "predict_cohort", predict_cohort)
    settings = ["--tta", "flip,scale", "--set", "evaluation.tta.scales=[0.8]", "--postprocess", "a.yaml"]
    assert cli.main(["predict", "run", "cv", "scans", "out", "--format", "png", *settings]) == 0
    assert cli.main(["predict", "run", "scans", "out"]) == 0
    overrides = {"evaluation.tta.flip": True, "evaluation.tta.scales": [0.8]}
    assert calls == [
        ((["run", "cv"], "scans", "out", "png"), {"overrides": overrides, "postprocess": "a.yaml"}),
        ((["run"], "scans", "out", None), {"overrides": {}, "postprocess": None}),
    ]
    for order in (
        "--format nifti run cv scans out",
        "run cv scans --format nifti out",
        "run --format nifti cv scans out",
    ):
        assert cli.main(["predict", *order.split()]) == 0
        assert calls.pop()[0] == (["run", "cv"], "scans", "out", "nifti")
    for wrong in ("run scans out --formt png", "run", "run scans out --tta"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["predict", *wrong.split()])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["predict", "run", "scans", "out", "--tta", "rotate"])
    assert "must be flip, scale, flip,scale or none, got 'rotate'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "tune"])
def test_evaluate_and_tune_use_the_requested_augmentation(models, monkeypatch, command, capsys):
    from gitseg_tf.cli import dataset as sources
    from gitseg_tf.evaluation import evaluate, scope
    from gitseg_tf.evaluation.tuning import tune

    judged = []
    monkeypatch.setattr(sources, "open_data", lambda *_, **__: None)
    monkeypatch.setattr(evaluate, "evaluate", lambda run, *_, **__: judged.append(run.config))
    monkeypatch.setattr(evaluate, "summary_lines", lambda *_: [])
    monkeypatch.setattr(scope, "choose_scope", lambda run, *_: SimpleNamespace(folder=run.path))
    monkeypatch.setattr(tune, "tune", lambda run, *_, **__: judged.append(run.config))
    for tta in ([], ["--tta", "flip"], ["--tta", "none"]):
        assert cli.main([command, str(models / "wide"), "--data", "data", *tta]) == 0
    assert [config.evaluation.tta.flip for config in judged] == [False, True, False]
    assert "without flips" in capsys.readouterr().err


def test_models_with_different_labels_or_channels_are_refused(refusal):
    one, other = config_of(), labeled(BASE, LabelSet.of("liver"))
    assert "a and b: their labels differ (large_bowel, small_bowel, stomach; liver)" in refusal(
        agreed_settings, [("a", one), ("b", other)]
    )
    assert "their channels differ (mr; t1, t2)" in refusal(
        agreed_settings, [("a", one), ("b", labeled(BASE, channels=("t1", "t2")))]
    )
