import json

import pytest

from gitseg_tf.training.distribute.cluster import cluster_from_environment, has_workers
from gitseg_tf.training.distribute.slurm import expand_counts, expand_hosts, own_gpus, slurm_cluster

STEP = {
    "SLURM_JOB_ID": "4810023",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "node[2,10]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURMD_NODENAME": "node2",
}
OTHERS = ("TF_CONFIG", "CUDA_VISIBLE_DEVICES", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_STEP_RESV_PORTS")


@pytest.fixture
def step(monkeypatch):
    """step(NAME=value, ...) makes this process the second task of a SLURM step, with these variables changed."""

    def enter(**changes):
        for name in (*STEP, *OTHERS):
            monkeypatch.setenv(name, "")  # registers the variable for cleanup, because the code itself sets it
            monkeypatch.delenv(name)
        for name, value in (STEP | changes).items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return enter


# The expected values are the output of `scontrol show hostnames`.
@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("login", ["login"]),
        ("node[01-03,7]", ["node01", "node02", "node03", "node7"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("a,b[1-2]-ib,c", ["a", "b1-ib", "b2-ib", "c"]),
        ("rack[1-2]n[0-1]", ["rack1n0", "rack1n1", "rack2n0", "rack2n1"]),
        ("gpu-a100-[098-101].cluster", [f"gpu-a100-{n}.cluster" for n in ("098", "099", "100", "101")]),
    ],
)
def test_host_lists_are_expanded_like_scontrol(text, hosts):
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["", "node[1-2", "node[a-b]", "a,,b", "node[]", "node]1[", "a,"])
def test_an_invalid_host_list_is_refused(refusal, text):
    assert "SLURM_STEP_NODELIST" in refusal(expand_hosts, text)


def test_tasks_per_node_are_expanded(refusal):
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    assert "SLURM_STEP_TASKS_PER_NODE" in refusal(expand_counts, "2(y3)")


def test_a_slurm_step_becomes_a_tf_config_with_workers_in_rank_order(step):
    step()
    assert slurm_cluster() == {
        "cluster": {"worker": ["node2:15023", "node2:15024", "node10:15023"]},
        "task": {"type": "worker", "index": 1},
    }


def test_reserved_ports_are_used(step, refusal):
    step(SLURM_STEP_RESV_PORTS="12004-12005")
    assert slurm_cluster()["cluster"]["worker"] == ["node2:12004", "node2:12005", "node10:12004"]
    step(SLURM_STEP_RESV_PORTS="12004")
    assert "--resv-ports=2" in refusal(slurm_cluster)


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID"])
def test_a_missing_variable_is_named(step, refusal, name):
    step(**{name: None})
    assert f"{name} is not set" in refusal(slurm_cluster)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SLURM_PROCID": "one"}, "SLURM_PROCID is 'one'"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "they disagree"),
        ({"SLURM_STEP_TASKS_PER_NODE": "3"}, "they disagree"),
        ({"SLURM_PROCID": "2", "SLURM_LOCALID": "1"}, "--distribution=block"),
        ({"SLURMD_NODENAME": "node10", "SLURM_LOCALID": "0"}, "--distribution=block"),
        ({"SLURMD_NODENAME": "node3"}, "SLURMD_NODENAME is 'node3': SLURM_STEP_NODELIST (node[2,10]) does not list it"),
        ({"SLURM_PROCID": "3"}, "SLURM_PROCID is 3, but the step has 3 tasks"),
    ],
)
def test_an_inconsistent_slurm_step_is_refused(step, refusal, changes, expected):
    step(CUDA_VISIBLE_DEVICES="0,1", **changes)
    assert expected in refusal(slurm_cluster)
    assert expected in refusal(cluster_from_environment)


@pytest.mark.parametrize(
    ("changes", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "2,3"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_LOCALID": "0", "SLURM_PROCID": "0"}, "0,1"),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_TRES_PER_TASK": "cpu=4,gres/gpu=2"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURMD_NODENAME": "node10", "SLURM_LOCALID": "0"}, None),
    ],
)
def test_tasks_share_the_gpus_of_a_node_unless_slurm_has_bound_them(step, changes, gpus):
    step(**changes)
    assert own_gpus() == gpus


def test_gpus_that_cannot_be_shared_evenly_are_refused(step, refusal):
    step(CUDA_VISIBLE_DEVICES="0,1,2")
    assert "--gpus-per-task" in refusal(own_gpus)


def test_the_workers_of_a_slurm_step_are_written_to_tf_config(step, monkeypatch):
    import os

    step(CUDA_VISIBLE_DEVICES="0,1")
    assert has_workers()
    assert cluster_from_environment() == ["node2:15023", "node2:15024", "node10:15023"]
    assert json.loads(os.environ["TF_CONFIG"]) == slurm_cluster()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_an_existing_tf_config_takes_precedence(step):
    cluster = {"cluster": {"chief": ["a:1"], "worker": ["b:2"]}, "task": {"type": "worker", "index": 0}}
    step(TF_CONFIG=json.dumps(cluster))
    assert cluster_from_environment() == ["a:1", "b:2"]


def test_a_single_task_is_not_a_cluster(step, refusal):
    step(SLURM_STEP_NUM_TASKS="1")
    assert not has_workers()
    assert "TF_CONFIG" in refusal(cluster_from_environment) and "srun" in refusal(cluster_from_environment)


@pytest.mark.parametrize(
    "cluster",
    [
        "no json",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)
def test_an_invalid_tf_config_is_refused_with_an_example(step, refusal, cluster):
    step(TF_CONFIG=cluster)
    message = refusal(cluster_from_environment)
    assert "TF_CONFIG" in message and '"index": 0' in message
