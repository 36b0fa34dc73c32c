import os
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.config import load_config
from gitseg_tf.errors import ConfigError
from gitseg_tf.labels import LabelSet
from gitseg_tf.models.build import build_model
from gitseg_tf.models.layers import Upsample
from gitseg_tf.training.losses import build_loss
from gitseg_tf.training.optim.optimizers import build_optimizer
from gitseg_tf.training.optim.schedules import Schedule

# Read when XLA first compiles: less optimization compiles faster and does not affect what can be compiled.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
BACKBONES = ("plain", "resnet34")


def configured(backbone="plain", slices=3, size=64):
    return tiny_config(
        data__window_slices=slices, data__input_size=[size, size], model__backbone=backbone, model__levels=5
    )


@cache
def built(backbone, precision="float32", slices=3):
    return build_model(configured(backbone, slices), precision)


def windows(slices=3, size=64, count=2):
    return np.random.default_rng(0).random((count, size, size, slices), np.float32)


def normalizations(model):
    return [layer for layer in model.submodules if isinstance(layer, keras.layers.BatchNormalization)]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_are_float32_at_any_precision(backbone, precision):
    logits = built(backbone, precision)(windows())
    assert logits.shape == (2, 64, 64, 3) and logits.dtype == tf.float32
    assert np.isfinite(logits.numpy()).all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mixed_precision_computes_in_16_bits_and_keeps_32_bit_weights(backbone):
    model = built(backbone, "mixed_bfloat16")
    multiplying = [
        layer for layer in model.submodules if isinstance(layer, keras.layers.Conv2D) and layer.name != "logits"
    ]
    assert {layer.compute_dtype for layer in multiplying} == {"bfloat16"}
    assert {variable.dtype for variable in model.variables} == {tf.float32}


@pytest.mark.parametrize("slices", [1, 3, 5])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_input_has_the_configured_number_of_slices(backbone, slices):
    assert built(backbone, slices=slices).input_shape == (None, 64, 64, slices)
    assert built(backbone, slices=slices)(windows(slices, count=1)).shape == (1, 64, 64, 3)


def test_height_and_width_can_differ():
    config = tiny_config(data__input_size=[32, 96])
    assert build_model(config)(np.zeros((1, 32, 96, 3), np.float32)).shape == (1, 32, 96, 3)


def test_resnet34_has_the_published_number_of_parameters():
    # segmentation-models-pytorch's table of Unet with resnet34: 24.44M.
    assert built("resnet34", slices=5).count_params() == pytest.approx(24.44e6, rel=0.02)


def test_plain_has_the_expected_number_of_parameters():
    def block(inputs, outputs):  # a convolution without bias plus four vectors of the normalization
        return 9 * inputs * outputs + 4 * outputs

    widths = [4, 8, 16, 32, 64]
    encoder = sum(block(i, o) + block(o, o) for i, o in zip([3, *widths], widths, strict=False))
    decoder = sum(block(deep + skip, skip) + block(skip, skip) for skip, deep in pairwise(widths))
    assert built("plain").count_params() == encoder + decoder + 4 * 3 + 3


def test_initial_probabilities_are_about_five_percent():
    probability = 1 / (1 + np.exp(-build_model(configured())(np.zeros((1, 64, 64, 3), np.float32)).numpy()))
    assert probability == pytest.approx(0.05, abs=0.01)


def test_upsampling_repeats_rows_and_columns():
    image = np.random.default_rng(1).normal(size=(2, 3, 5, 4)).astype(np.float32)
    assert np.array_equal(Upsample()(image), image.repeat(2, axis=1).repeat(2, axis=2))


def test_the_gradient_of_upsampling_sums_over_each_block():
    rng = np.random.default_rng(2)
    image = tf.constant(rng.normal(size=(2, 3, 5, 4)), tf.float32)
    above = rng.normal(size=(2, 6, 10, 4)).astype(np.float32)
    with tf.GradientTape() as tape:
        tape.watch(image)
        total = tf.reduce_sum(Upsample()(image) * above)
    blocks = above.reshape(2, 3, 2, 5, 2, 4).sum((2, 4))
    assert np.allclose(tape.gradient(total, image), blocks, atol=1e-5)


