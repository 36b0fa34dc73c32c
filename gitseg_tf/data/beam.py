"""Conversion on many machines: Apache Beam hands each shard to a worker."""

import pickle
import shlex

from gitseg_tf.data.dataset import Shard
from gitseg_tf.data.shards import ShardJob, encode_scan, finished_shard, noted_shard, write_shard
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, write_atomically


def write_shards_with_beam(out: AnyPath, jobs: list[ShardJob], resume: bool, options: str) -> list[Shard]:
    """Write shards with a Beam pipeline whose elements are the shards.

    A worker gets the path of a file that describes its shard: contours of a large cohort would not fit into a
    pipeline's graph. It needs this package, the source and `out` under the same paths.

    Args:
        out: the dataset's folder.
        jobs: what to write.
        resume: keep shards that are finished already.
        options: of the pipeline, as on Beam's command line; without "--runner=" Beam's DirectRunner does it.

    Returns:
        The shards, in the jobs' order.

    Raises:
        InputError: Apache Beam is not installed; or what a worker met in the source, or writing.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise InputError("--runner beam: Apache Beam is missing; pip install 'gitseg-tf[beam]'") from None
    try:
        arguments = shlex.split(options)
    except ValueError as error:
        raise InputError(f"--beam-options {options}: cannot be split into arguments ({error})") from None
    paths = []
    for job in jobs:
        paths.append(str(_job_path(out, job)))
        write_atomically(as_path(paths[-1]), pickle.dumps(job))
        _error_path(out, job).unlink(missing_ok=True)
    print(f"beam       {len(jobs)} shards", flush=True)
    with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        _ = pipeline | beam.Create(paths) | beam.Reshuffle() | beam.Map(write_described_shard, resume)
    for job in jobs:
        if _error_path(out, job).exists():
            raise InputError(_error_path(out, job).read_text(encoding="utf-8"))
    return [noted_shard(out, job) for job in jobs]


def write_described_shard(path: str, resume: bool) -> None:
    """Write the shard that a file describes. What is wrong with its input is left for the one who started the pipeline:
    raised here, the runner would try again and again."""
    out = as_path(path).parent
    job = pickle.loads(as_path(path).read_bytes())
    if resume and finished_shard(out, job):
        return
    try:
        write_shard(out, job, map(encode_scan, job.scans), lambda: None)
    except InputError as error:
        write_atomically(_error_path(out, job), str(error).encode())


def _job_path(out: AnyPath, job: ShardJob) -> AnyPath:
    return out / f".{job.file}.job"


def _error_path(out: AnyPath, job: ShardJob) -> AnyPath:
    return out / f".{job.file}.error"
