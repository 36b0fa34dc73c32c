import base64
import json
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
from rule import rule
from server import serve

from gitseg_tf import cli
from gitseg_tf.errors import InputError, ScanError
from gitseg_tf.serving.address import parse_address
from gitseg_tf.serving.client import connect, read_masks

GRPC_LIMIT = 4 << 20
SPACING = (3.0, 1.5, 1.25)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 60000, (5, 20, 30)).astype(np.uint16)


@pytest.fixture
def said():
    return []


@pytest.fixture
def ask(said):
    """ask(url, timeout=...) connects with back-off that takes no time, and writes down what is said."""
    return lambda url, **options: connect(url, say=said.append, back_off=(0.01, 0.02), **options)


def segment(predict, image, numbers=None):
    return predict(image, list(range(1, len(image) + 1)) if numbers is None else numbers, None, SPACING)


def test_masks_come_back_organ_by_organ(ask, url, image, said):
    masks = segment(ask(url("gitseg")), image)
    assert masks.dtype == bool and masks.shape == (3, 5, 20, 30)
    assert np.array_equal(masks, rule(image, SPACING)) and not said


def test_a_single_slice_and_one_of_one_value_come_back(ask, url):
    predict = ask(url("gitseg"))
    for image in (np.zeros((1, 7, 5), np.uint16), np.full((2, 1, 1), 65535, np.uint16)):
        assert np.array_equal(segment(predict, image), rule(image, SPACING))


def test_a_scan_with_gaps_goes_with_its_slices_numbers(ask, url, image, said):
    numbers = [1, 2, 7, 8, 9]
    masks = segment(ask(url("gitseg")), image, numbers)
    assert np.array_equal(masks, rule(image, SPACING, numbers)) and not said
    assert not np.array_equal(masks, rule(image, SPACING))


@pytest.mark.parametrize("ending", ["/versions/1", "?version=1"])
def test_a_version_can_be_asked_for(ask, url, image, ending):
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
            r"model windows has no signature segment_\w+ \(it has serving_default\); serve what this version of",
        ),
    ],
)
def test_what_the_server_lacks_is_said_in_one_line(ask, url, refusal, said, model, complaint):
    line = refusal(ask, url(model))
    assert url(model) in line and (complaint in line or re.search(complaint, line)) and not said


def test_a_signature_with_other_inputs_is_refused(tmp_path, ask, refusal):
    import tensorflow as tf

    module = tf.Module()
    module.f = tf.function(lambda volume: {"masks": volume}, [tf.TensorSpec([None], tf.float32, "volume")])
    names = "segment_volume_to_png", "segment_png_to_png"
    tf.saved_model.save(module, str(tmp_path), signatures=dict.fromkeys(names, module.f))
    with serve({"other": {1: tmp_path}}) as started:
        over_grpc, over_rest = (refusal(ask, url("other")) for url in (started.grpc_url, started.rest_url))
    assert "goes from volume to masks, not from image, numbers, spacing to masks_bytes; serve what" in over_grpc
    assert "from volume to masks, not from numbers, png_bytes, spacing to masks_bytes; serve what" in over_rest


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_signature_with_one_more_is_refused_before_it_is_asked(ask, url, server, refusal, side):
    """An input cannot be left out, and REST has the answer in another form where there are several."""
    signatures = server.serving.models["gitseg"][2].signatures
    sides = [getattr(signatures[name], side) for name in ("segment_volume_to_png", "segment_png_to_png")]
    for tensors in sides:
        tensors["z_more"].name = "more:0"
    line = refusal(ask, url("gitseg"))
    for tensors in sides:
        del tensors["z_more"]
    goes = {"inputs": "spacing, z_more to masks_bytes, not", "outputs": "spacing to masks_bytes, z_more, not"}
    assert goes[side] in line and ask(url("gitseg"))


def test_a_server_that_is_back_is_asked_again(ask, url, server, image, said):
    server.serving.faults.metadata_codes.append("UNAVAILABLE")
    predict = ask(url("gitseg"))
    assert len(said) == 1 and said[0].endswith("struck by the test; next attempt in 0.01 s")
    server.serving.faults.codes.extend(["UNAVAILABLE", "UNAVAILABLE"])
    assert np.array_equal(segment(predict, image), rule(image, SPACING))
    assert len(said) == 3 and said[2].endswith("next attempt in 0.02 s")
    assert len(server.serving.requests) == 3


