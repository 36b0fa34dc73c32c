"""Files in the two formats of torch.save, written without PyTorch."""

import pickle
import sys
import zipfile
from collections import OrderedDict
from types import ModuleType

import numpy as np

STORAGES = {"<f4": "FloatStorage", "<i8": "LongStorage"}


class Storage:
    """Values that tensors share, which the pickle refers to by a key."""

    def __init__(self, key, values):
        self.key, self.values = key, values


class Tensor:
    """A view of a storage, pickled as PyTorch does."""

    def __init__(self, storage, offset, shape, strides):
        self.view = (storage, offset, shape, strides)

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.view, False, OrderedDict())


def tensors_of(arrays):
    """Tensors by name, each with a storage of its own."""
    tensors = OrderedDict()
    for i, (name, array) in enumerate(arrays.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        tensors[name] = Tensor(Storage(str(i), array.ravel()), 0, array.shape, strides)
    return tensors


def write_torch_file(path, tree, monkeypatch, *, archive):
    """Write a tree of tensors in the newer (archive) or the older format."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_):
        raise AssertionError("only its name is pickled")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            storages[value.key] = value.values
            kind = getattr(torch, STORAGES[value.values.dtype.str])
            return ("storage", kind, value.key, "cpu", len(value.values), *([] if archive else [None]))

    def dump(value, file):
        Pickler(file, protocol=2).dump(value)

    if archive:
        with zipfile.ZipFile(path, "w") as whole:
            with whole.open("weights/data.pkl", "w") as file:
                dump(tree, file)
            for key, values in storages.items():
                whole.writestr(f"weights/data/{key}", values.tobytes())
    else:
        with open(path, "wb") as file:
            for head in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                dump(head, file)
            dump(tree, file)
            dump(list(storages), file)
            for values in storages.values():
                file.write(np.int64(len(values)).tobytes() + values.tobytes())
    return path
