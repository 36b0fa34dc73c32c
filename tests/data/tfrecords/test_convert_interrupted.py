"""Conversions that are killed, run out of disk space, lack permission, or share a folder with another conversion."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from gitseg_tf.cli import main
from gitseg_tf.core.locks import locked
from gitseg_tf.data.tfrecords import convert as conversion
from gitseg_tf.data.tfrecords import shards
from gitseg_tf.data.tfrecords.convert import convert

pytestmark = pytest.mark.process

resource = pytest.importorskip("resource", reason="needs fork, SIGKILL and resource limits")
NOBODY = 65534
# TensorFlow's threads do not survive a fork, so a process without TensorFlow forks once for every conversion.
KILLER = """
import os, random, signal, sys, threading, time
from pathlib import Path
from tqdm import tqdm
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.readers.registry import read_cohort

# All forked processes share the lock of the progress bars, and a killed process may hold it.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0

def forked(out):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            convert(sys.argv[1], out, folds=3, workers=2, resume=True)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child

def ended(child):
    return os.waitpid(child, 0)[1]

def begun(out, child):
    running = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not (out / ".plan.json").exists() and os.waitid(os.P_PID, child, running) is None:
        pass
    return time.perf_counter()

root, moments = Path(sys.argv[2]), random.Random(7)
read_cohort(sys.argv[1])
child = forked(root / "uninterrupted")
start = begun(root / "uninterrupted", child)
assert ended(child) == 0
writing = time.perf_counter() - start
for n in range(20):
    out = root / f"killed{n}"
    child = forked(out)
    if n >= 5:
        begun(out, child)
    time.sleep(moments.uniform(0, writing))
    os.kill(child, signal.SIGKILL)
    status = ended(child)
    half_done = (out / ".plan.json").exists() and not (out / "dataset.json").exists()
    # Flushed, because each forked process would write the buffered output again.
    print(os.WIFSIGNALED(status), half_done, ended(forked(out)), flush=True)
"""


@pytest.fixture(scope="module")
def killed(tiny_cohort, tmp_path_factory):
    """The folder of twenty conversions that were killed and resumed, and [was killed, was half done, exit status]."""
    root = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLER, str(tiny_cohort.root), str(root)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stderr
    return root, [line.split() for line in completed.stdout.splitlines()]


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_killed_conversions_write_the_same_bytes_when_resumed(killed, tiny_dataset):
    root, _ = killed
    assert contents(root / "uninterrupted") == contents(tiny_dataset.root)
    assert [n for n in range(20) if contents(root / f"killed{n}") != contents(tiny_dataset.root)] == []


def test_the_conversions_were_killed_halfway(killed):
    _, ends = killed
    assert len(ends) == 20 and all(status == "0" for *_, status in ends)
    assert sum(half_done == "True" for was_killed, half_done, _ in ends if was_killed == "True") >= 5


@pytest.fixture
def full_disk(monkeypatch):
    """The disk is full when the fifth record is written; full_disk.undo() frees it."""
    write, written = shards.RecordWriter.write, []

    def fail(self, record):
        written.append(record)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, record)

    monkeypatch.setattr(shards.RecordWriter, "write", fail)
    return monkeypatch


def test_a_full_disk_is_reported_in_one_line_and_loses_nothing(tiny_cohort, tiny_dataset, tmp_path, refusal, full_disk):
    out = tmp_path / "out"
    message = refusal(convert, tiny_cohort.root, out, folds=3, workers=1)
    assert f"{out / tiny_dataset.shards[1].file}: cannot be written (No space left on device)" in message
    assert "resume" in message and "--" not in message
    first = out / tiny_dataset.shards[0].file
    written = first.stat().st_mtime_ns
    assert not list(out.glob(".*.tmp")) and not (out / "dataset.json").exists()
    full_disk.undo()
    convert(tiny_cohort.root, out, folds=3, workers=1, resume=True)
    assert first.stat().st_mtime_ns == written and contents(out) == contents(tiny_dataset.root)


@pytest.mark.parametrize("missing", [None, 2], ids=["most of the file", "its last bytes"])
def test_the_file_size_limit_is_reported_in_one_line(tiny_cohort, tiny_dataset, tmp_path, capsys, missing):
    limit = 60_000 if missing is None else tiny_dataset.shards[0].bytes - missing
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        status = main(["convert", str(tiny_cohort.root), str(tmp_path / "out"), "--folds", "3"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 1 and f"{tiny_dataset.shards[0].file}: cannot be written (File too large)" in last


def test_a_full_disk_while_writing_the_index_is_reported(tiny_cohort, tmp_path, refusal, monkeypatch):
    def fail(dataset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gitseg_tf.data.tfrecords.convert.save_index", fail)
    message = refusal(convert, tiny_cohort.root, tmp_path / "out", folds=3, workers=1)
    assert f"{tmp_path / 'out' / 'dataset.json'}: cannot be written (No space left on device)" in message


@pytest.fixture
def sealed():
    """A folder in which nothing can be created."""
    with tempfile.TemporaryDirectory() as name:
        is_root = os.geteuid() == 0
        os.chmod(name, 0o555)
        if is_root:
            os.seteuid(NOBODY)
        yield Path(name)
        if is_root:
            os.seteuid(0)
        os.chmod(name, 0o755)


@pytest.fixture(scope="module")
def public(make_cohort):
    """A cohort that every user of the machine can read."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield make_cohort(Path(name) / "cohort")