def test_the_same_seed_gives_the_same_weights():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return build_model(configured()).get_weights()

    one, same, other = weights(1), weights(1), weights(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_synchronized_applies_to_every_normalization_and_nothing_else(backbone, tmp_path):
    plain, synchronized = built(backbone), build_model(configured(backbone), synchronized=True)
    assert len(normalizations(synchronized)) == len(normalizations(plain)) > 10
    assert all(layer.synchronized for layer in normalizations(synchronized))
    assert not any(layer.synchronized for layer in normalizations(plain))
    # Different moving averages in each normalization reveal weights that are loaded into the wrong one.
    for k, layer in enumerate(normalizations(synchronized)):
        layer.moving_variance.assign(layer.moving_variance * (1 + 0.05 * k))
    synchronized.save_weights(tmp_path / "synchronized.weights.h5")
    loaded = build_model(configured(backbone))
    loaded.load_weights(tmp_path / "synchronized.weights.h5")
    assert np.allclose(loaded(windows()), synchronized(windows()), atol=1e-5)


@pytest.mark.xla
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_training_step_compiles_with_xla_and_gives_the_same_loss(backbone):
    keras.utils.set_random_seed(0)
    size = 32
    config = configured(backbone, size=size)
    model = build_model(config)
    schedule = Schedule(config.training, 10)
    optimizer = build_optimizer(config.training, schedule, model.trainable_variables)
    loss_of = build_loss(config.training.loss)
    image = tf.constant(windows(size=size))
    mask = tf.cast(image > 0.7, tf.float32)
    before = [variable.numpy() for variable in model.trainable_variables]

    def step(image, mask):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(loss_of(mask, model(image, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    plain_loss = loss_of(mask, model(image, training=True)).numpy().mean()
    optimizer.iterations.assign(5)  # the learning rate warms up from zero
    compiled_loss = tf.function(step, jit_compile=True, autograph=False)(image, mask).numpy()
    assert compiled_loss == pytest.approx(plain_loss, abs=1e-3)
    after = [variable.numpy() for variable in model.trainable_variables]
    assert all(np.isfinite(b).all() and not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "float32"])
def test_the_global_precision_policy_is_restored(precision):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        build_model(configured(), precision)
        assert keras.mixed_precision.global_policy().name == "mixed_float16"
        with pytest.raises(ValueError):
            build_model(configured(), "no policy")
        assert keras.mixed_precision.global_policy().name == "mixed_float16"
    finally:
        keras.mixed_precision.set_global_policy("float32")


LABELS = LabelSet.of("liver", "spleen", "left_kidney", "right_kidney", "aorta")


def test_the_network_has_an_output_for_each_label_and_an_input_for_each_channel_of_each_slice():
    model = build_model(tiny_config(LABELS, ("t1", "t2"), model__presence_head=True))
    assert model.input_shape == (None, 32, 32, 3 * 2)
    outputs = model(windows(slices=6, size=32))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {"logits": (2, 32, 32, 5), "presence": (2, 5)}


def test_deep_supervision_outputs_have_all_labels():
    config = tiny_config(
        LABELS, ("ct",), model__architecture="unetplusplus", model__deep_supervision=True, model__levels=4
    )
    assert {shape[-1] for shape in build_model(config).output_shape.values()} == {5}


def test_a_3d_network_has_all_channels_and_labels():
    config = tiny_config(LABELS, ("t1", "t2", "flair"), model__architecture="unet3d", data__patch=[4, 32, 32])
    model = build_model(config)
    assert model.input_shape == (None, 4, 32, 32, 3) and model.output_shape == (None, 4, 32, 32, 5)


def test_building_without_a_dataset_is_refused():
    with pytest.raises(ConfigError, match="the config has no labels yet"):
        build_model(load_config())
