import os
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.config import load_config
from gitseg_tf.config.volumetric import poolings
from gitseg_tf.errors import ConfigError
from gitseg_tf.models.build import build_model
from gitseg_tf.models.volumetric.layers import InstanceNormalization
from gitseg_tf.training.losses import training_loss

# Read when XLA first compiles: less optimization compiles faster and does not affect what can be compiled.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
NETWORKS = ("unet3d", "residual_unet3d")
PATCH = (4, 32, 32)
LOSS = training_loss(tiny_config().training.loss)


@cache
def built(architecture, precision="float32", deep_supervision=False, patch=PATCH):
    keras.utils.set_random_seed(0)
    settings = {"data.patch": list(patch), "data.input_size": [64, 64], "model.filters": 4, "model.levels": 5}
    settings |= {"model.architecture": architecture, "model.deep_supervision": deep_supervision}
    return build_model(tiny_config(**settings), precision)


def patches(shape=PATCH, count=2):
    return np.random.default_rng(0).random((count, *shape, 1), np.float32)


@pytest.mark.parametrize(
    ("patch", "depths"),
    [
        ((16, 64, 64), [1, 1, 2, 2]),  # 64 and 32 pixels against 16 slices, then 16 against 16
        ((32, 192, 192), [1, 1, 2, 2]),
        ((64, 64, 64), [2, 2, 2, 2]),
        ((32, 64, 96), [1, 2, 2, 2]),
        ((1, 64, 64), [1, 1, 1, 1]),
    ],
)
def test_depth_pooling_starts_when_the_plane_is_as_coarse(patch, depths):
    assert poolings(patch) == [(depth, 2, 2) for depth in depths]


def test_fewer_levels_allow_smaller_and_finer_patches():
    assert poolings((40, 56, 40), levels=4) == [(2, 2, 2)] * 3
    settings = {"model.architecture": "unet3d", "data.patch": [16, 24, 16], "data.input_size": [24, 16]}
    settings |= {"model.filters": 4, "model.levels": 4}
    for network in NETWORKS:
        model = build_model(tiny_config(**settings | {"model.architecture": network}))
        assert model(patches((16, 24, 16), 1)).shape == (1, 16, 24, 16, 3)
        lowest = min(tuple(layer.output.shape[1:4]) for layer in model.layers if "encoder3" in layer.name)
        assert lowest == (2, 3, 2)
    with pytest.raises(ConfigError, match=r"halves it 4 times in-plane.* multiples of \[16, 16, 16\]"):
        tiny_config(**settings | {"data.patch": [40, 56, 40], "data.input_size": [56, 40], "model.levels": 5})


@pytest.mark.parametrize("network", NETWORKS)
def test_logits_are_float32_and_have_the_patch_shape(network):
    assert built(network).input_shape == (None, *PATCH, 1)
    logits = built(network)(patches())
    assert logits.shape == (2, *PATCH, 3) and logits.dtype == tf.float32


@pytest.mark.parametrize("network", NETWORKS)
def test_deep_supervision_adds_the_next_lower_resolutions(network):
    outputs = built(network, deep_supervision=True)(patches())
    shapes = {name: tuple(x.shape) for name, x in outputs.items()}
    # 4 slices against 32, 16 and 8 pixels: the depth is kept in the first two poolings.
    assert shapes == {"logits": (2, 4, 32, 32, 3), "deep1": (2, 4, 16, 16, 3), "deep2": (2, 4, 8, 8, 3)}
    assert {x.dtype for x in outputs.values()} == {tf.float32}


def convolution(inputs, outputs, kernel=27):  # without bias, plus scale and shift of the normalization
    return kernel * inputs * outputs + 2 * outputs


def transposed(inputs, outputs, step):
    return step * inputs * outputs + outputs


STEPS = [4, 4, 4, 8]  # voxels pooled into one at each level of PATCH


def test_unet3d_has_the_expected_number_of_parameters():
    widths = [4, 8, 16, 32, 64]
    encoder = sum(convolution(i, o) + convolution(o, o) for i, o in pairwise([1, *widths]))
    decoder = sum(
        transposed(deep, skip, step) + convolution(2 * skip, skip) + convolution(skip, skip)
        for (skip, deep), step in zip(pairwise(widths), STEPS, strict=True)
    )
    assert built("unet3d").count_params() == encoder + decoder + 4 * 3 + 3


def test_residual_unet3d_has_the_expected_number_of_parameters():
    widths, blocks = [4, 8, 16, 32, 64], [1, 3, 4, 6, 6]
    encoder = convolution(1, 4)
    for (before, width), count in zip(pairwise([4, *widths]), blocks, strict=True):
        projection = convolution(before, width, 1) if before != width else 0
        encoder += convolution(before, width) + projection + (2 * count - 1) * convolution(width, width)
    decoder = sum(
        transposed(deep, skip, step) + convolution(2 * skip, skip)
        for (skip, deep), step in zip(pairwise(widths), STEPS, strict=True)
    )
    assert built("residual_unet3d").count_params() == encoder + decoder + 4 * 3 + 3


def test_channels_stop_doubling_at_320():
    settings = {"data.patch": [4, 32, 32], "model.architecture": "unet3d", "model.filters": 32, "model.levels": 5}
    model = build_model(tiny_config(**settings))
    assert max(layer.filters for layer in model.layers if hasattr(layer, "filters")) == 320


