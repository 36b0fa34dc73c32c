"""Recognize that host or device memory ran out, whichever library says so, and say what to reduce."""

import errno

from gitseg_tf.errors import first_line

# By kind of work. Config keys, because they apply to the library and to every command.
_ADVICE = {
    "training": (
        "reduce the batch size (data.batch_size, evaluation.batch_size), reduce the input size (data.input_size or "
        "data.patch), or increase gradient accumulation (training.gradient_accumulation_steps)"
    ),
    "inference": (
        "reduce the number of tiles or windows per batch (evaluation.batch_size) or leave out test-time augmentation "
        "(evaluation.tta), or train with a smaller input size (data.input_size, data.patch); gradient accumulation and "
        "data.batch_size only matter in training"
    ),
    "reading": "read fewer scans at once (workers), or resample or crop the largest scan",
}
# Parts of the messages of TensorFlow, XLA, OpenCV, onnxruntime and the C++ library, whose exceptions have many types.
_MESSAGES = (
    "std::bad_alloc", "bad allocation", "OOM when allocating", "RESOURCE_EXHAUSTED", "Resource exhausted",
    "Insufficient memory", "Failed to allocate memory", "Out of memory", "out of memory", "Unable to allocate",
    "Cannot allocate memory", "CUDA_ERROR_OUT_OF_MEMORY",
)  # fmt: skip
_LIBRARIES = ("tensorflow", "cv2", "onnxruntime", "tf_keras", "keras", "ai_edge_litert")


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether an exception says that host or device memory ran out.

    Args:
        error: a MemoryError; cv2.error; an error of TensorFlow, also one that carries the error of a Python function; a
            RuntimeError of another library; or an OSError with ENOMEM.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("Unable to allocate"))
        (True, False)
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    kinds = type(error).__mro__
    if any(kind.__name__ == "ResourceExhaustedError" for kind in kinds):
        return True
    native = any(kind.__module__.partition(".")[0] in _LIBRARIES for kind in kinds)
    return (native or type(error) is RuntimeError) and any(part in str(error) for part in _MESSAGES)


def out_of_memory_line(error: BaseException, work: str) -> str:
    """Describe in one line that memory ran out, and what to reduce.

    Args:
        error: see `is_out_of_memory`.
        work: "training", "inference" or "reading".

    Example:
        >>> out_of_memory_line(MemoryError(), "reading")
        'out of memory (MemoryError); read fewer scans at once (workers), or resample or crop the largest scan'
    """
    reason = next((line for line in str(error).splitlines() if any(part in line for part in _MESSAGES)), str(error))
    return f"out of memory ({first_line(Exception(reason)) if reason else type(error).__name__}); {_ADVICE[work]}"
