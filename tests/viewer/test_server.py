"""`gitseg view` as a separate process."""

import signal
import socket
import sys
import urllib.request

import pytest

from gitseg_tf.cli import main
from gitseg_tf.viewer import server

pytestmark = pytest.mark.process

GRACE = 60  # seconds


def error_line(capsys, *arguments):
    assert main(["view", *map(str, arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_view_serves_the_page_and_stops_on_ctrl_c(tiny_cohort, view):
    with view(tiny_cohort.root) as (process, address, lines):
        assert address.startswith("http://127.0.0.1:") and "cohort" in lines[-1] and len(lines) == 1
        with urllib.request.urlopen(address, timeout=GRACE) as page:
            assert b"<title>gitseg view</title>" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(GRACE) in (0, 130)
        assert "Traceback" not in process.stdout.read()


def test_ctrl_c_does_not_wait_for_a_prediction(untrained, view):
    with view(untrained) as (process, address, _):
        with urllib.request.urlopen(f"{address}api/scans/0/prediction", timeout=GRACE) as answer:
            assert b"waiting" in answer.read() or b"running" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(GRACE) in (0, 130)
        assert "Traceback" not in process.stdout.read()


def test_serving_other_machines_causes_a_warning(tiny_cohort, view):
    with view(tiny_cohort.root, "--host", "0.0.0.0") as (_, address, lines):
        assert lines[0].startswith("warning") and "can be reached from other machines at 0.0.0.0" in lines[0]
        assert address.startswith("http://localhost:")


def test_a_port_in_use_is_a_one_line_error(tiny_cohort, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = error_line(capsys, tiny_cohort.root, "--port", port)
        assert line == f"gitseg: port {port} of 127.0.0.1 is in use; choose another port"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--port", "70000"], "port must be 0 to 65535, got 70000"),
        (["--host", "no such host"], "host no such host: no such address"),
        (["--host", "192.0.2.1"], "port 8750 of 192.0.2.1 is not available"),
        (["--data", "nowhere"], "only those take separate data"),
    ],
)
def test_invalid_arguments_are_a_one_line_error(tiny_cohort, capsys, arguments, expected):
    assert expected in error_line(capsys, tiny_cohort.root, *arguments)


def test_a_folder_without_scans_is_a_one_line_error(tmp_path, capsys):
    assert "contains no scans" in error_line(capsys, tmp_path, "--port", 0)


@pytest.mark.parametrize("name", ["fastapi", "uvicorn"])
def test_without_the_server_packages_the_error_says_what_to_install(tiny_cohort, capsys, monkeypatch, name):
    monkeypatch.setattr(server, "find_spec", lambda asked: None if asked == name else object())
    assert error_line(capsys, tiny_cohort.root) == f"gitseg: gitseg view needs {name}; pip install 'gitseg-tf[view]'"


def test_the_page_opens_in_a_browser_on_request(tiny_cohort, monkeypatch, caplog):
    caplog.set_level("INFO", "gitseg_tf")
    opened = []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    server.view(tiny_cohort.root, port=0, open_browser=True)
    assert len(opened) == 1 and opened[0] in caplog.messages[0]
    server.view(tiny_cohort.root, port=0)
    assert len(opened) == 1


def test_viewing_a_cohort_does_not_import_tensorflow(tiny_cohort, monkeypatch):
    import subprocess

    code = (
        "import sys, uvicorn; uvicorn.Server.run = lambda self, sockets: None\n"
        f"from gitseg_tf.cli import main; main(['view', {str(tiny_cohort.root)!r}, '--port', '0'])\n"
        "print('tensorflow' in sys.modules)"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.splitlines()[-1] == "False"
