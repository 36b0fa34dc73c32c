"""The data service in processes of its own, as `gitseg data-service` starts them."""

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

from gitseg_tf.data.service import distribute, host_and_port, using_service, workers_of

COMMAND = [sys.executable, "-c", "from gitseg_tf.cli import main; raise SystemExit(main())", "data-service"]
SHARDS, IN_SHARD, EPOCHS = 8, 20, 2


class Running:
    """A `gitseg data-service` that was started, up to the line about its workers."""

    def __init__(self, *arguments, until):
        command = [*COMMAND, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = ""
        while line := self.process.stdout.readline():
            self.said += line
            if line.startswith(until):
                return
        raise AssertionError(self.process.communicate()[1])

    @property
    def address(self):
        return re.search(r"grpc://\S+:\d+", self.said)[0]

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.communicate()


@pytest.fixture(scope="module")
def local():
    """A dispatcher and two workers by one command."""
    running = Running("--workers", 2, until="workers")
    yield running
    assert running.stop() == 0


def epochs_by(local, work=5):
    """EPOCHS shuffles of the same elements, cut like the training windows: epochs by flat_map, elements by shards."""
    workers = workers_in(local)

    def one_epoch(epoch):
        tf.random.set_seed(1)  # not 0, for then it would be compared with a tensor
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
    return [int(number) for number in re.findall(r"process (\d+)", local.said)]


def process_after(work, element, processes):
    """Which of the processes computes this, after some work: the one that has a thread of its number; 0 is none."""
    value = tf.random.stateless_uniform([200, 200], [1, element])
    for _ in range(work):
        value = tf.matmul(value, value) / 200
    threads = tf.strings.split(tf.io.matching_files("/proc/self/task/*"), "/").to_tensor()[:, -1]
    processes = tf.constant(processes, tf.int64)
    here = tf.reduce_any(tf.strings.to_number(threads, tf.int64)[:, None] == processes, 0)
    return tf.reduce_max(tf.where(here, processes, 0)) + tf.cast(value[0, 0] * 0, tf.int64)


def test_two_workers_show_every_element_of_an_epoch_once_and_no_epoch_before_the_last_is_complete(local):
    found = list(epochs_by(local))
    for epoch in range(EPOCHS):
        part = found[epoch * SHARDS * IN_SHARD : (epoch + 1) * SHARDS * IN_SHARD]
        assert {number for number, _, _ in part} == {epoch}
        assert Counter(element for _, element, _ in part) == Counter(range(SHARDS * IN_SHARD))
    # A machine that is busy may leave one of the workers without work.
    workers = set(workers_in(local))
    assert len(workers) == 2 and {process for _, _, process in found} <= workers


def test_a_worker_that_is_killed_is_started_again_and_the_epochs_come_to_their_end(local):
    victim = workers_in(local)[0]
    found = []
    for count, element in enumerate(epochs_by(local)):
        found.append(element)
        if count == SHARDS * IN_SHARD // 3:
            os.kill(victim, signal.SIGKILL)
    first, second = found[: SHARDS * IN_SHARD], found[SHARDS * IN_SHARD :]
    assert len(found) == EPOCHS * SHARDS * IN_SHARD
    assert {number for number, _, _ in first} == {0}
    # What the killed worker had in hand is lost, and shown twice is only what fills the epoch up.
    assert len({element for _, element, _ in first}) > SHARDS * IN_SHARD // 3
    assert Counter(element for _, element, _ in second) == Counter(range(SHARDS * IN_SHARD))
    assert "started again" in local.process.stdout.readline()


def test_what_fails_in_a_worker_is_one_line_with_its_cause(local, refusal):
    def read_nothing():
        with using_service(local.address):
            list(distribute(tf.data.TFRecordDataset(["/nowhere/shard.tfrecord"]), local.address))

    said = refusal(read_nothing)
    assert "/nowhere/shard.tfrecord" in said and local.address in said and "must open the data" in said


def test_a_dispatcher_and_a_worker_by_commands_of_their_own_end_with_0():
    dispatcher = Running("--dispatcher", "--host", "localhost", until="workers")
    assert workers_of(dispatcher.address) == []
    worker = Running("--worker", "--dispatcher-address", dispatcher.address, until="worker")
    assert f"grpc://{workers_of(dispatcher.address)[0]}" == worker.address
    assert list(distribute(tf.data.Dataset.range(5), dispatcher.address).as_numpy_iterator()) == [0, 1, 2, 3, 4]
    assert worker.stop(signal.SIGINT) == 0
    assert dispatcher.stop() == 0


@pytest.fixture(scope="module")
def here():
    """A dispatcher in this process."""
    return tf.data.experimental.service.DispatchServer(tf.data.experimental.service.DispatcherConfig(port=0))


def enter(address):
    with using_service(address):
        pass


def test_a_service_without_a_worker_is_refused(here, refusal):
    assert "has no worker" in refusal(enter, here.target)


@pytest.mark.parametrize("address", ["localhost:5000", "grpc://localhost", "grpc://a b:1", "grpc://localhost:70000"])
def test_what_is_no_address_is_refused(address, refusal):
    assert "grpc://HOST:PORT" in refusal(enter, address)


def test_nobody_at_the_address_is_said_within_seconds(refusal):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        assert "no data service answers" in refusal(enter, f"grpc://127.0.0.1:{port}")
    assert "no data service answers" in refusal(enter, f"grpc://127.0.0.1:{port}")
    assert time.monotonic() - started < 15


def test_a_lost_worker_is_said_while_the_service_is_used(here, refusal):
    service = tf.data.experimental.service
    worker = service.WorkerServer(service.WorkerConfig(host_and_port(here.target)))
    (place,) = workers_of(here.target)
    assert "is no dispatcher" in refusal(enter, f"grpc://{place}")
    said = []
    with using_service(here.target, said.append, interval=0.05):
        time.sleep(0.3)
        assert said == []
        worker.stop()
        del worker
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(said) == 1 and place in said[0] and "no longer answers" in said[0]


def test_no_service_is_no_check():
    enter(None)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--worker"], ["--dispatcher", "--dispatcher-address", "grpc://a:1"], ["--worker", "--workers", "2"]],
)
def test_wrong_usage_exits_with_2(arguments):
    from gitseg_tf.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["data-service", *arguments])
    assert stop.value.code == 2


def test_a_port_that_is_taken_is_said(capsys):
    from gitseg_tf.cli import main

    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["data-service", "--dispatcher", "--port", str(port)]) == 1
    assert f"--port {port}: cannot be used" in capsys.readouterr().err
