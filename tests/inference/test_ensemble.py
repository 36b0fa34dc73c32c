"""Several models as one: the mean of their probabilities at the scan's size."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tf_keras as keras
from known_networks import KINDS, found_by, middle_thrice, noise

from gitseg_tf import cli
from gitseg_tf.config import load_config, save_config
from gitseg_tf.data.records import intensity_percentiles
from gitseg_tf.inference import predict as prediction
from gitseg_tf.inference import volumes
from gitseg_tf.inference.ensemble import Member, agreed_settings, make_ensemble, make_mean_function
from gitseg_tf.inference.postprocess import organ_settings
from gitseg_tf.inference.predictor import load_predictor, make_predictor, make_scan_function
from gitseg_tf.models.build import build_model
from gitseg_tf.serving.export import export
from gitseg_tf.training.callbacks import best_weights_path
from gitseg_tf.training.cross_validation import MARKER
from gitseg_tf.training.trainer import load_model, load_run

BASE = {"data.size": [32, 64], "evaluation.batch_size": 2}


def member(probability, kind="2-D", **settings):
    """A network that says the same of every voxel."""
    return Member(
        f"{probability}",
        lambda windows: probability * tf.ones_like(middle_thrice(windows)),
        config_of(kind, **settings),
    )


def config_of(kind="2-D", **settings):
    overrides = BASE | KINDS[kind] | {key.replace("__", "."): value for key, value in settings.items()}
    return load_config(overrides={"data.crop": "none"} | overrides)


def scan_of(image):
    return image, np.arange(1, len(image) + 1), intensity_percentiles(image), (3.0, 1.5, 1.5)


def mean_of(members, image):
    return make_mean_function(members, tf.identity)(*scan_of(image))


@pytest.mark.parametrize("kind", KINDS)
def test_each_model_counts_the_same_whatever_its_windows_and_changes(kind):
    members = [
        member(0.9, kind),
        member(0.6, kind),
        member(0.3, "2.5-D", data__size=[64, 64], evaluation__batch_size=3, evaluation__tta__scales=[0.8, 1.2]),
        member(0.0, "3-D", evaluation__tta__flip=True),
    ]
    image = noise((5, 40, 80))
    assert mean_of(members, image) == pytest.approx(np.full((3, *image.shape), 0.45), abs=1e-6)


def test_the_mean_is_that_of_what_each_model_finds_at_the_scans_size():
    def squared(windows):
        return middle_thrice(windows) ** 2

    settings = (
        (middle_thrice, "2.5-D", {}),
        (squared, "2.5-D", {}),
        (squared, "2-D", {"data__size": [64, 32], "data__crop": "body"}),
        (middle_thrice, "3-D", {"data__size": [96, 96], "data__pixel_mm": 1.0}),
    )
    image = noise((5, 75, 110))
    alone = [found_by(network, image, kind, **more) for network, kind, more in settings]
    members = [Member(kind, network, config_of(kind, **more)) for network, kind, more in settings]
    np.testing.assert_allclose(mean_of(members, image), np.mean(alone, 0), atol=1e-5)


def test_many_views_are_prepared_by_few_graphs(monkeypatch):
    """TensorFlow warns where it traces one function again and again."""
    traced = []
    to_model = volumes.to_model
    monkeypatch.setattr(volumes, "to_model", lambda *given: traced.append(given) or to_model(*given))
    volumes._bringing.cache_clear()
    inputs = (([32, 64], None), ([64, 64], None), ([64, 64], 2), ([64, 64], 3))
    members = [
        member(0.5, kind, data__size=size, data__pixel_mm=mm, evaluation__tta__scales=[0.9])
        for kind in ("2-D", "3-D")
        for size, mm in inputs
    ]
    image = noise((3, 40, 80))
    assert mean_of(members, image) == pytest.approx(np.full((3, *image.shape), 0.5), abs=1e-6)
    assert len(traced) == 2  # with pixel_mm and without
    assert volumes.at_own_size.experimental_get_tracing_count() == 1


def test_the_threshold_is_put_to_the_mean_and_not_to_each_model():
    image = noise((4, 32, 64))
    votes = [member(0.9), member(0.35, "2.5-D"), member(0.35, "3-D")]  # two of three are against, the mean is 0.533
    for threshold, inside in ((0.5, True), (0.54, False)):
        settings = organ_settings(config_of(evaluation__threshold=threshold))
        masks = make_ensemble(votes, settings)(*scan_of(image))
        assert masks.dtype == bool and masks.shape == (3, *image.shape) and (masks == inside).all()


@pytest.mark.parametrize("smooth_mm", [0, 1e-3])
def test_the_masks_of_an_ensemble_are_cleaned_once_by_what_its_models_agree_in(smooth_mm):
    image = np.full((6, 32, 64), 100, np.uint16)
    image[1:4, 5:25, 5:40] = 3000
    image[5, 28:30, 60:63] = 3000
    config = config_of(postprocess__stomach__largest_only=True, postprocess__stomach__smooth_mm=smooth_mm)
    members = [Member("a", middle_thrice, config), Member("b", middle_thrice, config)]
    masks = make_ensemble(members, agreed_settings([("a", config), ("b", config)]))(*scan_of(image))
    assert masks[1, 5].sum() == 6 and not masks[2, 5].any() and masks[2, 1:4].sum() == 3 * 20 * 35
    np.testing.assert_array_equal(masks, make_predictor(middle_thrice, config)(*scan_of(image)))


def test_models_that_are_cleaned_differently_need_to_be_told(refusal):
    one, other = config_of(), config_of(postprocess__stomach__threshold=0.4)
    said = refusal(agreed_settings, [("runs/a", one), ("runs/b", one), ("runs/c", other)])
    assert "runs/a and runs/c: stomach has threshold 0.5 in one and 0.4 in the other" in said
    assert "--postprocess" in said
    # A threshold that is spelled out is the same as one that is left to evaluation.threshold.
    same = config_of(evaluation__threshold=0.4)
    spelled = {f"postprocess__{organ}__threshold": 0.4 for organ in ("large_bowel", "small_bowel", "stomach")}
    assert [s.threshold for s in agreed_settings([("a", same), ("b", config_of(**spelled))])] == [0.4] * 3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A cross-validation of two folds, and a run of other windows, of random weights; the latter's export."""
    root = tmp_path_factory.mktemp("models")
    # Kernels of 16 filters and more are large enough to stay out of the frozen graph.
    small = {"model.filters": 16, "model.levels": 3, "augment.flip.p": 0}
    for seed, (name, size) in enumerate((("cv/fold0", [32, 64]), ("cv/fold1", [32, 64]), ("wide", [64, 64]))):
        config = load_config(overrides=BASE | small | {"data.size": size, "seed": seed})
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
    """Leave what tells a finished run from an interrupted one."""
    config = load_run(run).config
    (run / "evaluation.json").write_text("{}")
    pd.DataFrame({"epoch": range(config.training.epochs)}).to_csv(run / "history.csv")
    (run / "export/1/assets.extra").mkdir(parents=True)
    save_config(config, run / "export/1/assets.extra/config.yaml")
    (run / "export/1/saved_model.pb").touch()


