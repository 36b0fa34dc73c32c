"""Weights that an encoder begins with, by the real loading code on files made here."""

import hashlib

import h5py
import keras_cv
import numpy as np
import pytest
import tf_keras as keras

from gitseg_tf.config import load_config
from gitseg_tf.models.backbones import BACKBONES, backbone, encoder_of, encoder_variables
from gitseg_tf.models.build import build_model
from gitseg_tf.models.weights import read_backbone_weights, set_backbone_weights
from gitseg_tf.training.callbacks import read_history
from gitseg_tf.training.trainer import load_model, train


def configured(weights, name="plain", slices=5, size=64, **more):
    settings = {"model.backbone": name, "model.weights": str(weights), "model.filters": 4}
    return load_config(None, settings | {"data.slices": slices, "data.size": [size, size]} | more)


def saved_encoder(path, name="plain", slices=3, size=64):
    """An encoder with random statistics of its normalisations, and its file."""
    keras.utils.set_random_seed(7)
    encoder = BACKBONES[name].encoder((size, size, slices), configured("none").model)
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
    encoder = BACKBONES[config.model.backbone].encoder((*config.data.size, config.data.slices), config.model)
    for name, arrays in read_backbone_weights(config).items():
        encoder.get_layer(name).set_weights(arrays)
    return encoder


def grey(channels, size=64):
    image = np.random.default_rng(0).random((1, size, size, 1), np.float32)
    return np.repeat(image, channels, -1)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_the_weights_of_a_three_channel_encoder_go_into_one_of_five_slices(tmp_path, suffix):
    three = saved_encoder(tmp_path / f"encoder{suffix}")
    before, after = three.get_weights(), loaded_encoder(configured(tmp_path / f"encoder{suffix}")).get_weights()
    stem = np.stack([sum(before[0][:, :, c] for c in range(3)) / 3 * 3 / 5] * 5, axis=2)
    assert np.allclose(after[0], stem, atol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))


@pytest.mark.parametrize("slices", [1, 3, 5])
def test_equal_slices_are_answered_as_equal_channels_were(tmp_path, slices):
    three = saved_encoder(tmp_path / "encoder.weights.h5")
    many = loaded_encoder(configured(tmp_path / "encoder.weights.h5", slices=slices))
    for a, b in zip(three(grey(3)), many(grey(slices)), strict=True):
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


def test_the_weights_of_an_encoder_fit_its_dilated_twin():
    settings = configured("none").model
    encoder = BACKBONES["resnet18"].encoder((64, 64, 3), settings)
    twin = BACKBONES["resnet18"].encoder((64, 64, 3), settings, output_stride=16)
    weighted = [[layer.name for layer in model.layers if layer.weights] for model in (encoder, twin)]
    assert weighted[0] == weighted[1]
    assert [w.shape for w in encoder.weights] == [w.shape for w in twin.weights]


def published(monkeypatch, tmp_path, name, model):
    """Let model's weights be those that the library publishes for a backbone, under a file:// address."""
    shake(model)
    model.save_weights(tmp_path / "published_notop.h5")
    digest = hashlib.md5((tmp_path / "published_notop.h5").read_bytes()).hexdigest()
    row, address = BACKBONES[name], (tmp_path / "published_notop.h5").as_uri()
    convert = row.published.convert
    fake = backbone.Backbone(**{**vars(row), "published": backbone.Published(address, digest, convert)})
    monkeypatch.setitem(BACKBONES, name, fake)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


@pytest.mark.parametrize(
    ("name", "network"), [("efficientnetv2_b0", "EfficientNetV2B0"), ("mobilenetv3", "MobileNetV3Large")]
)
def test_published_weights_of_keras_applications_give_the_features_of_its_network(monkeypatch, tmp_path, name, network):
    options = {"include_top": False, "weights": None, "include_preprocessing": False}
    model = getattr(keras.applications, network)(input_shape=(64, 64, 3), **options)
    published(monkeypatch, tmp_path, name, model)
    encoder = loaded_encoder(configured("imagenet", name, slices=3))
    last = encoder.layers[-1].name if name == "mobilenetv3" else "block6h_add"
    theirs = keras.Model(model.input, model.get_layer(last).output)
    assert_same(encoder(grey(3))[-1].numpy(), theirs(grey(3)).numpy())


