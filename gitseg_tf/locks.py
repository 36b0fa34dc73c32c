"""A lock on a folder that ends with the process, however it ends."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath

try:
    import fcntl
except ImportError:
    fcntl = None

LOCK = ".lock"
# Lustre and some network file systems are mounted without locks.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def locked(folder: AnyPath, wait: bool, say: Callable[[str], None]) -> Iterator[int | None]:
    """Hold a folder for oneself; the file .lock is in it meanwhile.

    Folders in buckets, and systems without fcntl, have no such lock: nothing is held there.

    Args:
        folder: exists.
        wait: wait for the process that holds it, rather than refuse.
        say: takes the line that tells the user of the wait, or of a file system without locks.

    Returns:
        Context of the lock's file descriptor, or None without a lock. A process that inherits it holds the folder too,
        for as long as it runs.

    Raises:
        InputError: another process holds the folder.
    """
    if fcntl is None or not isinstance(folder, Path):
        yield None
        return
    path = folder / LOCK
    file = _take(path, wait, say)
    try:
        yield file
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _take(path: Path, wait: bool, say: Callable[[str], None]) -> int:
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
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            say(f"unlocked   {path.parent} has no file locks ({error.strerror}): start no second conversion into it")
            return file
        # Whoever held the lock may have removed the file: then this lock is on nothing that others see.
        if _is(path, file):
            try:
                os.ftruncate(file, 0)
                os.pwrite(file, str(os.getpid()).encode(), 0)
            except OSError as error:
                os.close(file)
                raise InputError(f"{path}: cannot be written ({error.strerror}); make room") from None
            return file
        os.close(file)


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
