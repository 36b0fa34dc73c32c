"""Read PyTorch's weight files without PyTorch, and without running the code that a pickle can contain.

torch.save writes a dict of tensors in one of two formats. The older one (before PyTorch 1.6) is a sequence of pickles,
followed by the values: a magic number, the protocol, facts about the machine, the dict, the keys of its storages, and
for each storage the number of its values (int64) and the values. The newer one is a zip archive with the dict as
`*/data.pkl` and the values of each storage in `*/data/KEY`.
"""

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gitseg_tf.errors import DataError

_MAGIC = 0x1950A86A20F9469CFC6C
_TYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_weights(path: Path) -> dict[str, np.ndarray]:
    """Read a dict of tensors.

    Args:
        path: a .pth file written by torch.save(model.state_dict(), ...).

    Returns:
        Arrays by name, with the shapes and types of the tensors.

    Raises:
        DataError: the file cannot be read, is damaged, or contains anything but a dict of tensors.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return _read_archive(file)
            file.seek(0)
            return _read_sequence(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or 'damaged'}); choose another file") from None
    except _Refused as error:
        raise DataError(
            f"{path}: contains {error}, not only tensors; choose a file that contains only weights"
        ) from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, ValueError, TypeError, KeyError, IndexError, EOFError,
            AttributeError, OverflowError, MemoryError, NotImplementedError, RuntimeError):  # fmt: skip
        raise DataError(f"{path}: is damaged, or is not a PyTorch file of weights; choose another file") from None


class _Refused(Exception):
    """A class or a function that the pickle names and that a dict of tensors does not need."""


class _Unpickler(pickle.Unpickler):
    """Accepts OrderedDict, tensors and storages, which it turns into descriptions, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _describe_tensor
        if module == "torch" and name in _TYPES:
            return name
        raise _Refused(f"{module}.{name}"[:80])

    def persistent_load(self, pid: Any) -> _Storage:
        kind, type_name, key, _, size, *_ = pid
        if kind != "storage" or not isinstance(key, str) or not int(size) >= 0:
            raise pickle.UnpicklingError("not a storage")
        return _Storage(key, _TYPES[type_name], int(size))


def _describe_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("not a tensor")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _read_sequence(file: Any) -> dict[str, np.ndarray]:
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("another format")
    _Unpickler(file).load()
    if not _Unpickler(file).load()["little_endian"]:
        raise ValueError("big endian")
    tensors = _checked(_Unpickler(file).load())
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    values = {}
    for key in _Unpickler(file).load():
        (size,) = np.frombuffer(file.read(8), "<i8")
        storage = storages[key]
        if size != storage.size:
            raise ValueError("another size")
        values[key] = np.frombuffer(_read_exactly(file, storage), storage.dtype)
    return {name: _array(tensor, values[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_archive(file: Any) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = index.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("big endian")
        tensors = _checked(_Unpickler(io.BytesIO(archive.read(index))).load())
        values = {}
        for storage in {tensor.storage for tensor in tensors.values()}:
            with archive.open(f"{root}data/{storage.key}") as part:
                values[storage.key] = np.frombuffer(_read_exactly(part, storage), storage.dtype)
    return {name: _array(tensor, values[tensor.storage.key]) for name, tensor in tensors.items()}


def _checked(tree: Any) -> dict[str, _Tensor]:
    if not isinstance(tree, dict) or not tree:
        raise ValueError("not a dict")
    if not all(isinstance(name, str) and isinstance(tensor, _Tensor) for name, tensor in tree.items()):
        raise _Refused("other objects")
    return tree


def _read_exactly(file: Any, storage: _Storage) -> bytes:
    content = file.read(storage.size * storage.dtype.itemsize)
    if len(content) != storage.size * storage.dtype.itemsize:
        raise EOFError
    return content


def _array(tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    """Copy the values of a tensor from its storage; the file says where they begin and how far they are apart."""
    shape, strides = tensor.shape, tensor.strides
    if len(shape) != len(strides) or min((tensor.offset, *shape, *strides), default=0) < 0:
        raise ValueError("invalid shape")
    count = int(np.prod(shape, dtype=object))  # of any size, without overflow
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # Without this check, strides of 0 could blow a few bytes up to any size, and larger ones read other memory.
    if count > len(values) or (count and last >= len(values)):
        raise ValueError("larger than its storage")
    width = values.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(values[tensor.offset :], shape, [stride * width for stride in strides])
    return np.array(view)
