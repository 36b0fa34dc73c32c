"""Which processes train together: TF_CONFIG, by hand or from SLURM's variables. Needs no TensorFlow."""

import json
import os

from gitseg_tf.errors import InputError
from gitseg_tf.training.slurm import own_gpus, slurm_cluster, slurm_tasks


def has_workers() -> bool:
    """True for one of several processes: TF_CONFIG is set, or SLURM started more than one task."""
    return bool(os.environ.get("TF_CONFIG")) or slurm_tasks() > 1


def cluster_from_environment() -> list[str]:
    """Find the workers, and set TF_CONFIG where SLURM's variables say what belongs into it.

    Call it before TensorFlow lists a device: a task's share of a machine's GPUs is set here as well.

    Returns:
        The workers' addresses.

    Raises:
        InputError: neither is there, or it makes no sense.
    """
    if not os.environ.get("TF_CONFIG"):
        if slurm_tasks() == 1:
            raise InputError(
                "--strategy multiworker: the environment variable TF_CONFIG, which names the workers, is not set, and "
                "this is no srun with several tasks"
            )
        cluster, gpus = slurm_cluster(), own_gpus()
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        os.environ["TF_CONFIG"] = json.dumps(cluster)
    return _workers(os.environ["TF_CONFIG"])


def _workers(text: str) -> list[str]:
    shape = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
        cluster, kind, index = config["cluster"], config["task"]["type"], config["task"]["index"]
        # A chief beside the workers is how Kubeflow names the first of them.
        workers = [address for job in ("chief", "worker") for address in cluster.get(job, [])]
        whole = all(host and int(port) for host, _, port in (address.rpartition(":") for address in workers))
        own = cluster[kind][index]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f"TF_CONFIG is {text!r}: it must look like {shape}") from None
    if not whole or own not in workers or index < 0 or not set(cluster) <= {"chief", "worker"}:
        raise InputError(f"TF_CONFIG is {text!r}: all tasks must be workers with a port each, as in {shape}")
    return workers
