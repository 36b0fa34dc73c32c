"""Pretrained encoder weights, loaded by the real code from files created here."""

import hashlib

import h5py
import keras_cv
import numpy as np
import pytest
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.labels import UWMGI
from gitseg_tf.models.backbones import BACKBONES, backbone, encoder_of, encoder_variables
from gitseg_tf.models.build import build_model
from gitseg_tf.models.pretrained import read_backbone_weights, set_backbone_weights
from gitseg_tf.runs.folder import read_history
from gitseg_tf.runs.network import load_model
from gitseg_tf.training.trainer import train


def configured(weights, name="plain", slices=5, size=64, **more):
    settings = {"model.backbone": name, "model.pretrained": str(weights), "model.levels": 5}
    return tiny_config(**settings | {"data.window_slices": slices, "data.input_size": [size, size]} | more)


def saved_encoder(path, name="plain", slices=3, size=64):
    """An encoder with random batch normalization statistics, saved to a file."""
    keras.utils.set_random_seed(7)
    encoder = BACKBONES.get(name).encoder((size, size, slices), configured("none").model)
    shake(encoder)
    encoder.save_weights(path)
    return encoder


def shake(model):
    rng = np.random.default_rng(3)

    def shaken(array):
        draw = 0.1 * rng.random(array.shape, np.float32)
        return array + draw if array.ndim == 1 else array * (1 + draw)

    model.set_weights([shaken(array) for array in model.get_weights()])


def assert_same(ours, theirs):
    largest = np.abs(theirs).max()
    assert 1e-4 < largest < 1e4 and np.abs(ours - theirs).max() < 1e-3 * largest


def loaded_encoder(config):
    encoder = BACKBONES.get(config.model.backbone).encoder(
        (*config.data.input_size, config.data.window_slices), config.model
    )
    for name, arrays in read_backbone_weights(config).items():
        encoder.get_layer(name).set_weights(arrays)
    return encoder


def gray(channels, size=64):
    image = np.random.default_rng(0).random((1, size, size, 1), np.float32)
    return np.repeat(image, channels, -1)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_three_channel_weights_are_adapted_to_five_slices(tmp_path, suffix):
    three = saved_encoder(tmp_path / f"encoder{suffix}")
    before, after = three.get_weights(), loaded_encoder(configured(tmp_path / f"encoder{suffix}")).get_weights()
    stem = np.stack([sum(before[0][:, :, c] for c in range(3)) / 3 * 3 / 5] * 5, axis=2)
    assert np.allclose(after[0], stem, atol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))


@pytest.mark.parametrize("slices", [1, 3, 5])
def test_adapted_weights_give_the_same_features_for_equal_slices(tmp_path, slices):
    three = saved_encoder(tmp_path / "encoder.weights.h5")
    many = loaded_encoder(configured(tmp_path / "encoder.weights.h5", slices=slices))
    for a, b in zip(three(gray(3)), many(gray(slices)), strict=True):
        assert np.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_first_convolution_is_adapted_to_all_channels_of_all_slices(tmp_path):
    three = saved_encoder(tmp_path / "encoder.weights.h5")
    config = configured(tmp_path / "encoder.weights.h5", slices=3).for_dataset(UWMGI, ("t1", "t2"))
    encoder = BACKBONES.get("plain").encoder((64, 64, 6), config.model)
    for name, arrays in read_backbone_weights(config).items():
        encoder.get_layer(name).set_weights(arrays)
    for a, b in zip(three(gray(3)), encoder(gray(6)), strict=True):
        assert np.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_only_the_encoder_of_a_network_gets_the_weights(tmp_path):
    saved = saved_encoder(tmp_path / "encoder.weights.h5", slices=5)
    model = build_model(configured("none"))
    others = {id(variable) for variable in encoder_variables(model)}
    decoder = [variable for variable in model.trainable_variables if id(variable) not in others]
    before = [variable.numpy() for variable in decoder]
    set_backbone_weights(model, read_backbone_weights(configured(tmp_path / "encoder.weights.h5")))
    assert all(np.array_equal(a, b) for a, b in zip(encoder_of(model).get_weights(), saved.get_weights(), strict=True))
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, decoder, strict=True)) and len(decoder) > 20


def test_a_dilated_encoder_has_the_same_weight_shapes():
    settings = configured("none").model
    encoder = BACKBONES.get("resnet18").encoder((64, 64, 3), settings)
    twin = BACKBONES.get("resnet18").encoder((64, 64, 3), settings, output_stride=16)
    weighted = [[layer.name for layer in model.layers if layer.weights] for model in (encoder, twin)]
    assert weighted[0] == weighted[1]
    assert [w.shape for w in encoder.weights] == [w.shape for w in twin.weights]


def published(monkeypatch, tmp_path, name, model):
    """Publish the weights of a model for a backbone, at a file:// URL."""
    shake(model)
    model.save_weights(tmp_path / "published_notop.h5")
    digest = hashlib.md5((tmp_path / "published_notop.h5").read_bytes()).hexdigest()
    row, address = BACKBONES.get(name), (tmp_path / "published_notop.h5").as_uri()
    convert = row.published.convert
    fake = backbone.Backbone(**{**vars(row), "published": backbone.Published(address, digest, convert)})
    monkeypatch.setitem(BACKBONES._rows, name, (fake, {}))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "network"), [("efficientnetv2_b0", "EfficientNetV2B0"), ("mobilenetv3", "MobileNetV3Large")]
)
def test_published_keras_applications_weights_reproduce_its_features(monkeypatch, tmp_path, name, network):
    options = {"include_top": False, "weights": None, "include_preprocessing": False}
    model = getattr(keras.applications, network)(input_shape=(64, 64, 3), **options)
    published(monkeypatch, tmp_path, name, model)
    encoder = loaded_encoder(configured("imagenet", name, slices=3))
    last = encoder.layers[-1].name if name == "mobilenetv3" else "block6h_add"
    theirs = keras.Model(model.input, model.get_layer(last).output)
    assert_same(encoder(gray(3))[-1].numpy(), theirs(gray(3)).numpy())


