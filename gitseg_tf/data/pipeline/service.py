"""tf.data service: other processes and machines read, prepare and window the training data.

A dispatcher assigns each shard of an epoch to one of its workers, and the training process collects the windows. See
https://www.tensorflow.org/api_docs/python/tf/data/experimental/service.
"""

import logging
import re
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from gitseg_tf.errors import DataError, GitsegError

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 5
_ADDRESS = re.compile(r"grpc://([^\s/]+):(\d{1,5})")


def distribute(dataset, address: str):
    """Compute a dataset on a data service, sharded over its workers.

    As long as no worker is lost, each element is produced exactly once; with several workers their order changes from
    one iteration to the next. If a worker is lost, the elements of its unfinished shards that it had not sent are
    missing, and the iteration waits at its end until a worker is restarted at the same address; later shards are
    unaffected. Apply `.repeat().take(n)` to the result to keep an epoch at n elements regardless.

    Args:
        dataset: tf.data.Dataset that consists of TensorFlow operations only, because Python functions cannot be sent to
            workers. Its source yields shards (or other independent parts) by paths that the workers can open. An
            `interleave` needs num_parallel_calls; without it each worker processes all shards (as of TensorFlow 2.21).
        address: grpc://HOST:PORT of the dispatcher, checked by `using_service`.

    Returns:
        tf.data.Dataset of the same elements. In a function passed to `flat_map` each epoch becomes a separate
        iteration: no epoch begins before the previous one is complete.
    """
    import tensorflow as tf

    service = tf.data.experimental.service
    with warnings.catch_warnings():
        # The warning concerns options that cannot be read in a graph; nothing depends on them here.
        warnings.filterwarnings("ignore", message="To make it possible to preserve tf.data options")
        return dataset.apply(service.distribute(service.ShardingPolicy.DYNAMIC, address))


@contextmanager
def using_service(address: str | None, interval: float = 10.0) -> Iterator[None]:
    """Check a data service, and log whenever one of its servers stops or returns while it is used.

    Args:
        address: grpc://HOST:PORT of the dispatcher; None to use no service.
        interval: seconds between two checks.

    Raises:
        DataError: the address is invalid, no dispatcher answers there within seconds, it has no worker, or a worker
            fails while the service is used.
    """
    if address is None:
        yield
        return
    import tensorflow as tf

    if not workers_of(address):
        raise DataError(
            f"{address}: the data service has no worker; start one for this address with gitseg data-service"
        )
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(address, interval, ended), daemon=True)
    watch.start()
    try:
        yield
    except tf.errors.DataLossError:
        raise  # caused by a damaged shard, which the caller identifies
    except tf.errors.OpError as error:
        cause = re.search(r"(Failed to \w+ \w+ from worker|[Dd]ispatcher|data service).*", error.message)
        if cause is None:
            raise
        missing = isinstance(error, tf.errors.NotFoundError) and "No such file" in cause[0]
        fix = (
            "its workers must be able to open the data at this path"
            if missing
            else "restart it and resume the training"
        )
        raise DataError(f"{address}: the data service failed ({cause[0]}); {fix}") from None
    finally:
        ended.set()
        watch.join()


def workers_of(address: str) -> list[str]:
    """Ask a dispatcher for its workers.

    Args:
        address: grpc://HOST:PORT.

    Returns:
        HOST:PORT of each worker that ever registered; some may no longer be running.

    Raises:
        DataError: the address is invalid, or no dispatcher answers there within seconds.
    """
    import grpc

    with grpc.insecure_channel(host_and_port(address)) as channel:
        # This method is defined in TensorFlow's dispatcher.proto, whose classes are not part of the Python package.
        ask = channel.unary_unary("/tensorflow.data.DispatcherService/GetWorkers")
        try:
            reply = ask(b"", timeout=_ANSWER_SECONDS)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                raise DataError(
                    f"{address}: is not the dispatcher of a data service; use the address that the dispatcher logged"
                ) from None
            raise DataError(
                f"{address}: no data service responds; start its dispatcher with gitseg data-service"
            ) from None
    return [_fields(worker)[0].decode() for worker in _fields(reply)]


def host_and_port(address: str) -> str:
    """Extract HOST:PORT from grpc://HOST:PORT.

    Raises:
        DataError: the address is invalid.
    """
    match = _ADDRESS.fullmatch(address)
    if not match or not 0 < int(match[2]) < 2**16:
        raise DataError(f"{address}: is not the address of a data service; write it as grpc://HOST:PORT")
    return f"{match[1]}:{match[2]}"


def _fields(message: bytes) -> list[bytes]:
    from google.protobuf.empty_pb2 import Empty
    from google.protobuf.unknown_fields import UnknownFieldSet

    return [field.data for field in UnknownFieldSet(Empty.FromString(message))]


def _watch(address: str, interval: float, ended: threading.Event) -> None:
    gone: set[str] = set()
    while not ended.wait(interval):
        try:
            workers = workers_of(address)
            now = {worker for worker in workers if not _listens(worker)}
        except GitsegError:
            now = {address}
        for server in sorted(now - gone):
            fix = "stop this training, restart the service and resume" if server == address else "restart it there"
            logger.warning("the data service at %s no longer responds and the epoch is waiting for it; %s", server, fix)
        for server in sorted(gone - now):
            logger.info("data       %s responds again", server)
        gone = now


def _listens(server: str) -> bool:
    host, _, port = server.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS):
            return True
    except OSError:
        return False
