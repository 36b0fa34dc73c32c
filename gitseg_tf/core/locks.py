"""A lock on a folder that is released when the process ends, however it ends."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.errors import DataError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"
# Lustre and some network file systems can be mounted without lock support.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def locked(folder: AnyPath, wait: bool) -> Iterator[int | None]:
    """Lock a folder for this process by means of a file `.lock` in it.

    Folders in buckets, and systems without fcntl, do not support such locks: nothing is locked there.

    Args:
        folder: an existing folder.
        wait: wait for the process that holds the lock instead of raising an error.

    Returns:
        Context manager that yields the lock's file descriptor, or None without a lock. A process that inherits the
        descriptor also holds the lock until it exits.

    Raises:
        DataError: another process holds the lock, or the disk is full.
    """
    if fcntl is None or not isinstance(folder, Path):
        yield None
        return
    path = folder / LOCK
    file = _acquire(path, wait)
    try:
        yield file
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _acquire(path: Path, wait: bool) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 20, 0).decode() or "?"
            if not wait:
                os.close(file)
                raise DataError(
                    f"{path.parent}: process {holder} is writing to this folder; "
                    "resume once it has finished, or choose another folder"
                ) from None
            logger.info("waiting    for process %s, which is writing to %s", holder, path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            logger.warning(
                "%s: file locks are not supported (%s); let only one process write to this folder",
                path.parent,
                error.strerror,
            )
            return file
        # The previous holder may have removed the file, in which case nobody else can open the file locked here.
        if _is_same_file(path, file):
            try:
                os.ftruncate(file, 0)
                os.pwrite(file, str(os.getpid()).encode(), 0)
            except OSError as error:
                os.close(file)
                raise DataError(f"{path}: cannot be written ({error.strerror}); free some disk space") from None
            return file
        os.close(file)


def _is_same_file(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
