"""The width of a command's output in a terminal and in a file."""

import os
import pty
import subprocess
import sys

import pytest

SCRIPT = "from gitseg_tf.cli.log import terminal_width; print('width', terminal_width())"


@pytest.mark.parametrize("columns", [80, 200])
def test_the_width_is_that_of_the_terminal(columns):
    master, slave = pty.openpty()
    subprocess.run(["stty", "cols", str(columns), "rows", "24"], stdin=slave, check=True)
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT],
        stdout=slave,
        env=environment,
        check=True,
    )
    assert os.read(master, 1000).decode().split() == ["width", str(columns)]
    os.close(master)
    os.close(slave)


def test_a_file_has_no_width():
    completed = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert completed.stdout.split() == ["width", "None"]
