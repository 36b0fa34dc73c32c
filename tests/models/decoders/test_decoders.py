import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.config.model import DECODERS, ModelConfig
from gitseg_tf.models.build import build_model, logits_of
from gitseg_tf.models.decoders.attention_unet import attention_gate
from gitseg_tf.models.layers import AtrousSeparableConv, BilinearUpsample, ReplayedDropout, UpsampleConv
from gitseg_tf.runs.network import load_model
from gitseg_tf.runs.run import Run

# Read when XLA first compiles: less optimization compiles faster and does not affect what can be compiled.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
RNG = np.random.default_rng(0)
# The strides of plain, of ResNet and EfficientNet, of ConvNeXt and MiT, and of a dilated encoder.
STRIDES = {"plain": (1, 2, 4, 8, 16), "cnn": (2, 4, 8, 16, 32), "patches": (4, 8, 16, 32), "dilated": (2, 4, 8, 16)}
# Trainable parameters of segmentation-models-pytorch 0.6 with 5 input channels and 3 classes.
PUBLISHED = {
    ("unetplusplus", "resnet34"): 26_085_171,
    ("deeplabv3plus", "resnet50"): 26_684_371,
    ("fpn", "resnet34"): 23_161_923,
    ("segformer", "resnet34"): 21_883_331,
}


def image(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@cache
def decoded(architecture, encoder, size=32):
    """A model of only the decoder, on features with 8 channels each."""
    features = {stride: keras.Input((size // stride, size // stride, 8)) for stride in STRIDES[encoder]}
    return keras.Model(features.values(), DECODERS.get(architecture)(features, ModelConfig(architecture=architecture)))


def configured(architecture="unet", **more):
    model = {"architecture": architecture, "levels": 5} | more
    return tiny_config(**{f"model.{key}": value for key, value in model.items()})


def loss_and_gradient(model, inputs):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(inputs, training=True) - 1))
    return loss, tape.gradient(loss, model.trainable_variables)


@pytest.mark.parametrize("encoder", STRIDES)
@pytest.mark.parametrize("architecture", DECODERS)
def test_every_decoder_accepts_the_features_of_every_encoder(architecture, encoder):
    model = decoded(architecture, encoder)
    stops_early = {"deeplabv3plus": 4, "fpn": sorted(STRIDES[encoder])[-4], "segformer": sorted(STRIDES[encoder])[-4]}
    side = 32 // stops_early.get(architecture, 1)
    assert model.output_shape[1:3] == (side, side)


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_decoder_has_gradients_for_all_its_features_and_weights(architecture):
    model = decoded(architecture, "patches")
    features = [tf.constant(image(2, *x.shape[1:])) for x in model.inputs]
    with tf.GradientTape() as tape:
        tape.watch(features)
        loss = tf.reduce_mean(tf.square(model(features, training=True)))
    gradients = tape.gradient(loss, [features, model.trainable_variables])
    used = [True] * 4 if architecture != "deeplabv3plus" else [True, False, False, True]
    assert [gradient is not None and bool(np.any(gradient)) for gradient in gradients[0]] == used
    assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients[1])


@pytest.mark.xla
@pytest.mark.parametrize("architecture", DECODERS)
def test_loss_and_gradient_compiled_with_xla_match_eager_execution(architecture):
    model = decoded(architecture, "plain")
    inputs = [tf.constant(image(2, *x.shape[1:])) for x in model.inputs]
    means = [v.numpy() for v in model.variables]
    plain = loss_and_gradient(model, inputs)
    for variable, mean in zip(model.variables, means, strict=True):
        variable.assign(mean)
    compiled = tf.function(lambda x: loss_and_gradient(model, x), jit_compile=True)(inputs)
    assert float(compiled[0]) == pytest.approx(float(plain[0]), abs=1e-4)
    for name, a, b in zip((v.name for v in model.trainable_variables), plain[1], compiled[1], strict=True):
        assert (a is None) == (b is None), name
        assert a is None or np.allclose(a, b, atol=2e-3 * max(1, np.abs(a).max())), name


@pytest.mark.parametrize(("architecture", "backbone"), PUBLISHED)
def test_parameter_counts_match_segmentation_models_pytorch(architecture, backbone):
    model = build_model(tiny_config(model__architecture=architecture, model__backbone=backbone, data__window_slices=5))
    trained = sum(variable.shape.num_elements() for variable in model.trainable_variables)
    assert trained == pytest.approx(PUBLISHED[architecture, backbone], rel=0.005)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("skips", [0, 2])
def test_fused_upsampling_and_convolution_match_the_separate_operations(skips, training):
    inputs = [image(2, 3, 5, 4), *(image(2, 6, 10, 3) for _ in range(skips))]
    layer = UpsampleConv(6)
    actual = layer(inputs, training=training).numpy()
    joined = np.concatenate([inputs[0].repeat(2, 1).repeat(2, 2), *inputs[1:]], -1)
    kernel = layer.kernel.numpy()
    expected = sum(
        np.einsum("nhwc,co->nhwo", np.pad(joined, [(0, 0), (1, 1), (1, 1), (0, 0)])[:, i : i + 6, j : j + 10], k)
        for i, row in enumerate(kernel)
        for j, k in enumerate(row)
    )
    assert np.allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize(("factor", "size"), [(2, (6, 10)), (4, (12, 20)), ((8, 3), (24, 15))])
def test_bilinear_upsampling_matches_tensorflow(factor, size):
    small = image(2, 3, 5, 4)
    assert np.allclose(BilinearUpsample(factor)(small), tf.image.resize(small, size), atol=1e-5)


@pytest.mark.parametrize("rate", [1, 3, 6, 8, 36])
def test_atrous_convolution_matches_scipy(rate):
    inputs, layer = image(1, 8, 8, 4), AtrousSeparableConv(3, rate)
    found = layer(inputs).numpy()
    spread = np.zeros((2 * rate + 1, 2 * rate + 1))
    depthwise, pointwise = layer.depthwise.numpy(), layer.pointwise.numpy()
    planes = []
    for channel in range(4):
        spread[::rate, ::rate] = depthwise[:, :, channel, 0]
        planes.append(scipy.ndimage.correlate(inputs[0, :, :, channel], spread, mode="constant"))
    assert np.allclose(found[0], np.stack(planes, -1) @ pointwise[0, 0], atol=1e-4)


def test_an_atrous_convolution_wider_than_the_input_trains_only_its_center_tap():
    inputs, layer = tf.constant(image(1, 8, 8, 4)), AtrousSeparableConv(3, 12)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(inputs)))
    gradient = tape.gradient(loss, layer.depthwise).numpy()[..., 0]
    assert np.all(gradient[1, 1] != 0) and np.count_nonzero(gradient) == 4