def test_published_weights_of_resnet50_give_the_same_features_three_pixels_further(monkeypatch, tmp_path):
    model = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(128, 128, 3))
    published(monkeypatch, tmp_path, "resnet50", model)
    encoder = loaded_encoder(configured("imagenet", "resnet50", slices=3, size=128))
    image = np.zeros((1, 128, 128, 3), np.float32)
    image[:, 48:80, 48:80] = np.random.default_rng(0).random((1, 32, 32, 3))
    theirs = keras.Model(model.input, model.get_layer("conv2_block3_out").output)(image)
    ours = encoder(np.roll(image, (3, 3), (1, 2)))[1]
    # Away from the border, where zeros of the padding are met one pixel later.
    assert_same(ours[:, 8:24, 8:24].numpy(), theirs[:, 8:24, 8:24].numpy())


def test_published_weights_of_convnext_give_the_features_of_its_network(monkeypatch, tmp_path):
    model = keras.applications.ConvNeXtTiny(
        include_top=False, weights=None, include_preprocessing=False, input_shape=(32, 32, 3)
    )
    published(monkeypatch, tmp_path, "convnext_tiny", model)
    encoder = loaded_encoder(configured("imagenet", "convnext_tiny", slices=3, size=32))
    theirs = keras.Model(model.input, model.layers[-2].output)  # before the last normalisation
    assert_same(encoder(grey(3, 32))[-1].numpy(), theirs(grey(3, 32)).numpy())


def test_without_published_weights_the_backbones_that_have_them_are_named(refusal):
    said = refusal(read_backbone_weights, configured("imagenet", "resnet18"))
    assert "no ImageNet weights of resnet18" in said and "resnet50" in said and "mit_b0" not in said


def test_offline_it_is_said_what_was_to_be_fetched_and_what_to_do(monkeypatch, tmp_path, refusal):
    row = BACKBONES["mobilenetv3"]
    nowhere = backbone.Published("http://127.0.0.1:9/weights_notop.h5", "0" * 32)
    monkeypatch.setitem(BACKBONES, "mobilenetv3", backbone.Backbone(**{**vars(row), "published": nowhere}))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    said = refusal(read_backbone_weights, configured("imagenet", "mobilenetv3"))
    assert "http://127.0.0.1:9/weights_notop.h5 cannot be fetched" in said and "give its path as model.weights" in said


def test_a_file_that_is_not_there_or_damaged_or_of_another_backbone_is_refused(tmp_path, refusal):
    path = tmp_path / "encoder.weights.h5"
    assert f"{path} cannot be read (No such file or directory)" in refusal(read_backbone_weights, configured(path))
    saved_encoder(path)
    whole = path.read_bytes()
    assert "does not hold the weights of resnet18" in refusal(read_backbone_weights, configured(path, "resnet18"))
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path} cannot be read (it is damaged, or no HDF5 file)" in refusal(read_backbone_weights, configured(path))
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["something"] = [1.0]
    assert "does not hold the weights of plain" in refusal(read_backbone_weights, configured(other))


def test_the_older_format_of_another_backbone_is_refused(tmp_path, refusal):
    saved_encoder(tmp_path / "encoder.h5")
    config = configured(tmp_path / "encoder.h5", "resnet50")
    assert "does not hold the weights of resnet50" in refusal(read_backbone_weights, config)


def test_a_run_begins_with_the_weights_and_goes_on_and_is_loaded_without_their_file(drawn_dataset, tmp_path, refusal):
    path = tmp_path / "encoder.weights.h5"
    saved = saved_encoder(path, size=32)
    more = {"data.batch_size": 8, "training.epochs": 1, "training.learning_rate": 1e-9, "training.ema": 0}
    config = configured(path, size=32, **more, **{"training.strategy": "one_device", "training.precision": "float32"})
    gone = configured(tmp_path / "gone.h5", size=32, **more)
    assert "gone.h5 cannot be read" in refusal(train, gone, drawn_dataset, tmp_path / "no run", say=lambda line: None)
    assert not (tmp_path / "no run").exists()
    run = train(config, drawn_dataset, tmp_path / "run", say=lambda line: None)
    path.unlink()
    kernels = zip(encoder_of(load_model(run)).get_weights()[1:5], saved.get_weights()[1:5], strict=True)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in list(kernels)[:2])
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 2})})
    train(longer, drawn_dataset, tmp_path / "run", resume=True, say=lambda line: None)
    assert len(read_history(tmp_path / "run")) == 2


def test_mit_has_as_many_parameters_as_keras_cv_s():
    theirs = keras_cv.models.MiTBackbone(
        include_rescaling=False, depths=[2, 2, 2, 2], embedding_dims=[32, 64, 160, 256], input_shape=(64, 64, 3)
    )
    ours = BACKBONES["mit_b0"].encoder((64, 64, 3), configured("none").model)
    assert ours.count_params() == theirs.count_params()
