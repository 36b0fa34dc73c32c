"""Find the workers that train together from TF_CONFIG or SLURM's variables. Does not import TensorFlow."""

import json
import os

from gitseg_tf.errors import ConfigError
from gitseg_tf.training.distribute.slurm import own_gpus, slurm_cluster, slurm_tasks


def has_workers() -> bool:
    """Check whether this is one of several processes: TF_CONFIG is set, or SLURM started more than one task."""
    return bool(os.environ.get("TF_CONFIG")) or slurm_tasks() > 1


def cluster_from_environment() -> list[str]:
    """Find the workers, and set TF_CONFIG from SLURM's variables if necessary.

    Call it before TensorFlow lists a device, because it also sets the GPUs that this task may use.

    Returns:
        The workers' addresses.

    Raises:
        ConfigError: neither TF_CONFIG nor SLURM's variables are set, or the values are invalid.
    """
    if not os.environ.get("TF_CONFIG"):
        if slurm_tasks() == 1:
            raise ConfigError(
                "training.strategy multiworker: the environment variable TF_CONFIG is not set, and srun did not start "
                "several tasks; list the workers in TF_CONFIG, or start them with srun"
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
        # Kubeflow calls the first worker chief.
        workers = [address for job in ("chief", "worker") for address in cluster.get(job, [])]
        whole = all(host and int(port) for host, _, port in (address.rpartition(":") for address in workers))
        address = cluster[kind][index]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"TF_CONFIG is {text!r}: it must look like {shape}") from None
    if not whole or address not in workers or index < 0 or not set(cluster) <= {"chief", "worker"}:
        raise ConfigError(f"TF_CONFIG is {text!r}: all tasks must be workers with a port each, as in {shape}")
    return workers
