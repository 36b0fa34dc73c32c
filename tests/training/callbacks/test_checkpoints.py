from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.training.callbacks.checkpoints import RunningEpoch, WithinEpoch, save_state

X, Y = np.arange(8, dtype=np.float32)[:, None], np.ones((8, 1), np.float32)
BATCHES = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)


@pytest.fixture
def saving():
    """saving(minutes, corrupt_at=step) is the list of (steps, measures) saved during an epoch of four steps."""

    def train(minutes, corrupt_at=None):
        model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, name="last")])
        model.compile("sgd", "mse", metrics=["mae"])
        saved, running = [], RunningEpoch()
        manager = SimpleNamespace(
            checkpoint=SimpleNamespace(running=running), save=lambda: saved.append((running.steps, running.measures))
        )

        def end(batch, logs):
            if batch == corrupt_at:
                model.get_layer("last").bias.assign([np.nan])

        corrupt = keras.callbacks.LambdaCallback(on_train_batch_end=end)
        model.fit(BATCHES, verbose=0, callbacks=[corrupt, WithinEpoch(manager, minutes)])
        assert running.steps == 0
        return saved

    return train


def test_mid_epoch_checkpoints_are_saved_after_every_step_but_the_last(saving):
    saved = saving(1e-9)
    assert [steps for steps, _ in saved] == [1, 2, 3]
    loss_total, loss_count, mae_total, mae_count = saved[-1][1]
    assert loss_count == mae_count == 6 and loss_total > 0 and mae_total > 0  # the samples of three steps


@pytest.mark.parametrize("minutes", [0, 60])
def test_no_mid_epoch_checkpoint_is_saved_before_the_interval(saving, minutes):
    assert saving(minutes) == []


def test_non_finite_weights_are_not_checkpointed(saving):
    assert [steps for steps, _ in saving(1e-9, corrupt_at=1)] == [1]


def test_mid_epoch_progress_round_trips_through_a_checkpoint(tmp_path):
    running, other = RunningEpoch(), RunningEpoch()
    running.steps, running.measures = 3, [np.float32(0.1).item(), [1.5, 2.0]]
    path = tf.train.Checkpoint(running=running).save(str(tmp_path / "state"))
    tf.train.Checkpoint(running=other).restore(path).assert_existing_objects_matched()
    assert (other.steps, other.measures) == (3, [np.float32(0.1), [1.5, 2.0]])


def test_a_checkpoint_with_different_metrics_is_refused(refusal):
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    running = RunningEpoch()
    running.steps, running.measures = 1, [[1.0, 2.0]]
    within = WithinEpoch(SimpleNamespace(checkpoint=SimpleNamespace(running=running)), 0)
    assert "different metrics" in refusal(model.fit, BATCHES, verbose=0, callbacks=[within])


def test_a_failed_checkpoint_is_a_one_line_error_without_tensorflow_internals(refusal, tmp_path):
    def save():
        raise tf.errors.ResourceExhaustedError(
            None, None, "{{function_node x}} F; No space left [Op:SaveV2] name: y\nz"
        )

    message = refusal(save_state, SimpleNamespace(save=save, directory=tmp_path))
    assert f"{tmp_path}: the state cannot be saved (F; No space left); " in message and message.endswith(
        "then resume the run"
    )
