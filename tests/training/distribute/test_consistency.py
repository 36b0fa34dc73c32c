import pytest
import tensorflow as tf

from gitseg_tf.errors import GitsegError
from gitseg_tf.training.distribute import consistency as module
from gitseg_tf.training.distribute.consistency import any_worker, check_agreement, naming_lost_workers, workers_of


@pytest.fixture
def replicas(monkeypatch):
    """A strategy that appears to have two workers; the second worker sends the values of the first plus `more`."""
    devices = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([devices[0].name])
    sent = {"more": 0.0}
    original = module._gathered

    def gathered(strategy, values):
        first = original(strategy, values)
        return tf.concat([first, first + sent["more"]], 0).numpy()

    monkeypatch.setattr(module, "workers_of", lambda strategy: 2)
    monkeypatch.setattr(module, "_gathered", gathered)
    monkeypatch.setattr(strategy.extended, "_cluster_resolver", None, raising=False)
    monkeypatch.setattr(
        type(strategy),
        "cluster_resolver",
        property(
            lambda self: tf.distribute.cluster_resolver.SimpleClusterResolver(tf.train.ClusterSpec({}), task_id=1)
        ),
    )
    return strategy, sent


FACTS, FIXES = {"the config": "x" * 100, "the state": "3 epochs"}, {"the config": "copy it", "the state": "share it"}


def test_workers_that_agree_can_train(replicas):
    strategy, _ = replicas
    check_agreement(strategy, FACTS, FIXES)


def test_differences_between_workers_are_reported(replicas, refusal):
    strategy, sent = replicas
    sent["more"] = [[0.0, 1.0]]
    message = refusal(check_agreement, strategy, FACTS, FIXES)
    assert message == "workers 0 and 1 differ in the state (worker 1: 3 epochs); share it"
    sent["more"] = [[1.0, 1.0]]
    assert refusal(check_agreement, strategy, FACTS, FIXES) == "workers 0 and 1 differ in the config; copy it"


def test_any_worker_is_true_if_one_worker_says_so(replicas):
    strategy, sent = replicas
    assert not any_worker(strategy, False) and any_worker(strategy, True)
    sent["more"] = 1.0
    assert any_worker(strategy, False)


def test_repeated_checks_trace_once(replicas, monkeypatch):
    strategy, _ = replicas
    traced, one_hot = [], tf.one_hot
    monkeypatch.setattr(tf, "one_hot", lambda *args: traced.append(args) or one_hot(*args))
    assert not any(any_worker(strategy, False) for _ in range(3))
    assert len(traced) == 1


def test_a_single_process_does_not_communicate():
    strategy = tf.distribute.get_strategy()
    assert workers_of(strategy) == 1
    assert any_worker(strategy, True) and not any_worker(strategy, False)


def test_a_lost_worker_is_named_and_other_errors_are_unchanged(replicas, refusal, tmp_path):
    strategy, _ = replicas
    with (
        pytest.raises(GitsegError, match=r"number 1\) is gone.*UnavailableError.*resume the run"),
        naming_lost_workers(strategy, tmp_path),
    ):
        raise tf.errors.UnavailableError(None, None, "socket closed")
    with pytest.raises(tf.errors.InvalidArgumentError), naming_lost_workers(strategy, tmp_path):
        raise tf.errors.InvalidArgumentError(None, None, "shapes")
