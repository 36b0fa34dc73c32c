import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import expit

from gitseg_tf.config import load_config
from gitseg_tf.data.pipeline import training_windows
from gitseg_tf.models.build import build_model
from gitseg_tf.sections.loss import LossConfig
from gitseg_tf.training.initial_loss import InitialLoss, expected_initial_loss, initial_loss_line
from gitseg_tf.training.losses import build_loss


def by_hand(mask):
    """BCE and Dice loss of a probability of sigmoid(-3) everywhere, from the organs' fractions."""
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


def line_of(batches, bias=-3.0, scale=1.0):
    """What is said when a small network without normalisation is trained on the batches."""
    model = keras.Sequential([keras.Input([16, 16, 1]), keras.layers.Conv2D(3, 1)])
    model.compile(keras.optimizers.SGD(0.0), build_loss(LossConfig()))
    model.layers[-1].set_weights([np.full((1, 1, 1, 3), 0.1, np.float32), np.full(3, bias, np.float32)])
    said, windows = [], batches.map(lambda image, mask: (image * scale, mask))
    check = InitialLoss(model.loss, said.append)
    model.fit(check.watching(windows), epochs=1, verbose=0, callbacks=[check])
    (line,) = said
    return line


def test_the_expected_loss_is_that_of_the_organs_fractions(batches):
    for mask in batches[1]:
        expected = expected_initial_loss(build_loss(LossConfig()), mask, keras.Input([16, 16, 3]))
        assert expected == pytest.approx(by_hand(mask), rel=1e-5)


def test_a_presence_head_starts_undecided_and_deep_outputs_like_the_logits(batches):
    outputs = {
        name: keras.Input(shape) for name, shape in (("logits", [4, 4, 3]), ("deep1", [2, 2, 3]), ("presence", 3))
    }
    said = {}

    def loss(mask, outputs):
        said.update({name: np.unique(output).tolist() for name, output in outputs.items()})
        return tf.zeros([len(mask)])

    expected_initial_loss(loss, batches[1][0], outputs)
    assert said == {"logits": [-3.0], "deep1": [-3.0], "presence": [0.0]}


def test_an_ordinary_network_is_told_with_the_first_batchs_expected_loss(batches):
    line = line_of(batches[0])
    assert line.startswith("initial    loss") and f"{by_hand(batches[1][0]):.3f} was expected" in line


@pytest.mark.parametrize("wrong", [{"bias": 3.0}, {"scale": 1000.0}, {"scale": np.nan}])
def test_a_wrong_bias_or_inputs_of_another_scale_are_warned_of(batches, wrong):
    line = line_of(batches[0], **wrong)
    assert line.startswith("warning    loss of the untrained network is") and "scale of the inputs" in line


def test_the_batches_pass_unchanged(batches):
    watched = InitialLoss(build_loss(LossConfig()), print).watching(batches[0])
    assert watched.element_spec == batches[0].element_spec
    for got, wanted in zip(watched.as_numpy_iterator(), batches[0].as_numpy_iterator(), strict=True):
        assert all(map(np.array_equal, got, wanted))


@pytest.mark.parametrize(("loss", "word"), [(1.29, "initial"), (1.31, "warning"), (0.69, "warning")])
def test_thirty_percent_are_tolerated(loss, word):
    assert initial_loss_line(loss, 1.0).startswith(word)


@pytest.mark.parametrize("backbone", ["plain", "resnet34"])
def test_the_networks_that_ship_start_at_the_expected_loss(drawn_dataset, backbone):
    keys = {"data.size": [32, 32], "data.batch_size": 8, "model.backbone": backbone}
    config = load_config(None, keys)
    image, mask = next(training_windows(drawn_dataset, config).as_numpy_iterator())
    keras.utils.set_random_seed(0)
    model = build_model(config)
    loss = float(tf.reduce_mean(build_loss(LossConfig())(mask, model(image, training=True))))
    assert initial_loss_line(loss, by_hand(mask)).startswith("initial")
