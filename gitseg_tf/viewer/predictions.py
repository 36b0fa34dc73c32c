"""Predictions on demand, in a process of their own: slices come at once while a network is loaded and runs."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection

from gitseg_tf.data.records import pack_masks
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath
from gitseg_tf.viewer.cache import Cache
from gitseg_tf.viewer.library import Entry

_NICENESS = 10


class Predictions:
    """Predicts one scan at a time, of those that wait the one that was asked for last.

    Args:
        entries: the scans.
        cache: gets ("prediction", number): uint8 [D, H, W], bit k is organ k; has ("voxels", number).
    """

    def __init__(self, entries: tuple[Entry, ...], cache: Cache):
        self._entries, self._cache = entries, cache
        self._changed = threading.Condition()
        self._wanted: int | None = None
        self._running: tuple[int, str] | None = None
        self._failed: dict[int, str] = {}
        self._process = None
        self._thread: threading.Thread | None = None

    def ask(self, number: int) -> tuple[str, str]:
        """How far the prediction of a scan is; it is made if it is not there. Ask again until it is ready.

        Args:
            number: of the entry.

        Returns:
            (state, line): "none" (there is no model), "waiting", "running" (the line says with what), "ready" or
            "failed" (the line says why). A failure is told once: whoever asks again has it tried again.
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
        return "waiting", "waits for another scan"

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None)
                number, self._wanted = self._wanted, None
                self._running = (number, "reading the scan")
            try:
                bits = self._predict(number)
                self._cache.put(("prediction", number), bits)
            except (InputError, OSError) as error:
                self._failed[number] = str(error)
            finally:
                with self._changed:
                    self._running = None

    def _predict(self, number: int):
        entry = self._entries[number]
        voxels = self._cache.get(("voxels", number), entry.read_voxels)
        if self._process is None:
            self._start()
        try:
            self._say(number, "loading the network")
            self._pipe.send((entry.model, voxels.image, voxels.numbers, voxels.percentiles, voxels.spacing))
            while (answer := self._pipe.recv())[0] == "loaded":
                self._say(number, "predicting")
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            raise InputError(f"{entry.model}: the prediction ended with status {code}; see the terminal") from None
        if answer[0] == "failed":
            raise InputError(answer[1])
        return answer[1]

    def _say(self, number: int, line: str) -> None:
        with self._changed:
            self._running = (number, line)

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def _work(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the viewer ends this process
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    from gitseg_tf import quiet

    loaded: dict[AnyPath, object] = {}
    while True:
        try:
            model, image, numbers, percentiles, spacing = pipe.recv()
        except EOFError:
            return
        try:
            quiet.import_tensorflow()
            from gitseg_tf.inference.predictor import load_predictor

            if model not in loaded:
                loaded = {model: load_predictor(model)}
            pipe.send(("loaded", None))
            pipe.send(("done", pack_masks(loaded[model](image, list(numbers), percentiles, spacing))))
        except InputError as error:
            pipe.send(("failed", str(error)))
