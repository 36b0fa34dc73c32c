"""The processes of a tf.data service: a dispatcher, its workers, or both on one machine."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager

from gitseg_tf.data.service import host_and_port, workers_of
from gitseg_tf.errors import InputError

_START_SECONDS = 60


def run_dispatcher(port: int = 0, host: str | None = None, say: Callable[[str], None] = print) -> None:
    """Run a dispatcher until SIGINT or SIGTERM.

    Args:
        port: where it listens, on all interfaces and to everybody; 0 is a free one.
        host: this machine's name in the address that is said; None is the host name.
        say: takes lines for the user.

    Raises:
        InputError: the port cannot be used.
    """
    with _until_stopped() as stopped:
        server = _dispatcher(port)
        address = f"grpc://{host or socket.gethostname()}:{_port_of(server)}"
        say(f"dispatcher {address}\nworkers    gitseg data-service --worker --dispatcher-address {address}")
        stopped.wait()


def run_worker(dispatcher: str, port: int = 0, host: str | None = None, say: Callable[[str], None] = print) -> None:
    """Run a worker until SIGINT or SIGTERM.

    Args:
        dispatcher: grpc://HOST:PORT of the dispatcher.
        port: where it listens, on all interfaces and to everybody; 0 is a free one. A worker that takes the place of a
            lost one has its port and host.
        host: the name by which the training reaches this machine; None is the address with which this machine reaches
            the dispatcher.
        say: takes lines for the user.

    Raises:
        InputError: no dispatcher answers, or the port cannot be used.
    """
    import tensorflow as tf

    place = host_and_port(dispatcher)
    workers_of(dispatcher)
    host, service = host or _own_address_towards(place), tf.data.experimental.service
    with _until_stopped() as stopped:
        config = service.WorkerConfig(place, worker_address=f"{host}:%port%", port=port, heartbeat_interval_ms=5000)
        server = _started(lambda: service.WorkerServer(config), port)
        own = _port_of(server)
        say(f"worker     grpc://{host}:{own} for {dispatcher}; after a loss start it with --host {host} --port {own}")
        stopped.wait()


def run_local(workers: int, port: int = 0, say: Callable[[str], None] = print) -> None:
    """Run a dispatcher and workers on this machine until SIGINT or SIGTERM; a worker that dies is started again.

    Args:
        workers: how many, each a process.
        port: of the dispatcher; 0 is a free one.
        say: takes lines for the user.

    Raises:
        InputError: no worker, the port cannot be used, or a worker does not start.
    """
    if workers < 1:
        raise InputError(f"--workers {workers}: at least 1 has to do the work")
    with _until_stopped() as stopped, ExitStack() as started:
        server = _dispatcher(port)
        address = f"grpc://localhost:{_port_of(server)}"
        ports = _free_ports(workers)
        processes = {own: _start_worker(address, own, started) for own in ports}
        deadline = time.monotonic() + _START_SECONDS
        while len(workers_of(address)) < workers and not stopped.wait(0.2):
            if time.monotonic() > deadline or any(process.poll() for process in processes.values()):
                raise InputError(f"{address}: its workers do not start; see what they print above")
        if not stopped.is_set():
            places = (f"port {own} (process {process.pid})" for own, process in processes.items())
            say(f"dispatcher {address}\nworkers    {', '.join(places)}")
        while not stopped.wait(0.5):
            for own, process in processes.items():
                if process.poll() == 1:
                    raise InputError(f"{address}: the worker on port {own} does not start; see what it prints above")
                if process.poll():
                    say(f"warning    the worker on port {own} ended ({process.returncode}); it is started again")
                    processes[own] = _start_worker(address, own, started)
        for process in processes.values():
            process.terminate()  # all at once: each takes some seconds


def _dispatcher(port: int):
    import tensorflow as tf

    service = tf.data.experimental.service
    return _started(lambda: service.DispatchServer(service.DispatcherConfig(port=port)), port)


def _started(make: Callable, port: int):
    import tensorflow as tf

    # TensorFlow's server says nothing of a port that is taken.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: cannot be used ({error}); choose another") from None
    try:
        return make()
    except (RuntimeError, tf.errors.OpError) as error:
        raise InputError(f"--port {port}: the server does not start ({str(error).splitlines()[0]})") from None


def _port_of(server) -> int:
    return int(server._address.rpartition(":")[2])


def _own_address_towards(place: str) -> str:
    host, _, port = place.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), 5) as connection:
        own = connection.getsockname()[0]
    return f"[{own}]" if ":" in own else own


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _start_worker(address: str, port: int, started: ExitStack) -> subprocess.Popen:
    arguments = ["data-service", "--worker", "--dispatcher-address", address, "--host", "localhost", "--port", port]
    code = "from gitseg_tf.cli import main; raise SystemExit(main())"
    # What `quiet` has set here would make the worker print TensorFlow's notices as if its user had asked for them.
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
