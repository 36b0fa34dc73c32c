"""Which devices train, and in which precision."""

import os
import socket
from pathlib import Path

import tensorflow as tf

from gitseg_tf.errors import InputError, first_line
from gitseg_tf.training.cluster import cluster_from_environment
from gitseg_tf.training.slurm import slurm_tasks

# What Colab, Kaggle and Cloud TPU machines set; other machines of Colab have some of them, and leave them empty.
_TPU_MACHINE = ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE")
_NAMED_TPU = ("TPU_NAME", "TPU_CONFIG", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS")
_TPU_SECONDS = 10


def choose_strategy(name: str = "auto") -> tuple[tf.distribute.Strategy, str]:
    """Make the distribution strategy.

    Args:
        name: auto, one_device, mirrored (all GPUs of this machine, or its logical CPUs), multiworker (TF_CONFIG or
            SLURM says which machines) or tpu.

    Returns:
        The strategy, and one line that says what was chosen and why.

    Raises:
        InputError: no TPU answers; the workers are not named or wrongly, or after TensorFlow has taken the devices.
    """
    why = ""
    if name == "auto":
        name, why = _automatic()
    makers = {"tpu": _tpu, "multiworker": _multiworker, "mirrored": _mirrored, "one_device": _one_device}
    strategy = makers[name]()
    kind = "TPU" if name == "tpu" else "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    replicas = strategy.num_replicas_in_sync
    return strategy, f"{name}, {replicas} {kind} replica{'s' if replicas > 1 else ''}{why}"


def choose_precision(name: str = "auto", tpu: bool = False, volumes: bool = False) -> tuple[str, str]:
    """Choose keras's dtype policy.

    Args:
        name: auto, float32, mixed_float16 or mixed_bfloat16.
        tpu: the strategy trains on a TPU.
        volumes: the network is a 3-D one.

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
    if instructions and volumes:
        # Now and then oneDNN's gradient of a small 3-D kernel has values that are no numbers (TensorFlow 2.21).
        return "float32", "float32 (auto: 3-D convolutions in bfloat16 are not to be relied on without a GPU)"
    if instructions:
        return "mixed_bfloat16", f"mixed_bfloat16 (auto: the processor has {instructions[0]})"
    return "float32", "float32 (auto: no GPU, and no bfloat16 instructions in the processor)"


def _automatic() -> tuple[str, str]:
    if any(os.environ.get(name) for name in _TPU_MACHINE):
        return "tpu", " (auto: the environment names a TPU)"
    if os.environ.get("TF_CONFIG"):
        return "multiworker", " (auto: TF_CONFIG is set)"
    if slurm_tasks() > 1:
        return "multiworker", f" (auto: {slurm_tasks()} tasks of SLURM)"
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
        # Before any device is listed or used: the workers' servers start together with the devices.
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        cause = f"the workers {', '.join(workers)} do not come together ({first_line(error)})"
        raise InputError(f"--strategy multiworker: {cause}; start all of them, each with its own TF_CONFIG") from None


def _tpu() -> tf.distribute.Strategy:
    address = _tpu_address()
    if address and address.startswith("grpc://"):
        _check_reachable(address)
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(address)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        raise InputError(
            f"--strategy tpu: no TPU answers ({first_line(error)}); run on a TPU machine with tensorflow-tpu"
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def _tpu_address() -> str | None:
    """Where the TPU is: "local" on a TPU machine (Colab, Kaggle, Cloud TPU VM). None: let TensorFlow ask the cloud."""
    address, name = os.environ.get("COLAB_TPU_ADDR"), os.environ.get("TPU_NAME")
    if address:
        return f"grpc://{address}"
    if name == "local" or (name and name.startswith("grpc://")):
        return name
    return None if any(os.environ.get(other) for other in _NAMED_TPU) else "local"


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens: TensorFlow would try for minutes."""
    host, _, port = address.removeprefix("grpc://").split(",")[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_TPU_SECONDS).close()
    except (ValueError, OSError) as error:
        raise InputError(
            f"--strategy tpu: no TPU answers at {address} ({first_line(error)}); correct TPU_NAME (grpc://host:port), "
            "or unset it on a machine with a TPU of its own"
        ) from None


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))