def alone(path, image):
    """By the network itself, without what ensembles are made of."""
    run = load_run(path)
    model = load_model(run)
    network = lambda windows: tf.sigmoid(model(windows, training=False))  # noqa: E731
    return make_scan_function(network, run.config, tf.identity)(*scan_of(image))


def test_folders_of_all_kinds_are_averaged(models):
    image = noise((5, 40, 80))
    runs = [models / "cv" / "fold0", models / "cv" / "fold1", models / "wide"]
    mean = np.mean([alone(path, image) for path in runs], 0)
    threshold = float(np.median(mean))
    assert 0.001 < threshold < 0.999 and np.ptp(mean) > 0.001
    said = []
    settings = {"evaluation.threshold": threshold}
    for given in ([models / "cv", models / "wide" / "export"], [str(path) for path in runs]):
        masks = load_predictor(given, settings, None, said.append)(*scan_of(image))
        sure = np.abs(mean - threshold) > 1e-5
        assert sure.mean() > 0.99
        np.testing.assert_array_equal(masks[sure], mean[sure] >= threshold)
    assert len(said) == 2 and "the mean of 3 models: " in said[0] and str(models / "cv" / "fold1") in said[0]
    single = load_predictor(models / "wide", settings)(*scan_of(image))
    np.testing.assert_array_equal(load_predictor([models / "wide"], settings)(*scan_of(image)), single)


def test_post_processing_of_an_ensemble_is_taken_from_a_file(models, tmp_path, refusal):
    tuned = {"a.yaml": "{postprocess: {stomach: {threshold: 0.01}}}", "b.yaml": "seed: 3"}
    for name, text in tuned.items():
        (tmp_path / name).write_text(text)
    image = noise((3, 32, 64))
    masks = load_predictor(models / "cv", {"evaluation.threshold": 0.99}, tmp_path / "a.yaml")(*scan_of(image))
    assert not masks[:2].any() and masks[2].all()
    assert "has no section postprocess" in refusal(load_predictor, models / "cv", None, tmp_path / "b.yaml")