@pytest.mark.parametrize("network", NETWORKS)
def test_samples_of_a_batch_are_independent(network):
    both = built(network)(patches()).numpy()
    assert np.allclose(both[1:], built(network)(patches()[1:]), atol=1e-4)


def step_of(model, image, mask):
    """The loss of a training step on all outputs, and its gradients."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(LOSS(mask, model(image, training=True)))
    return loss, tape.gradient(loss, model.trainable_variables)


@pytest.mark.xla
@pytest.mark.parametrize(("network", "deep"), [("unet3d", True), ("residual_unet3d", False)])
def test_a_training_step_compiles_with_xla_and_gives_the_same_loss(network, deep, monkeypatch):
    # Two blocks per stage cover everything that six do, and compile in a third of the time.
    monkeypatch.setattr("gitseg_tf.models.volumetric.unet3d._RESIDUAL_BLOCKS", (1, 2, 1, 1, 1))
    model = built.__wrapped__(network, deep_supervision=deep)
    image = tf.constant(patches())
    mask = tf.cast(tf.repeat(image > 0.7, 3, -1), tf.float32)
    plain, _ = step_of(model, image, mask)
    compiled, gradients = tf.function(step_of, jit_compile=True, autograph=False)(model, image, mask)
    assert compiled.numpy() == pytest.approx(plain.numpy(), abs=1e-3)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert np.mean([np.abs(gradient).max() > 0 for gradient in gradients]) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_training_stays_finite(precision):
    model = built("unet3d", precision)
    convolutions = [
        layer for layer in model.layers if isinstance(layer, keras.layers.Conv3D) and layer.name != "logits"
    ]
    assert {layer.compute_dtype for layer in convolutions} == {precision.removeprefix("mixed_")}
    image = tf.constant(patches())
    mask = tf.cast(tf.repeat(image > 0.7, 3, -1), tf.float32)
    # With XLA, because the CPU has no pooling kernel for float16, and oneDNN's gradients of 3-D kernels in bfloat16 are
    # occasionally NaN, which is why `auto` does not choose bfloat16 there.
    step = tf.function(step_of, jit_compile=True, autograph=False)
    loss, gradients = step(model, image, mask)
    assert loss.dtype == tf.float32 and np.isfinite(loss)
    assert loss.numpy() == pytest.approx(step_of(built("unet3d"), image, mask)[0].numpy(), abs=0.05)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-4), ("mixed_float16", 5e-3)])
def test_instance_normalization_normalizes_each_channel_of_each_sample(policy, tolerance):
    # The squares of these values would overflow in float16.
    x = np.random.default_rng(0).normal(900, 300, (2, 3, 4, 5, 6)).astype(np.float16).astype(np.float32)
    layer = InstanceNormalization(dtype=policy)
    layer.build(x.shape)
    scale, shift = np.arange(1, 7, dtype=np.float32), np.arange(6, dtype=np.float32)
    layer.set_weights([scale, shift])
    mean, deviation = x.mean((1, 2, 3), keepdims=True), x.std((1, 2, 3), keepdims=True)
    found = layer(x)
    assert found.dtype == keras.mixed_precision.Policy(policy).compute_dtype
    assert np.allclose(found, (x - mean) / deviation * scale + shift, atol=tolerance * 10, rtol=tolerance)


def test_the_gradient_of_instance_normalization_matches_its_formula():
    rng = np.random.default_rng(1)
    x = tf.constant(rng.normal(3, 2, (2, 3, 4, 5, 6)), tf.float32)
    upstream = tf.constant(rng.normal(size=x.shape), tf.float32)
    layer = InstanceNormalization()
    layer.build(x.shape)
    layer.set_weights([rng.normal(size=6), rng.normal(size=6)])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        mean, variance = tf.nn.moments(x, [1, 2, 3], keepdims=True)
        formula = tf.reduce_sum(upstream * ((x - mean) / tf.sqrt(variance + 1e-5) * layer.gamma + layer.beta))
        found = tf.reduce_sum(upstream * layer(x))
    variables = [x, layer.gamma, layer.beta]
    for one, other in zip(tape.gradient(found, variables), tape.gradient(formula, variables), strict=True):
        assert np.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"data.patch": None},
            "model.architecture unet3d is a 3-D network; set data.patch, for example to [16, 64, 64]",
        ),
        (
            {"model.architecture": "unet"},
            "data.patch is [4, 32, 32], but model.architecture unet is a 2-D network; set data.patch to null, "
            "or model.architecture to unet3d or residual_unet3d",
        ),
        (
            {"model.backbone": "resnet34"},
            "model.backbone is resnet34, but unet3d has its own encoder; set model.backbone to plain",
        ),
        (
            {"model.presence_head": True},
            "model.presence_head is true, but model.architecture unet3d has no such head; set it to false",
        ),
        (
            {"data.patch": [15, 64, 64]},
            "data.patch is [15, 64, 64], but unet3d halves it 4 times in-plane; "
            "for a patch of about this shape, use multiples of [4, 16, 16]",
        ),
        (
            {"data.patch": [4, 16, 64]},
            "data.patch is [4, 16, 64], but unet3d with 5 levels needs a height and width of at least 32; increase "
            "them, or decrease model.levels",
        ),
    ],
)
def test_contradictory_keys_are_a_one_line_error(refusal, changes, expected):
    settings = {"data.patch": list(PATCH), "model.architecture": "unet3d"} | changes
    assert refusal(load_config, None, settings) == f"config: {expected}"
