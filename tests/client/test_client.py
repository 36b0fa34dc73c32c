import base64
import json
import logging
import re
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import cv2
import grpc
import nibabel
import numpy as np
import pandas as pd
import pytest
import requests
from helpers.rule import rule
from helpers.server import serve

from gitseg_tf import cli
from gitseg_tf.client.address import parse_address
from gitseg_tf.client.client import connect, read_masks
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import GitsegError, ScanError
from gitseg_tf.inference.prediction import BasePredictor, Prediction
from gitseg_tf.labels import UWMGI

pytestmark = pytest.mark.service

GRPC_LIMIT = 4 << 20
SPACING = (3.0, 1.5, 1.25)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 60000, (5, 20, 30)).astype(np.uint16)


@pytest.fixture
def log_lines():
    """The log lines so far."""
    lines, handler = [], logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("gitseg_tf.client").addHandler(handler)
    yield lines
    logging.getLogger("gitseg_tf.client").removeHandler(handler)


@pytest.fixture
def ask():
    """ask(url, timeout=...) connects with a negligible back-off."""
    return lambda url, **options: connect(url, back_off=(0.01, 0.02), **options)


def segment(predictor, image, numbers=()):
    return predictor.predict(Volume(image, SPACING, tuple(numbers))).masks


def test_the_client_returns_one_mask_per_label(ask, url, image, log_lines):
    masks = segment(ask(url("gitseg")), image)
    assert masks.dtype == bool and masks.shape == (3, 5, 20, 30)
    assert np.array_equal(masks, rule(image, SPACING)) and not log_lines


def test_single_slices_and_constant_scans_are_segmented(ask, url):
    predict = ask(url("gitseg"))
    for image in (np.zeros((1, 7, 5), np.uint16), np.full((2, 1, 1), 65535, np.uint16)):
        assert np.array_equal(segment(predict, image), rule(image, SPACING))


def test_slice_numbers_of_a_scan_with_gaps_are_sent(ask, url, image, log_lines):
    numbers = [1, 2, 7, 8, 9]
    masks = segment(ask(url("gitseg")), image, numbers)
    assert np.array_equal(masks, rule(image, SPACING, numbers)) and not log_lines
    assert not np.array_equal(masks, rule(image, SPACING))


@pytest.mark.parametrize("ending", ["/versions/1", "?version=1"])
def test_a_model_version_can_be_requested(ask, url, image, ending):
    assert np.array_equal(segment(ask(url("gitseg") + ending), image), rule(image, SPACING))


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("nothing", "the server has no model nothing (Servable not found for request: Latest(nothing))"),
        (
            "gitseg/versions/9",
            "the server has no version 9 of model gitseg (Servable not found for request: Specific(git",
        ),
        (
            "windows",
            r"model windows has no signature describe \(it has serving_default\); serve a model exported by this",
        ),
    ],
)
def test_a_missing_model_version_or_signature_is_a_one_line_error(ask, url, refusal, log_lines, model, complaint):
    line = refusal(ask, url(model))
    assert url(model) in line and (complaint in line or re.search(complaint, line)) and not log_lines


def test_a_signature_with_different_inputs_is_refused(tmp_path, ask, refusal):
    import tensorflow as tf

    module = tf.Module()
    module.f = tf.function(lambda volume: {"masks": volume}, [tf.TensorSpec([None], tf.float32, "volume")])
    module.describe = tf.function(lambda keys: {"json_bytes": keys}, [tf.TensorSpec([None], tf.string, "keys")])
    names = "segment_volume_to_png", "segment_png_to_png"
    signatures = dict.fromkeys(names, module.f) | {"describe": module.describe}
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    with serve({"other": {1: tmp_path}}) as started:
        over_grpc, over_rest = (refusal(ask, url("other")) for url in (started.grpc_url, started.rest_url))
    assert "maps volume to masks, not image, numbers, spacing to masks_bytes; serve" in over_grpc
    assert "maps volume to masks, not numbers, png_bytes, spacing to masks_bytes; serve" in over_rest


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_signature_with_an_extra_input_or_output_is_refused_on_connect(ask, url, server, refusal, side):
    """Inputs cannot be omitted, and REST returns a different structure if there are several outputs."""
    signatures = server.serving.models["gitseg"][2].signatures
    sides = [getattr(signatures[name], side) for name in ("segment_volume_to_png", "segment_png_to_png")]
    for tensors in sides:
        tensors["z_more"].name = "more:0"
    line = refusal(ask, url("gitseg"))
    for tensors in sides:
        del tensors["z_more"]
    goes = {"inputs": "spacing, z_more to masks_bytes, not", "outputs": "spacing to masks_bytes, z_more, not"}
    assert goes[side] in line and ask(url("gitseg"))


