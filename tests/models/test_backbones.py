"""The encoders: published sizes, features by stride, and what dilation leaves the same."""

from typing import get_args

import numpy as np
import pytest
import tf_keras as keras

from gitseg_tf.config import load_config
from gitseg_tf.models.backbones import BACKBONES, encoder_of, encoder_variables
from gitseg_tf.models.build import build_model
from gitseg_tf.sections.model import ModelConfig

CONFIG = load_config(None, {"model.filters": 4}).model


def features_of(name, slices=5, size=(64, 96), output_stride=32):
    inputs = keras.Input((*size, slices))
    return BACKBONES[name](inputs, CONFIG, output_stride)


def test_the_config_takes_the_names_of_the_table():
    assert get_args(ModelConfig.model_fields["backbone"].annotation) == tuple(BACKBONES)


@pytest.mark.parametrize("name", ["plain", "resnet18", "efficientnetv2_b0", "convnext_tiny", "mobilenetv3", "mit_b0"])
def test_features_are_what_their_strides_say(name):
    features = features_of(name)
    first, last = {"plain": (1, 16), "convnext_tiny": (4, 32), "mit_b0": (4, 32)}.get(name, (2, 32))
    assert list(features) == [2**i for i in range(first.bit_length() - 1, last.bit_length())]
    for stride, feature in features.items():
        assert feature.shape[1:3] == (64 // stride, 96 // stride)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # torchvision's tables less the classifiers of 512 or 2048 x 1000 and 1000.
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        # Table 8 of Tan & Le: 7.1M and 24M (keras: 7.14M, 21.5M), less 1x1 convolution, normalisation and classifier.
        ("efficientnetv2_b0", 7_139_704 - 192 * 1280 - 2 * 1280 - 1_281_000),
        # Table 9 of Liu et al.: 28.6M with normalisation and classifier.
        ("convnext_tiny", 28_589_128 - 769_000 - 2 * 768),
        # The model published as nvidia/mit-b0, without classifier.
        ("mit_b0", 3_319_392),
    ],
)
def test_parameters_are_the_published_number(name, published):
    encoder = BACKBONES[name].encoder((64, 64, 3), CONFIG)
    trainable = sum(int(np.prod(variable.shape)) for variable in encoder.trainable_variables)
    assert trainable == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(("name", "offset"), [("resnet50", 0), ("mobilenetv3", 1)])
def test_a_dilated_stage_gives_the_strided_one_s_values_and_those_between(name, offset):
    """Atrous convolution (Chen et al. 2017, arXiv:1606.00915, figure 2): the same weights on a finer grid.

    The grid of stride 32 begins at the first pixel where a 1x1 convolution strides, and at the second where one of
    3x3 or 5x5 does, which TensorFlow pads less before than behind.
    """
    strided = BACKBONES[name].encoder((64, 64, 3), CONFIG)
    dilated = BACKBONES[name].encoder((64, 64, 3), CONFIG, output_stride=16)
    rng = np.random.default_rng(0)
    strided.set_weights([w + 0.1 * rng.random(w.shape) if w.ndim == 1 else w for w in strided.get_weights()])
    for layer in strided.layers:  # its mean is over the whole map, which has other places on another grid
        if "squeeze_excite/Conv_1" in layer.name:
            kernel, bias = layer.get_weights()
            layer.set_weights([0 * kernel, bias])
    dilated.set_weights(strided.get_weights())
    image = rng.random((1, 64, 64, 3), np.float32)
    coarse, fine = strided(image)[-1].numpy(), dilated(image)[-1].numpy()
    assert fine.shape[1:3] == (4, 4) and coarse.shape[1:3] == (2, 2)
    same = np.abs(fine[:, offset::2, offset::2] - coarse).max()
    between = np.abs(fine[:, 1 - offset :: 2, 1 - offset :: 2] - coarse).max()
    assert between > 1e-5 and same < 1e-2 * between


def test_a_backbone_that_does_not_dilate_keeps_its_last_stride():
    assert not BACKBONES["mit_b0"].dilates
    assert list(features_of("mit_b0", output_stride=16)) == [4, 8, 16, 32]
    assert list(features_of("resnet18", output_stride=16)) == [2, 4, 8, 16]


def test_the_encoder_s_variables_are_those_before_the_decoder():
    model = build_model(load_config(None, {"model.backbone": "resnet18", "data.size": [32, 32]}))
    encoder = {id(variable) for variable in encoder_variables(model)}
    names = [variable.name for variable in model.trainable_variables if id(variable) not in encoder]
    assert len(encoder) == 60 and names and all(name.startswith(("decoder", "logits")) for name in names)
    again = keras.Model(model.inputs, model.outputs)
    assert [id(v) for v in encoder_variables(again)] == [id(v) for v in encoder_variables(model)]


def test_a_network_without_encoder_says_so(refusal):
    inputs = keras.Input((8, 8, 3))
    assert "has no encoder" in refusal(encoder_of, keras.Model(inputs, keras.layers.ReLU()(inputs)))


@pytest.mark.parametrize("name", ["efficientnetv2_b0", "mobilenetv3", "resnet18"])
def test_normalisation_inside_of_the_encoder_is_synchronized_too(name):
    config = load_config(None, {"model.backbone": name, "data.size": [32, 32]})
    model = build_model(config, synchronized=True)
    found = [layer for layer in encoder_of(model).layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(found) > 15 and all(layer.synchronized and not layer.fused for layer in found)


def test_windows_are_scaled_to_what_published_weights_were_trained_on():
    model = build_model(load_config(None, {"model.backbone": "mobilenetv3", "data.size": [32, 32]}))
    scaled = keras.Model(model.input, model.get_layer("encoder_scaling").output)
    assert np.allclose(scaled(np.full((1, 32, 32, 5), 0.25, np.float32)), -0.5)