@pytest.mark.parametrize("subfolder", ["out", "."])
def test_a_folder_without_permission_is_reported_in_one_line(public, sealed, capsys, subfolder):
    assert main(["convert", str(public.root), str(sealed / subfolder), "--folds", "3"]) == 1
    assert capsys.readouterr().err.strip().splitlines() == [
        f"gitseg: {sealed / subfolder}" + ("" if subfolder == "out" else "/.lock") + ": Permission denied"
    ]


def test_a_second_conversion_reports_the_first_process(tiny_cohort, tmp_path, refusal):
    with locked(tmp_path, wait=False):
        message = refusal(convert, tiny_cohort.root, tmp_path, folds=3)
    assert f"process {os.getpid()} is writing to this folder" in message and "resume once it has finished" in message
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_reported_and_used(tiny_cohort, tiny_dataset, tmp_path, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    convert(tiny_cohort.root, tmp_path / "out", folds=3)
    assert f"{tmp_path / 'out'}: file locks are not supported (Function not implemented)" in caplog.text
    assert contents(tmp_path / "out") == contents(tiny_dataset.root)


def test_a_second_conversion_waits_and_reuses_the_result_of_the_first(tiny_cohort, tiny_dataset, tmp_path, monkeypatch):
    out, encoded, results = tmp_path / "out", [], []

    def encode(scan):
        encoded.append(scan.id)
        time.sleep(0.02)
        return shards.encode_scan(scan)

    monkeypatch.setattr(conversion, "encode_scan", encode)
    both = [
        threading.Thread(target=lambda: results.append(convert(tiny_cohort.root, out, folds=3, workers=1, resume=True)))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(30)
    assert len(results) == 2 and results[0] == results[1]
    assert sorted(encoded) == sorted(scan.id for scan in tiny_cohort.scans)
    assert contents(out) == contents(tiny_dataset.root)


def test_resuming_removes_leftovers_of_a_finished_conversion(tiny_cohort, tiny_dataset, tmp_path):
    out = convert(tiny_cohort.root, tmp_path / "out", folds=3).root
    ids = [[shard.file, shard.fold, [scan.id for scan in shard.scans]] for shard in tiny_dataset.shards]
    (out / ".plan.json").write_text(json.dumps({"version": 1, "folds": 3, "seed": 0, "shards": ids}))
    (out / f"{tiny_dataset.shards[0].file}.json").write_text("{}")
    convert(tiny_cohort.root, out, folds=3, resume=True)
    assert contents(out) == contents(tiny_dataset.root)