def test_a_temporarily_unavailable_server_is_retried(ask, url, server, image, log_lines):
    server.serving.faults.metadata_codes.append("UNAVAILABLE")
    predict = ask(url("gitseg"))
    server.serving.requests.clear()
    assert len(log_lines) == 1 and log_lines[0].endswith("struck by the test; retrying in 0.01 s")
    server.serving.faults.codes.extend(["UNAVAILABLE", "UNAVAILABLE"])
    assert np.array_equal(segment(predict, image), rule(image, SPACING))
    assert len(log_lines) == 3 and log_lines[2].endswith("retrying in 0.02 s")
    assert len(server.serving.requests) == 3


def test_a_server_that_cannot_describe_its_labels_is_not_a_scan_error(ask, url, server):
    server.serving.faults.codes.append("INTERNAL")
    with pytest.raises(GitsegError, match=r"does not describe its labels \(.*struck by the test") as caught:
        ask(url("gitseg"))
    assert not isinstance(caught.value, ScanError)


def test_a_busy_server_is_asked_until_it_is_free(ask, url, server, image, log_lines, monkeypatch):
    monkeypatch.setattr("gitseg_tf.client.client._BUSY_SECONDS", (0.001, 0.002))
    predict = ask(url("gitseg"))
    server.serving.requests.clear()
    server.serving.faults.codes.extend(["RESOURCE_EXHAUSTED"] * 9)
    assert np.array_equal(segment(predict, image), rule(image, SPACING))
    assert len(server.serving.requests) == 10
    assert len(log_lines) == 1 and "busy (struck by the test); retrying for up to" in log_lines[0]


def test_32_clients_of_a_server_with_four_threads_lose_nothing(ask, server, image, monkeypatch):
    monkeypatch.setattr("gitseg_tf.client.client._BUSY_SECONDS", (0.01, 0.05))
    predict = ask(server.grpc_url("gitseg"))
    expected = rule(image, SPACING)
    server.serving.faults.threads, server.serving.faults.seconds = 4, 0.02
    with ThreadPoolExecutor(32) as pool:
        masks = list(pool.map(lambda _: segment(predict, image), range(96)))
    assert all(np.array_equal(each, expected) for each in masks)
    assert len(server.serving.requests) >= 96


def test_the_number_of_attempts_is_limited(ask, url, server, image):
    predict = ask(url("gitseg"))
    server.serving.requests.clear()
    server.serving.faults.codes.extend(["UNAVAILABLE"] * 9)
    with pytest.raises(GitsegError, match=r"no response in 3 attempts \(struck by the test\)") as caught:
        segment(predict, image)
    assert not isinstance(caught.value, ScanError)
    assert len(server.serving.requests) == 3


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Files of a key and of a self-signed certificate for localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = (tmp_path_factory.mktemp("tls") / name for name in ("key.pem", "certificate.pem"))
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    openssl += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(openssl, check=True, capture_output=True)
    return key, certificate


def test_grpc_with_tls_requires_a_trusted_certificate(rule_models, certificate, ask, image, refusal, monkeypatch):
    key, trusted = (file.read_bytes() for file in certificate)
    credentials = grpc.ssl_server_credentials([(key, trusted)])
    with serve({"gitseg": rule_models["gitseg"]}, credentials=credentials) as started:
        url = f"grpcs://localhost:{started.grpc_port}/gitseg"
        assert "no response in 3 attempts" in refusal(ask, url)
        with monkeypatch.context() as patch:
            make = grpc.ssl_channel_credentials
            patch.setattr("grpc.ssl_channel_credentials", lambda: make(root_certificates=trusted))
            assert np.array_equal(segment(ask(url), image), rule(image, SPACING))
        assert "no response in 3 attempts" in refusal(ask, url.replace("grpcs", "grpc"))


@pytest.fixture
def closed_port_of():
    """closed_port_of() returns a port that nobody listens on, and a function that frees it."""
    with ExitStack() as stack:

        def take():
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            return taken.getsockname()[1], taken.close

        yield take


@pytest.fixture
def closed_port(closed_port_of):
    return closed_port_of()[0]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_an_unreachable_server_is_a_one_line_error(ask, refusal, log_lines, closed_port, scheme):
    line = refusal(ask, f"{scheme}://127.0.0.1:{closed_port}/gitseg")
    assert "no response in 3 attempts" in line and "onnection refused" in line and len(log_lines) == 2


