"""Conversion on many machines with Apache Beam, one shard per element."""

import logging
import pickle
import shlex

from gitseg_tf.core.paths import AnyPath, as_path, write_atomically
from gitseg_tf.core.text import plural
from gitseg_tf.data.tfrecords.index import Shard
from gitseg_tf.data.tfrecords.shards import ShardJob, encode_scan, finished_shard, noted_shard, write_shard
from gitseg_tf.errors import ConfigError, DataError, DependencyError, GitsegError

logger = logging.getLogger(__name__)


def write_shards_with_beam(out: AnyPath, jobs: list[ShardJob], resume: bool, options: str) -> list[Shard]:
    """Write shards with an Apache Beam pipeline.

    Each worker gets the path of a file that describes its shard, because the contours of a large cohort would not fit
    into the graph of a pipeline. It needs this package, and the source and `out` under the same paths.

    Args:
        out: the dataset's folder.
        jobs: the shards to write.
        resume: keep finished shards.
        options: pipeline options, as on Beam's command line; without "--runner=" the DirectRunner is used.

    Returns:
        The shards, in the jobs' order.

    Raises:
        DependencyError: Apache Beam is not installed.
        ConfigError: invalid options.
        DataError: a worker failed to read the source or to write.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise DependencyError("Apache Beam is not installed; pip install 'gitseg-tf[beam]'") from None
    try:
        arguments = shlex.split(options)
    except ValueError as error:
        raise ConfigError(f"beam_options must be command line arguments, got {options!r} ({error})") from None
    paths = []
    for job in jobs:
        paths.append(str(_job_path(out, job)))
        write_atomically(as_path(paths[-1]), pickle.dumps(job))
        _error_path(out, job).unlink(missing_ok=True)
    logger.info("beam       %s", plural(len(jobs), "shard"))
    with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        _ = pipeline | beam.Create(paths) | beam.Reshuffle() | beam.Map(write_described_shard, resume)
    for job in jobs:
        if _error_path(out, job).exists():
            raise DataError(_error_path(out, job).read_text(encoding="utf-8"))
    return [noted_shard(out, job) for job in jobs]


def write_described_shard(path: str, resume: bool) -> None:
    """Write the shard that a file describes.

    Invalid input is written to a file instead of raised, because the runner would retry.
    """
    out = as_path(path).parent
    job = pickle.loads(as_path(path).read_bytes())
    if resume and finished_shard(out, job):
        return
    try:
        write_shard(out, job, map(encode_scan, job.scans), lambda: None)
    except GitsegError as error:
        write_atomically(_error_path(out, job), str(error).encode())


def _job_path(out: AnyPath, job: ShardJob) -> AnyPath:
    return out / f".{job.file}.job"


def _error_path(out: AnyPath, job: ShardJob) -> AnyPath:
    return out / f".{job.file}.error"
