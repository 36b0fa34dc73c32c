"""tf.data service: other processes and machines read, prepare and window the training data.

A dispatcher hands the shards of an epoch to its workers, each shard to one of them, and the training process collects
the windows. See https://www.tensorflow.org/api_docs/python/tf/data/experimental/service.
"""

import re
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gitseg_tf.errors import InputError

_ANSWER_SECONDS = 5
_ADDRESS = re.compile(r"grpc://([^\s/]+):(\d{1,5})")


def distribute(dataset, address: str):
    """Let a data service compute a dataset, once over all its workers.

    Without a loss the elements are those of the dataset, each once; with several workers their order changes from one
    iteration to the next. When a worker is lost, what it had not sent of its unfinished shards is missing, and the
    iteration waits at its end until a worker is started again at the same address; what the shards behind them hold is
    there. `.repeat().take(n)` on the result keeps an epoch at n elements all the same.

    Args:
        dataset: tf.data.Dataset of TensorFlow operations alone, for a Python function does not travel to a worker; its
            source gives shards (or other parts that can be processed apart), by paths that the workers can open. An
            `interleave` of it needs num_parallel_calls: each worker would process all shards (seen, TensorFlow 2.21).
        address: grpc://HOST:PORT of the dispatcher, checked by `using_service`.

    Returns:
        tf.data.Dataset of the same elements. May be called in a function of `flat_map`, which makes each epoch an
        iteration of its own: no epoch begins before the one before it is complete.
    """
    import tensorflow as tf

    service = tf.data.experimental.service
    with warnings.catch_warnings():
        # Of options that cannot be read in a graph; nothing depends on them here.
        warnings.filterwarnings("ignore", message="To make it possible to preserve tf.data options")
        return dataset.apply(service.distribute(service.ShardingPolicy.DYNAMIC, address))


@contextmanager
def using_service(
    address: str | None, say: Callable[[str], None] | None = None, interval: float = 10.0
) -> Iterator[None]:
    """Check a data service, and say while it is used when a part of it stops or comes back.

    Args:
        address: grpc://HOST:PORT of the dispatcher; None is no service.
        say: takes lines for the user; None prints them to stderr, above the progress bar.
        interval: seconds between two checks.

    Raises:
        InputError: the address is none; no dispatcher answers there within seconds, or it has no worker; a worker fails
            while the service is used.
    """
    if address is None:
        yield
        return
    import tensorflow as tf

    if not workers_of(address):
        raise InputError(
            f"{address}: the data service has no worker; "
            f"start one with gitseg data-service --worker --dispatcher-address {address}"
        )
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(address, say or _above_the_bar, interval, ended), daemon=True)
    watch.start()
    try:
        yield
    except tf.errors.DataLossError:
        raise  # of a damaged shard, which the caller finds
    except tf.errors.OpError as error:
        cause = re.search(r"(Failed to \w+ \w+ from worker|[Dd]ispatcher|data service).*", error.message)
        if cause is None:
            raise
        missing = isinstance(error, tf.errors.NotFoundError) and "No such file" in cause[0]
        cure = "its workers must open the data by this path" if missing else "start it anew and go on with --resume"
        raise InputError(f"{address}: the data service failed ({cause[0]}); {cure}") from None
    finally:
        ended.set()
        watch.join()


def workers_of(address: str) -> list[str]:
    """Ask a dispatcher for its workers.

    Args:
        address: grpc://HOST:PORT.

    Returns:
        HOST:PORT of each worker that has ever come to it; they may be gone.

    Raises:
        InputError: that is no address, or no dispatcher answers there within seconds.
    """
    import grpc

    with grpc.insecure_channel(host_and_port(address)) as channel:
        # Of TensorFlow's dispatcher.proto; its classes are not part of the Python package.
        ask = channel.unary_unary("/tensorflow.data.DispatcherService/GetWorkers")
        try:
            reply = ask(b"", timeout=_ANSWER_SECONDS)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                raise InputError(
                    f"{address}: is no dispatcher of a data service; give the address that "
                    "gitseg data-service --dispatcher printed"
                ) from None
            raise InputError(
                f"{address}: no data service answers; start one with gitseg data-service --dispatcher"
            ) from None
    return [_fields(worker)[0].decode() for worker in _fields(reply)]


def host_and_port(address: str) -> str:
    """HOST:PORT of grpc://HOST:PORT.

    Raises:
        InputError: that is no such address.
    """
    match = _ADDRESS.fullmatch(address)
    if not match or not 0 < int(match[2]) < 2**16:
        raise InputError(f"{address}: is no address of a data service; write it as grpc://HOST:PORT")
    return f"{match[1]}:{match[2]}"


def _fields(message: bytes) -> list[bytes]:
    from google.protobuf.empty_pb2 import Empty
    from google.protobuf.unknown_fields import UnknownFieldSet

    return [field.data for field in UnknownFieldSet(Empty.FromString(message))]


def _watch(address: str, say: Callable[[str], None], interval: float, ended: threading.Event) -> None:
    gone: set[str] = set()
    while not ended.wait(interval):
        try:
            workers = workers_of(address)
            now = {worker for worker in workers if not _listens(worker)}
        except InputError:
            now = {address}
        for place in sorted(now - gone):
            cure = "stop this training, start it and use --resume" if place == address else "start it there again"
            say(f"warning    the data service's {place} no longer answers, the epoch will wait for it; {cure}")
        for place in sorted(gone - now):
            say(f"data       {place} answers again")
        gone = now


def _listens(place: str) -> bool:
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS):
            return True
    except OSError:
        return False


def _above_the_bar(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
