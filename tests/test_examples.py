import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from gitseg_tf.cli.main import build_parser
from gitseg_tf.config import load_config, parse_assignment
from gitseg_tf.training.distribute.cluster import cluster_from_environment

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for gitseg and srun that record their arguments; srun can fail a number of times first."""
    for name, body in {
        "gitseg": 'echo "$TF_CONFIG" > "$SEEN.cluster"; printf "%s\\n" "$@" > "$SEEN"',
        "srun": 'while [[ $1 == --* ]]; do shift; done; "$@"; echo x >> "$SEEN.calls"; '
        '[ "$(wc -l < "$SEEN.calls")" -ge "${SUCCEEDS:-1}" ]',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("TF_CONFIG", "")
    return tmp_path / "seen"


def experiment(arguments):
    """The parsed and validated options of a gitseg command."""
    options = build_parser().parse_args(arguments)
    load_config(None, dict(map(parse_assignment, options.set)) | {"training.strategy": options.strategy or "auto"})
    return options


def test_the_slurm_script_resumes_training_after_a_failure(commands, monkeypatch):
    monkeypatch.setenv("SUCCEEDS", "2")
    script = ["bash", str(EXAMPLES / "slurm.sbatch"), "a config.yaml", "data", "out"]
    completed = subprocess.run(script, capture_output=True, text=True)
    assert completed.returncode == 0 and "attempt 1 ended" in completed.stderr and "attempt 2" not in completed.stderr
    options = experiment(commands.read_text().splitlines())
    assert (options.config, options.data, options.out) == ("a config.yaml", "data", "out")
    assert options.resume and options.strategy == "multiworker"


def test_the_slurm_script_gives_up_after_three_attempts(commands, monkeypatch):
    monkeypatch.setenv("SUCCEEDS", "9")
    completed = subprocess.run(["bash", str(EXAMPLES / "slurm.sbatch"), "c", "d", "o"], capture_output=True, text=True)
    assert completed.returncode == 1 and completed.stderr.count("ended") == 3


def test_the_kubernetes_job_gives_each_pod_its_worker_index(commands, monkeypatch):
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["selector"] == {
        "job-name": job["metadata"]["name"]
    }
    (workers,) = (int(variable["value"]) for variable in container["env"] if variable["name"] == "WORKERS")
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == workers == 4
    environment = {**os.environ, "WORKERS": str(workers), "JOB_COMPLETION_INDEX": "2"}
    subprocess.run([*container["command"], *container["args"]], env=environment, check=True)
    monkeypatch.setenv("TF_CONFIG", Path(f"{commands}.cluster").read_text())
    port = container["ports"][0]["containerPort"]
    assert cluster_from_environment() == [f"gitseg-{k}.gitseg:{port}" for k in range(4)]
    assert json.loads(os.environ["TF_CONFIG"])["task"] == {"type": "worker", "index": 2}
    options = experiment(commands.read_text().splitlines())
    assert options.resume and options.strategy == "multiworker"
    (mount,) = container["volumeMounts"]
    assert all(path.startswith(mount["mountPath"]) for path in (options.data, options.out, options.config))


def test_the_commands_on_the_distributed_page_are_valid():
    page = (EXAMPLES.parent / "how-to" / "distributed.md").read_text()
    trainings = re.findall(r"^gitseg (train .*?)(?: #.*)?$", page, re.MULTILINE)
    assert len(trainings) == 7
    for command in trainings:
        experiment(command.split())


def test_the_clusters_on_the_distributed_page_are_valid(monkeypatch):
    page = (EXAMPLES.parent / "how-to" / "distributed.md").read_text()
    clusters = re.findall(r"^export TF_CONFIG='(.*)'", page, re.MULTILINE)
    assert len(clusters) == 2
    for cluster in clusters:
        monkeypatch.setenv("TF_CONFIG", cluster)
        assert cluster_from_environment() == ["host0:2222", "host1:2222"]
