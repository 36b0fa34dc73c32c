import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.configs import tiny_config
from scipy.special import expit

from gitseg_tf.config.loss import LossConfig
from gitseg_tf.data.pipeline.batches import training_windows
from gitseg_tf.models.build import build_model
from gitseg_tf.training.callbacks.initial_loss import InitialLoss, expected_initial_loss, is_close
from gitseg_tf.training.losses import build_loss


def by_hand(mask):
    """BCE and Dice loss of a probability of sigmoid(-3) everywhere, from the label fractions."""
    p, pixels = expit(-3.0), mask[..., 0].size
    fractions = mask.mean((0, 1, 2))
    bce = np.mean(-np.log(1 - p) * (1 - fractions) - np.log(p) * fractions)
    dice = np.mean(1 - (2 * p * fractions * pixels + 1) / (pixels * (p + fractions) + 1))
    return bce + dice


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    masks = [(rng.random((4, 16, 16, 3)) < [0.3, 0.1, 0.02]).astype(np.float32) for _ in range(3)]
    return tf.data.Dataset.from_tensor_slices((rng.random((3, 4, 16, 16, 1), np.float32), np.stack(masks))), masks


def line_of(caplog, batches, bias=-3.0, scale=1.0):
    """Level and message logged when a small network without normalization is trained on the batches."""
    model = keras.Sequential([keras.Input([16, 16, 1]), keras.layers.Conv2D(3, 1)])
    model.compile(keras.optimizers.SGD(0.0), build_loss(LossConfig()))
    model.layers[-1].set_weights([np.full((1, 1, 1, 3), 0.1, np.float32), np.full(3, bias, np.float32)])
    windows, check = batches.map(lambda image, mask: (image * scale, mask)), InitialLoss(model.loss)
    with caplog.at_level("INFO", "gitseg_tf"):
        model.fit(check.watching(windows), epochs=1, verbose=0, callbacks=[check])
    (record,) = [record for record in caplog.records if record.name.startswith("gitseg_tf")]
    return record.levelname, record.getMessage()


def test_the_expected_loss_follows_from_the_label_fractions(batches):
    for mask in batches[1]:
        expected = expected_initial_loss(build_loss(LossConfig()), mask, keras.Input([16, 16, 3]))
        assert expected == pytest.approx(by_hand(mask), rel=1e-5)


def test_the_presence_head_starts_at_zero_and_deep_outputs_like_the_logits(batches):
    outputs = {
        name: keras.Input(shape) for name, shape in (("logits", [4, 4, 3]), ("deep1", [2, 2, 3]), ("presence", 3))
    }
    values = {}

    def loss(mask, outputs):
        values.update({name: np.unique(output).tolist() for name, output in outputs.items()})
        return tf.zeros([len(mask)])

    expected_initial_loss(loss, batches[1][0], outputs)
    assert values == {"logits": [-3.0], "deep1": [-3.0], "presence": [0.0]}


def test_the_initial_loss_is_logged_with_the_expected_one(batches, caplog):
    level, line = line_of(caplog, batches[0])
    assert level == "INFO" and line.startswith("initial    loss") and f"{by_hand(batches[1][0]):.3f} expected" in line


@pytest.mark.parametrize("wrong", [{"bias": 3.0}, {"scale": 1000.0}, {"scale": np.nan}])
def test_a_wrong_bias_or_input_scale_causes_a_warning(batches, wrong, caplog):
    level, line = line_of(caplog, batches[0], **wrong)
    assert (
        level == "WARNING" and line.startswith("the loss of the untrained network is") and "scale of the inputs" in line
    )


def test_watching_leaves_the_batches_unchanged(batches):
    watched = InitialLoss(build_loss(LossConfig())).watching(batches[0])
    assert watched.element_spec == batches[0].element_spec
    for got, expected in zip(watched.as_numpy_iterator(), batches[0].as_numpy_iterator(), strict=True):
        assert all(map(np.array_equal, got, expected))


@pytest.mark.parametrize(("loss", "close"), [(1.29, True), (1.31, False), (0.69, False), (np.nan, False)])
def test_a_deviation_of_thirty_percent_is_tolerated(loss, close):
    assert is_close(loss, 1.0) is close


@pytest.mark.parametrize("backbone", ["plain", "resnet34"])
def test_built_in_networks_start_at_the_expected_loss(tiny_dataset, backbone):
    shipped = {"model.filters": 16, "model.levels": 5, "data.window_slices": 5}
    config = tiny_config(data__batch_size=8, model__backbone=backbone, **shipped)
    image, mask = next(training_windows(tiny_dataset, config).as_numpy_iterator())
    keras.utils.set_random_seed(0)
    model = build_model(config)
    loss = float(tf.reduce_mean(build_loss(LossConfig())(mask, model(image, training=True))))
    assert is_close(loss, by_hand(mask))
