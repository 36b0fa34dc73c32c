"""Consistency checks between workers that train together."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.errors import ConfigError, RunError

_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)
_EXACT_IN_FLOAT32 = 2**24


def workers_of(strategy: tf.distribute.Strategy) -> int:
    """Return the number of processes that train together."""
    resolver = strategy.cluster_resolver if _several(strategy) else None
    return sum(len(resolver.cluster_spec().job_tasks(job)) for job in resolver.cluster_spec().jobs) if resolver else 1


def any_worker(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Check whether the flag is set on any worker; all workers must call this at the same step."""
    return bool(np.any(_gathered(strategy, [float(flag)]))) if workers_of(strategy) > 1 else flag


def worker_of(strategy: tf.distribute.Strategy) -> int:
    """Return the number of this process among those that train together, from 0."""
    return (strategy.cluster_resolver.task_id or 0) if workers_of(strategy) > 1 else 0


def sum_over_workers(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """Add up an array over all workers, in float32; all workers must call this at the same step."""
    if workers_of(strategy) == 1:
        return values
    table = _gathered(strategy, values.ravel().tolist())
    # All replicas of a worker have the same row.
    each = len(table) // workers_of(strategy)
    return table[::each].sum(axis=0, dtype=np.float64).reshape(values.shape)


def check_agreement(strategy: tf.distribute.Strategy, facts: dict[str, str], fixes: dict[str, str]) -> None:
    """Check that all workers see the same experiment.

    Args:
        strategy: all of its workers must call this function.
        facts: values that must be the same on all workers, such as {"the dataset": fingerprint}.
        fixes: how to fix a difference, for each fact.

    Raises:
        ConfigError: a fact differs; raised on every worker.
    """
    if workers_of(strategy) == 1:
        return
    codes = [float(zlib.crc32(value.encode()) % _EXACT_IN_FLOAT32) for value in facts.values()]
    table = _gathered(strategy, codes)
    for column, (what, value) in enumerate(facts.items()):
        other = np.flatnonzero(table[:, column] != table[0, column])
        if other.size:
            each = len(table) // workers_of(strategy)
            me = worker_of(strategy)
            seen = f" (worker {me}: {value})" if len(value) < 80 else ""
            raise ConfigError(f"workers 0 and {other[0] // each} differ in {what}{seen}; {fixes[what]}")


@contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy, run: AnyPath) -> Iterator[None]:
    """Convert TensorFlow's errors about a lost worker to a RunError that explains how to continue."""
    try:
        yield
    except _LOST as error:
        if workers_of(strategy) == 1:
            raise
        me = worker_of(strategy)
        raise RunError(
            f"{run}: a worker other than this one (number {me}) is gone or cannot be reached ({type(error).__name__}); "
            "start all workers again and resume the run"
        ) from None


def _several(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _gathered(strategy: tf.distribute.Strategy, values: list[float]) -> np.ndarray:
    """Gather the values of all replicas, [replicas, values]: each replica adds its row to a table of zeros."""
    rows = strategy.run(_replica_row, args=(tf.constant(values, tf.float32),))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, rows, axis=None).numpy()


@tf.function  # defined at module level, because the strategy caches traced functions
def _replica_row(row):
    replica = tf.distribute.get_replica_context()
    return tf.one_hot(replica.replica_id_in_sync_group, replica.num_replicas_in_sync)[:, None] * row[None]
