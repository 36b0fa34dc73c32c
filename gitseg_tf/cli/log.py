"""Show the package's log records in commands: plain lines on stdout, warnings on stderr."""

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("gitseg_tf")


class LineHandler(logging.Handler):
    """Writes INFO records to stdout as plain lines, and WARNING and above to stderr as "warning: ...".

    Lines appear above a running progress bar. A record with the attribute `progress` describes an activity rather than
    a result, and goes to stderr.

    Args:
        results_only: reserve stdout for a command's result; all records go to stderr.
    """

    def __init__(self, results_only: bool = False):
        super().__init__(logging.INFO)
        self._results_only = results_only

    def emit(self, record: logging.LogRecord) -> None:
        """Write and flush one record to the current sys.stdout or sys.stderr."""
        try:
            line, serious = record.getMessage(), record.levelno >= logging.WARNING
            to_stderr = serious or self._results_only or getattr(record, "progress", False)
            stream = sys.stderr if to_stderr else sys.stdout
            _write_above_bars(f"warning: {line}" if serious else line, stream)
            stream.flush()
        except Exception:
            self.handleError(record)


def _write_above_bars(line: str, stream) -> None:
    if "tqdm" not in sys.modules:
        print(line, file=stream)
        return
    from tqdm import tqdm

    tqdm.write(line, file=stream)


def terminal_width() -> int | None:
    """Return the width of stdout's terminal; None for a file or a pipe, whose lines may be long.

    COLUMNS counts only for a terminal: GNU readline exports it to all processes that a Python program starts.
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@contextmanager
def shown_logs(results_only: bool = False) -> Iterator[None]:
    """Show the package's log records within the `with` block; nested commands show each record once.

    Args:
        results_only: as for `LineHandler`.
    """
    if any(isinstance(handler, LineHandler) for handler in LOGGER.handlers):
        yield
        return
    handler, level = LineHandler(results_only), LOGGER.level
    # Without any handler, the first logging.info() of a library would set up one that shows each record once more.
    silent = logging.NullHandler()
    logging.root.addHandler(silent)
    LOGGER.addHandler(handler)
    if LOGGER.getEffectiveLevel() > logging.INFO:
        LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        logging.root.removeHandler(silent)
        LOGGER.setLevel(level)
