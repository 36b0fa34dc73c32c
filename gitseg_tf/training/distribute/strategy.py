"""Choose the devices and the precision for training."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from gitseg_tf.errors import ConfigError, first_line
from gitseg_tf.training.distribute.cluster import cluster_from_environment
from gitseg_tf.training.distribute.slurm import slurm_tasks

# Variables set on Colab, Kaggle and Cloud TPU machines; other Colab machines set some of them to an empty string.
_TPU_MACHINE = ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE")
_NAMED_TPU = ("TPU_NAME", "TPU_CONFIG", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS")
_TPU_SECONDS = 10
# oneDNN's gradient of a 3x3x3 kernel in bfloat16 is then wrong, and usually finite (TensorFlow 2.21).
_UNRELIABLE_DEPTH = 2
_UNRELIABLE = "CPUs compute wrong bfloat16 gradients where features have a depth of 2"


def choose_strategy(name: str = "auto") -> tuple[tf.distribute.Strategy, str]:
    """Create the distribution strategy.

    Args:
        name: auto, one_device, mirrored (all GPUs of this machine, or its logical CPUs), multiworker (machines given by
            TF_CONFIG or SLURM) or tpu.

    Returns:
        The strategy, and one line that states the choice and its reason.

    Raises:
        ConfigError: no TPU responds; the workers are not configured or cannot connect; or TensorFlow has already
            initialized the devices.
    """
    why = ""
    if name == "auto":
        name, why = _automatic()
    makers = {"tpu": _tpu, "multiworker": _multiworker, "mirrored": _mirrored, "one_device": _one_device}
    strategy = makers[name]()
    kind = "TPU" if name == "tpu" else "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    replicas = strategy.num_replicas_in_sync
    return strategy, f"{name}, {replicas} {kind} replica{'s' if replicas > 1 else ''}{why}"


def choose_precision(name: str = "auto", *, tpu: bool = False, depths: Sequence[int] = ()) -> tuple[str, str]:
    """Choose the Keras dtype policy.

    Args:
        name: auto, float32, mixed_float16 or mixed_bfloat16.
        tpu: the strategy trains on a TPU.
        depths: depths of the features of a 3-D network, from `gitseg_tf.config.volumetric.feature_depths`.

    Returns:
        The policy, and one line that states the choice and its reason.

    Raises:
        ConfigError: mixed_bfloat16 would compute wrong gradients.
    """
    gpus = tf.config.list_physical_devices("GPU")
    unreliable = not gpus and not tpu and _UNRELIABLE_DEPTH in depths
    if name == "mixed_bfloat16" and unreliable:
        raise ConfigError(
            f"training.precision is mixed_bfloat16, but {_UNRELIABLE}; set it to float32 or auto, or choose another "
            "depth of data.patch or other model.levels"
        )
    if name != "auto":
        return name, f"{name}, as configured"
    if tpu:
        return "mixed_bfloat16", "mixed_bfloat16 (auto: a TPU multiplies in bfloat16)"
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
    if instructions and unreliable:
        return "float32", f"float32 (auto: {_UNRELIABLE})"
    if instructions:
        return "mixed_bfloat16", f"mixed_bfloat16 (auto: the processor has {instructions[0]})"
    return "float32", "float32 (auto: no GPU, and the processor has no bfloat16 instructions)"


def _automatic() -> tuple[str, str]:
    if any(os.environ.get(name) for name in _TPU_MACHINE):
        return "tpu", " (auto: the environment specifies a TPU)"
    if os.environ.get("TF_CONFIG"):
        return "multiworker", " (auto: TF_CONFIG is set)"
    if slurm_tasks() > 1:
        return "multiworker", f" (auto: {slurm_tasks()} SLURM tasks)"
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
    workers = cluster_from_environment()
    try:
        # Must precede any listing or use of devices, because the workers' servers start together with the devices.
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        cause = f"the workers {', '.join(workers)} cannot connect to each other ({first_line(error)})"
        raise ConfigError(
            f"training.strategy multiworker: {cause}; start all of them, each with its own TF_CONFIG"
        ) from None


def _tpu() -> tf.distribute.Strategy:
    address = _tpu_address()
    if address and address.startswith("grpc://"):
        _check_reachable(address)
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(address)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        raise ConfigError(
            f"training.strategy tpu: no TPU responds ({first_line(error)}); run on a TPU machine with tensorflow-tpu"
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def _tpu_address() -> str | None:
    """Find the TPU's address: "local" on a TPU machine (Colab, Kaggle, Cloud TPU VM); None lets TensorFlow find it."""
    address, name = os.environ.get("COLAB_TPU_ADDR"), os.environ.get("TPU_NAME")
    if address:
        return f"grpc://{address}"
    if name == "local" or (name and name.startswith("grpc://")):
        return name
    return None if any(os.environ.get(other) for other in _NAMED_TPU) else "local"


def _check_reachable(address: str) -> None:
    """Check that something listens at the address; TensorFlow would retry for minutes."""
    host, _, port = address.removeprefix("grpc://").split(",")[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_TPU_SECONDS).close()
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"training.strategy tpu: no TPU responds at {address} ({first_line(error)}); correct TPU_NAME "
            "(grpc://host:port), or unset it on a machine with its own TPU"
        ) from None


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))