@pytest.mark.slow
def test_published_resnet50_weights_reproduce_its_features_shifted_by_three_pixels(monkeypatch, tmp_path):
    model = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(128, 128, 3))
    published(monkeypatch, tmp_path, "resnet50", model)
    encoder = loaded_encoder(configured("imagenet", "resnet50", slices=3, size=128))
    image = np.zeros((1, 128, 128, 3), np.float32)
    image[:, 48:80, 48:80] = np.random.default_rng(0).random((1, 32, 32, 3))
    theirs = keras.Model(model.input, model.get_layer("conv2_block3_out").output)(image)
    ours = encoder(np.roll(image, (3, 3), (1, 2)))[1]
    # Away from the border, where the shifted image meets the zero padding differently.
    assert_same(ours[:, 8:24, 8:24].numpy(), theirs[:, 8:24, 8:24].numpy())


@pytest.mark.slow
def test_published_convnext_weights_reproduce_its_features(monkeypatch, tmp_path):
    model = keras.applications.ConvNeXtTiny(
        include_top=False, weights=None, include_preprocessing=False, input_shape=(32, 32, 3)
    )
    published(monkeypatch, tmp_path, "convnext_tiny", model)
    encoder = loaded_encoder(configured("imagenet", "convnext_tiny", slices=3, size=32))
    theirs = keras.Model(model.input, model.layers[-2].output)  # before the last normalization
    assert_same(encoder(gray(3, 32))[-1].numpy(), theirs(gray(3, 32)).numpy())


def test_a_backbone_without_published_weights_lists_those_with_them(refusal):
    message = refusal(read_backbone_weights, configured("imagenet", "resnet18"))
    assert (
        "no ImageNet weights are published for resnet18" in message
        and "resnet50" in message
        and "mit_b0" not in message
    )


def test_a_failed_download_names_the_url_and_the_fix(monkeypatch, tmp_path, refusal):
    row = BACKBONES.get("mobilenetv3")
    nowhere = backbone.Published("http://127.0.0.1:9/weights_notop.h5", "0" * 32)
    monkeypatch.setitem(BACKBONES._rows, "mobilenetv3", (backbone.Backbone(**{**vars(row), "published": nowhere}), {}))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    message = refusal(read_backbone_weights, configured("imagenet", "mobilenetv3"))
    assert (
        "http://127.0.0.1:9/weights_notop.h5 cannot be downloaded" in message
        and "set model.pretrained to its path" in message
    )


def test_a_missing_damaged_or_mismatched_weights_file_is_refused(tmp_path, refusal):
    path = tmp_path / "encoder.weights.h5"
    assert f"{path} cannot be read (No such file or directory)" in refusal(read_backbone_weights, configured(path))
    saved_encoder(path)
    whole = path.read_bytes()
    assert "does not contain the weights of resnet18" in refusal(read_backbone_weights, configured(path, "resnet18"))
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path} cannot be read (damaged, or not an HDF5 file)" in refusal(read_backbone_weights, configured(path))
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["something"] = [1.0]
    assert "does not contain the weights of plain" in refusal(read_backbone_weights, configured(other))


def test_legacy_h5_weights_of_a_different_backbone_are_refused(tmp_path, refusal):
    saved_encoder(tmp_path / "encoder.h5")
    config = configured(tmp_path / "encoder.h5", "resnet50")
    assert "does not contain the weights of resnet50" in refusal(read_backbone_weights, config)


@pytest.mark.slow
def test_a_run_starts_from_pretrained_weights_and_resumes_without_their_file(tiny_dataset, tmp_path, refusal):
    path = tmp_path / "encoder.weights.h5"
    saved = saved_encoder(path, size=32)
    more = {"data.batch_size": 8, "training.epochs": 1, "training.learning_rate": 1e-9, "training.ema_decay": 0}
    config = configured(path, size=32, **more, **{"training.strategy": "one_device", "training.precision": "float32"})
    gone = configured(tmp_path / "gone.h5", size=32, **more)
    assert "gone.h5 cannot be read" in refusal(train, gone, tiny_dataset, tmp_path / "no run")
    assert not (tmp_path / "no run").exists()
    run = train(config, tiny_dataset, tmp_path / "run")
    path.unlink()
    kernels = zip(encoder_of(load_model(run)).get_weights()[1:5], saved.get_weights()[1:5], strict=True)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in list(kernels)[:2])
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 2})})
    train(longer, tiny_dataset, tmp_path / "run", resume=True)
    assert len(read_history(tmp_path / "run")) == 2


def test_mit_has_as_many_parameters_as_in_keras_cv():
    theirs = keras_cv.models.MiTBackbone(
        include_rescaling=False, depths=[2, 2, 2, 2], embedding_dims=[32, 64, 160, 256], input_shape=(64, 64, 3)
    )
    ours = BACKBONES.get("mit_b0").encoder((64, 64, 3), configured("none").model)
    assert ours.count_params() == theirs.count_params()
