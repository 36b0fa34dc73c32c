"""Which log records of the package a command shows."""

import logging
import subprocess
import sys

import pytest
from tqdm import tqdm

from gitseg_tf.cli import main
from gitseg_tf.cli.log import shown_logs
from gitseg_tf.phantom import dataset

logger = logging.getLogger("gitseg_tf.some.module")


def test_info_goes_to_stdout_and_warnings_go_to_stderr(capsys):
    with shown_logs():
        logger.info("written    %s", "out")
        logger.warning("%d scans are left out", 3)
        logger.debug("nobody sees this")
    assert tuple(capsys.readouterr()) == ("written    out\n", "warning: 3 scans are left out\n")


def test_progress_goes_to_stderr_and_everything_does_when_stdout_carries_the_result(capsys):
    with shown_logs():
        logger.info("loading", extra={"progress": True})
    with shown_logs(results_only=True):
        logger.info("note")
    assert tuple(capsys.readouterr()) == ("", "loading\nnote\n")


def test_nested_commands_show_each_record_once(capsys):
    for _ in range(2):
        with shown_logs(), shown_logs():
            logger.info("once")
    assert capsys.readouterr().out == "once\nonce\n"
    logger.info("outside of a command the library is silent")
    assert tuple(capsys.readouterr()) == ("", "")


def test_a_log_line_does_not_break_a_progress_bar(capsys):
    with shown_logs(), tqdm(range(3), file=sys.stdout, desc="scans", mininterval=0) as bar:
        bar.update()
        logger.info("one scan failed")
    lines = capsys.readouterr().out.replace("\r", "\n").splitlines()
    assert "one scan failed" in lines


def test_main_shows_the_log_records_of_the_library(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gitseg_tf.phantom.make_phantom", lambda *_, **__: dataset.logger.info("drawing") or tmp_path)
    assert main(["phantom", "new"]) == 0
    assert capsys.readouterr().out.startswith("drawing\ncohort ")


@pytest.mark.parametrize("code", ["logging.getLogger('gitseg_tf').warning('unseen')", ""])
def test_the_library_adds_only_a_null_handler(code):
    check = (
        f"import logging, gitseg_tf; {code}\nprint([type(h).__name__ for h in logging.getLogger('gitseg_tf').handlers])"
    )
    completed = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert (completed.stdout, completed.stderr) == ("['NullHandler']\n", "")


def test_a_library_that_logs_to_the_root_does_not_double_the_lines():
    code = (
        "import logging\n"
        "from gitseg_tf.cli.log import LOGGER, shown_logs\n"
        "with shown_logs():\n"
        "    logging.info('a library')\n"
        "    LOGGER.getChild('training').info('run        runs/default')\n"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (completed.stdout, completed.stderr) == ("run        runs/default\n", "")
