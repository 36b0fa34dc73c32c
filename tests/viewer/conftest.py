"""A run with an untrained network, the viewer as a process, and a browser."""

import gzip
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from gitseg_tf.config import load_config

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HELD_OUT = 1


@pytest.fixture(scope="session")
def untrained(tiny_dataset, tmp_path_factory):
    """The folder of an evaluated run with fold 1 held out. Read-only.

    The untrained network predicts 0.01 to 0.1 everywhere.
    """
    import tf_keras as keras

    from gitseg_tf.evaluation.evaluate import evaluate
    from gitseg_tf.models.build import build_model
    from gitseg_tf.runs.folder import best_weights_path
    from gitseg_tf.runs.run import load_run
    from gitseg_tf.training.run_folder import open_run

    settings = {"data.input_size": [32, 32], "model.filters": 4, "data.folds": 3, "data.fold": HELD_OUT}
    config = load_config(None, settings | {"training.precision": "float32", "evaluation.threshold": 0.03})
    config = config.for_dataset(tiny_dataset.labels, tiny_dataset.channels)
    path = tmp_path_factory.mktemp("untrained") / "run"
    open_run(path, config, tiny_dataset, resume=False)
    keras.utils.set_random_seed(0)
    build_model(config).save_weights(best_weights_path(path))
    evaluate(load_run(path), tiny_dataset)
    return path


@dataclass
class Response:
    status: int
    headers: http.client.HTTPMessage
    content: bytes

    def json(self):
        return json.loads(self.content)


class Client:
    """Requests URLs exactly as given; other clients normalize `..`."""

    def __init__(self, port):
        self.port = port

    def get(self, address, method="GET", hosts=("localhost",)):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection._validate_path = lambda path: None
        connection.putrequest(method, address, skip_host=True)
        for host in hosts:
            connection.putheader("Host", host)
        connection.endheaders()
        response = connection.getresponse()
        content = response.read()
        connection.close()
        packed = response.headers["content-encoding"] == "gzip"
        return Response(response.status, response.headers, gzip.decompress(content) if packed else content)

    def number_of(self, scan_id):
        return [scan["id"] for scan in self.get("/api/scans").json()["scans"]].index(scan_id)


@contextmanager
def serving(library, **options):
    """A client of a server in this process."""
    import uvicorn

    from gitseg_tf.viewer.app import make_app
    from gitseg_tf.viewer.middleware import own_names

    listening = socket.create_server(("127.0.0.1", 0))
    app = make_app(library, own_names("127.0.0.1"), **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield Client(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        app.state.predictions.close()


@pytest.fixture(scope="session")
def serve():
    return serving


@contextmanager
def viewer(*arguments):
    """The viewer as a process on a free port: the process, its URL and the lines printed up to it."""
    command = [sys.executable, "-u", "-m", "gitseg_tf", "view", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"http://\S+", line):
                    break
            else:
                raise AssertionError("".join(lines))
            yield process, found[0], lines
        finally:
            process.kill()


@pytest.fixture(scope="session")
def view():
    return viewer


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium, through its driver."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-component-update"):
        options.add_argument(f"--{name}")
    options.add_argument("--disable-background-networking")
    options.add_argument("--disable-sync")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_window_size(1280, 860)
    yield driver
    driver.quit()