def test_a_server_that_starts_late_is_reached(rule_models, closed_port_of, image, log_lines, monkeypatch):
    port, free = closed_port_of()
    late = ExitStack()

    def sleep(seconds):
        if len(log_lines) == 1:
            free()
            late.enter_context(serve({"gitseg": rule_models["gitseg"]}, grpc_port=port))
        Event().wait(seconds)

    monkeypatch.setattr("gitseg_tf.client.client.time.sleep", sleep)
    with late:
        predict = connect(f"grpc://127.0.0.1:{port}/gitseg", back_off=(0.5, 1, 2))
        assert np.array_equal(segment(predict, image), rule(image, SPACING))
    assert 1 <= len(log_lines) <= 3 and "onnection refused" in log_lines[0]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("INVALID_ARGUMENT", r"the model rejected the scan \(struck by the test\)"),
        ("INTERNAL", r"(INTERNAL|HTTP 500): struck by the test"),
    ],
)
def test_a_rejected_scan_is_not_retried_and_the_next_scan_is_sent(ask, url, server, image, log_lines, code, complaint):
    predict = ask(url("gitseg"))
    server.serving.requests.clear()
    server.serving.faults.codes.append(code)
    with pytest.raises(ScanError, match=complaint):
        segment(predict, image)
    assert np.array_equal(segment(predict, image), rule(image, SPACING))
    assert len(server.serving.requests) == 2 and not log_lines


def test_a_response_timeout_fails_only_that_scan(ask, url, server, image):
    predict = ask(url("gitseg"), timeout=0.5)
    server.serving.faults.seconds = 2
    with pytest.raises(ScanError, match=r"no response within 0.5 s; increase the timeout$"):
        segment(predict, image)
    server.serving.faults.seconds = 0
    assert np.array_equal(segment(predict, image), rule(image, SPACING))


def test_a_server_that_does_not_answer_metadata_requests_is_unreachable(ask, url, server, refusal, log_lines):
    server.serving.faults.seconds = 2
    line = refusal(ask, url("gitseg"), timeout=0.2)
    assert "no response in 3 attempts (no response within 0.2 s); start the server or correct the address" in line
    assert len(log_lines) == 2


def test_a_server_side_timeout_is_reported_as_such(ask, server, image):
    predict = ask(server.rest_url("gitseg"))
    server.serving.faults.codes.append("DEADLINE_EXCEEDED")
    with pytest.raises(ScanError, match="increase its rest_api_timeout_in_ms"):
        segment(predict, image)


def test_scans_and_masks_larger_than_the_grpc_default_limit_are_transferred(ask, url):
    image = np.random.default_rng(1).integers(0, 4096, (30, 270, 270)).astype(np.uint16)
    assert image.nbytes > GRPC_LIMIT < image.size * 3
    assert np.array_equal(segment(ask(url("gitseg")), image), rule(image, SPACING))


def test_tensor_content_responses_are_decoded(ask, server, image):
    server.serving.as_content = True
    for scan in (image[:1, :3, :2], image):  # PNGs whose length takes one byte, and more than one
        assert np.array_equal(segment(ask(server.grpc_url("gitseg")), scan), rule(scan, SPACING))


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize(
    "found", [np.zeros((5, 20, 30, 3), np.uint8), np.float32([0.5]), np.array([b"", b"?"], object)]
)
def test_a_grpc_response_without_valid_masks_is_reported(ask, server, image, monkeypatch, found, as_content):
    server.serving.as_content = as_content
    predict = ask(server.grpc_url("gitseg"))
    monkeypatch.setattr("helpers.server.Loaded.run", lambda *_: {"masks_bytes": found})
    message = "the response is not a grayscale PNG of 3 x 20 rows and 30 columns for each of 5 slices; serve"
    with pytest.raises(GitsegError, match=message):
        segment(predict, image)


def test_a_scan_above_the_server_message_limit_fails_only_that_scan(rule_models, ask, image):
    with serve({"gitseg": rule_models["gitseg"]}, grpc_options=[]) as small:
        predict = ask(small.grpc_url("gitseg"))
        with pytest.raises(ScanError, match=r"RESOURCE_EXHAUSTED: .*larger than max"):
            segment(predict, np.zeros((50, 210, 210), np.uint16))
        assert np.array_equal(segment(predict, image), rule(image, SPACING))


