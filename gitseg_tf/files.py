"""Paths on this machine and in buckets, and writing files so that nothing half-written is ever found."""

import fnmatch
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class RemotePath(os.PathLike):
    """A path with a scheme, such as gs://bucket/folder, read and written by TensorFlow's file systems.

    It has the methods of pathlib.Path that this package uses, with the same meaning. Errors of the file system become
    OSErrors with the path in them.

    Args:
        text: SCHEME://PLACE; TensorFlow knows gs:// and ram://, and more with tensorflow-io.
    """

    def __init__(self, text: str):
        scheme, _, place = str(text).partition("://")
        self._scheme, self._place = f"{scheme}://", posixpath.normpath(place) if place else ""

    def __str__(self) -> str:
        return self._scheme + self._place

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self._scheme}{posixpath.join(self._place, str(name))}")

    @property
    def name(self) -> str:
        return posixpath.basename(self._place)

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self._scheme + posixpath.dirname(self._place))

    def with_name(self, name: str) -> "RemotePath":
        return self.parent / name

    def as_posix(self) -> str:
        return str(self)

    def resolve(self) -> "RemotePath":
        return self

    def relative_to(self, other) -> Path:
        return Path(posixpath.relpath(self._place, RemotePath(str(other))._place))

    def exists(self) -> bool:
        with self._os_errors() as gfile:
            return gfile.exists(str(self))

    def is_dir(self) -> bool:
        with self._os_errors() as gfile:
            return gfile.isdir(str(self))

    def is_file(self) -> bool:
        return self.exists() and not self.is_dir()

    def size(self) -> int:
        """Bytes of the file."""
        with self._os_errors() as gfile:
            return gfile.stat(str(self)).length

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        if not exist_ok and self.exists():
            raise FileExistsError(17, "File exists", str(self))
        with self._os_errors() as gfile:
            gfile.makedirs(str(self))

    def iterdir(self) -> Iterator["RemotePath"]:
        with self._os_errors() as gfile:
            names = gfile.listdir(str(self))
        return iter(sorted(self / name.rstrip("/") for name in names))

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Files and folders whose names match, part by part; `**` is any number of folders."""
        first, _, rest = pattern.partition("/")
        if first == "**":
            yield from self.glob(rest)
            for child in self.iterdir():
                if child.is_dir():
                    yield from child.glob(pattern)
            return
        for child in self.iterdir():
            if fnmatch.fnmatchcase(child.name, first):
                if not rest:
                    yield child
                elif child.is_dir():
                    yield from child.glob(rest)

    def open(self, mode: str = "r") -> IO:
        """A file object of TensorFlow's; it has no encoding but UTF-8."""
        with self._os_errors() as gfile:
            return gfile.GFile(str(self), mode)

    def read_bytes(self) -> bytes:
        with self._os_errors(), self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        if missing_ok and not self.exists():
            return
        with self._os_errors() as gfile:
            gfile.remove(str(self))

    def replace(self, target) -> "RemotePath":
        with self._os_errors() as gfile:
            gfile.rename(str(self), str(target), overwrite=True)
        return RemotePath(str(target))

    @contextmanager
    def _os_errors(self):
        import tensorflow as tf

        try:
            yield tf.io.gfile
        except tf.errors.NotFoundError:
            raise FileNotFoundError(2, "No such file or directory", str(self)) from None
        except tf.errors.OpError as error:
            raise OSError(5, error.message.splitlines()[0], str(self)) from None


AnyPath = Path | RemotePath


def as_path(text: str | os.PathLike) -> AnyPath:
    """A path as the user wrote it: one with a scheme (gs://...) is remote, any other is on this machine."""
    if isinstance(text, RemotePath):
        return text
    return RemotePath(str(text)) if "://" in str(text) else Path(text)


def file_size(path: AnyPath) -> int:
    """Bytes of a file.

    Raises:
        OSError: no such file.
    """
    return path.size() if isinstance(path, RemotePath) else path.stat().st_size


def remove_tree(path: AnyPath) -> None:
    """Remove a folder and all that is in it; no such folder is no error."""
    if isinstance(path, RemotePath):
        import tensorflow as tf

        if path.exists():
            tf.io.gfile.rmtree(str(path))
        return
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def sync(path: AnyPath) -> None:
    """Wait until a file on this machine is on the disk; other file systems do so when the file is closed."""
    if isinstance(path, Path):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even when the machine stops.

    Args:
        path: the file; what was there is replaced.
        content: all of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
