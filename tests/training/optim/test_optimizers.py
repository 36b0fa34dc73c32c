import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.config import load_config
from gitseg_tf.models.build import build_model
from gitseg_tf.training.optim.optimizers import addons_class, build_optimizer, decays
from gitseg_tf.training.optim.schedules import Schedule

GRADIENTS = np.random.default_rng(6).normal(size=(8, 3, 2)).astype(np.float32)
START = np.random.default_rng(7).normal(size=(3, 2)).astype(np.float32)
RATE = 0.05


def configured(**changes):
    fixed = {"schedule": "constant", "warmup": 0, "learning_rate": RATE}
    return tiny_config(**{f"training.{key}": value for key, value in (fixed | changes).items()}).training


def stepped(optimizer, variable):
    for gradient in GRADIENTS:
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
    return variable.numpy()


def weights_after(**changes):
    variable, config = tf.Variable(START, name="kernel"), configured(**changes)
    return stepped(build_optimizer(config, Schedule(config, 100), [variable]), variable)


def nesterov(momentum):
    weight, velocity = START.astype(float), np.zeros(START.shape)
    for gradient in GRADIENTS:
        velocity = momentum * velocity - RATE * gradient
        weight = weight + momentum * velocity - RATE * gradient
    return weight


def lion():
    weight, average = START.astype(float), np.zeros(START.shape)
    for gradient in GRADIENTS:
        weight = weight - RATE * np.sign(0.9 * average + 0.1 * gradient)
        average = 0.99 * average + 0.01 * gradient
    return weight


def rectified_adam(looks_ahead=False):
    """Liu et al. 2019, algorithm 2, optionally inside Zhang et al. 2019, algorithm 1, with k = 6 and alpha = 0.5."""
    weight, slow = START.astype(float), START.astype(float)
    first, second, longest = np.zeros(START.shape), np.zeros(START.shape), 2 / (1 - 0.999) - 1
    for step, gradient in enumerate(GRADIENTS, 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        length = longest - 2 * step * 0.999**step / (1 - 0.999**step)
        direction = first / (1 - 0.9**step)
        if length >= 5:
            ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            direction = np.sqrt(ratio) * direction / (np.sqrt(second / (1 - 0.999**step)) + 1e-7)
        weight = weight - RATE * direction
        if looks_ahead and step % 6 == 0:
            weight = slow = slow + 0.5 * (weight - slow)
    return weight


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimizer": "sgd", "momentum": 0.8}, nesterov(0.8)),
        ({"optimizer": "lion"}, lion()),
        ({"optimizer": "Addons>RectifiedAdam"}, rectified_adam()),
        ({"optimizer": "Addons>Lookahead"}, rectified_adam(looks_ahead=True)),
    ],
)
def test_an_optimizer_matches_the_algorithm_of_its_paper(changes, expected):
    assert weights_after(**changes) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["LAMB", "LazyAdam", "AdaBelief", "NovoGrad", "Yogi", "ProximalAdagrad"])
def test_an_addons_optimizer_uses_the_scheduled_learning_rate(name):
    variable = tf.Variable(START, name="kernel")
    reference = addons_class(f"Addons>{name}")(learning_rate=RATE)
    assert weights_after(optimizer=f"Addons>{name}") == pytest.approx(stepped(reference, variable), abs=1e-6)


def test_lamb_scales_only_kernels_by_the_ratio_of_norms():
    def change(name):
        variable, config = tf.Variable([3.0, 4.0], name=name), configured(optimizer="Addons>LAMB")
        kernel = tf.Variable([[3.0, 4.0]], name="kernel")
        optimizer = build_optimizer(config, Schedule(config, 100), [variable, kernel])
        optimizer.apply_gradients([(tf.ones(2), variable), (tf.ones((1, 2)), kernel)])
        return 3 - variable.numpy()[0], 3 - kernel.numpy()[0, 0]

    # The first direction of Adam is 1 in each entry, with norm 1.414; the norm of the weights is 5.
    assert change("gamma") == pytest.approx((RATE, RATE * 5 / 2**0.5), rel=1e-4)


def test_an_unknown_addons_optimizer_gets_a_suggestion(refusal):
    assert "did you mean Addons>RectifiedAdam?" in refusal(addons_class, "Addons>RectifideAdam")
    assert "it has AdaBelief, AdamW, " in refusal(addons_class, "Addons>Xyz")


@pytest.mark.parametrize(
    ("name", "why"),
    [("SWA", "training.swa_epochs"), ("MovingAverage", "training.ema_decay"), ("COCOB", "no learning rate")],
)
def test_an_unsupported_addons_optimizer_is_refused_with_the_alternative(refusal, name, why):
    assert why in refusal(addons_class, f"Addons>{name}")


def test_missing_addons_are_a_one_line_error(refusal, monkeypatch):
    monkeypatch.setattr("gitseg_tf.core.addons.importlib.util.find_spec", lambda name: None)
    assert "tensorflow-addons is not installed" in refusal(addons_class, "Addons>LAMB")


def test_an_unknown_optimizer_is_refused_by_the_config(refusal):
    assert "did you mean adamw?" in refusal(load_config, None, {"training.optimizer": "AdamW"})
    assert "or Addons>NAME" in refusal(load_config, None, {"training.optimizer": "RectifiedAdam"})


def test_weight_decay_applies_only_to_kernels():
    model = build_model(tiny_config())
    spared = [variable.name for variable in model.trainable_variables if not decays(variable)]
    assert {name.split("/")[-1].split(":")[0] for name in spared} == {"bias", "gamma", "beta"}
    assert {v.name.split("/")[-1].split(":")[0] for v in model.trainable_variables if decays(v)} == {"kernel"}


def test_weight_decay_skips_normalization_parameters_and_bias_tables():
    for layer in (keras.layers.LayerNormalization(), keras.layers.GroupNormalization(2)):
        layer.build((None, 4, 4, 4))
        assert len(layer.trainable_variables) == 2 and not any(map(decays, layer.trainable_variables))
    assert not decays(tf.Variable([1.0, 2.0], name="layer_scale"))
    assert not decays(tf.Variable([[1.0, 2.0]], name="attention/relative_position_bias_table"))