def _signature(inputs, output):
    return {"inputs": {name: {} for name in inputs}, "outputs": {output: {}}}


METADATA = {
    "metadata": {
        "signature_def": {
            "signature_def": {
                "segment_png_to_png": _signature(["png_bytes", "spacing", "numbers"], "masks_bytes"),
                "segment_volume_to_png": _signature(["image", "spacing", "numbers"], "masks_bytes"),
                "describe": _signature(["keys"], "json_bytes"),
            }
        }
    }
}
FACTS = [json.dumps(UWMGI.to_tree()).encode(), b'["mr"]']
DESCRIPTION = {"outputs": [{"b64": base64.b64encode(fact).decode()} for fact in FACTS]}


def described(page):
    """Read a request; answer it and return True if it asks for the description of the model."""
    body = json.loads(page.rfile.read(int(page.headers["Content-Length"])))
    if body["signature_name"] == "describe":
        answer(page, 200, json.dumps(DESCRIPTION).encode())
    return body["signature_name"] == "describe"


@pytest.fixture
def web():
    """web(do_GET=..., do_POST=...) starts a web server with these methods and returns its port."""
    with ExitStack() as stack:

        def start(**methods):
            pages = type("Pages", (BaseHTTPRequestHandler,), methods | {"log_message": print})
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), pages))
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return server.server_port

        yield start


def test_a_server_other_than_tensorflow_serving_is_reported(ask, refusal, web):
    port = web(do_GET=lambda page: page.send_error(200))
    assert "is not a TensorFlow Serving server" in refusal(ask, f"http://127.0.0.1:{port}/gitseg")
    assert "no response in 3 attempts" in refusal(ask, f"grpc://127.0.0.1:{port}/gitseg")


def answer(page, status, content=b"", length=None, **headers):
    page.send_response(status)
    for name, value in headers.items():
        page.send_header(name, value)
    page.send_header("Content-Length", str(len(content) if length is None else length))
    page.end_headers()
    page.wfile.write(content)


def test_a_redirect_is_reported_with_the_new_address(ask, refusal, web):
    """Following it would lose the scan, because a redirected POST becomes a GET."""
    port = web(do_GET=lambda page: answer(page, 301, Location=f"https://elsewhere{page.path}"))
    line = refusal(ask, f"http://127.0.0.1:{port}/gitseg")
    assert "redirects to https://elsewhere/v1/models/gitseg/metadata; use that address" in line


def test_a_truncated_response_fails_only_that_scan(ask, web, image, log_lines):
    stop = Event()

    def half(page):
        if not described(page):
            answer(page, 200, b'{"outputs": [', 1000)
            stop.wait(20)

    port = web(do_GET=lambda page: answer(page, 200, json.dumps(METADATA).encode()), do_POST=half)
    predict = ask(f"http://127.0.0.1:{port}/gitseg", timeout=0.5)
    with pytest.raises(ScanError, match=r"no response within 0.5 s; increase the timeout$"):
        segment(predict, image)
    stop.set()
    assert not log_lines


def test_a_grpc_server_without_the_prediction_service_is_reported(ask, refusal):
    bare = grpc.server(ThreadPoolExecutor(1))
    port = bare.add_insecure_port("127.0.0.1:0")
    bare.start()
    assert "is not a TensorFlow Serving server" in refusal(ask, f"grpc://127.0.0.1:{port}/gitseg")
    bare.stop(None).wait()


def pngs_of(masks):
    """Gray PNGs of masks [D, L, H, W], label below label."""
    return [cv2.imencode(".png", 255 * plane.reshape(-1, plane.shape[-1]))[1].tobytes() for plane in masks]


def test_read_masks_returns_one_mask_per_label(image):
    expected = rule(image, SPACING)
    pngs = pngs_of(np.moveaxis(expected, 0, 1).astype(np.uint8))
    assert np.array_equal(read_masks(pngs, image.shape, 3), expected)


def test_read_masks_rejects_pngs_that_do_not_match_the_scan():
    plane = np.zeros((2, 3, 4, 5), np.uint8)
    good = pngs_of(plane)
    assert read_masks(good, (2, 4, 5), 3) is not None
    color = np.zeros((12, 5, 3), np.uint8)
    colored, deep = (cv2.imencode(".png", array)[1].tobytes() for array in (color, color[..., 0].astype(np.uint16)))
    for bad in ([], good[:1], [*good, good[0]], [good[0], b""], [good[0], b"?"], [good[0], good[1][:40]]):
        assert read_masks(bad, (2, 4, 5), 3) is None
    assert read_masks(good, (2, 5, 4), 3) is None
    assert read_masks([good[0], colored], (2, 4, 5), 3) is None
    assert read_masks([good[0], deep], (2, 4, 5), 3) is None
    assert read_masks([good[0], of_size(good[1], 1 << 19, 1 << 19)], (2, 4, 5), 3) is None


