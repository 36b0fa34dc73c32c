"""The processes of a tf.data service: a dispatcher, its workers, or both on one machine."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager

from gitseg_tf.data.pipeline.service import host_and_port, workers_of
from gitseg_tf.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_START_SECONDS = 60


def run_dispatcher(port: int = 0, host: str | None = None) -> None:
    """Run a dispatcher until SIGINT or SIGTERM.

    Args:
        port: port to listen on, on all interfaces and without authentication; 0 chooses a free one.
        host: this machine's name in the address that is logged; None is the host name.

    Raises:
        DataError: the port cannot be used.
    """
    with _until_stopped() as stopped:
        server = _dispatcher(port)
        address = f"grpc://{host or socket.gethostname()}:{_port_of(server)}"
        logger.info("dispatcher %s\nworkers    connect them to this address; see gitseg data-service", address)
        stopped.wait()


def run_worker(dispatcher: str, port: int = 0, host: str | None = None) -> None:
    """Run a worker until SIGINT or SIGTERM.

    Args:
        dispatcher: grpc://HOST:PORT of the dispatcher.
        port: port to listen on, on all interfaces and without authentication; 0 chooses a free one. A worker that
            replaces a lost one must have the same port and host.
        host: the name by which the training process reaches this machine; None is the local address of this machine's
            connection to the dispatcher.

    Raises:
        DataError: no dispatcher answers, or the port cannot be used.
    """
    import tensorflow as tf

    target = host_and_port(dispatcher)
    workers_of(dispatcher)
    host, service = host or _local_address_towards(target), tf.data.experimental.service
    with _until_stopped() as stopped:
        config = service.WorkerConfig(target, worker_address=f"{host}:%port%", port=port, heartbeat_interval_ms=5000)
        server = _start_server(lambda: service.WorkerServer(config), port)
        bound = _port_of(server)
        logger.info(
            "worker     grpc://%s:%d for %s; if it is lost, restart it with host %s and port %d",
            host, bound, dispatcher, host, bound,
        )  # fmt: skip
        stopped.wait()


def run_local(workers: int, port: int = 0) -> None:
    """Run a dispatcher and workers on this machine until SIGINT or SIGTERM; a worker that dies is restarted.

    Args:
        workers: number of worker processes.
        port: port of the dispatcher; 0 chooses a free one.

    Raises:
        ConfigError: fewer than one worker.
        DataError: the port cannot be used, or a worker does not start.
    """
    if workers < 1:
        raise ConfigError(f"workers must be >= 1, got {workers}")
    with _until_stopped() as stopped, ExitStack() as started:
        server = _dispatcher(port)
        address = f"grpc://localhost:{_port_of(server)}"
        ports = _free_ports(workers)
        processes = {number: _start_worker(address, number, started) for number in ports}
        deadline = time.monotonic() + _START_SECONDS
        while len(workers_of(address)) < workers and not stopped.wait(0.2):
            if time.monotonic() > deadline or any(process.poll() for process in processes.values()):
                raise DataError(f"{address}: its workers did not start; see their output above")
        if not stopped.is_set():
            descriptions = (f"port {number} (process {process.pid})" for number, process in processes.items())
            logger.info("dispatcher %s\nworkers    %s", address, ", ".join(descriptions))
        while not stopped.wait(0.5):
            for number, process in processes.items():
                if process.poll() == 1:
                    raise DataError(f"{address}: the worker on port {number} did not start; see its output above")
                if process.poll():
                    logger.warning(
                        "the worker on port %d exited with status %d; restarting it", number, process.returncode
                    )
                    processes[number] = _start_worker(address, number, started)
        for process in processes.values():
            process.terminate()  # terminate all first, because each takes a few seconds to exit


def _dispatcher(port: int):
    import tensorflow as tf

    service = tf.data.experimental.service
    return _start_server(lambda: service.DispatchServer(service.DispatcherConfig(port=port)), port)


def _start_server(make: Callable, port: int):
    import tensorflow as tf

    # TensorFlow's server does not report that a port is already in use.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise DataError(f"port {port} cannot be used ({error}); choose another") from None
    try:
        return make()
    except (RuntimeError, tf.errors.OpError) as error:
        raise DataError(f"port {port}: the server did not start ({str(error).splitlines()[0]})") from None


def _port_of(server) -> int:
    return int(server._address.rpartition(":")[2])


def _local_address_towards(server: str) -> str:
    host, _, port = server.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), 5) as connection:
        address = connection.getsockname()[0]
    return f"[{address}]" if ":" in address else address


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _start_worker(address: str, port: int, started: ExitStack) -> subprocess.Popen:
    arguments = ["data-service", "--worker", "--dispatcher-address", address, "--host", "localhost", "--port", port]
    code = "from gitseg_tf.cli import main; raise SystemExit(main())"
    # `import_tensorflow` sets this variable; if inherited, it would make the worker print every TensorFlow notice.
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.DEVNULL, env=environment
    )
    started.callback(_end, process)
    return process


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _until_stopped():
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
