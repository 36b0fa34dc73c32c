"""Conversion with Apache Beam's DirectRunner, against the local conversion."""

import builtins

import pytest

from gitseg_tf.cli import main
from gitseg_tf.core.paths import as_path
from gitseg_tf.data.tfrecords.convert import convert


@pytest.fixture
def beam():
    return pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_beam_writes_the_same_bytes_as_the_local_runner(beam, tiny_cohort, tiny_dataset, tmp_path):
    out, options = tmp_path / "out", "--beam-options=--direct_num_workers=2 --direct_running_mode=multi_threading"
    assert main(["convert", str(tiny_cohort.root), str(out), "--folds", "3", "--runner", "beam", options]) == 0
    assert contents(out) == contents(tiny_dataset.root)


def test_beam_workers_write_to_a_bucket(beam, tiny_cohort, tiny_dataset):
    convert(tiny_cohort.root, "ram://test-beam/out", folds=3, runner="beam")
    assert contents(as_path("ram://test-beam/out")) == contents(tiny_dataset.root)


def test_beam_resumes_a_conversion_that_the_local_runner_started(beam, make_cohort, tiny_dataset, tmp_path, refusal):
    cohort, out = make_cohort(tmp_path / "cohort"), tmp_path / "out"
    broken = tiny_dataset.shards[2].scans[0]
    path = next((cohort.root / "train" / broken.case / broken.id / "scans").iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    assert str(path) in refusal(convert, cohort.root, out, folds=3, workers=1)
    first = out / tiny_dataset.shards[0].file
    written = first.stat().st_mtime_ns
    path.write_bytes(whole)
    convert(cohort.root, out, folds=3, resume=True, runner="beam")
    assert first.stat().st_mtime_ns == written
    assert {path.name for path in out.iterdir()} == {path.name for path in tiny_dataset.root.iterdir()}
    assert all(
        (out / shard.file).read_bytes() == (tiny_dataset.root / shard.file).read_bytes()
        for shard in tiny_dataset.shards
    )


def test_a_damaged_slice_is_named_by_the_process_that_started_the_pipeline(
    beam, make_cohort, tiny_dataset, tmp_path, refusal
):
    cohort = make_cohort(tmp_path / "cohort")
    broken = tiny_dataset.shards[1].scans[0]
    path = next((cohort.root / "train" / broken.case / broken.id / "scans").iterdir())
    path.write_bytes(b"no PNG at all")
    assert f"{path}: is not a PNG" in refusal(convert, cohort.root, tmp_path / "out", folds=3, runner="beam")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_without_beam_the_error_says_what_to_install(tiny_cohort, tmp_path, refusal, monkeypatch):
    real = builtins.__import__

    def without_beam(name, *args, **kwargs):
        if name.startswith("apache_beam"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_beam)
    assert "pip install 'gitseg-tf[beam]'" in refusal(
        convert, tiny_cohort.root, tmp_path / "out", folds=3, runner="beam"
    )
