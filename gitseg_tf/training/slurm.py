"""The workers of a SLURM step as TF_CONFIG.

tf.distribute.cluster_resolver.SlurmClusterResolver sorts the hosts as text, so that node10 comes before node2 while
SLURM's ranks do not, divides by zero where SLURM gives each task one GPU, and asks nvidia-smi on machines without.
"""

import itertools
import os
import re

from gitseg_tf.errors import InputError

_ONE_HOST_OR_RANGE = re.compile(r"((?:[^,\[\]]|\[[^\[\]]*\])+)(?:,|$)")


def slurm_tasks() -> int:
    """The tasks of the SLURM step that this process is one of; 1 outside of a step."""
    return _number("SLURM_STEP_NUM_TASKS") if "SLURM_STEP_NUM_TASKS" in os.environ else 1


def slurm_cluster() -> dict:
    """The content of TF_CONFIG for this task of a step: a worker a task, in the order of their ranks.

    Each worker listens on a port of its own of the machine it is on: of those that `srun --resv-ports` reserved, or
    else from a port on that hangs on the job's id.

    Returns:
        {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": rank}}.

    Raises:
        InputError: a variable is missing or makes no sense, or the tasks are not in blocks.
        https://slurm.schedmd.com/srun.html says what is in the variables.
    """
    rank, local = _number("SLURM_PROCID"), _number("SLURM_LOCALID")
    places = _places()
    here = _here(places, rank)
    ports = _ports(max(k for _, k in places) + 1)
    if places[rank] != (here, local):
        raise InputError(
            f"task {rank} is the one of number {local} on {here}, not of number {places[rank][1]} on "
            f"{places[rank][0]}: the tasks are not in blocks; start them with srun --distribution=block"
        )
    workers = [f"{host}:{ports[k]}" for host, k in places]
    return {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}


def own_gpus() -> str | None:
    """This task's share of the GPUs in CUDA_VISIBLE_DEVICES, where SLURM shows all of a machine to each of its tasks.

    Returns:
        What to set CUDA_VISIBLE_DEVICES to; None where it is right already: SLURM has bound GPUs to the tasks
        (--gpus-per-task), the task is the only one on its machine, or it sees a single GPU or none.

    Raises:
        InputError: the GPUs cannot be shared evenly, or a variable makes no sense.
    """
    bound = "SLURM_GPUS_PER_TASK" in os.environ or "gpu" in os.environ.get("SLURM_TRES_PER_TASK", "")
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    places, local = _places(), _number("SLURM_LOCALID")
    host = _here(places, _number("SLURM_PROCID"))
    here = sum(each == host for each, _ in places)
    if bound or here == 1 or len(gpus) < 2:
        return None
    if len(gpus) % here:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES lists {len(gpus)} GPUs for {here} tasks of this machine: they cannot be shared "
            "evenly; ask for them with --gpus-per-task"
        )
    share = len(gpus) // here
    return ",".join(gpus[local * share : (local + 1) * share])


def expand_hosts(text: str) -> list[str]:
    """The machines of a SLURM host list, as `scontrol show hostnames` prints them.

    Args:
        text: names with commas between them; brackets hold numbers and ranges, whose leading zeros are kept:
            "login,node[01-03,7],rack[1-2]n[0-1]-ib".

    Returns:
        The names, in the order of the list; of several brackets the last one runs first.

    Raises:
        InputError: it is no host list.
    """
    hosts, parts = [], _ONE_HOST_OR_RANGE.findall(text)
    if not text or len(",".join(parts)) != len(text):
        raise InputError(f"SLURM_STEP_NODELIST is {text!r}: it is no host list, such as node[01-04]")
    for part in parts:
        pieces = re.split(r"\[([^\]]*)\]", part)
        choices = [_expand_ranges(piece, text) if k % 2 else [piece] for k, piece in enumerate(pieces)]
        hosts += ["".join(chosen) for chosen in itertools.product(*choices)]
    return hosts


def expand_counts(text: str) -> list[int]:
    """Tasks on each machine: "2(x3),1" is [2, 2, 2, 1].

    Raises:
        InputError: it is no such list.
    """
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise InputError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}: it must look like 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _expand_ranges(ranges: str, whole: str) -> list[str]:
    numbers = []
    for each in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", each)
        if match is None:
            raise InputError(f"SLURM_STEP_NODELIST is {whole!r}: [{ranges}] must hold numbers, such as [01-03,7]")
        first, last = match[1], match[2] or match[1]
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return numbers


def _places() -> list[tuple[str, int]]:
    """The machine of each task of the step, and the task's number on it, in the order of the ranks of blocks."""
    tasks = _number("SLURM_STEP_NUM_TASKS")
    hosts = expand_hosts(_variable("SLURM_STEP_NODELIST"))
    counts = expand_counts(_variable("SLURM_STEP_TASKS_PER_NODE"))
    if len(hosts) != len(counts) or sum(counts) != tasks:
        raise InputError(
            f"SLURM_STEP_NODELIST names {len(hosts)} machines, SLURM_STEP_TASKS_PER_NODE {len(counts)} with "
            f"{sum(counts)} tasks, SLURM_STEP_NUM_TASKS is {tasks}: they do not fit; start with srun, or set TF_CONFIG"
        )
    return [(host, k) for host, count in zip(hosts, counts, strict=True) for k in range(count)]


def _here(places: list[tuple[str, int]], rank: int) -> str:
    """This task's machine."""
    if rank >= len(places):
        raise InputError(f"SLURM_PROCID is {rank}, but the step has {len(places)} tasks; start with srun")
    host = os.environ.get("SLURMD_NODENAME", places[rank][0])
    if host not in {each for each, _ in places}:
        raise InputError(
            f"SLURMD_NODENAME is {host!r}: SLURM_STEP_NODELIST ({_variable('SLURM_STEP_NODELIST')}) does not name it; "
            "start with srun, or set TF_CONFIG"
        )
    return host


def _ports(needed: int) -> list[int]:
    reserved = os.environ.get("SLURM_STEP_RESV_PORTS")
    if reserved:
        ports = [int(port) for port in expand_hosts(f"[{reserved}]")]
        if len(ports) < needed:
            raise InputError(
                f"SLURM_STEP_RESV_PORTS is {reserved}: {needed} are needed; use srun --resv-ports={needed}"
            )
        return ports
    # Below the ports that the system gives away; two jobs on one machine rarely have the same last four digits.
    first = 15000 + _number("SLURM_JOB_ID") % 10000
    return list(range(first, first + needed))


def _variable(name: str) -> str:
    if not os.environ.get(name):
        raise InputError(f"the environment variable {name} is not set: start the workers with srun, or set TF_CONFIG")
    return os.environ[name]


def _number(name: str) -> int:
    value = _variable(name)
    if not value.isdigit():
        raise InputError(f"the environment variable {name} is {value!r}: it must be a number; start with srun")
    return int(value)
