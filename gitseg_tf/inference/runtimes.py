"""Networks in ONNX and TFLite files, run by onnxruntime and LiteRT. These are imported when a file is opened."""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

import numpy as np
import tensorflow as tf

from gitseg_tf.data.scans import ORGANS
from gitseg_tf.errors import InputError, first_line
from gitseg_tf.files import AnyPath
from gitseg_tf.quiet import held_back

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_ERRORS_ALONE = 3


def open_network(file: AnyPath, window: tuple[int, ...]) -> Callable:
    """The network of an exported file.

    Args:
        file: an ONNX or TFLite file of `gitseg export`.
        window: shape of a window, (height, width, slices), or of a patch, (D, H, W, 1).

    Returns:
        Function from float32 windows [N, *window] to float32 probabilities [N, ..., 3], on onnxruntime's CUDA or CPU
        provider, or on all cores with LiteRT, which takes the windows one after the other.

    Raises:
        InputError: the runtime is not installed, no such file, a damaged one, or a network of other inputs or outputs.
    """
    if not file.is_file():
        raise InputError(f"{file}: there is no such file; gitseg export --format writes it")
    run, contract = (_onnx if file.suffix == ".onnx" else _tflite)(file)
    expected = _contract([("float32", window)], [("float32", (*window[:-1], len(ORGANS)))])
    if contract != expected:
        raise InputError(f"{file}: takes {contract}, by its config.yaml it is {expected}; export the run again")
    return lambda windows: tf.constant(run(np.asarray(windows, np.float32)))


def import_extra(name: str) -> ModuleType:
    """A module of the extra [export].

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name or name} is missing; pip install 'gitseg-tf[export]'") from None


def _contract(inputs: Iterable[tuple[str, Sequence]], outputs: Iterable[tuple[str, Sequence]]) -> str:
    """What a network makes of a window, in words, of the types and shapes of its inputs and outputs."""
    given, found = (", ".join(f"{kind} {list(shape)}" for kind, shape in side) for side in (inputs, outputs))
    return f"windows of {given} to {found}"


def _onnx(file: AnyPath) -> tuple[Callable, str]:
    onnxruntime, states = import_extra("onnxruntime"), import_extra("onnxruntime.capi.onnxruntime_pybind11_state")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ALONE
    there = onnxruntime.get_available_providers()
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    damaged = tuple(getattr(states, name) for name in names)
    try:
        session = onnxruntime.InferenceSession(
            file.read_bytes(), options, providers=[name for name in _PROVIDERS if name in there]
        )
    except damaged as error:
        raise _damaged(file, error) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()

    def run(windows):
        return session.run([outputs[0].name], {inputs[0].name: windows})[0]

    def described(tensors):
        return [("float32" if one.type == "tensor(float)" else one.type, one.shape[1:]) for one in tensors]

    return run, _contract(described(inputs), described(outputs))


def _tflite(file: AnyPath) -> tuple[Callable, str]:
    litert = import_extra("ai_edge_litert.interpreter")
    try:
        with held_back((ValueError, RuntimeError)):
            interpreter = litert.Interpreter(model_content=file.read_bytes(), num_threads=os.cpu_count())
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise _damaged(file, error) from None
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()

    def run_one(window):
        interpreter.set_tensor(inputs[0]["index"], window[None])
        interpreter.invoke()
        return interpreter.get_tensor(outputs[0]["index"])

    def run(windows):
        return np.concatenate([run_one(window) for window in windows])

    def described(tensors):
        return [(np.dtype(one["dtype"]).name, one["shape"][1:].tolist()) for one in tensors]

    return run, _contract(described(inputs), described(outputs))


def _damaged(file: AnyPath, error: Exception) -> InputError:
    return InputError(f"{file}: is damaged ({first_line(error)}); export it again")
