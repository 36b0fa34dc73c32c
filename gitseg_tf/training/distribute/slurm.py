"""Build TF_CONFIG from the variables of a SLURM step.

tf.distribute.cluster_resolver.SlurmClusterResolver is not used: it sorts hosts as text, so that node10 comes before
node2, unlike SLURM's ranks; it divides by zero if SLURM gives each task one GPU; and it calls nvidia-smi on machines
without it.
"""

import itertools
import os
import re

from gitseg_tf.errors import ConfigError

_ONE_HOST_OR_RANGE = re.compile(r"((?:[^,\[\]]|\[[^\[\]]*\])+)(?:,|$)")


def slurm_tasks() -> int:
    """Return the number of tasks of the current SLURM step, 1 outside a step."""
    return _number("SLURM_STEP_NUM_TASKS") if "SLURM_STEP_NUM_TASKS" in os.environ else 1


def slurm_cluster() -> dict:
    """Build the content of TF_CONFIG for this task: one worker per task of the step, ordered by rank.

    Each worker listens on a separate port of its machine: one reserved by `srun --resv-ports`, or otherwise one derived
    from the job id.

    Returns:
        {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": rank}}.

    Raises:
        ConfigError: a variable is missing or invalid, or the tasks are not distributed in blocks.

    Source: https://slurm.schedmd.com/srun.html describes the variables.
    """
    rank, local = _number("SLURM_PROCID"), _number("SLURM_LOCALID")
    tasks = _task_hosts()
    here = _current_host(tasks, rank)
    ports = _ports(max(k for _, k in tasks) + 1)
    if tasks[rank] != (here, local):
        raise ConfigError(
            f"task {rank} is local task {local} on {here}, not local task {tasks[rank][1]} on {tasks[rank][0]}: "
            "the tasks are not distributed in blocks; start them with srun --distribution=block"
        )
    workers = [f"{host}:{ports[k]}" for host, k in tasks]
    return {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}


def own_gpus() -> str | None:
    """Choose this task's GPUs from CUDA_VISIBLE_DEVICES if SLURM exposes all GPUs of a machine to each of its tasks.

    Returns:
        The new value of CUDA_VISIBLE_DEVICES; None if it is already correct: SLURM has bound GPUs to tasks
        (--gpus-per-task), the task is the only one on its machine, or it sees at most one GPU.

    Raises:
        ConfigError: the GPUs cannot be shared evenly, or a variable is invalid.
    """
    bound = "SLURM_GPUS_PER_TASK" in os.environ or "gpu" in os.environ.get("SLURM_TRES_PER_TASK", "")
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    tasks, local = _task_hosts(), _number("SLURM_LOCALID")
    host = _current_host(tasks, _number("SLURM_PROCID"))
    here = sum(each == host for each, _ in tasks)
    if bound or here == 1 or len(gpus) < 2:
        return None
    if len(gpus) % here:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES lists {len(gpus)} GPUs for {here} tasks on this machine: they cannot be shared "
            "evenly; request them with srun --gpus-per-task"
        )
    share = len(gpus) // here
    return ",".join(gpus[local * share : (local + 1) * share])


def expand_hosts(text: str) -> list[str]:
    """Expand a SLURM host list, like `scontrol show hostnames`.

    Args:
        text: comma-separated names; brackets contain numbers and ranges, whose leading zeros are kept:
            "login,node[01-03,7],rack[1-2]n[0-1]-ib".

    Returns:
        The names in the order of the list; the last of several brackets varies fastest.

    Raises:
        ConfigError: the text is not a host list.
    """
    hosts, parts = [], _ONE_HOST_OR_RANGE.findall(text)
    if not text or len(",".join(parts)) != len(text):
        raise ConfigError(f"SLURM_STEP_NODELIST is {text!r}: it must be a host list, such as node[01-04]")
    for part in parts:
        pieces = re.split(r"\[([^\]]*)\]", part)
        choices = [_expand_ranges(piece, text) if k % 2 else [piece] for k, piece in enumerate(pieces)]
        hosts += ["".join(chosen) for chosen in itertools.product(*choices)]
    return hosts


def expand_counts(text: str) -> list[int]:
    """Expand the number of tasks on each machine: "2(x3),1" gives [2, 2, 2, 1].

    Raises:
        ConfigError: the text is not such a list.
    """
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}: it must look like 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _expand_ranges(ranges: str, whole: str) -> list[str]:
    numbers = []
    for each in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", each)
        if match is None:
            raise ConfigError(f"SLURM_STEP_NODELIST is {whole!r}: [{ranges}] must contain numbers, such as [01-03,7]")
        first, last = match[1], match[2] or match[1]
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return numbers


def _task_hosts() -> list[tuple[str, int]]:
    """List (machine, number on that machine) of each task of the step by rank, for a block distribution."""
    tasks = _number("SLURM_STEP_NUM_TASKS")
    hosts = expand_hosts(_variable("SLURM_STEP_NODELIST"))
    counts = expand_counts(_variable("SLURM_STEP_TASKS_PER_NODE"))
    if len(hosts) != len(counts) or sum(counts) != tasks:
        raise ConfigError(
            f"SLURM_STEP_NODELIST names {len(hosts)} machines, SLURM_STEP_TASKS_PER_NODE {len(counts)} with "
            f"{sum(counts)} tasks, SLURM_STEP_NUM_TASKS is {tasks}: they disagree; start with srun, or set TF_CONFIG"
        )
    return [(host, k) for host, count in zip(hosts, counts, strict=True) for k in range(count)]


def _current_host(tasks: list[tuple[str, int]], rank: int) -> str:
    """Return the machine of this task."""
    if rank >= len(tasks):
        raise ConfigError(f"SLURM_PROCID is {rank}, but the step has {len(tasks)} tasks; start with srun")
    host = os.environ.get("SLURMD_NODENAME", tasks[rank][0])
    if host not in {each for each, _ in tasks}:
        raise ConfigError(
            f"SLURMD_NODENAME is {host!r}: SLURM_STEP_NODELIST ({_variable('SLURM_STEP_NODELIST')}) does not list it; "
            "start with srun, or set TF_CONFIG"
        )
    return host


def _ports(needed: int) -> list[int]:
    reserved = os.environ.get("SLURM_STEP_RESV_PORTS")
    if reserved:
        ports = [int(port) for port in expand_hosts(f"[{reserved}]")]
        if len(ports) < needed:
            raise ConfigError(
                f"SLURM_STEP_RESV_PORTS is {reserved}: {needed} ports are needed; use srun --resv-ports={needed}"
            )
        return ports
    # Use ports below the system's ephemeral range; jobs on one machine rarely share the last four digits of their ids.
    first = 15000 + _number("SLURM_JOB_ID") % 10000
    return list(range(first, first + needed))


def _variable(name: str) -> str:
    if not os.environ.get(name):
        raise ConfigError(f"the environment variable {name} is not set: start the workers with srun, or set TF_CONFIG")
    return os.environ[name]


def _number(name: str) -> int:
    value = _variable(name)
    if not value.isdigit():
        raise ConfigError(f"the environment variable {name} is {value!r}: it must be a number; start with srun")
    return int(value)
