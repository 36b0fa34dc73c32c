import hashlib
import json

import pytest

import gitseg_tf
from gitseg_tf.config import load_config, save_config
from gitseg_tf.inference.identity import ModelIdentity, model_identity

FIRST, SECOND = b"weights of the first run", b"weights of the second run"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def write_run(path, name, weights):
    (path / "checkpoints").mkdir(parents=True)
    save_config(load_config(overrides={"name": name}), path / "config.yaml")
    (path / "checkpoints/best.weights.h5").write_bytes(weights)
    return path


def write_export(path, name, weights, stored):
    """A SavedModel as written by gitseg export, as far as its identity is concerned."""
    extra = path / "assets.extra"
    extra.mkdir(parents=True)
    config = load_config(overrides={"name": name})
    digests = [sha256(one) for one in weights] if isinstance(weights, list) else sha256(weights)
    save_config(config.model_copy(update={"provenance": {"best_weights": digests}}), extra / "config.yaml")
    (extra / "model.json").write_text(json.dumps({"weights": stored}))
    (path / "saved_model.pb").write_bytes(b"graph in " + stored.encode())
    return path


def test_a_run_is_identified_by_its_name_its_weights_and_the_version_of_the_package(tmp_path):
    run = write_run(tmp_path / "run", "uwmgi", FIRST)
    assert model_identity(run) == ModelIdentity("uwmgi", gitseg_tf.__version__, sha256(FIRST))
    (run / "checkpoints/best.weights.h5").write_bytes(SECOND)
    assert model_identity(str(run)).weights == sha256(SECOND)


def test_an_export_in_float32_has_the_identity_of_its_run(tmp_path):
    run = write_run(tmp_path / "run", "uwmgi", FIRST)
    write_export(run / "export/1", "uwmgi", FIRST, "float32")
    assert model_identity(run / "export") == model_identity(run / "export/1") == model_identity(run)


def test_exports_with_rounded_weights_have_an_identity_of_their_own(tmp_path):
    rounded = write_export(tmp_path / "1", "uwmgi", FIRST, "bfloat16")
    assert model_identity(rounded).weights == sha256(b"graph in bfloat16")
    onnx = tmp_path / "onnx"
    onnx.mkdir()
    (onnx / "model.onnx").write_bytes(SECOND)
    save_config(load_config(overrides={"name": "uwmgi"}), onnx / "config.yaml")
    assert model_identity(onnx) == model_identity(onnx / "model.onnx")
    assert model_identity(onnx).weights == sha256(SECOND)


def test_ensembles_of_other_models_differ(tmp_path):
    a, b = write_run(tmp_path / "a", "unet", FIRST), write_run(tmp_path / "b", "deeplab", SECOND)
    both = model_identity([a, b])
    assert both.name == "unet+deeplab" and both.weights == sha256(f"{sha256(FIRST)} {sha256(SECOND)}".encode())
    assert len({both.weights, model_identity([a, a]).weights, model_identity([a]).weights}) == 3


def test_a_cross_validation_is_the_ensemble_of_its_folds(tmp_path):
    folds = [write_run(tmp_path / "cv" / f"fold{k}", "unet", weights) for k, weights in enumerate((FIRST, SECOND))]
    (tmp_path / "cv/cross_validation.yaml").write_text("{}")
    assert model_identity(tmp_path / "cv") == model_identity(folds)
    assert model_identity(write_export(tmp_path / "cv/export/1", "unet", [FIRST, SECOND], "float32")) == model_identity(
        folds
    )
    assert model_identity(folds).name == "unet"


@pytest.mark.parametrize("name", ["m", "a name that is much longer than a label"])
def test_the_label_fits_into_16_characters_and_keeps_the_hash(name):
    model = ModelIdentity(name, "0.1.0", sha256(FIRST))
    assert len(model.label) <= 16 and model.label.endswith(sha256(FIRST)[:8]) and model.label.startswith(name[:7])


def test_unknown_weights_are_named_as_such():
    model = ModelIdentity("served", "0.1.0")
    assert model.text == "model served, weights unknown, gitseg 0.1.0" and model.label == "served unknown"


def test_a_folder_without_a_model_is_refused(tmp_path, refusal):
    assert "is not a run" in refusal(model_identity, tmp_path)
