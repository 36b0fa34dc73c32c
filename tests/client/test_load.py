"""The checks of benchmarks/serving.py detect wrong answers, accepted malformed requests and growing memory."""

import importlib
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.rule import rule

from gitseg_tf.client.client import read_masks

pytestmark = pytest.mark.service

WAYS = ("grpc", "rest")


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("serving")


@pytest.fixture
def scan():
    return np.random.default_rng(0).integers(0, 60000, (3, 20, 30)).astype(np.uint16)


@pytest.fixture
def urls(server):
    return [server.grpc_url("gitseg"), server.rest_url("gitseg")]


def test_malformed_requests_get_their_status_and_the_server_keeps_running(benchmark, urls, scan):
    for url in urls:
        statuses = {what: call() for what, call in benchmark.malformed(url).items()}
        assert len(statuses) > 7 and {what for what, (result, right) in statuses.items() if result != right} == set()
    result = benchmark.load(urls, [scan], [rule(scan, benchmark.SPACING)], 16, 0.5)
    assert result["wrong"] == 0 and result["answers"] >= 16 and result["refused"] > 0
    assert len(result["times"]) == len(result["latencies"]) == result["answers"]


def test_a_wrong_answer_is_counted(benchmark, urls, scan):
    expected = rule(scan, benchmark.SPACING)
    expected[2, 1, 4, 5] ^= True
    actual = benchmark.load(urls[:1], [scan], [expected], 2, 0.1)
    assert actual["wrong"] == actual["answers"]


@pytest.mark.parametrize("way", [0, 1], ids=WAYS)
def test_a_malformed_request_that_is_accepted_is_counted(benchmark, urls, server, scan, way, monkeypatch):
    _, model = server.serving.find("gitseg", None)
    run = type(model).run

    def lenient(self, name, inputs, *rest):
        if name == "describe":
            return run(self, name, inputs, *rest)
        return run(self, "segment_volume_to_png", inputs if set(inputs) == set(given) else given, *rest)

    given = {"image": scan.astype(np.float32), "spacing": benchmark.SPACING, "numbers": np.arange(len(scan))}
    pngs = run(model, "segment_volume_to_png", given, None)["masks_bytes"]
    monkeypatch.setattr(type(model), "run", lenient)
    result = benchmark.load(urls[way : way + 1], [scan], [read_masks(pngs, scan.shape, 3)], 16, 0.5)
    assert result["wrong"] > 0


def test_a_failed_request_is_counted_and_the_load_continues(benchmark, urls, server, scan, capfd, monkeypatch):
    client = benchmark.client

    def struck_once(url):
        segment = client(url)
        server.serving.faults.codes.append("INTERNAL")
        return segment

    monkeypatch.setattr(benchmark, "client", struck_once)
    result = benchmark.load(urls[:1], [scan], [rule(scan, benchmark.SPACING)], 1, 0.3)
    assert result["wrong"] == 1 and result["answers"] > 1 and "INTERNAL" in capfd.readouterr().err


def memory_of(sizes):
    return np.stack([np.linspace(0, 600, len(sizes)), sizes], 1)


def test_growing_memory_is_distinguished_from_flat_memory(benchmark):
    noise = np.random.default_rng(0).normal(0, 30, 300)
    warming = 1000 * (1 - np.exp(-np.arange(300) / 10))
    flat = benchmark.growth_of(memory_of(1000 + warming + noise))
    rising = benchmark.growth_of(memory_of(1000 + np.linspace(0, 200, 300) + noise))
    assert abs(flat) < 0.02 and rising == pytest.approx(0.135, abs=0.02)
    assert not benchmark.faults_of(0, None, None) and not benchmark.faults_of(0, flat, 0.09)
    assert [len(benchmark.faults_of(*bad)) for bad in ((0, rising, 0), (1, flat, 0), (0, flat, 0.11))] == [1, 1, 1]
    assert benchmark.faults_of(0, float("nan"), None) and benchmark.faults_of(0, flat, float("nan"))


def test_the_load_test_records_and_plots_the_server_memory(benchmark, urls, scan, tmp_path):
    options = SimpleNamespace(minutes=1 / 60)
    result, memory = benchmark.endure(os.getpid(), urls, [scan], [rule(scan, benchmark.SPACING)], options)
    assert result["answers"] >= 16 and result["wrong"] == 0
    assert len(memory) > 5 and (np.diff(memory[:, 0]) > 0).all() and (memory[:, 1] > 50).all()
    benchmark.draw(tmp_path / "load.png", memory, result)
    assert (tmp_path / "load.png").stat().st_size > 5000
