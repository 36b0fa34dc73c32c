"""A custom backbone, decoder, 3-D network and loss, chosen by name like the built-in ones."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from pydantic import Field

from gitseg_tf.config import load_config, save_config
from gitseg_tf.config.loss import LOSSES, LossTerm
from gitseg_tf.config.model import BACKBONES, DECODERS, NETWORKS_3D
from gitseg_tf.errors import ConfigError
from gitseg_tf.labels import LabelSet
from gitseg_tf.models.backbones import Backbone
from gitseg_tf.models.build import build_model
from gitseg_tf.models.heads import INITIAL_LOGIT
from gitseg_tf.training.losses.term import LabelCosts
from gitseg_tf.training.step import training_model

LABELS = LabelSet.of("liver", "spleen")
CHOSEN = {
    "data.input_size": [32, 32],
    "data.window_slices": 1,
    "model.backbone": "two_stages",
    "model.architecture": "nearest",
    "training.loss.custom.squared_error": {"weight": 2.0, "margin": 0.1},
    "training.loss.bce.weight": 0,
    "training.loss.dice.weight": 0,
}


class SquaredErrorConfig(LossTerm):
    """The config section of a custom loss term."""

    margin: float = Field(0.0, ge=0)


@pytest.fixture
def registered():
    """Register all four for one test."""

    def two_stages(inputs, config):
        first = keras.layers.Conv2D(8, 3, 2, padding="same", name="first")(inputs)
        return {2: first, 4: keras.layers.Conv2D(8, 3, 2, padding="same", name="second")(first)}

    BACKBONES.register("two_stages", Backbone(two_stages, "this test", "keras", dilates=False))

    @DECODERS.register("nearest")
    def nearest(features, config):
        return keras.layers.UpSampling2D(max(features), name="decoder")(features[max(features)])

    @NETWORKS_3D.register("shallow3d")
    def shallow3d(inputs, config, steps):
        return [keras.layers.Conv3D(config.filters, 3, padding="same", name="encoder")(inputs)]

    @LOSSES.register("squared_error", section=SquaredErrorConfig)
    def squared_error(mask, logits, *, counted, section):
        wrong = tf.nn.relu(tf.abs(tf.sigmoid(logits) - mask) - section.margin) ** 2 * counted
        voxels = tf.reduce_sum(counted, (1, 2))
        costs = tf.math.divide_no_nan(tf.reduce_sum(wrong, (1, 2)), voxels)
        return LabelCosts(costs, tf.reduce_sum(mask, (1, 2)), voxels)

    yield
    for table, name in (
        (BACKBONES, "two_stages"),
        (DECODERS, "nearest"),
        (NETWORKS_3D, "shallow3d"),
        (LOSSES, "squared_error"),
    ):
        table.remove(name)


def test_registered_components_train_like_built_in_ones(registered):
    config = load_config(None, CHOSEN).for_dataset(LABELS, ("ct",))
    model = training_model(build_model(config), config, steps_per_epoch=1)
    assert model.name == "nearest_two_stages"
    rng = np.random.default_rng(0)
    image, mask = rng.random((4, 32, 32, 1), np.float32), rng.integers(-1, 2, (4, 32, 32, 2)).astype(np.float32)
    # The untrained network predicts approximately INITIAL_LOGIT everywhere.
    probability = 1 / (1 + np.exp(-INITIAL_LOGIT))
    cost = np.maximum(np.abs(probability - mask) - 0.1, 0) ** 2 * (mask >= 0)
    expected = 2.0 * (cost.sum((1, 2)) / (mask >= 0).sum((1, 2))).mean()
    before = [variable.numpy() for variable in model.trainable_variables]
    loss = model.fit(image, mask, batch_size=4, epochs=2, verbose=0).history["loss"]
    assert loss[0] == pytest.approx(expected, rel=0.2)
    after = [variable.numpy() for variable in model.trainable_variables]
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_registered_3d_network_builds_like_built_in_ones(registered):
    settings = {"model.architecture": "shallow3d", "data.patch": [4, 32, 32], "data.input_size": [32, 32]}
    model = build_model(load_config(None, settings).for_dataset(LABELS, ("t1", "t2")))
    assert model.input_shape == (None, 4, 32, 32, 2) and model.output_shape == (None, 4, 32, 32, 2)


def test_a_saved_config_keeps_registered_components(registered, tmp_path):
    config = load_config(None, CHOSEN)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config.training.loss.terms == {"squared_error": SquaredErrorConfig(weight=2.0, margin=0.1)}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model.backbone": "two_stage"}, "must be a registered backbone; did you mean two_stages?"),
        ({"model.architecture": "nerest"}, "must be a registered architecture; did you mean nearest?"),
        ({"training.loss.custom.square_error": {}}, "not 'square_error'; did you mean squared_error?"),
        ({"training.loss.custom.squared_error": {"margin": -1}}, "must have a valid squared_error.margin, not -1"),
        ({"training.loss.custom.squared_error": {"margn": 1}}, "must have a valid squared_error.margn, not 1"),
        ({"training.loss.custom.dice": {}}, "not 'dice'; choose one of squared_error"),
        ({"model.deep_supervision": True}, "must be false for nearest"),
    ],
)
def test_an_invalid_registered_name_or_option_is_a_one_line_error(registered, changes, problem):
    with pytest.raises(ConfigError) as refused:
        load_config(None, CHOSEN | changes)
    assert problem in str(refused.value) and "\n" not in str(refused.value)


def test_an_unregistered_loss_term_says_how_to_register_it():
    with pytest.raises(ConfigError, match=r"register it in gitseg_tf\.config\.loss\.LOSSES first"):
        load_config(None, {"training.loss.custom.mine.weight": 1.0})