def test_what_the_model_was_trained_with_cannot_be_set(models, refusal):
    said = refusal(load_predictor, models / "wide", {"data.size": [96, 96]})
    assert "--set data.size: the model is as it was trained" in said
    assert "evaluation.overlap" in refusal(load_predictor, models / "wide", {"evaluation.overlap": 1.5})


def test_flips_that_training_did_not_make_are_said_once_a_model(models):
    said = []
    load_predictor(models / "cv", {"evaluation.tta.flip": True}, None, said.append)
    assert [line.split(": ")[0] for line in said[:2]] == [str(models / "cv/fold0"), str(models / "cv/fold1")]
    assert all("without flips" in line for line in said[:2]) and "mean of 2" in said[2] and len(said) == 3


@pytest.mark.parametrize("missing", ["fold1", "fold1/history.csv", "fold0/export"])
def test_a_cross_validation_with_an_unfinished_fold_is_refused(models, tmp_path, refusal, missing):
    path = shutil.copytree(models / "cv", tmp_path / "cv")
    (shutil.rmtree if (path / missing).is_dir() else os.remove)(path / missing)
    said = refusal(load_predictor, path)
    assert f"{path}: fold {missing[4]} of 2 is not finished; " in said
    assert f"--fold all --resume --out {path}" in said and "name the runs" in said
    load_predictor([path / "fold0"])


def test_no_model_at_all_is_refused(refusal):
    assert "no model is named" in refusal(load_predictor, [])


def test_of_several_exported_versions_the_highest_predicts(models, tmp_path, refusal):
    """The highest is made unreadable here, so that taking another would be seen."""
    path = shutil.copytree(models / "wide/export", tmp_path / "served")
    shutil.copytree(path / "1", path / "2")
    (path / "2/saved_model.pb").write_bytes(b"damaged")
    assert f"{path / '2'}: the SavedModel is damaged" in refusal(load_predictor, path)
    load_predictor(path / "1")
    shutil.rmtree(path / "2")
    (path / "1").rename(path / "2")
    load_predictor(path)


def test_a_savedmodel_of_other_windows_than_its_config_says_is_refused(models, tmp_path, refusal):
    path = shutil.copytree(models / "wide/export/1", tmp_path / "1")
    config = path / "assets.extra/config.yaml"
    save_config(load_config(config, {"data.slices": 7}), config)
    said = refusal(load_predictor, path)
    assert said.startswith(f"{path}: takes windows of [") and "its config.yaml says [" in said and "7]; export" in said


def test_the_command_takes_several_models_and_what_is_set(monkeypatch, tmp_path, capsys):
    asked = []

    def predict_cohort(*given, load):
        asked.append((given, load.keywords))
        return "out"

    monkeypatch.setattr(prediction, "predict_cohort", predict_cohort)
    settings = ["--tta", "flip,scale", "--set", "evaluation.tta.scales=[0.8]", "--postprocess", "a.yaml"]
    assert cli.main(["predict", "run", "cv", "scans", "out", "--format", "png", *settings]) == 0
    assert cli.main(["predict", "run", "scans", "out"]) == 0
    overrides = {"evaluation.tta.flip": True, "evaluation.tta.scales": [0.8]}
    assert asked == [
        ((["run", "cv"], "scans", "out", "png"), {"overrides": overrides, "postprocess": "a.yaml"}),
        ((["run"], "scans", "out", "submission"), {"overrides": {}, "postprocess": None}),
    ]
    for order in (
        "--format nifti run cv scans out",
        "run cv scans --format nifti out",
        "run --format nifti cv scans out",
    ):
        assert cli.main(["predict", *order.split()]) == 0
        assert asked.pop()[0] == (["run", "cv"], "scans", "out", "nifti")
    for wrong in ("run scans out --formt png", "run", "run scans out --tta"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["predict", *wrong.split()])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["predict", "run", "scans", "out", "--tta", "rotate"])
    assert "'rotate' is none of flip, scale" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "tune"])
def test_a_run_is_judged_with_the_augmentation_that_is_asked_for(models, monkeypatch, command, capsys):
    from gitseg_tf.data import sources
    from gitseg_tf.evaluation import evaluate, tune

    judged = []
    monkeypatch.setattr(sources, "open_dataset", lambda *_: None)
    monkeypatch.setattr(evaluate, "evaluate", lambda run, *_: judged.append(run.config))
    monkeypatch.setattr(evaluate, "summary_lines", lambda *_: None)
    monkeypatch.setattr(tune, "tune", lambda run, *_: judged.append(run.config))
    for tta in ([], ["--tta", "flip"], ["--tta", "none"]):
        assert cli.main([command, str(models / "wide"), "--data", "data", *tta]) == 0
    assert [config.evaluation.tta.flip for config in judged] == [False, True, False]
    assert "without flips" in capsys.readouterr().out