def test_attempts_are_bounded(ask, url, server, image):
    predict = ask(url("gitseg"))
    server.serving.faults.codes.extend(["UNAVAILABLE"] * 9)
    with pytest.raises(InputError, match=r"no answer in 3 attempts \(struck by the test\); start the server") as caught:
        segment(predict, image)
    assert not isinstance(caught.value, ScanError)
    assert len(server.serving.requests) == 3


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """The files of a key and of a certificate for localhost that nobody else signed."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = (tmp_path_factory.mktemp("tls") / name for name in ("key.pem", "certificate.pem"))
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(made, check=True, capture_output=True)
    return key, certificate


def test_grpc_with_tls_needs_a_certificate_that_is_trusted(rule_models, certificate, ask, image, refusal, monkeypatch):
    key, trusted = (file.read_bytes() for file in certificate)
    credentials = grpc.ssl_server_credentials([(key, trusted)])
    with serve({"gitseg": rule_models["gitseg"]}, credentials=credentials) as started:
        url = f"grpcs://localhost:{started.grpc_port}/gitseg"
        assert "no answer in 3 attempts" in refusal(ask, url)
        with monkeypatch.context() as patch:
            make = grpc.ssl_channel_credentials
            patch.setattr("grpc.ssl_channel_credentials", lambda: make(root_certificates=trusted))
            assert np.array_equal(segment(ask(url), image), rule(image, SPACING))
        assert "no answer in 3 attempts" in refusal(ask, url.replace("grpcs", "grpc"))


@pytest.fixture
def closed_port_of():
    """closed_port_of() gives a port that nobody listens on, and what frees it."""
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
def test_a_server_that_is_never_there_is_one_line(ask, refusal, said, closed_port, scheme):
    line = refusal(ask, f"{scheme}://127.0.0.1:{closed_port}/gitseg")
    assert "no answer in 3 attempts" in line and "onnection refused" in line and len(said) == 2


def test_a_server_that_starts_late_is_found(rule_models, closed_port_of, image):
    port, free = closed_port_of()
    late = ExitStack()

    def say(line):
        if not said:
            free()
            late.enter_context(serve({"gitseg": rule_models["gitseg"]}, grpc_port=port))
        said.append(line)

    said = []
    with late:
        predict = connect(f"grpc://127.0.0.1:{port}/gitseg", say=say, back_off=(0.5, 1, 2))
        assert np.array_equal(segment(predict, image), rule(image, SPACING))
    assert 1 <= len(said) <= 3 and "onnection refused" in said[0]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("INVALID_ARGUMENT", r"the model refuses the scan \(struck by the test\)"),
        ("RESOURCE_EXHAUSTED", r"(RESOURCE_EXHAUSTED|HTTP 429): struck by the test"),
        ("INTERNAL", r"(INTERNAL|HTTP 500): struck by the test"),
    ],
)
def test_a_refused_scan_is_not_sent_again_and_the_next_one_is(ask, url, server, image, said, code, complaint):
    predict = ask(url("gitseg"))
    server.serving.faults.codes.append(code)
    with pytest.raises(ScanError, match=complaint):
        segment(predict, image)
    assert np.array_equal(segment(predict, image), rule(image, SPACING))
    assert len(server.serving.requests) == 2 and not said


def test_an_answer_that_takes_too_long_is_one_scans(ask, url, server, image):
    predict = ask(url("gitseg"), timeout=0.5)
    server.serving.faults.seconds = 2
    with pytest.raises(ScanError, match=r"no answer within 0.5 s; give it more with --timeout$"):
        segment(predict, image)
    server.serving.faults.seconds = 0
    assert np.array_equal(segment(predict, image), rule(image, SPACING))


def test_a_server_that_says_nothing_of_its_model_is_away(ask, url, server, refusal, said):
    server.serving.faults.seconds = 2
    line = refusal(ask, url("gitseg"), timeout=0.2)
    assert "no answer in 3 attempts (no answer within 0.2 s); start the server, or correct --server" in line
    assert len(said) == 2


def test_the_servers_own_time_limit_is_told_from_ours(ask, server, image):
    predict = ask(server.rest_url("gitseg"))
    server.serving.faults.codes.append("DEADLINE_EXCEEDED")
    with pytest.raises(ScanError, match="--rest_api_timeout_in_ms"):
        segment(predict, image)


def test_scans_and_masks_beyond_grpcs_own_limit_come_through(ask, url):
    image = np.random.default_rng(1).integers(0, 4096, (30, 270, 270)).astype(np.uint16)
    assert image.nbytes > GRPC_LIMIT < image.size * 3
    assert np.array_equal(segment(ask(url("gitseg")), image), rule(image, SPACING))


def test_a_grpc_server_that_sends_tensors_as_content_is_understood(ask, server, image):
    server.serving.as_content = True
    for scan in (image[:1, :3, :2], image):  # PNGs of less and of more bytes than take one byte to say
        assert np.array_equal(segment(ask(server.grpc_url("gitseg")), scan), rule(scan, SPACING))


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize(
    "found", [np.zeros((5, 20, 30, 3), np.uint8), np.float32([0.5]), np.array([b"", b"?"], object)]
)
def test_what_is_no_masks_over_grpc_is_said(ask, server, image, monkeypatch, found, as_content):
    server.serving.as_content = as_content
    predict = ask(server.grpc_url("gitseg"))
    monkeypatch.setattr("server.Loaded.run", lambda *_: {"masks_bytes": found})
    with pytest.raises(InputError, match="the answer is not an RGB PNG of 20 x 30 for each of 5 slices; serve what"):
        segment(predict, image)


def test_a_scan_that_the_servers_limit_keeps_out_is_one_scans(rule_models, ask, image):
    with serve({"gitseg": rule_models["gitseg"]}, grpc_options=[]) as small:
        predict = ask(small.grpc_url("gitseg"))
        with pytest.raises(ScanError, match=r"RESOURCE_EXHAUSTED: .*larger than max"):
            segment(predict, np.zeros((50, 210, 210), np.uint16))
        assert np.array_equal(segment(predict, image), rule(image, SPACING))


@pytest.fixture
def web():
    """web(do_GET=..., do_POST=...) starts a web server of these methods, and gives its port."""
    with ExitStack() as stack:

        def start(**methods):
            pages = type("Pages", (BaseHTTPRequestHandler,), methods | {"log_message": print})
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), pages))
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return server.server_port

        yield start


def test_servers_of_something_else_are_said(ask, refusal, web):
    port = web(do_GET=lambda page: page.send_error(200))
    assert "is no TensorFlow Serving" in refusal(ask, f"http://127.0.0.1:{port}/gitseg")
    assert "no answer in 3 attempts" in refusal(ask, f"grpc://127.0.0.1:{port}/gitseg")


def answer(page, status, content=b"", length=None, **headers):
    page.send_response(status)
    for name, value in headers.items():
        page.send_header(name, value)
    page.send_header("Content-Length", str(len(content) if length is None else length))
    page.end_headers()
    page.wfile.write(content)


def test_where_a_server_has_moved_to_is_said(ask, refusal, web):
    """Followed it would lose the scan, for what was posted is asked for with GET at the new place."""
    port = web(do_GET=lambda page: answer(page, 301, Location=f"https://elsewhere{page.path}"))
    line = refusal(ask, f"http://127.0.0.1:{port}/gitseg")
    assert "has moved to https://elsewhere/v1/models/gitseg/metadata; correct --server" in line


def test_an_answer_that_stops_in_the_middle_is_one_scans(ask, web, image, said):
    signature = {"inputs": {"png_bytes": {}, "spacing": {}, "numbers": {}}, "outputs": {"masks_bytes": {}}}
    metadata = {"metadata": {"signature_def": {"signature_def": {"segment_png_to_png": signature}}}}
    stop = Event()

    def half(page):
        page.rfile.read(int(page.headers["Content-Length"]))
        answer(page, 200, b'{"outputs": [', 1000)
        stop.wait(20)

    port = web(do_GET=lambda page: answer(page, 200, json.dumps(metadata).encode()), do_POST=half)
    predict = ask(f"http://127.0.0.1:{port}/gitseg", timeout=0.5)
    with pytest.raises(ScanError, match=r"no answer within 0.5 s; give it more with --timeout$"):
        segment(predict, image)
    stop.set()
    assert not said


def test_a_grpc_server_without_the_service_is_said(ask, refusal):
    bare = grpc.server(ThreadPoolExecutor(1))
    port = bare.add_insecure_port("127.0.0.1:0")
    bare.start()
    assert "is no TensorFlow Serving" in refusal(ask, f"grpc://127.0.0.1:{port}/gitseg")
    bare.stop(None).wait()


def pngs_of(masks):
    return [cv2.imencode(".png", 255 * plane[..., ::-1])[1].tobytes() for plane in masks]


def test_masks_are_read_organ_by_organ(image):
    expected = rule(image, SPACING)
    pngs = pngs_of(np.moveaxis(expected, 0, -1).astype(np.uint8))
    assert np.array_equal(read_masks(pngs, image.shape), expected)


def test_what_is_no_masks_of_the_scan_is_not_taken_for_masks():
    plane = np.zeros((2, 4, 5, 3), np.uint8)
    good = pngs_of(plane)
    assert read_masks(good, (2, 4, 5)) is not None
    grey, deep = (cv2.imencode(".png", array)[1].tobytes() for array in (plane[0, ..., 0], plane[0].astype(np.uint16)))
    for bad in ([], good[:1], [*good, good[0]], [good[0], b""], [good[0], b"?"], [good[0], good[1][:40]]):
        assert read_masks(bad, (2, 4, 5)) is None
    assert read_masks(good, (2, 5, 4)) is None
    assert read_masks([good[0], grey], (2, 4, 5)) is None
    assert read_masks([good[0], deep], (2, 4, 5)) is None
    assert read_masks([good[0], of_size(good[1], 1 << 19, 1 << 19)], (2, 4, 5)) is None


def of_size(png, width, height):
    """A PNG whose header says another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


