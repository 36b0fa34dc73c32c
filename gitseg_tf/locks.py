"""A lock on a folder that ends with the process, however it ends."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath

LOCK = ".lock"


@contextmanager
def locked(folder: AnyPath, wait: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder for oneself; the file .lock is in it meanwhile.

    Folders in buckets, and systems without fcntl, have no such lock: nothing is held there.

    Args:
        folder: exists.
        wait: wait for the process that holds it, rather than refuse.
        say: takes the line that tells the user of the wait.

    Raises:
        InputError: another process holds the folder.
    """
    try:
        import fcntl
    except ImportError:
        fcntl = None
    if fcntl is None or not isinstance(folder, Path):
        yield
        return
    file = _take(folder / LOCK, fcntl, wait, say)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(file)


def _take(path: Path, fcntl, wait: bool, say: Callable[[str], None]) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 20, 0).decode() or "?"
            if not wait:
                os.close(file)
                raise InputError(
                    f"{path.parent}: process {holder} writes to it; wait for it with --resume or choose another folder"
                ) from None
            say(f"waiting    for process {holder}, which is writing to {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever held the lock may have removed the file: then this lock is on nothing that others see.
        if _is(path, file):
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
            return file
        os.close(file)


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