def test_an_attention_gate_scales_features_between_zero_and_one():
    skip, gating = keras.Input((8, 8, 6)), keras.Input((4, 4, 10))
    model = keras.Model([skip, gating], attention_gate(skip, gating, "gate"))
    values = [image(1, 8, 8, 6), image(1, 4, 4, 10)]
    share = model(values).numpy() / values[0]
    assert np.allclose(share, share[..., :1], atol=1e-4) and share.min() > 0 and share.max() < 1
    *_, bias = model.get_layer("gate_psi").weights
    bias.assign([-100.0])
    assert np.allclose(model(values), 0)


def test_heads_return_float32_outputs_at_decreasing_resolution():
    config = configured("unetplusplus", deep_supervision=True, presence_head=True, dropout=0.5)
    outputs = build_model(config, "mixed_bfloat16")(image(2, 32, 32, 3))
    shapes = {name: tuple(output.shape[1:]) for name, output in outputs.items()}
    assert shapes == {
        "logits": (32, 32, 3),
        "deep1": (16, 16, 3),
        "deep2": (8, 8, 3),
        "deep3": (4, 4, 3),
        "presence": (3,),
    }
    assert {output.dtype for output in outputs.values()} == {tf.float32}
    assert logits_of(outputs) is outputs["logits"] and logits_of(outputs["logits"]) is outputs["logits"]


def test_deep_supervision_is_refused_for_architectures_without_it(refusal):
    message = refusal(configured, "fpn", deep_supervision=True)
    assert "model.deep_supervision" in message and "fpn" in message and "unetplusplus" in message


def test_dropout_applies_only_in_training_and_resumes_from_a_checkpoint(tmp_path):
    ones, layer = tf.ones([4, 8, 8, 16]), ReplayedDropout(0.25, seed=3)
    assert np.array_equal(layer(ones), ones)
    first = layer(ones, training=True).numpy()
    path = tf.train.Checkpoint(layer=layer).save(tmp_path / "state")
    second = layer(ones, training=True).numpy()
    assert (first == 0).mean() == pytest.approx(0.25, abs=0.03) and first.max() == pytest.approx(4 / 3)
    assert not np.array_equal(first, second)
    again = ReplayedDropout(0.25, seed=3)
    again(ones)
    tf.train.Checkpoint(layer=again).restore(path)
    assert np.array_equal(again(ones, training=True), second)


def test_layer_names_are_prefixed_with_encoder_or_decoder():
    names = [layer.name for layer in build_model(configured("deeplabv3plus")).layers]
    assert len(set(names)) == len(names)
    expected = ("windows", "encoder", "decoder", "logits")
    assert all(name.startswith(expected) for name in names)


def test_load_model_returns_the_logits_of_a_multi_head_network(tmp_path):
    config = configured("unetplusplus", deep_supervision=True, presence_head=True, dropout=0.5)
    trained, windows = build_model(config), image(1, 32, 32, 3)
    expected = trained(windows)["logits"]
    for k, network in enumerate((trained, keras.Model(trained.inputs, trained.outputs))):
        path = tmp_path / f"{k}.weights.h5"
        network.save_weights(path)
        assert np.allclose(load_model(Run(tmp_path, config, path))(windows), expected, atol=1e-5)


@pytest.mark.slow
def test_normalization_inside_other_layers_is_synchronized():
    script = Path(__file__).parents[2] / "helpers" / "synchronized.py"
    completed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    differs = json.loads(completed.stdout.splitlines()[-1])
    assert differs["synchronized"] < 1e-5 < 1e-2 < differs["alone"]
