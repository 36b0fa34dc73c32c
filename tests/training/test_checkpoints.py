from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.training.checkpoints import RunningEpoch, WithinEpoch, save_state

X, Y = np.arange(8, dtype=np.float32)[:, None], np.ones((8, 1), np.float32)
BATCHES = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)


@pytest.fixture
def saving():
    """saving(minutes, spoil=step): the (steps, measures) that a training of four steps saves."""

    def train(minutes, spoil=None):
        model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, name="last")])
        model.compile("sgd", "mse", metrics=["mae"])
        saved, running = [], RunningEpoch()
        manager = SimpleNamespace(
            checkpoint=SimpleNamespace(running=running), save=lambda: saved.append((running.steps, running.measures))
        )

        def end(batch, logs):
            if batch == spoil:
                model.get_layer("last").bias.assign([np.nan])

        spoils = keras.callbacks.LambdaCallback(on_train_batch_end=end)
        model.fit(BATCHES, verbose=0, callbacks=[spoils, WithinEpoch(manager, minutes)])
        assert running.steps == 0
        return saved

    return train


def test_the_state_is_saved_after_steps_but_for_the_last_which_the_epochs_end_saves(saving):
    saved = saving(1e-9)
    assert [steps for steps, _ in saved] == [1, 2, 3]
    loss_total, loss_count, mae_total, mae_count = saved[-1][1]
    assert loss_count == mae_count == 6 and loss_total > 0 and mae_total > 0  # the samples of three steps


@pytest.mark.parametrize("minutes", [0, 60])
def test_nothing_is_saved_within_an_epoch_before_the_time_has_come(saving, minutes):
    assert saving(minutes) == []


def test_weights_that_an_overflow_has_spoilt_are_not_saved(saving):
    assert [steps for steps, _ in saving(1e-9, spoil=1)] == [1]


def test_how_far_an_epoch_is_comes_through_a_checkpoint(tmp_path):
    running, other = RunningEpoch(), RunningEpoch()
    running.steps, running.measures = 3, [np.float32(0.1).item(), [1.5, 2.0]]
    path = tf.train.Checkpoint(running=running).save(str(tmp_path / "state"))
    tf.train.Checkpoint(running=other).restore(path).assert_existing_objects_matched()
    assert (other.steps, other.measures) == (3, [np.float32(0.1), [1.5, 2.0]])


def test_measures_of_other_metrics_are_refused(refusal):
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    running = RunningEpoch()
    running.steps, running.measures = 1, [[1.0, 2.0]]
    within = WithinEpoch(SimpleNamespace(checkpoint=SimpleNamespace(running=running)), 0)
    assert "other metrics" in refusal(model.fit, BATCHES, verbose=0, callbacks=[within])


def test_a_state_that_cannot_be_saved_is_said_in_a_line_without_tensorflows_notes(refusal, tmp_path):
    def save():
        raise tf.errors.ResourceExhaustedError(
            None, None, "{{function_node x}} F; No space left [Op:SaveV2] name: y\nz"
        )

    said = refusal(save_state, SimpleNamespace(save=save, directory=tmp_path))
    assert f"{tmp_path}: the state cannot be saved (F; No space left); " in said and "--resume" in said
