"""Run networks in ONNX and TFLite files with onnxruntime and LiteRT, which are imported when a file is opened."""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

import numpy as np
import tensorflow as tf

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.tensorflow_import import held_back
from gitseg_tf.errors import DependencyError, RunError, first_line
from gitseg_tf.inference.exported import RUNTIMES

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_ERRORS_ONLY = 3


def open_network(file: AnyPath, window: tuple[int, ...], labels: int) -> Callable:
    """Open the network of an exported file.

    Args:
        file: an ONNX or TFLite file of `gitseg export`.
        window: shape of a window, (height, width, slices * channels), or of a patch, (D, H, W, channels).
        labels: number of labels, L.

    Returns:
        Function from float32 windows [N, *window] to float32 probabilities [N, ..., L]. It runs on onnxruntime's CUDA
        or CPU provider, or on all cores with LiteRT, which processes the windows one by one.

    Raises:
        DependencyError: the runtime is not installed.
        RunError: the file is missing or damaged, or its inputs or outputs do not match its config.
    """
    if not file.is_file():
        raise RunError(f"{file}: no such file; run gitseg export to write it")
    run, contract = RUNTIMES.get(file.suffix)(file)
    expected = contract_words([("float32", window)], [("float32", (*window[:-1], labels))])
    if contract != expected:
        raise RunError(f"{file}: takes {contract}, but its config.yaml says {expected}; export the run again")
    return lambda windows: tf.constant(run(np.asarray(windows, np.float32)))


def import_extra(name: str) -> ModuleType:
    """Import a module of the extra [export].

    Raises:
        DependencyError: the module is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DependencyError(f"the package {error.name or name} is missing; pip install 'gitseg-tf[export]'") from None


def contract_words(inputs: Iterable[tuple[str, Sequence]], outputs: Iterable[tuple[str, Sequence]]) -> str:
    """Describe the types and shapes of a network's inputs and outputs."""
    given, result = (", ".join(f"{kind} {list(shape)}" for kind, shape in side) for side in (inputs, outputs))
    return f"windows of {given} to {result}"


def open_onnx(file: AnyPath) -> tuple[Callable, str]:
    """Open an ONNX file with onnxruntime; return a function from windows to probabilities, and its description."""
    onnxruntime, states = import_extra("onnxruntime"), import_extra("onnxruntime.capi.onnxruntime_pybind11_state")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    available = onnxruntime.get_available_providers()
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    damaged = tuple(getattr(states, name) for name in names)
    try:
        session = onnxruntime.InferenceSession(
            file.read_bytes(), options, providers=[name for name in _PROVIDERS if name in available]
        )
        inputs, outputs = session.get_inputs(), session.get_outputs()
        contract = contract_words(_described(inputs), _described(outputs))
    except (*damaged, UnicodeDecodeError) as error:
        raise _damaged(file, error) from None

    def run(windows):
        return session.run([outputs[0].name], {inputs[0].name: windows})[0]

    return run, contract


def _described(tensors: Sequence) -> list[tuple[str, Sequence]]:
    return [("float32" if one.type == "tensor(float)" else one.type, one.shape[1:]) for one in tensors]


def open_tflite(file: AnyPath) -> tuple[Callable, str]:
    """Open a TFLite file with LiteRT; return a function from windows to probabilities, and its description."""
    litert = import_extra("ai_edge_litert.interpreter")
    try:
        with held_back((ValueError, RuntimeError)):
            interpreter = litert.Interpreter(model_content=file.read_bytes(), num_threads=os.cpu_count())
            interpreter.allocate_tensors()
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    except (ValueError, RuntimeError) as error:
        raise _damaged(file, error) from None

    def run_one(window):
        interpreter.set_tensor(inputs[0]["index"], window[None])
        interpreter.invoke()
        return interpreter.get_tensor(outputs[0]["index"])

    def run(windows):
        return np.concatenate([run_one(window) for window in windows])

    def described(tensors):
        return [(np.dtype(one["dtype"]).name, one["shape"][1:].tolist()) for one in tensors]

    return run, contract_words(described(inputs), described(outputs))


def _damaged(file: AnyPath, error: Exception) -> RunError:
    return RunError(f"{file}: is damaged ({first_line(error)}); export it again")