@pytest.mark.parametrize("found", [[0, 1], {"masks": [0, 1]}, [{"b64": "?"}], [{"b64": "iVBORw0="}], None])
def test_an_answer_of_another_form_is_said(ask, web, image, found):
    signature = {"inputs": {"png_bytes": {}, "spacing": {}, "numbers": {}}, "outputs": {"masks_bytes": {}}}
    metadata = {"metadata": {"signature_def": {"signature_def": {"segment_png_to_png": signature}}}}
    answers = {"outputs": found} if found else {"predictions": []}

    def post(page):
        page.rfile.read(int(page.headers["Content-Length"]))
        answer(page, 200, json.dumps(answers).encode())

    port = web(do_GET=lambda page: answer(page, 200, json.dumps(metadata).encode()), do_POST=post)
    predict = ask(f"http://127.0.0.1:{port}/gitseg")
    with pytest.raises(InputError, match=r"the answer is not .*; serve what this version of gitseg export writes"):
        segment(predict, image)


@pytest.fixture
def cohort(draw, tmp_path):
    """Two scans, the second one with a gap in its numbers."""
    return draw(
        tmp_path / "cohort",
        (("case1_day0", (40, 64), range(1, 5)), ("case2_day0", (48, 40), (1, 2, 6, 7))),
        labelled=False,
    )


