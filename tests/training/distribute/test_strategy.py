import itertools
import json
import os
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from gitseg_tf.config import load_config
from gitseg_tf.training.distribute import strategy
from gitseg_tf.training.distribute.strategy import choose_precision, choose_strategy
from gitseg_tf.training.setup import set_up

NAMES = (
    "TPU_NAME",
    "COLAB_TPU_ADDR",
    "TPU_WORKER_ID",
    "TPU_ACCELERATOR_TYPE",
    "TPU_CONFIG",
    "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS",
    "TF_CONFIG",
    "SLURM_STEP_NUM_TASKS",
)
CLUSTER = json.dumps({"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 0}})


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch):
    """A machine without a GPU whose environment names neither a TPU nor workers."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    machine = {"GPU": [], "CPU": tf.config.list_logical_devices("CPU")}
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: machine[kind])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: machine[kind])
    monkeypatch.setattr(strategy, "_cpu_flags", lambda: {"avx2", "avx512f"})
    return machine


@pytest.fixture
def gpus(monkeypatch, bare_machine):
    """gpus(count, (major, minor)) adds GPUs to the machine."""

    def put(count, capability=None):
        bare_machine["GPU"] = [SimpleNamespace(name=f"/device:GPU:{k}") for k in range(count)]
        details = {} if capability is None else {"compute_capability": capability}
        monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)

    return put


@pytest.fixture
def stand_ins(monkeypatch):
    """Fake strategies that record their arguments and connect to nothing."""

    def stand_in(name):
        def make(devices=None):
            replicas = len(devices) if isinstance(devices, list) else 1
            return SimpleNamespace(kind=name, devices=devices, num_replicas_in_sync=replicas)

        return make

    for name in ("OneDeviceStrategy", "MirroredStrategy", "MultiWorkerMirroredStrategy", "TPUStrategy"):
        monkeypatch.setattr(tf.distribute, name, stand_in(name))
    monkeypatch.setattr(tf.distribute.cluster_resolver.TPUClusterResolver, "connect", lambda tpu=None: f"TPU {tpu}")


def test_auto_without_a_gpu_chooses_one_device():
    chosen, line = choose_strategy()
    assert isinstance(chosen, tf.distribute.OneDeviceStrategy)
    assert line == "one_device, 1 CPU replica (auto: no GPU, no TPU)"


def test_one_device_and_mirrored_can_be_requested():
    one, line = choose_strategy("one_device")
    assert isinstance(one, tf.distribute.OneDeviceStrategy) and line == "one_device, 1 CPU replica"
    mirrored, line = choose_strategy("mirrored")
    assert isinstance(mirrored, tf.distribute.MirroredStrategy) and line.startswith("mirrored, 1 CPU replica")


@pytest.mark.parametrize(
    ("count", "line", "kind"),
    [
        (1, "one_device, 1 GPU replica (auto: one GPU)", "OneDeviceStrategy"),
        (4, "mirrored, 4 GPU replicas (auto: 4 GPUs)", "MirroredStrategy"),
    ],
)
def test_auto_uses_all_gpus(gpus, stand_ins, count, line, kind):
    gpus(count)
    chosen, description = choose_strategy()
    assert description == line and chosen.kind == kind


def test_auto_chooses_multiworker_if_tf_config_is_set(monkeypatch, stand_ins, gpus):
    gpus(2)
    monkeypatch.setenv("TF_CONFIG", CLUSTER)
    chosen, line = choose_strategy()
    assert chosen.kind == "MultiWorkerMirroredStrategy" and "multiworker" in line and "auto: TF_CONFIG is set" in line


def test_the_multiworker_strategy_is_created_before_devices_are_listed(monkeypatch, stand_ins):
    calls = []
    original = tf.distribute.MultiWorkerMirroredStrategy
    monkeypatch.setenv("TF_CONFIG", CLUSTER)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda: calls.append("strategy") or original())
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: calls.append(kind) or [])
    choose_strategy()
    assert calls[0] == "strategy"


@pytest.mark.parametrize(
    ("variable", "value", "address"),
    [
        ("TPU_NAME", "my-tpu", None),
        ("TPU_NAME", "local", "local"),
        ("TPU_WORKER_ID", "0", "local"),
        ("TPU_ACCELERATOR_TYPE", "v5e-1", "local"),
    ],
)
def test_auto_chooses_tpu_if_the_environment_names_one(monkeypatch, stand_ins, variable, value, address):
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("TF_CONFIG", CLUSTER)
    chosen, line = choose_strategy()
    assert (chosen.kind, chosen.devices) == ("TPUStrategy", f"TPU {address}")
    assert line == "tpu, 1 TPU replica (auto: the environment specifies a TPU)"


@pytest.mark.parametrize(
    ("variable", "text"), [("COLAB_TPU_ADDR", "127.0.0.1:{port}"), ("TPU_NAME", "grpc://127.0.0.1:{port}")]
)
def test_a_tpu_address_is_used_only_if_it_responds(monkeypatch, stand_ins, refusal, variable, text):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv(variable, text.format(port=port))
        assert choose_strategy()[0].devices == f"TPU grpc://127.0.0.1:{port}"
    message = refusal(choose_strategy)
    assert f"no TPU responds at grpc://127.0.0.1:{port}" in message and "TPU_NAME" in message


@pytest.mark.parametrize("address", ["grpc://nowhere", "grpc://host:port", "grpc://"])
def test_an_invalid_tpu_address_is_refused(monkeypatch, stand_ins, refusal, address):
    monkeypatch.setenv("TPU_NAME", address)
    assert "no TPU responds" in refusal(choose_strategy)


def test_empty_tpu_variables_are_ignored(monkeypatch):
    for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR", "TF_CONFIG"):
        monkeypatch.setenv(name, "")
    assert choose_strategy()[1].startswith("one_device")


def test_auto_chooses_multiworker_for_several_slurm_tasks(monkeypatch, stand_ins):
    step = {"STEP_NUM_TASKS": 2, "STEP_NODELIST": "n[1-2]", "STEP_TASKS_PER_NODE": "1(x2)", "PROCID": 1, "LOCALID": 0}
    for name, value in (step | {"JOB_ID": 7}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    chosen, line = choose_strategy()
    assert chosen.kind == "MultiWorkerMirroredStrategy" and "auto: 2 SLURM tasks" in line
    assert json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1


def test_multiworker_without_workers_is_refused(refusal):
    assert "TF_CONFIG" in refusal(choose_strategy, "multiworker")


@pytest.mark.parametrize(
    "text",
    ["no json", json.dumps({"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 5}})],
)
def test_an_invalid_tf_config_is_refused(monkeypatch, refusal, text):
    monkeypatch.setenv("TF_CONFIG", text)
    assert "TF_CONFIG" in refusal(choose_strategy, "multiworker")


@pytest.mark.parametrize("environment", [{}, {"TPU_NAME": "nowhere", "GCE_METADATA_HOST": "127.0.0.1:9"}])
def test_an_unresponsive_tpu_is_refused_within_seconds(monkeypatch, refusal, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    start = time.monotonic()
    assert "no TPU responds" in refusal(choose_strategy, "tpu")
    assert time.monotonic() - start < 10


def test_a_requested_precision_is_used(gpus):
    gpus(1, (6, 1))
    for name in ("float32", "mixed_float16", "mixed_bfloat16"):
        assert choose_precision(name) == (name, f"{name}, as configured")


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_auto_precision_uses_bfloat16_instructions_of_the_cpu(monkeypatch, flag):
    monkeypatch.setattr(strategy, "_cpu_flags", lambda: {"avx2", flag})
    policy, line = choose_precision()
    assert policy == "mixed_bfloat16" and flag in line


def test_features_with_a_depth_of_two_need_float32_on_a_cpu(monkeypatch, refusal):
    monkeypatch.setattr(strategy, "_cpu_flags", lambda: {"avx512_bf16"})
    assert choose_precision(depths=(16, 8, 4))[0] == "mixed_bfloat16"
    precision, line = choose_precision(depths=(8, 4, 2))
    assert precision == "float32" and "depth of 2" in line
    assert "set it to float32" in refusal(choose_precision, "mixed_bfloat16", depths=(8, 4, 2))
    assert choose_precision("mixed_bfloat16", depths=(8, 4, 2), tpu=True)[0] == "mixed_bfloat16"


def test_training_knows_the_depths_of_its_features(tiny_dataset, refusal):
    patch = {"data.patch": [8, 16, 16], "data.input_size": [16, 16], "training.precision": "mixed_bfloat16"}
    network = {"model.architecture": "unet3d", "data.crop": "none"}
    config = load_config(None, patch | network | {"model.levels": 4})
    assert "depth of 2" in refusal(set_up, config, tiny_dataset)
    assert set_up(load_config(None, patch | network | {"model.levels": 3}), tiny_dataset)[1] == "mixed_bfloat16"


@pytest.mark.slow
def test_bfloat16_gradients_of_all_other_depths_are_right_on_a_cpu():
    """The claim behind the refusal. If it fails for a new TensorFlow, the constant in strategy.py is wrong for it."""
    random, wrong = np.random.default_rng(0), set()
    for depth, width, channels in itertools.product((1, 2, 3, 4, 5, 8), (2, 4, 7), ((1, 16), (8, 8), (32, 16))):
        shape = (2, depth, width, width)
        arrays = [
            random.normal(size=size) for size in ((*shape, channels[0]), (3, 3, 3, *channels), (*shape, channels[1]))
        ]
        exact, rounded = (gradients(*(tf.cast(array, kind) for array in arrays)) for kind in (tf.float32, tf.bfloat16))
        for one, other in zip(exact, rounded, strict=True):
            difference = np.abs(one - tf.cast(other, tf.float32).numpy()).max()
            if not difference <= 0.05 * np.abs(one).max():
                wrong.add(depth)
    assert wrong <= {2}


def gradients(x, kernel, upstream):
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = tf.nn.conv3d(x, kernel, (1, 1, 1, 1, 1), "SAME")
    return tape.gradient(y, [x, kernel], upstream)


def test_a_cpu_without_bfloat16_instructions_stays_in_float32():
    policy, line = choose_precision()
    assert policy == "float32" and line.startswith("float32 (auto: no GPU")


@pytest.mark.parametrize(
    ("capability", "policy"),
    [
        ((9, 0), "mixed_bfloat16"),
        ((8, 0), "mixed_bfloat16"),
        ((7, 5), "mixed_float16"),
        ((7, 0), "mixed_float16"),
        ((6, 1), "float32"),
        (None, "float32"),
    ],
)
def test_the_compute_capability_of_the_gpu_decides_the_precision(gpus, capability, policy):
    gpus(1, capability)
    chosen, line = choose_precision()
    assert chosen == policy and line.startswith(policy)


def test_a_tpu_uses_bfloat16():
    assert choose_precision(tpu=True)[0] == "mixed_bfloat16"


@pytest.mark.parametrize(
    ("text", "flags"),
    [("processor\t: 0\nflags\t\t: fpu amx_bf16 avx2\n\nprocessor\t: 1\n", {"fpu", "amx_bf16", "avx2"}), ("", set())],
)
def test_cpu_flags_are_read_from_proc_cpuinfo(monkeypatch, text, flags):
    monkeypatch.undo()
    monkeypatch.setattr(strategy, "Path", lambda path: SimpleNamespace(is_file=lambda: True, read_text=lambda: text))
    assert strategy._cpu_flags() == flags
