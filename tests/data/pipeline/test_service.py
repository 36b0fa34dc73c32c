"""The data service in separate processes, as `gitseg data-service` starts them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest
import tensorflow as tf

from gitseg_tf.data.pipeline.service import distribute, host_and_port, using_service, workers_of

pytestmark = pytest.mark.service

COMMAND = [sys.executable, "-c", "from gitseg_tf.cli import main; raise SystemExit(main())", "data-service"]
SHARDS, IN_SHARD, EPOCHS = 8, 20, 2


class Running:
    """A running `gitseg data-service` and its output up to the line about its workers."""

    def __init__(self, *arguments, until):
        command = [*COMMAND, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.output = ""
        while line := self.process.stdout.readline():
            self.output += line
            if line.startswith(until):
                return
        raise AssertionError(self.process.communicate()[1])

    @property
    def address(self):
        return re.search(r"grpc://\S+:\d+", self.output)[0]

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.communicate()


@pytest.fixture(scope="module")
def local():
    """A dispatcher and two workers started by one command."""
    running = Running("--workers", 2, until="workers")
    yield running
    assert running.stop() == 0


def epochs_by(local, work=5):
    """EPOCHS shuffles of the same elements, cut like the training windows: epochs by flat_map, elements by shards."""
    workers = workers_in(local)

    def one_epoch(epoch):
        tf.random.set_seed(1)  # not 0, because 0 would be compared with a tensor
        shards = tf.data.Dataset.range(SHARDS).shuffle(SHARDS, seed=epoch, reshuffle_each_iteration=False)
        elements = shards.interleave(
            lambda shard: tf.data.Dataset.range(shard * IN_SHARD, (shard + 1) * IN_SHARD),
            cycle_length=2,
            num_parallel_calls=2,
            deterministic=True,
        )
        elements = elements.map(lambda element: (epoch, element, process_after(work, element, workers)))
        elements = elements.shuffle(16, seed=epoch, reshuffle_each_iteration=False)
        return distribute(elements, local.address).repeat().take(SHARDS * IN_SHARD)

    return tf.data.Dataset.range(EPOCHS).flat_map(one_epoch).as_numpy_iterator()


def workers_in(local):
    """The process numbers of the workers that one command started."""
    return [int(number) for number in re.findall(r"process (\d+)", local.output)]


def process_after(work, element, processes):
    """The process that computes this, after some work: the one that has a thread of its number; 0 if none does."""
    value = tf.random.stateless_uniform([200, 200], [1, element])
    for _ in range(work):
        value = tf.matmul(value, value) / 200
    threads = tf.strings.split(tf.io.matching_files("/proc/self/task/*"), "/").to_tensor()[:, -1]
    processes = tf.constant(processes, tf.int64)
    dispatcher = tf.reduce_any(tf.strings.to_number(threads, tf.int64)[:, None] == processes, 0)
    return tf.reduce_max(tf.where(dispatcher, processes, 0)) + tf.cast(value[0, 0] * 0, tf.int64)


def test_two_workers_yield_every_element_once_per_epoch_and_epochs_in_order(local):
    found = list(epochs_by(local))
    for epoch in range(EPOCHS):
        part = found[epoch * SHARDS * IN_SHARD : (epoch + 1) * SHARDS * IN_SHARD]
        assert {number for number, _, _ in part} == {epoch}
        assert Counter(element for _, element, _ in part) == Counter(range(SHARDS * IN_SHARD))
    # On a busy machine one of the workers may get no work.
    workers = set(workers_in(local))
    assert len(workers) == 2 and {process for _, _, process in found} <= workers


def test_a_killed_worker_is_restarted_and_the_epochs_finish(local):
    victim = workers_in(local)[0]
    found = []
    for count, element in enumerate(epochs_by(local)):
        found.append(element)
        if count == SHARDS * IN_SHARD // 3:
            os.kill(victim, signal.SIGKILL)
    first, second = found[: SHARDS * IN_SHARD], found[SHARDS * IN_SHARD :]
    assert len(found) == EPOCHS * SHARDS * IN_SHARD
    assert {number for number, _, _ in first} == {0}
    # The elements of the killed worker are lost; only those that fill up the epoch appear twice.
    assert len({element for _, element, _ in first}) > SHARDS * IN_SHARD // 3
    assert Counter(element for _, element, _ in second) == Counter(range(SHARDS * IN_SHARD))
    # The line has been written by now, possibly after lines by TensorFlow.
    lines = [local.process.stderr.readline()]
    while lines[-1] and "restarting it" not in lines[-1] and len(lines) < 20:
        lines.append(local.process.stderr.readline())
    assert "restarting it" in lines[-1]


def test_a_worker_failure_is_a_one_line_error_with_its_cause(local, refusal):
    def read_nothing():
        with using_service(local.address):
            list(distribute(tf.data.TFRecordDataset(["/nowhere/shard.tfrecord"]), local.address))

    message = refusal(read_nothing)
    assert (
        "/nowhere/shard.tfrecord" in message and local.address in message and "must be able to open the data" in message
    )


def test_separate_dispatcher_and_worker_commands_exit_with_0():
    dispatcher = Running("--dispatcher", "--host", "localhost", until="workers")
    assert workers_of(dispatcher.address) == []
    worker = Running("--worker", "--dispatcher-address", dispatcher.address, until="worker")
    assert f"grpc://{workers_of(dispatcher.address)[0]}" == worker.address
    assert list(distribute(tf.data.Dataset.range(5), dispatcher.address).as_numpy_iterator()) == [0, 1, 2, 3, 4]
    assert worker.stop(signal.SIGINT) == 0
    assert dispatcher.stop() == 0


@pytest.fixture(scope="module")
def dispatcher():
    """A dispatcher in this process."""
    return tf.data.experimental.service.DispatchServer(tf.data.experimental.service.DispatcherConfig(port=0))


def enter(address):
    with using_service(address):
        pass


def test_a_service_without_a_worker_is_refused(dispatcher, refusal):
    assert "has no worker" in refusal(enter, dispatcher.target)


@pytest.mark.parametrize("address", ["localhost:5000", "grpc://localhost", "grpc://a b:1", "grpc://localhost:70000"])
def test_an_invalid_address_is_refused(address, refusal):
    assert "grpc://HOST:PORT" in refusal(enter, address)


def test_an_unreachable_service_is_reported_within_seconds(refusal):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        assert "no data service responds" in refusal(enter, f"grpc://127.0.0.1:{port}")
    assert "no data service responds" in refusal(enter, f"grpc://127.0.0.1:{port}")
    assert time.monotonic() - started < 15


def test_a_lost_worker_is_logged_while_the_service_is_used(dispatcher, refusal, caplog):
    service = tf.data.experimental.service
    worker = service.WorkerServer(service.WorkerConfig(host_and_port(dispatcher.target)))
    (worker_address,) = workers_of(dispatcher.target)
    assert "is not the dispatcher" in refusal(enter, f"grpc://{worker_address}")
    with using_service(dispatcher.target, interval=0.05):
        time.sleep(0.3)
        assert caplog.messages == []
        worker.stop()
        del worker
        deadline = time.monotonic() + 10
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.05)
    (message,) = caplog.messages
    assert worker_address in message and "no longer responds" in message


def test_no_address_means_no_check():
    enter(None)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--worker"], ["--dispatcher", "--dispatcher-address", "grpc://a:1"], ["--worker", "--workers", "2"]],
)
def test_wrong_usage_exits_with_2(arguments):
    from gitseg_tf.cli import main

    with pytest.raises(SystemExit) as exit_info:
        main(["data-service", *arguments])
    assert exit_info.value.code == 2


def test_a_port_in_use_is_reported(capsys):
    from gitseg_tf.cli import main

    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["data-service", "--dispatcher", "--port", str(port)]) == 1
    assert f"port {port} cannot be used" in capsys.readouterr().err
