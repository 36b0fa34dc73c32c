import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.config.loss import LossConfig
from gitseg_tf.models.build import build_model
from gitseg_tf.training.losses import training_loss
from gitseg_tf.training.optim.averages import WeightAverage, ema_share, swa_share
from gitseg_tf.training.optim.layer_rates import rate_shares
from gitseg_tf.training.optim.optimizers import build_optimizer
from gitseg_tf.training.optim.schedules import Schedule
from gitseg_tf.training.step import TrainingModel

STEPS = 100
SETTINGS = {"learning_rate": 0.05, "warmup": 0, "weight_decay": 0.1, "clip_norm": 1.0, "ema_decay": 0.6}


def configured(**changes):
    return tiny_config(**{f"training.{key}": value for key, value in (SETTINGS | changes).items()})


def product(mask, outputs):
    """A loss whose gradient is the mask."""
    return tf.reduce_sum(tf.cast(mask, tf.float32) * outputs, axis=[1, 2, 3])


def linear_model(jit_compile=False, scales_loss=False, loss=product, **changes):
    """Pixels times the matrix of the encoder, times another matrix, plus a bias."""
    config = configured(**changes)
    inputs = keras.Input((1, 1, 3))
    encoded = keras.layers.Conv2D(3, 1, use_bias=False, name="encoder")(inputs)
    outputs = keras.layers.Conv2D(3, 1, name="logits")(encoded)
    schedule = Schedule(config.training, STEPS)
    model = TrainingModel(inputs, outputs, config=config, schedule=schedule, loss=loss)
    rng = np.random.default_rng(1)
    model.get_layer("encoder").set_weights([rng.normal(size=(1, 1, 3, 3))])
    model.get_layer("logits").set_weights([rng.normal(size=(1, 1, 3, 3)), rng.normal(size=3)])
    model.compile(
        build_optimizer(config.training, schedule, model.trainable_variables, scales_loss=scales_loss),
        jit_compile=jit_compile,
    )
    model.average = WeightAverage(model.trainable_variables, [], ema_share(config.training.ema_decay))
    return model


def weights_of(model):
    return [variable.numpy().astype(float) for variable in model.trainable_variables]


# Norms far below to far above the clipping limit, because Adam itself is invariant to a common factor.
SCALES = (30, 0.1, 3, 0.01, 0.3)
PIXELS = np.random.default_rng(2).normal(size=(len(SCALES), 4, 1, 1, 3)).astype(np.float32)
MASKS = np.random.default_rng(3).normal(size=PIXELS.shape).astype(np.float32)
MASKS *= np.reshape(SCALES, (-1, 1, 1, 1, 1))


def gradients_of(weights, pixels, mask):
    """Gradients of the batch mean of sum(mask * (pixels @ encoder @ kernel + bias))."""
    x, g = pixels.reshape(-1, 3), mask.reshape(-1, 3) / len(mask)
    encoder, kernel = weights[0].reshape(3, 3), weights[1].reshape(3, 3)
    return [
        (x.T @ g @ kernel.T).reshape(weights[0].shape),
        ((x @ encoder).T @ g).reshape(weights[1].shape),
        g.sum(0),
    ]


def adamw(weights, config):
    """Decoupled decay (Loshchilov & Hutter 2017, algorithm 2) of kernels, after clipping by the global norm."""
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    average = list(weights)
    for step, (pixels, mask) in enumerate(zip(PIXELS, MASKS, strict=True), 1):
        rate = config.learning_rate / 2 * (1 + math.cos(math.pi * (step - 1) / STEPS))
        gradients = gradients_of(weights, pixels, mask)
        norm = math.sqrt(sum((g**2).sum() for g in gradients))
        for k, g in enumerate(gradients):
            g = g * min(1, config.clip_norm / norm)
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g**2
            # Kingma & Ba 2014 before section 2.1, with their epsilon hat.
            direction = math.sqrt(1 - 0.999**step) / (1 - 0.9**step) * first[k] / (np.sqrt(second[k]) + 1e-7)
            decay = config.weight_decay if weights[k].ndim > 1 else 0
            weights[k] = weights[k] - rate * (direction + decay * weights[k])
            kept = min(config.ema_decay, step / (9 + step))
            average[k] = kept * average[k] + (1 - kept) * weights[k]
    return weights, average


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"jit_compile": True},
        {"gradient_accumulation_steps": 4},
        {"scales_loss": True, "gradient_accumulation_steps": 2, "jit_compile": True},
    ],
    ids=str,
)
def test_training_steps_match_adamw_with_gradient_clipping(changes):
    model = linear_model(**changes)
    expected, averages = adamw(weights_of(model), model._settings.training)
    losses = [float(np.sum(m * model(p).numpy()) / 4) for p, m in zip(PIXELS[:1], MASKS[:1], strict=True)]
    for k, (pixels, mask) in enumerate(zip(PIXELS, MASKS, strict=True)):
        loss = model.train_on_batch(pixels, mask, reset_metrics=True)[0]
        if k == 0:
            assert loss == pytest.approx(losses[0], rel=1e-4)
    for now, weight, average, mean in zip(weights_of(model), expected, model.average.values, averages, strict=True):
        assert now == pytest.approx(weight, rel=1e-4, abs=1e-5)
        assert average.numpy() == pytest.approx(mean, rel=1e-4, abs=1e-5)


