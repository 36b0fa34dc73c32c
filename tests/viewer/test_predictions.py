import shutil
import time

import numpy as np
import pytest
from helpers import workers

from gitseg_tf.inference.predictor import load_predictor
from gitseg_tf.viewer import predictions as module
from gitseg_tf.viewer.catalog import open_library
from gitseg_tf.viewer.contours import labels_shown, pack_groups

GRACE = 300  # seconds after which a test fails instead of waiting


def states_until_done(client, number):
    states, end = [], time.monotonic() + GRACE
    while time.monotonic() < end:
        answer = client.get(f"/api/scans/{number}/prediction").json()
        if [answer] != states[-1:]:
            states.append(answer)
        if answer["state"] not in ("waiting", "running"):
            return states
        time.sleep(0.02)
    raise AssertionError(states)


@pytest.mark.slow
def test_a_scan_is_predicted_by_the_run_while_its_slices_are_served(untrained, tiny_cohort, serve):
    library, predictor = open_library(untrained), load_predictor(untrained)
    with serve(library) as client:
        for scan_id in ("case2_day0", "case5_day0"):
            number = client.number_of(scan_id)
            assert client.get(f"/api/scans/{number}/prediction/axial/2").status == 404
            assert client.get(f"/api/scans/{number}/prediction").json()["state"] in ("waiting", "running")
            assert client.get(f"/api/scans/{number}/image/axial/2").status == 200
            states = states_until_done(client, number)
            assert states[-1] == {"state": "ready", "line": ""}
            masks = predictor.predict(library.entries[number].read_volume()).masks
            expected = pack_groups(masks)[0]
            assert expected.any() and not expected.all()
            actual = client.get(f"/api/scans/{number}/prediction/axial/2").content
            np.testing.assert_array_equal(np.frombuffer(actual, np.uint8).reshape(expected[2].shape), expected[2])
            labels = client.get(f"/api/scans/{number}/prediction/labels").json()["axial"]
            assert labels == labels_shown(pack_groups(masks), 3)["axial"]


def test_a_cohort_has_no_predictions(tiny_cohort, serve):
    with serve(open_library(tiny_cohort.root)) as client:
        assert client.get("/api/scans/0/prediction").json() == {"state": "none", "line": ""}


def test_damaged_weights_are_reported(untrained, serve, tmp_path):
    run = shutil.copytree(untrained, tmp_path / "run")
    for weights in (run / "checkpoints").rglob("*"):
        if weights.is_file():
            weights.write_bytes(weights.read_bytes()[:100])
    with serve(open_library(run)) as client:
        final = states_until_done(client, 0)[-1]
        assert final["state"] == "failed" and "does not fit the network" in final["line"]
        assert client.get("/api/scans/0/image/axial/0").status == 200


def test_an_unreadable_scan_is_not_predicted(untrained, tiny_cohort, serve, tmp_path):
    root = shutil.copytree(tiny_cohort.root, tmp_path / "cohort")
    library = open_library(untrained, root)
    path = sorted((root / "train/case1/case1_day0/scans").iterdir())[0]
    path.unlink()
    with serve(library) as client:
        final = states_until_done(client, client.number_of("case1_day0"))[-1]
        assert final["state"] == "failed" and str(path) in final["line"]


def test_a_dead_prediction_process_is_reported_and_replaced(untrained, serve, monkeypatch):
    monkeypatch.setattr(module, "_work", workers.die)
    with serve(open_library(untrained)) as client:
        for number in (0, 1):
            final = states_until_done(client, number)[-1]
            assert final["state"] == "failed" and "exited with status 7" in final["line"]


@pytest.mark.slow
def test_a_failed_prediction_is_retried_on_request(untrained, serve, monkeypatch):
    with serve(open_library(untrained)) as client:
        with monkeypatch.context() as patched:
            patched.setattr(module, "_work", workers.die)
            assert states_until_done(client, 0)[-1]["state"] == "failed"
        assert states_until_done(client, 0)[-1] == {"state": "ready", "line": ""}


def test_later_predictions_wait_and_the_server_stops_without_waiting_for_them(untrained, serve, monkeypatch):
    monkeypatch.setattr(module, "_work", workers.wait)
    begun = time.monotonic()
    with serve(open_library(untrained)) as client:
        end = time.monotonic() + GRACE
        while client.get("/api/scans/0/prediction").json()["line"] != "loading the network":
            assert time.monotonic() < end
        for number in (1, 2):
            assert client.get(f"/api/scans/{number}/prediction").json()["state"] == "waiting"
        assert client.get("/api/scans/0/prediction").json()["state"] == "running"
    assert time.monotonic() - begun < GRACE, "the server waited for the prediction when it stopped"


@pytest.mark.parametrize("number", [9, -1])
def test_an_unknown_scan_has_no_prediction(untrained, serve, number):
    with serve(open_library(untrained)) as client:
        assert client.get(f"/api/scans/{number}/prediction").status == 404
