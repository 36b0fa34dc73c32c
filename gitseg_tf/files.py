"""Paths on this machine and in buckets, and writing files so that nothing half-written is ever found."""

import fnmatch
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
        with os_errors(self) as gfile:
            return gfile.exists(str(self))

    def is_dir(self) -> bool:
        with os_errors(self) as gfile:
            return gfile.isdir(str(self))

    def is_file(self) -> bool:
        return self.exists() and not self.is_dir()

    def size(self) -> int:
        """Bytes of the file."""
        with os_errors(self) as gfile:
            return gfile.stat(str(self)).length

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        if not exist_ok and self.exists():
            raise FileExistsError(17, "File exists", str(self))
        with os_errors(self) as gfile:
            gfile.makedirs(str(self))

    def iterdir(self) -> Iterator["RemotePath"]:
        with os_errors(self) as gfile:
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
        with os_errors(self) as gfile:
            return gfile.GFile(str(self), mode)

    def read_bytes(self) -> bytes:
        with os_errors(self), self.open("rb") as file:
            return file.read()

    def write_bytes(self, content: bytes) -> int:
        self.unlink(missing_ok=True)  # ram:// appends to a file that is there
        with os_errors(self), self.open("wb") as file:
            file.write(content)
        return len(content)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        if missing_ok and not self.exists():
            return
        with os_errors(self) as gfile:
            gfile.remove(str(self))

    def replace(self, target) -> "RemotePath":
        """Rename a file. A folder is refused: what is in it would stay behind, see `replace_folder`."""
        if self.is_dir():
            raise IsADirectoryError(21, "Is a directory", str(self))
        with os_errors(self) as gfile:
            gfile.rename(str(self), str(target), overwrite=True)
        return RemotePath(str(target))


AnyPath = Path | RemotePath


def as_path(text: str | os.PathLike) -> AnyPath:
    """A path as the user wrote it: one with a scheme (gs://...) is remote, any other is on this machine."""
    if isinstance(text, RemotePath):
        return text
    return RemotePath(str(text)) if "://" in str(text) else Path(text)


@contextmanager
def os_errors(path: AnyPath) -> Iterator:
    """Give TensorFlow's file functions (tf.io.gfile), and turn their errors into OSErrors.

    Args:
        path: what is read or written inside the `with`, for the message.

    Raises:
        OSError: whatever TensorFlow says of a file, in its first line.
    """
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.NotFoundError:
        raise FileNotFoundError(2, "No such file or directory", str(path)) from None
    except tf.errors.OpError as error:
        raise OSError(5, error.message.splitlines()[0], str(path)) from None


def file_size(path: AnyPath) -> int:
    """Bytes of a file.

    Raises:
        OSError: no such file.
    """
    return path.size() if isinstance(path, RemotePath) else path.stat().st_size


def remove_tree(path: AnyPath) -> None:
    """Remove a folder and all that is in it; no such folder is no error."""
    if isinstance(path, RemotePath):
        with os_errors(path) as gfile:
            if gfile.exists(str(path)):
                gfile.rmtree(str(path))
        return
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
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """A file for libraries that read from this machine alone: itself, or a copy that is gone after the `with`.

    Raises:
        OSError: no such file.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        _copy(path, copy)
        yield copy


@contextmanager
def written_locally(path: AnyPath, room: int = 0) -> Iterator[Path]:
    """A file for libraries that write to this machine alone; it takes its place when the `with` ends without an error.

    Args:
        path: the file; what was there is replaced, whole or not at all.
        room: bytes that there must be room for before anything is written: HDF5 brings the process down where a disk
            becomes full under it.

    Returns:
        Context of a path on this machine to write, with the ending of the file's name.

    Raises:
        OSError: there is no room.
    """
    remote = isinstance(path, RemotePath)
    with tempfile.TemporaryDirectory() if remote else nullcontext(path.parent) as folder:
        temporary = Path(folder) / f"new.{path.name}"
        try:
            if room and hasattr(os, "posix_fallocate"):
                _check_room(temporary, room)
            yield temporary
            sync(temporary)
            if remote:
                uploaded = path.with_name(temporary.name)
                _copy(temporary, uploaded)
                uploaded.replace(path)
            else:
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _check_room(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def replace_folder(target: AnyPath, marker: str) -> Iterator[Path]:
    """A folder on this machine to fill; it takes the target's place when the `with` ends without an error.

    A folder on this machine is renamed. A bucket has no folders to rename: there the old marker is removed first, then
    the rest, and the files are copied one by one, the new marker last. A target with the marker is complete.

    Args:
        target: the folder; what was there is replaced.
        marker: a file in the folder without which nobody takes the folder for whole.

    Returns:
        Context of an empty folder.
    """
    remote = isinstance(target, RemotePath)
    with tempfile.TemporaryDirectory() if remote else nullcontext(target.parent) as place:
        filled = Path(place) / f".{target.name}.partial"
        remove_tree(filled)
        filled.mkdir(parents=True)
        try:
            yield filled
            if remote:
                _upload_folder(filled, target, marker)
                return
            for path in filled.rglob("*"):
                if path.is_file():
                    sync(path)
            remove_tree(target)
            filled.rename(target)
        finally:
            remove_tree(filled)


def _upload_folder(source: Path, target: RemotePath, last: str) -> None:
    (target / last).unlink(missing_ok=True)
    remove_tree(target)
    files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    for name in sorted(files, key=lambda name: name == last):
        placed = target / name
        placed.parent.mkdir(parents=True, exist_ok=True)
        _copy(source / name, placed)


def _copy(source: AnyPath, target: AnyPath) -> None:
    with os_errors(target if isinstance(target, RemotePath) else source) as gfile:
        gfile.copy(str(source), str(target), overwrite=True)