def test_a_step_with_overflowing_scaled_gradients_changes_no_weights():
    model = linear_model(scales_loss=True)
    before, scale = weights_of(model), float(model.optimizer.loss_scale)
    model.train_on_batch(PIXELS[0], np.full_like(MASKS[0], 3e38))
    assert all(map(np.array_equal, weights_of(model), before))
    assert float(model.optimizer.loss_scale) == scale / 2 and int(model.optimizer.iterations) == 1
    model.train_on_batch(PIXELS[0], MASKS[0])
    assert not any(map(np.array_equal, weights_of(model), before))


@pytest.mark.parametrize("optimizer", ["adamw", "Addons>Lookahead"])
def test_skipped_overflow_steps_do_not_delay_swa_snapshots(optimizer):
    model = linear_model(scales_loss=True, optimizer=optimizer)
    model.average = WeightAverage(model.trainable_variables, [], swa_share(averaged=2, epochs=3, steps_per_epoch=2))
    after = []
    for step in range(6):
        model.train_on_batch(PIXELS[0], np.full_like(MASKS[0], 3e38) if step in (0, 4) else MASKS[0])
        after.append(weights_of(model))
    assert all(map(np.array_equal, after[3], after[4])) and not any(map(np.array_equal, after[4], after[5]))
    for average, second, third in zip(model.average.values, after[3], after[5], strict=True):
        assert average.numpy() == pytest.approx((second + third) / 2, rel=1e-5, abs=1e-6)


def test_the_outputs_of_a_network_can_be_a_dict():
    inputs = keras.Input((8, 8, 3))
    outputs = {"logits": keras.layers.Conv2D(3, 1)(inputs), "deep1": keras.layers.AveragePooling2D()(inputs)}
    config = configured()
    schedule = Schedule(config.training, STEPS)

    def loss(mask, outputs):
        return tf.reduce_mean(outputs["logits"] ** 2, axis=[1, 2, 3]) + outputs["deep1"].shape[1]

    model = TrainingModel(inputs, outputs, config=config, schedule=schedule, loss=loss)
    model.compile(build_optimizer(config.training, schedule, model.trainable_variables), weighted_metrics=[])
    image = np.ones((2, 8, 8, 3), np.float32)
    first, last = (model.train_on_batch(image, image, return_dict=True, reset_metrics=True) for _ in range(2))
    assert len(model.weights) == 2 and [metric.name for metric in model.metrics] == ["loss", "dice"]
    assert 4 < last["loss"] < first["loss"] and {"dice", "dice_stomach"} <= last.keys()
    logits = model(image)["logits"].numpy()
    weighted = model.test_on_batch(image, image, np.array([1.0, 0.0]), return_dict=True, reset_metrics=True)
    assert weighted["loss"] == pytest.approx(4 + (logits[0] ** 2).mean(), rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "Addons>RectifiedAdam"])
def test_the_encoder_lr_multiplier_scales_encoder_updates(optimizer):
    updates = []
    for share in (1.0, 0.25, 0.0):
        model = linear_model(encoder_lr_multiplier=share, optimizer=optimizer)
        before = weights_of(model)
        model.train_on_batch(PIXELS[0], MASKS[0])
        updates.append([b - a for a, b in zip(before, weights_of(model), strict=True)])
    whole, quarter, none = updates
    assert np.abs(whole[0]).min() > 1e-4 and not none[0].any()
    assert quarter[0] == pytest.approx(0.25 * whole[0], rel=1e-3, abs=1e-6)
    for behind in (1, 2):
        assert quarter[behind] == pytest.approx(whole[behind], abs=1e-6)


def test_layer_lr_decay_lowers_the_rate_toward_the_input_stages():
    model = build_model(tiny_config(model__levels=5))
    shares = rate_shares(model, configured(encoder_lr_multiplier=0.5, layer_lr_decay=0.8).training)
    by_layer = {v.name.split("_")[0].split("/")[0]: s for v, s in zip(model.trainable_variables, shares, strict=True)}
    assert [by_layer[f"encoder{stage}"] for stage in range(5)] == pytest.approx(
        [0.5 * 0.8 ** (4 - stage) for stage in range(5)]
    )
    assert {share for name, share in by_layer.items() if not name.startswith("encoder")} == {1.0}