def of_size(png, width, height):
    """A PNG whose header states a different size."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


@pytest.mark.parametrize("found", [[0, 1], {"masks": [0, 1]}, [{"b64": "?"}], [{"b64": "iVBORw0="}], None])
def test_a_malformed_rest_response_is_reported(ask, web, image, found):
    answers = {"outputs": found} if found else {"predictions": []}

    def post(page):
        if not described(page):
            answer(page, 200, json.dumps(answers).encode())

    port = web(do_GET=lambda page: answer(page, 200, json.dumps(METADATA).encode()), do_POST=post)
    predict = ask(f"http://127.0.0.1:{port}/gitseg")
    with pytest.raises(
        GitsegError, match=r"the response is not .*; serve a model exported by this version of gitseg-tf"
    ):
        segment(predict, image)


@pytest.fixture
def cohort(make_cohort, tmp_path):
    """Two scans; the second has a gap in its slice numbers."""
    return make_cohort(
        tmp_path / "cohort",
        (("case1_day0", (40, 64), range(1, 5)), ("case2_day0", (48, 40), (1, 2, 6, 7))),
        labeled=False,
    )


def command(*arguments):
    return cli.main(["predict", *map(str, arguments)])


class Rule(BasePredictor):
    labels, channels, config = UWMGI, ("mr",), None

    def _predict(self, volume, probabilities):
        return Prediction(rule(volume.voxels, volume.spacing, volume.numbers))


@pytest.mark.parametrize("output", ["submission", "table", "nifti", "png", "gif"])
def test_predict_with_a_server_writes_the_same_files_as_a_local_model(cohort, url, tmp_path, monkeypatch, output):
    monkeypatch.setattr(
        "gitseg_tf.inference.predictor.load_predictor",
        lambda *_, **__: Rule(),
    )
    assert command("model", cohort.root, tmp_path / "here", "--format", output) == 0
    assert command("--server", url("gitseg"), cohort.root, tmp_path / "there", "--format", output) == 0
    local, served = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "here", tmp_path / "there")
    )
    assert local == served and local


def test_a_served_model_is_identified_by_name_and_version(ask, url):
    latest, first = ask(url("gitseg")), ask(f"{url('gitseg')}/versions/1")
    assert (latest.identity.name, latest.identity.weights) == ("gitseg", "unknown")
    assert first.identity.name == "gitseg/1"


def test_predict_with_a_server_writes_the_expected_masks(cohort, url, tmp_path):
    assert command("--server", url("gitseg"), cohort.root, tmp_path / "out", "--format", "nifti") == 0
    scan = cohort["case1_day0"]
    stomach = nibabel.load(tmp_path / "out/case1_day0/stomach.nii.gz").get_fdata()
    expected = rule(scan.image, scan.spacing, scan.numbers)[2]
    assert stomach.sum() == expected.sum() > 0


@pytest.fixture
def struck(monkeypatch, server):
    """struck(codes) makes the requests after the description of the model fail with these codes."""
    from gitseg_tf.client.client import ServerPredictor

    description = ServerPredictor._description

    def strike(codes):
        def described(predictor):
            labels = description(predictor)
            server.serving.requests.clear()
            server.serving.faults.codes.extend(codes)
            return labels

        monkeypatch.setattr(ServerPredictor, "_description", described)

    return strike


def test_a_rejected_scan_does_not_stop_the_others(cohort, url, struck, tmp_path, capsys):
    struck(["INVALID_ARGUMENT"])
    assert command("--server", url("gitseg"), cohort.root, tmp_path / "out") == 1
    shown = capsys.readouterr().err
    assert "case1_day0 failed: " in shown and "1 of 2 scans failed" in shown
    rows = pd.read_csv(tmp_path / "out/submission.csv")
    assert set(rows["id"].str.rsplit("_", n=2).str[0]) == {"case2_day0"}


def test_a_server_that_goes_away_leaves_no_submission(cohort, server, struck, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gitseg_tf.client.client.time.sleep", lambda seconds: None)
    struck(["UNAVAILABLE"] * 5)
    assert command("--server", server.grpc_url("gitseg"), cohort.root, tmp_path / "out") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("gitseg: grpc://") and "no response in 5 attempts" in last
    assert not [*(tmp_path / "out").iterdir()] and len(server.serving.requests) == 5


def test_an_unknown_model_leaves_no_output(cohort, url, tmp_path, capsys):
    assert command("--server", url("nothing"), cohort.root, tmp_path / "out") == 1
    assert "has no model nothing" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["in", "out"], ["model", "in", "out", "--server", "grpc://host/m"], ["model", "in", "out", "--timeout", "3"],
     ["in", "out", "--server", "grpc://host/m", "--timeout", "0"],
     ["in", "out", "--server", "grpc://host/m", "--timeout", "x"]],
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command(*arguments)
    assert exit_info.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_missing_package_is_a_one_line_error(ask, refusal, monkeypatch):
    monkeypatch.delitem(sys.modules, "gitseg_tf.client.grpc", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.get_model_metadata_pb2", None)
    line = refusal(ask, "grpc://127.0.0.1:1/gitseg")
    assert "the package tensorflow_serving is missing" in line and "pip install 'gitseg-tf[serving]'" in line


def test_a_malformed_png_gets_an_error_response_and_the_server_keeps_running(server, ask, image):
    address = parse_address(server.rest_url("gitseg"))
    _, png = cv2.imencode(".png", image[0])
    slices = [{"b64": base64.b64encode(content).decode()} for content in (png.tobytes(), b"no PNG")]
    body = {"signature_name": "segment_png", "inputs": {"png_bytes": slices, "spacing": SPACING}}
    answer = requests.post(address.rest_url + ":predict", json=body)
    assert answer.status_code == 400 and "PNG" in answer.json()["error"]
    for url in (server.rest_url, server.grpc_url):
        assert np.array_equal(segment(ask(url("gitseg")), image), rule(image, SPACING))


def test_voxels_that_png_cannot_store_are_transferred_too(ask, url, image):
    """Hounsfield units are below 0."""
    for voxels in (image.astype(np.int32) - 1024, image.astype(np.float32) / 7):
        assert np.array_equal(segment(ask(url("gitseg")), voxels), rule(voxels, SPACING))


def test_labels_and_channels_come_from_the_server(ask, url, image, refusal):
    predictor = ask(url("gitseg"))
    assert predictor.labels == UWMGI and predictor.channels == ("mr",) and predictor.config is None
    assert "the volume has 2 channels, but the model takes 1 (mr)" in refusal(
        predictor.predict, np.stack([image, image], -1), spacing=SPACING
    )
    assert "masks only" in refusal(predictor.predict, image, spacing=SPACING, probabilities=True)


@pytest.mark.parametrize(
    ("url", "host", "name", "version"),
    [
        ("grpc://there:8500/gitseg", "there:8500", "gitseg", None),
        ("grpc://there/gitseg/", "there:8500", "gitseg", None),
        ("http://there:8501/a-b_c.d/versions/12", "there:8501", "a-b_c.d", 12),
        ("https://there/gitseg?version=3", "there", "gitseg", 3),
        ("grpc://[::1]:9/gitseg", "[::1]:9", "gitseg", None),
        ("grpcs://there/gitseg", "there:8500", "gitseg", None),
    ],
)
def test_addresses_are_parsed(url, host, name, version):
    address = parse_address(url)
    assert (address.host, address.name, address.version) == (host, name, version)


def test_a_password_is_used_and_not_shown(refusal):
    address = parse_address("https://me:secret@there/gitseg")
    assert address.url == "https://me:***@there/gitseg" and address.rest_url.startswith("https://me:secret@there/")
    assert "secret" not in refusal(parse_address, "https://me:secret@there/")


def test_the_rest_url_contains_the_version():
    assert parse_address("https://there/m?version=3").rest_url == "https://there/v1/models/m/versions/3"


@pytest.mark.parametrize(
    "url",
    ["there:8500/gitseg", "ftp://there/gitseg", "grpc://there:8500", "grpc://there:8500/", "grpc:///gitseg", "grpc://a:b/m",
     "http://there/a/b", "http://there/m/versions/x", "http://there/m?version=", "http://there/m/versions/1?version=1",
     "http://there/m?x=1", "http://there/m:predict", "http://there:99999/m", "http://[::1/m", "http://there/m#x"],
)  # fmt: skip
def test_malformed_addresses_are_refused(url, refusal):
    line = refusal(parse_address, url)
    assert line.startswith(f"{url}: ") and "grpc://HOST:8500/NAME or http://HOST:8501/NAME" in line
