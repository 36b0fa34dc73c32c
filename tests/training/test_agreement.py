import pytest
import tensorflow as tf

from gitseg_tf.errors import InputError
from gitseg_tf.training import agreement
from gitseg_tf.training.agreement import any_worker, check_agreement, naming_lost_workers, workers_of


@pytest.fixture
def replicas(monkeypatch):
    """Two replicas of this process, as far as agreement goes two workers, the second of which adds to what is sent."""
    devices = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([devices[0].name])
    sent = {"more": 0.0}
    own = agreement._gathered

    def gathered(strategy, values):
        first = own(strategy, values)
        return tf.concat([first, first + sent["more"]], 0).numpy()

    monkeypatch.setattr(agreement, "workers_of", lambda strategy: 2)
    monkeypatch.setattr(agreement, "_gathered", gathered)
    monkeypatch.setattr(strategy.extended, "_cluster_resolver", None, raising=False)
    monkeypatch.setattr(
        type(strategy),
        "cluster_resolver",
        property(
            lambda self: tf.distribute.cluster_resolver.SimpleClusterResolver(tf.train.ClusterSpec({}), task_id=1)
        ),
    )
    return strategy, sent


FACTS, CURES = {"the config": "x" * 100, "the state": "3 epochs"}, {"the config": "copy it", "the state": "share it"}


def test_workers_that_see_the_same_may_train(replicas):
    strategy, _ = replicas
    check_agreement(strategy, FACTS, CURES)


def test_workers_that_differ_are_told_in_what(replicas, refusal):
    strategy, sent = replicas
    sent["more"] = [[0.0, 1.0]]
    said = refusal(check_agreement, strategy, FACTS, CURES)
    assert said == "workers 0 and 1 differ in the state (worker 1: 3 epochs); share it"
    sent["more"] = [[1.0, 1.0]]
    assert refusal(check_agreement, strategy, FACTS, CURES) == "workers 0 and 1 differ in the config; copy it"


def test_what_one_worker_wants_all_of_them_do(replicas):
    strategy, sent = replicas
    assert not any_worker(strategy, False) and any_worker(strategy, True)
    sent["more"] = 1.0
    assert any_worker(strategy, False)


def test_asking_at_each_step_traces_once(replicas, monkeypatch):
    strategy, _ = replicas
    traced, one_hot = [], tf.one_hot
    monkeypatch.setattr(tf, "one_hot", lambda *args: traced.append(args) or one_hot(*args))
    assert not any(any_worker(strategy, False) for _ in range(3))
    assert len(traced) == 1


def test_one_process_asks_nobody():
    strategy = tf.distribute.get_strategy()
    assert workers_of(strategy) == 1
    assert any_worker(strategy, True) and not any_worker(strategy, False)


def test_a_lost_worker_is_named_and_other_errors_stay_what_they_are(replicas, refusal, tmp_path):
    strategy, _ = replicas
    with (
        pytest.raises(InputError, match=r"number 1\) is gone.*UnavailableError.*--resume"),
        naming_lost_workers(strategy, tmp_path),
    ):
        raise tf.errors.UnavailableError(None, None, "socket closed")
    with pytest.raises(tf.errors.InvalidArgumentError), naming_lost_workers(strategy, tmp_path):
        raise tf.errors.InvalidArgumentError(None, None, "shapes")
