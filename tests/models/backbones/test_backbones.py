"""The encoders: published sizes, features by stride, and the effect of dilation."""

import numpy as np
import pytest
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.models.backbones import BACKBONES, Backbone, encoder_of, encoder_variables
from gitseg_tf.models.build import build_model

CONFIG = tiny_config(model__levels=5).model


def features_of(name, slices=5, size=(64, 96), output_stride=32):
    inputs = keras.Input((*size, slices))
    return BACKBONES.get(name)(inputs, CONFIG, output_stride)


def test_every_registered_backbone_loads():
    assert all(isinstance(BACKBONES.get(name), Backbone) for name in BACKBONES)


@pytest.mark.parametrize("name", ["plain", "resnet18", "efficientnetv2_b0", "convnext_tiny", "mobilenetv3", "mit_b0"])
def test_features_have_the_sizes_of_their_strides(name):
    features = features_of(name)
    first, last = {"plain": (1, 16), "convnext_tiny": (4, 32), "mit_b0": (4, 32)}.get(name, (2, 32))
    assert list(features) == [2**i for i in range(first.bit_length() - 1, last.bit_length())]
    for stride, feature in features.items():
        assert feature.shape[1:3] == (64 // stride, 96 // stride)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # The tables of torchvision, without the classifiers of 512 or 2048 x 1000 and 1000.
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        # Table 8 of Tan & Le: 7.1M and 24M (keras: 7.14M, 21.5M), less 1x1 convolution, normalization and classifier.
        ("efficientnetv2_b0", 7_139_704 - 192 * 1280 - 2 * 1280 - 1_281_000),
        # Table 9 of Liu et al.: 28.6M with normalization and classifier.
        ("convnext_tiny", 28_589_128 - 769_000 - 2 * 768),
        # The model published as nvidia/mit-b0, without classifier.
        ("mit_b0", 3_319_392),
    ],
)
def test_parameter_counts_match_the_published_ones(name, published):
    encoder = BACKBONES.get(name).encoder((64, 64, 3), CONFIG)
    trainable = sum(int(np.prod(variable.shape)) for variable in encoder.trainable_variables)
    assert trainable == pytest.approx(published, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "offset"), [("resnet50", 0), ("mobilenetv3", 1), ("efficientnet_lite0", 1)])
def test_a_dilated_stage_reproduces_the_strided_values_on_a_finer_grid(name, offset):
    """Atrous convolution (Chen et al. 2017, arXiv:1606.00915, figure 2): the same weights on a finer grid.

    The grid of stride 32 starts at the first pixel for a strided 1x1 convolution, and at the second for one of 3x3 or
    5x5, which TensorFlow pads less before than after.
    """
    strided = BACKBONES.get(name).encoder((64, 64, 3), CONFIG)
    dilated = BACKBONES.get(name).encoder((64, 64, 3), CONFIG, output_stride=16)
    rng = np.random.default_rng(0)
    strided.set_weights([w + 0.1 * rng.random(w.shape) if w.ndim == 1 else w for w in strided.get_weights()])
    for layer in strided.layers:  # its mean is over the whole map, which is sampled differently on the finer grid
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


def test_a_backbone_that_cannot_be_dilated_keeps_its_last_stride():
    assert not BACKBONES.get("mit_b0").dilates
    assert list(features_of("mit_b0", output_stride=16)) == [4, 8, 16, 32]
    assert list(features_of("resnet18", output_stride=16)) == [2, 4, 8, 16]


def test_encoder_variables_exclude_the_decoder():
    model = build_model(tiny_config(model__backbone="resnet18"))
    encoder = {id(variable) for variable in encoder_variables(model)}
    names = [variable.name for variable in model.trainable_variables if id(variable) not in encoder]
    assert len(encoder) == 60 and names and all(name.startswith(("decoder", "logits")) for name in names)
    again = keras.Model(model.inputs, model.outputs)
    assert [id(v) for v in encoder_variables(again)] == [id(v) for v in encoder_variables(model)]


def test_a_network_without_an_encoder_is_refused(refusal):
    inputs = keras.Input((8, 8, 3))
    assert "has no encoder" in refusal(encoder_of, keras.Model(inputs, keras.layers.ReLU()(inputs)))


@pytest.mark.parametrize("name", ["efficientnetv2_b0", "mobilenetv3", "resnet18"])
def test_normalization_inside_the_encoder_is_synchronized(name):
    config = tiny_config(model__backbone=name)
    model = build_model(config, synchronized=True)
    found = [layer for layer in encoder_of(model).layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(found) > 15 and all(layer.synchronized and not layer.fused for layer in found)


def test_windows_are_rescaled_for_the_published_weights():
    model = build_model(tiny_config(model__backbone="mobilenetv3"))
    scaled = keras.Model(model.input, model.get_layer("encoder_scaling").output)
    assert np.allclose(scaled(np.full((1, 32, 32, 3), 0.25, np.float32)), -0.5)