def command(*arguments):
    return cli.main(["predict", *map(str, arguments)])


@pytest.mark.parametrize("output", ["submission", "nifti", "png", "gif"])
def test_the_command_writes_what_a_local_prediction_writes(cohort, url, tmp_path, monkeypatch, output):
    monkeypatch.setattr(
        "gitseg_tf.inference.predictor.load_predictor",
        lambda *_, **__: lambda image, numbers, percentiles, spacing: rule(image, spacing, numbers),
    )
    assert command("model", cohort.root, tmp_path / "here", "--format", output) == 0
    assert command("--server", url("gitseg"), cohort.root, tmp_path / "there", "--format", output) == 0
    here, there = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "here", tmp_path / "there")
    )
    assert here == there and here


def test_the_masks_of_the_command_are_the_rules(cohort, url, tmp_path):
    assert command("--server", url("gitseg"), cohort.root, tmp_path / "out", "--format", "nifti") == 0
    scan = cohort["case1_day0"]
    stomach = nibabel.load(tmp_path / "out/case1_day0/stomach.nii.gz").get_fdata()
    expected = rule(scan.image, scan.spacing, scan.numbers)[2]
    assert stomach.sum() == expected.sum() > 0


def test_a_refused_scan_does_not_stop_the_others(cohort, url, server, tmp_path, capsys):
    server.serving.faults.codes.append("INVALID_ARGUMENT")
    assert command("--server", url("gitseg"), cohort.root, tmp_path / "out") == 1
    shown = capsys.readouterr().err
    assert "case1_day0 failed: " in shown and "1 of 2 scans failed" in shown
    rows = pd.read_csv(tmp_path / "out/submission.csv")
    assert set(rows["id"].str.rsplit("_", n=2).str[0]) == {"case2_day0"}


