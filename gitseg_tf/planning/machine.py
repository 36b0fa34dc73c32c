"""The machine for which a plan is made, found without TensorFlow."""

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gitseg_tf import __version__

MEMORY_SHARE = 0.8
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


@dataclass(frozen=True)
class Machine:
    """Facts about a machine that decide how fast it trains.

    Attributes:
        processor: name of the processor.
        cores: number of cores that this process may use.
        gpu: whether TensorFlow has an NVIDIA GPU.
        memory_gib: memory of the machine or of its control group, the smaller one.
        threads: environment variables that set numbers of threads.
        versions: of gitseg-tf, TensorFlow and tf-keras.
    """

    processor: str
    cores: int
    gpu: bool
    memory_gib: float
    threads: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """One line for people."""
        devices = "a GPU" if self.gpu else "no GPU"
        return f"{self.processor}, {self.cores} cores, {self.memory_gib:.1f} GiB of memory, {devices}"

    def to_tree(self) -> dict:
        """Return what identifies the machine for the cache of measurements: everything but its memory."""
        return {name: value for name, value in asdict(self).items() if name != "memory_gib"}


def this_machine() -> Machine:
    """Describe the machine on which this process runs."""
    return Machine(
        processor=_processor(),
        cores=_cores(),
        gpu=_has_gpu(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        threads=tuple(f"{name}={os.environ[name]}" for name in _THREADS if os.environ.get(name)),
        versions=(__version__, *map(_version, ("tensorflow", "tf-keras"))),
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text().strip().partition(" ")
        if limit.isdecimal() and period.isdecimal():
            usable = min(usable, max(round(int(limit) / int(period)), 1))
    return usable


def _has_gpu() -> bool:
    gpus = Path("/proc/driver/nvidia/gpus")
    return gpus.is_dir() and any(gpus.iterdir()) and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")


def _memory_bytes() -> int:
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMITS:
        text = Path(name).read_text().strip() if Path(name).is_file() else ""
        found += [int(text)] if text.isdecimal() else []
    return min(found)


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