def test_layer_lr_decay_works_for_a_nested_encoder_model(refusal):
    windows = keras.Input((16, 16, 3))
    deep = keras.layers.Conv2D(4, 3, strides=4, padding="same")(keras.layers.Conv2D(2, 1, use_bias=False)(windows))
    encoder = keras.Model(windows, keras.layers.Dense(5)(keras.layers.Reshape((16, 4))(deep)), name="encoder")
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(encoder(inputs)))
    shares = rate_shares(model, configured(layer_lr_decay=0.5).training)
    assert shares == [0.25, 1, 1, 1, 1, 1, 1]
    other = keras.Model(inputs, keras.layers.Dense(3, name="logits")(inputs), name="other")
    assert "other has no encoder" in refusal(rate_shares, other, configured(encoder_lr_multiplier=0.5).training)


@pytest.mark.parametrize(
    ("optimizer", "scales_loss"), [("adamw", True), ("Addons>Lookahead", True), ("Addons>NovoGrad", False)]
)
def test_training_steps_resume_exactly_from_a_checkpoint(tmp_path, optimizer, scales_loss):
    def start():
        model = linear_model(optimizer=optimizer, scales_loss=scales_loss, gradient_accumulation_steps=2)
        state = tf.train.Checkpoint(model=model, optimizer=model.optimizer, average=model.average.values)
        return model, state

    def continue_training(model, steps):
        for k in steps:
            model.train_on_batch(PIXELS[k], MASKS[k])

    uninterrupted, _ = start()
    continue_training(uninterrupted, range(5))
    stopped, state = start()
    continue_training(stopped, range(3))
    path = state.save(str(tmp_path / "state"))
    resumed, state = start()
    state.restore(path).assert_consumed()
    continue_training(resumed, range(3, 5))
    assert all(map(np.array_equal, weights_of(resumed), weights_of(uninterrupted)))
    for average, expected in zip(resumed.average.values, uninterrupted.average.values, strict=True):
        assert np.array_equal(average, expected)


def hand_computed_loss(mask, logits, reduce_over):
    """Cross-entropy plus 1 - Dice of each window [N, 1, 1, 3], without any code of the package."""
    probability = 1 / (1 + np.exp(-logits))
    entropy = -(mask * np.log(probability) + (1 - mask) * np.log(1 - probability)).mean((1, 2, 3))
    axes = (0, 1, 2) if reduce_over == "batch" else (1, 2)
    both, sizes = (probability * mask).sum(axes), (probability + mask).sum(axes)
    return entropy + np.mean(1 - (2 * both + 1) / (sizes + 1), axis=-1)


@pytest.mark.parametrize("reduce_over", ["batch", "sample"])
@pytest.mark.parametrize("batch", [2, 4, 5, 8])
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.xla)])
def test_the_padding_of_the_last_batch_does_not_enter_the_validation_loss(reduce_over, batch, jit_compile):
    rng = np.random.default_rng(7)
    image = rng.normal(size=(5, 1, 1, 3)).astype(np.float32)
    mask = (rng.random(image.shape) < 0.4).astype(np.float32)
    loss = training_loss(LossConfig.model_validate({"dice": {"reduce_over": reduce_over}}))
    model = linear_model(jit_compile=jit_compile, loss=loss)
    logits = model(image, training=False).numpy().astype(float)
    parts = [slice(start, start + batch) for start in range(0, 5, batch)]
    costs = np.concatenate([hand_computed_loss(mask[part], logits[part], reduce_over) for part in parts])
    # The padding is neither blank nor without labels, so that it would change the loss if it counted.
    missing = -5 % batch
    padding = np.full((missing, 1, 1, 3), 3.0, np.float32)
    samples = (np.concatenate([image, padding]), np.concatenate([mask, padding / 3]), [1.0] * 5 + [0.0] * missing)
    windows = tf.data.Dataset.from_tensor_slices(samples).batch(batch, drop_remainder=True)
    evaluated = model.evaluate(windows, verbose=0, return_dict=True)
    assert evaluated["loss"] == pytest.approx(costs.mean(), abs=1e-5)
    inside, truth = logits >= 0, mask > 0
    dice = 2 * (inside & truth).sum((0, 1, 2)) / (inside.sum((0, 1, 2)) + truth.sum((0, 1, 2)))
    assert evaluated["dice"] == pytest.approx(dice.mean(), abs=1e-5)
