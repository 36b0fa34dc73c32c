"""What several workers must know of each other before and while they train together."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath

_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)
_EXACT_IN_FLOAT32 = 2**24


def workers_of(strategy: tf.distribute.Strategy) -> int:
    """The number of processes that train together."""
    resolver = strategy.cluster_resolver if _several(strategy) else None
    return sum(len(resolver.cluster_spec().job_tasks(job)) for job in resolver.cluster_spec().jobs) if resolver else 1


def any_worker(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """True on all workers as soon as one of them says so; each has to ask at the same step."""
    return bool(np.any(_gathered(strategy, [float(flag)]))) if workers_of(strategy) > 1 else flag


def check_agreement(strategy: tf.distribute.Strategy, facts: dict[str, str], cures: dict[str, str]) -> None:
    """Refuse to train where the workers do not see the same experiment.

    Args:
        strategy: all of its workers have to call this.
        facts: what has to be the same everywhere, such as {"the dataset": fingerprint}.
        cures: what to do about a difference, for each fact.

    Raises:
        InputError: on every worker: the first fact that differs, and where.
    """
    if workers_of(strategy) == 1:
        return
    codes = [float(zlib.crc32(value.encode()) % _EXACT_IN_FLOAT32) for value in facts.values()]
    table = _gathered(strategy, codes)
    for column, (what, value) in enumerate(facts.items()):
        other = np.flatnonzero(table[:, column] != table[0, column])
        if other.size:
            each = len(table) // workers_of(strategy)
            me = strategy.cluster_resolver.task_id or 0
            seen = f" (worker {me}: {value})" if len(value) < 80 else ""
            raise InputError(f"workers 0 and {other[0] // each} differ in {what}{seen}; {cures[what]}")


@contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy, run: AnyPath) -> Iterator[None]:
    """Turn what TensorFlow says when another worker is gone into an InputError that says how to go on."""
    try:
        yield
    except _LOST as error:
        if workers_of(strategy) == 1:
            raise
        me = strategy.cluster_resolver.task_id or 0
        raise InputError(
            f"{run}: another worker than this one (number {me}) is gone or cannot be reached ({type(error).__name__}); "
            "start all of them again with --resume"
        ) from None


def _several(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _gathered(strategy: tf.distribute.Strategy, values: list[float]) -> np.ndarray:
    """The values of all replicas [replicas, values]: each adds its own row to a table of zeros."""
    rows = strategy.run(_own_row, args=(tf.constant(values, tf.float32),))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, rows, axis=None).numpy()


@tf.function  # of the module, not made anew by each caller: the strategy keeps what it traced for it
def _own_row(row):
    replica = tf.distribute.get_replica_context()
    return tf.one_hot(replica.replica_id_in_sync_group, replica.num_replicas_in_sync)[:, None] * row[None]
