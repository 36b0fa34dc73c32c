"""Predict on demand in a separate process, so that slices are served while a network is loaded and runs."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from gitseg_tf.core.memory import is_out_of_memory, out_of_memory_line
from gitseg_tf.core.paths import AnyPath
from gitseg_tf.errors import DataError, GitsegError
from gitseg_tf.viewer.cache import Cache
from gitseg_tf.viewer.catalog import Entry
from gitseg_tf.viewer.contours import Contours, pack_groups

_NICENESS = 10


class Predictions:
    """Predicts one scan at a time; the most recently requested scan is predicted next.

    Args:
        entries: the scans.
        cache: stores `Contours` under ("prediction", number), and volumes under ("volume", number).
    """

    def __init__(self, entries: tuple[Entry, ...], cache: Cache):
        self._entries, self._cache = entries, cache
        self._changed = threading.Condition()
        self._wanted: int | None = None
        self._running: tuple[int, str] | None = None
        self._failed: dict[int, str] = {}
        self._process: Any = None
        self._thread: threading.Thread | None = None

    def ask(self, number: int) -> tuple[str, str]:
        """Return the state of a scan's prediction, and start it if necessary; call again until it is ready.

        Args:
            number: index of the entry.

        Returns:
            (state, line): "none" (no model), "waiting", "running" (the line gives the current step), "ready" or
            "failed" (the line gives the reason). A failure is reported once; the next call starts another attempt.
        """
        if self._entries[number].model is None:
            return "none", ""
        if self._cache.peek(("prediction", number)) is not None:
            return "ready", ""
        with self._changed:
            if number in self._failed:
                return "failed", self._failed.pop(number)
            if self._running is not None and self._running[0] == number:
                return "running", self._running[1]
            self._wanted = number
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, daemon=True)
                self._thread.start()
            self._changed.notify()
        return "waiting", "waiting for another scan"

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while (number := self._wanted) is None:
                    self._changed.wait()
                self._wanted = None
                self._running = (number, "reading the scan")
            try:
                bits = self._predict(number)
                contours = Contours(bits, np.ones(8 * len(bits), bool))
                self._cache.put(("prediction", number), contours)
            except (GitsegError, OSError) as error:
                self._failed[number] = str(error)
            finally:
                with self._changed:
                    self._running = None

    def _predict(self, number: int):
        entry = self._entries[number]
        if entry.read_volume is None:
            raise DataError(f"{entry.id}: cannot be read ({entry.broken})")
        volume = self._cache.get(("volume", number), entry.read_volume)
        if self._process is None:
            self._start()
        try:
            self._show(number, "loading the network")
            self._pipe.send((entry.model, volume))
            while (answer := self._pipe.recv())[0] == "loaded":
                self._show(number, "predicting")
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            raise DataError(
                f"{entry.model}: the prediction process exited with status {code}; see the terminal"
            ) from None
        if answer[0] == "failed":
            raise DataError(answer[1])
        return answer[1]

    def _show(self, number: int, line: str) -> None:
        with self._changed:
            self._running = (number, line)

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def _work(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore Ctrl-C in the terminal; the viewer ends this process
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    from gitseg_tf.core.tensorflow_import import import_tensorflow

    loaded: dict[AnyPath, Any] = {}
    while True:
        try:
            model, volume = pipe.recv()
        except EOFError:
            return
        try:
            import_tensorflow()
            from gitseg_tf.inference.predictor import load_predictor

            if model not in loaded:
                loaded = {model: load_predictor(model)}
            pipe.send(("loaded", None))
            pipe.send(("done", pack_groups(loaded[model].predict(volume).masks)))
        except GitsegError as error:
            pipe.send(("failed", str(error)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            pipe.send(("failed", out_of_memory_line(error, "inference")))