def test_a_server_that_goes_leaves_no_table(cohort, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gitseg_tf.serving.client.time.sleep", lambda seconds: None)
    server.serving.faults.codes.extend(["UNAVAILABLE"] * 5)
    assert command("--server", server.grpc_url("gitseg"), cohort.root, tmp_path / "out") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("gitseg: grpc://") and "no answer in 5 attempts" in last
    assert not [*(tmp_path / "out").iterdir()] and len(server.serving.requests) == 5


def test_nothing_is_written_where_there_is_no_model(cohort, url, tmp_path, capsys):
    assert command("--server", url("nothing"), cohort.root, tmp_path / "out") == 1
    assert "has no model nothing" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["in", "out"], ["model", "in", "out", "--server", "grpc://host/m"], ["model", "in", "out", "--timeout", "3"],
     ["in", "out", "--server", "grpc://host/m", "--timeout", "0"],
     ["in", "out", "--server", "grpc://host/m", "--timeout", "x"]],
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_missing_package_is_one_line(ask, refusal, monkeypatch):
    monkeypatch.delitem(sys.modules, "gitseg_tf.serving.grpc_transport", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.get_model_metadata_pb2", None)
    line = refusal(ask, "grpc://127.0.0.1:1/gitseg")
    assert "the package tensorflow_serving is missing" in line and "pip install 'gitseg-tf[serving]'" in line


def test_a_bad_png_is_refused_with_a_sentence_and_the_server_lives_on(server, ask, image):
    address = parse_address(server.rest_url("gitseg"))
    _, png = cv2.imencode(".png", image[0])
    slices = [{"b64": base64.b64encode(content).decode()} for content in (png.tobytes(), b"no PNG")]
    body = {"signature_name": "segment_png", "inputs": {"png_bytes": slices, "spacing": SPACING}}
    answer = requests.post(address.rest_url + ":predict", json=body)
    assert answer.status_code == 400 and "PNG" in answer.json()["error"]
    for url in (server.rest_url, server.grpc_url):
        assert np.array_equal(segment(ask(url("gitseg")), image), rule(image, SPACING))


def test_voxels_as_numbers_are_for_grpc_alone(server, image):
    body = {"signature_name": "segment_volume", "inputs": {"image": image.tolist(), "spacing": SPACING}}
    answer = requests.post(parse_address(server.rest_url("gitseg")).rest_url + ":predict", json=body)
    assert answer.status_code == 501 and "to type: uint16" in answer.json()["error"]


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
def test_addresses(url, host, name, version):
    address = parse_address(url)
    assert (address.host, address.name, address.version) == (host, name, version)


def test_a_password_is_used_and_not_shown(refusal):
    address = parse_address("https://me:secret@there/gitseg")
    assert address.url == "https://me:***@there/gitseg" and address.rest_url.startswith("https://me:secret@there/")
    assert "secret" not in refusal(parse_address, "https://me:secret@there/")


def test_the_resource_of_the_rest_interface():
    assert parse_address("https://there/m?version=3").rest_url == "https://there/v1/models/m/versions/3"


@pytest.mark.parametrize(
    "url",
    ["there:8500/gitseg", "ftp://there/gitseg", "grpc://there:8500", "grpc://there:8500/", "grpc:///gitseg", "grpc://a:b/m",
     "http://there/a/b", "http://there/m/versions/x", "http://there/m?version=", "http://there/m/versions/1?version=1",
     "http://there/m?x=1", "http://there/m:predict", "http://there:99999/m", "http://[::1/m", "http://there/m#x"],
)  # fmt: skip
def test_addresses_of_another_form_are_refused(url, refusal):
    line = refusal(parse_address, url)
    assert line.startswith(f"--server {url}: ") and "grpc://HOST:8500/NAME or http://HOST:8501/NAME" in line
