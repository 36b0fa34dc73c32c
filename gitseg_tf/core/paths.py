"""Local and remote paths, and atomic writes, so that no reader ever sees a half-written file."""

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
    """A path with a scheme, such as gs://bucket/folder, read and written through TensorFlow's file systems.

    It implements the methods of pathlib.Path that this package uses. File system errors are raised as OSErrors that
    name the path.

    Args:
        text: SCHEME://PATH; TensorFlow supports gs:// and ram://, and more with tensorflow-io.
    """

    def __init__(self, text: str):
        scheme, _, path = str(text).partition("://")
        self._scheme, self._path = f"{scheme}://", posixpath.normpath(path) if path else ""

    def __str__(self) -> str:
        return self._scheme + self._path

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
        return RemotePath(f"{self._scheme}{posixpath.join(self._path, str(name))}")

    @property
    def name(self) -> str:
        return posixpath.basename(self._path)

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self._scheme + posixpath.dirname(self._path))

    def with_name(self, name: str) -> "RemotePath":
        return self.parent / name

    def as_posix(self) -> str:
        return str(self)

    def resolve(self) -> "RemotePath":
        return self

    def relative_to(self, other) -> Path:
        return Path(posixpath.relpath(self._path, RemotePath(str(other))._path))

    def exists(self) -> bool:
        with os_errors(self) as gfile:
            return gfile.exists(str(self))

    def is_dir(self) -> bool:
        with os_errors(self) as gfile:
            return gfile.isdir(str(self))

    def is_file(self) -> bool:
        return self.exists() and not self.is_dir()

    def size(self) -> int:
        """Return the size of the file in bytes."""
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
        """Iterate over the files and folders that match, component by component; `**` matches any number of folders."""
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
        """Open the file as a TensorFlow file object; text is UTF-8."""
        with os_errors(self) as gfile:
            return gfile.GFile(str(self), mode)

    def read_bytes(self) -> bytes:
        with os_errors(self), self.open("rb") as file:
            return file.read()

    def write_bytes(self, content: bytes) -> int:
        self.unlink(missing_ok=True)  # ram:// appends to an existing file
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
        """Rename a file. Folders are rejected, because their contents would stay behind; see `replace_folder`."""
        if self.is_dir():
            raise IsADirectoryError(21, "Is a directory", str(self))
        with os_errors(self) as gfile:
            gfile.rename(str(self), str(target), overwrite=True)
        return RemotePath(str(target))


AnyPath = Path | RemotePath


def as_path(text: str | os.PathLike) -> AnyPath:
    """Convert a path given by the user: remote if it has a scheme (gs://...), local otherwise."""
    if isinstance(text, RemotePath):
        return text
    return RemotePath(str(text)) if "://" in str(text) else Path(text)


@contextmanager
def os_errors(path: AnyPath) -> Iterator:
    """Provide TensorFlow's file functions (tf.io.gfile) and convert their errors to OSErrors.

    Args:
        path: the file that is read or written inside the `with` block, named in the error.

    Raises:
        OSError: with the first line of TensorFlow's message.
    """
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.NotFoundError:
        raise FileNotFoundError(2, "No such file or directory", str(path)) from None
    except tf.errors.OpError as error:
        raise OSError(5, error.message.splitlines()[0], str(path)) from None


def file_size(path: AnyPath) -> int:
    """Return the size of a file in bytes.

    Raises:
        OSError: no such file.
    """
    return path.size() if isinstance(path, RemotePath) else path.stat().st_size


def remove_tree(path: AnyPath) -> None:
    """Remove a folder and everything in it; a missing folder is not an error."""
    if isinstance(path, RemotePath):
        with os_errors(path) as gfile:
            if gfile.exists(str(path)):
                gfile.rmtree(str(path))
        return
    shutil.rmtree(path, ignore_errors=True)


def sync(path: AnyPath) -> None:
    """Flush a local file to disk; other file systems do this when the file is closed."""
    if isinstance(path, Path):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write a file atomically: it is complete or absent, even after a crash.

    Args:
        path: the file; an existing one is replaced.
        content: the whole content.
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
    """Provide a local file for libraries that cannot read remote ones: the file itself, or a temporary copy.

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
    """Provide a local file to write for libraries that cannot write remote ones; on success it replaces `path`.

    Args:
        path: the file; an existing one is replaced atomically.
        room: free bytes required before anything is written; HDF5 crashes the process when the disk becomes full.

    Returns:
        Context manager that yields a local path with the same file extension.

    Raises:
        OSError: not enough disk space.
    """
    remote = isinstance(path, RemotePath)
    with tempfile.TemporaryDirectory() if remote else nullcontext(path.parent) as folder:
        temporary = Path(folder) / f"new.{path.name}"
        try:
            if room and hasattr(os, "posix_fallocate"):
                _preallocate(temporary, room)
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


def _preallocate(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def replace_folder(target: AnyPath, marker: str) -> Iterator[Path]:
    """Provide a local folder to fill; it replaces the target when the `with` block ends without an error.

    A local folder is renamed. Buckets cannot rename folders: the old marker is removed first, then the remaining
    files, and the new files are copied one by one, the new marker last. A target with the marker is complete.

    Args:
        target: the folder; an existing one is replaced.
        marker: a file in the folder that marks it as complete.

    Returns:
        Context manager that yields an empty folder.
    """
    local = nullcontext(target.parent) if isinstance(target, Path) else tempfile.TemporaryDirectory()
    with local as folder:
        filled = Path(folder) / f".{target.name}.partial"
        remove_tree(filled)
        filled.mkdir(parents=True)
        try:
            yield filled
            if isinstance(target, RemotePath):
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
        uploaded = target / name
        uploaded.parent.mkdir(parents=True, exist_ok=True)
        _copy(source / name, uploaded)


def _copy(source: AnyPath, target: AnyPath) -> None:
    with os_errors(target if isinstance(target, RemotePath) else source) as gfile:
        gfile.copy(str(source), str(target), overwrite=True)
