"""Which devices train, and in which precision."""

import os
from pathlib import Path

import tensorflow as tf

from gitseg_tf.errors import InputError


def choose_strategy(name: str = "auto") -> tuple[tf.distribute.Strategy, str]:
    """Make the distribution strategy.

    Args:
        name: auto, one_device, mirrored (all GPUs of this machine, or its logical CPUs), multiworker (TF_CONFIG says
            which machines) or tpu.

    Returns:
        The strategy, and one line that says what was chosen and why.

    Raises:
        InputError: no TPU answers; TF_CONFIG is missing or wrong, or comes after TensorFlow has taken the devices.
    """
    why = ""
    if name == "auto":
        name, why = _automatic()
    makers = {"tpu": _tpu, "multiworker": _multiworker, "mirrored": _mirrored, "one_device": _one_device}
    strategy = makers[name]()
    kind = "TPU" if name == "tpu" else "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    replicas = strategy.num_replicas_in_sync
    return strategy, f"{name}, {replicas} {kind} replica{'s' if replicas > 1 else ''}{why}"


def choose_precision(name: str = "auto", tpu: bool = False) -> tuple[str, str]:
    """Choose keras's dtype policy.

    Args:
        name: auto, float32, mixed_float16 or mixed_bfloat16.
        tpu: the strategy trains on a TPU.

    Returns:
        The policy, and one line that says what was chosen and why.
    """
    if name != "auto":
        return name, f"{name}, as asked for"
    if tpu:
        return "mixed_bfloat16", "mixed_bfloat16 (auto: a TPU multiplies in bfloat16)"
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        major, minor = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        if major >= 8:
            return (
                "mixed_bfloat16",
                f"mixed_bfloat16 (auto: compute capability {major}.{minor} has bfloat16 tensor cores)",
            )
        if major >= 7:
            return "mixed_float16", f"mixed_float16 (auto: compute capability {major}.{minor} has float16 tensor cores)"
        return "float32", f"float32 (auto: compute capability {major}.{minor} has no tensor cores)"
    instructions = sorted({"avx512_bf16", "amx_bf16"} & _cpu_flags())
    if instructions:
        return "mixed_bfloat16", f"mixed_bfloat16 (auto: the processor has {instructions[0]})"
    return "float32", "float32 (auto: no GPU, and no bfloat16 instructions in the processor)"


def _automatic() -> tuple[str, str]:
    if any(name in os.environ for name in ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_WORKER_ID")):
        return "tpu", " (auto: the environment names a TPU)"
    if "TF_CONFIG" in os.environ:
        return "multiworker", " (auto: TF_CONFIG is set)"
    gpus = len(tf.config.list_logical_devices("GPU"))
    if gpus > 1:
        return "mirrored", f" (auto: {gpus} GPUs)"
    return "one_device", f" (auto: {'one GPU' if gpus else 'no GPU, no TPU'})"


def _one_device() -> tf.distribute.Strategy:
    return tf.distribute.OneDeviceStrategy("/GPU:0" if tf.config.list_logical_devices("GPU") else "/CPU:0")


def _mirrored() -> tf.distribute.Strategy:
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _multiworker() -> tf.distribute.Strategy:
    if "TF_CONFIG" not in os.environ:
        raise InputError(
            "--strategy multiworker: the environment variable TF_CONFIG, which names the workers, is not set"
        )
    try:
        # Before any device is listed or used: the workers' servers start together with the devices.
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--strategy multiworker: TF_CONFIG cannot be followed ({_first_line(error)})") from None


def _tpu() -> tf.distribute.Strategy:
    # A TPU machine names no TPU: its own is "local". None lets TensorFlow look where TPU_NAME and the like point.
    address = os.environ.get("COLAB_TPU_ADDR")
    named = any(name in os.environ for name in ("TPU_NAME", "TPU_CONFIG", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS"))
    tpu = None if named else f"grpc://{address}" if address else "local"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(tpu)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        raise InputError(
            f"--strategy tpu: no TPU answers ({_first_line(error)}); run on a TPU machine with tensorflow-tpu"
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))
