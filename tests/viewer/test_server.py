"""`gitseg view` as a process."""

import signal
import socket
import sys
import urllib.request

import pytest

from gitseg_tf.cli import main
from gitseg_tf.viewer import server

GRACE = 60  # seconds


def refused(capsys, *arguments):
    assert main(["view", *map(str, arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_it_serves_the_page_and_ends_with_ctrl_c(drawn, view):
    with view(drawn.root) as (process, address, lines):
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


def test_another_host_than_this_machine_is_warned_of(drawn, view):
    with view(drawn.root, "--host", "0.0.0.0") as (_, address, lines):
        assert lines[0].startswith("warning") and "0.0.0.0 is not this machine alone" in lines[0]
        assert address.startswith("http://localhost:")


def test_a_port_that_is_taken_is_one_line(drawn, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, drawn.root, "--port", port)
        assert line == f"gitseg: port {port} of 127.0.0.1 is taken; choose another with --port"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "70000"], "--port 70000: ports are 0 to 65535"),
        (["--host", "no such host"], "--host no such host: no such address"),
        (["--host", "192.0.2.1"], "port 8750 of 192.0.2.1 cannot be had"),
        (["--data", "nowhere"], "--data is for runs"),
    ],
)
def test_bad_arguments_are_one_line(drawn, capsys, arguments, says):
    assert says in refused(capsys, drawn.root, *arguments)


def test_a_folder_without_scans_is_one_line(tmp_path, capsys):
    assert "holds no scans" in refused(capsys, tmp_path, "--port", 0)


@pytest.mark.parametrize("name", ["fastapi", "uvicorn"])
def test_without_the_server_it_says_what_to_install(drawn, capsys, monkeypatch, name):
    monkeypatch.setattr(server, "find_spec", lambda asked: None if asked == name else object())
    assert refused(capsys, drawn.root) == f"gitseg: gitseg view needs {name}; pip install 'gitseg-tf[view]'"


def test_the_page_opens_in_a_browser_on_demand(drawn, monkeypatch):
    opened = []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    said = []
    server.view(drawn.root, port=0, open_browser=True, say=said.append)
    assert len(opened) == 1 and opened[0] in said[0]
    server.view(drawn.root, port=0, say=said.append)
    assert len(opened) == 1


def test_tensorflow_is_not_imported_to_look_at_a_cohort(drawn, monkeypatch):
    import subprocess

    code = (
        "import sys, uvicorn; uvicorn.Server.run = lambda self, sockets: None\n"
        f"from gitseg_tf.cli import main; main(['view', {str(drawn.root)!r}, '--port', '0'])\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
