"""The examples of docs/how-to/serve.md, run against the test server, and the files of deploy/."""

import json
import re
import subprocess
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format, wrappers_pb2
from helpers.rule import rule
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from gitseg_tf.cli.main import build_parser
from gitseg_tf.client.address import parse_address

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "deploy"
PAGE = (ROOT / "docs" / "how-to" / "serve.md").read_text()
SPACING = (3.0, 1.5, 1.5)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


PYTHON, BASH = blocks("python"), blocks("bash")
CURL = [block for block in BASH if "curl --" in block]
GRPCURL = [block for block in BASH if block.startswith("grpcurl ")]


def test_the_page_contains_every_tested_example():
    assert len(PYTHON) == 4 and len(CURL) == 2 and len(GRPCURL) == 2 and len(BASH) == 4


@pytest.fixture
def image(make_cohort, tmp_path):
    """The image of a cohort of one scan, whose slices are also written to slices/."""
    cohort = make_cohort(tmp_path / "cohort", (("case1_day0", (40, 64), range(1, 5)),), labeled=False)
    (tmp_path / "slices").mkdir()
    for number, plane in enumerate(cohort["case1_day0"].image):
        assert cv2.imwrite(str(tmp_path / "slices" / f"{number:03}.png"), plane)
    return cohort["case1_day0"].image


def with_ports(example, server):
    assert "localhost:8500" in example or "localhost:8501" in example
    example = example.replace("localhost:8500", f"127.0.0.1:{server.grpc_port}")
    return example.replace("localhost:8501", f"127.0.0.1:{server.rest_port}")


def in_bash(example, server, folder):
    completed = subprocess.run(["bash", "-ec", with_ports(example, server)], cwd=folder, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@pytest.mark.parametrize("example", [example for example in PYTHON if "gitseg_tf" not in example])
def test_the_python_examples_run(example, image, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(with_ports(example, server), {})
    masks = np.load(tmp_path / "masks.npy")
    assert np.array_equal(np.moveaxis(masks, -1, 0), rule(image, SPACING))


def test_the_python_example_with_the_package_runs(image, server, tmp_path, monkeypatch, capsys):
    (example,) = (example for example in PYTHON if "gitseg_tf.client.client" in example)
    monkeypatch.chdir(tmp_path)
    exec(with_ports(example, server), {})
    counts = rule(image, (3.0, 1.5, 1.25)).sum((1, 2, 3))
    assert capsys.readouterr().out == f"case1_day0 {(3, *image.shape)} {counts}\n"


def test_the_curl_example_segments_slices(image, server, tmp_path):
    in_bash(CURL[0], server, tmp_path)
    masks = np.array(json.loads((tmp_path / "masks.json").read_text())["outputs"])
    assert np.array_equal(np.moveaxis(masks, -1, 0), rule(image, SPACING))


def test_the_curl_examples_query_status_and_metadata(server, tmp_path):
    shown = in_bash(CURL[1], server, tmp_path)
    decoder = json.JSONDecoder()
    status, end = decoder.raw_decode(shown)
    metadata, _ = decoder.raw_decode(shown[end:].lstrip())
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    assert set(metadata["metadata"]["signature_def"]["signature_def"]["segment_png"]["inputs"]) == {
        "png_bytes",
        "spacing",
    }


def ask_as_grpcurl(example, server):
    """Send an example's request without grpcurl, which turns JSON into messages by protobuf's own rules."""
    method = re.search(r"tensorflow\.serving\.PredictionService/(\w+) <<'END'\n", example)[1]
    body = re.search(r"<<'END'\n(.*)^END$", example, re.MULTILINE | re.DOTALL)[1]
    kind = {"Predict": PredictRequest, "GetModelMetadata": GetModelMetadataRequest}[method]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        return getattr(PredictionServiceStub(channel), method)(json_format.Parse(body, kind()), timeout=30)


def test_the_grpcurl_example_segments_a_volume(server):
    import tensorflow as tf

    masks = tf.make_ndarray(ask_as_grpcurl(GRPCURL[0], server).outputs["masks"])
    expected = rule((np.arange(12, dtype=np.uint16) * 5000).reshape(1, 3, 4), SPACING)
    assert np.array_equal(np.moveaxis(masks, -1, 0), expected) and expected.any()


def test_the_grpcurl_example_queries_the_metadata(server):
    assert ask_as_grpcurl(GRPCURL[1], server).metadata["signature_def"].type_url.endswith("SignatureDefMap")


def test_the_documented_commands_are_valid():
    commands = [
        line
        for text in (PAGE, (SERVING / "README.md").read_text())
        for line in re.findall(r"^gitseg (predict --server .*)$", text, re.MULTILINE)
    ]
    assert len(commands) == 5
    for line in commands:
        options = build_parser().parse_args([word.strip('"') for word in line.split()])
        assert parse_address(options.server).name == model_name() and options.input == "INPUT"


def read_yaml(name):
    return [*yaml.safe_load_all((SERVING / name).read_text())]


def model_name():
    (config,) = model_config().model_config_list.config
    return config.name


def model_config():
    return text_format.Parse((SERVING / "config/models.config").read_text(), ModelServerConfig())


def message_of(name, *fields):
    """A message missing from the published package; its fields are those of TensorFlow Serving's .proto files."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="gitseg.tests", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    message = file.message_type.add(name=name)
    field_type = descriptor_pb2.FieldDescriptorProto
    for number, (field, kind) in enumerate(fields, 1):
        added = message.field.add(name=field, number=number, label=field_type.LABEL_OPTIONAL)
        if kind == "int64s":
            added.type, added.label = field_type.TYPE_INT64, field_type.LABEL_REPEATED
        elif kind in ("bool", "string"):
            added.type = getattr(field_type, f"TYPE_{kind.upper()}")
        else:
            added.type, added.type_name = field_type.TYPE_MESSAGE, f".{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"gitseg.tests.{name}"))


def test_the_models_config_serves_the_newest_version():
    (config,) = model_config().model_config_list.config
    assert config.model_platform == "tensorflow" and config.model_version_policy.latest.num_versions == 1
    assert config.base_path == f"/models/{config.name}"


def test_the_batching_config_is_valid():
    whole = "google.protobuf.Int64Value"
    parameters = message_of(
        "BatchingParameters",
        ("max_batch_size", whole),
        ("batch_timeout_micros", whole),
        ("max_enqueued_batches", whole),
        ("num_batch_threads", whole),
        ("thread_pool_name", "google.protobuf.StringValue"),
        ("allowed_batch_sizes", "int64s"),
        ("pad_variable_length_inputs", "bool"),
    )
    config = text_format.Parse((SERVING / "config/batching.config").read_text(), parameters())
    sizes = [*config.allowed_batch_sizes]
    assert sizes == sorted(sizes) and sizes[-1] == config.max_batch_size.value and config.num_batch_threads.value >= 1


def metrics_path():
    prometheus = message_of("PrometheusConfig", ("enable", "bool"), ("path", "string"))
    text = (SERVING / "config/monitoring.config").read_text()
    inner = re.fullmatch(r"(?:#.*\n)*prometheus_config \{\n(.*)\}\n", text, re.DOTALL)[1]
    config = text_format.Parse(inner, prometheus())
    assert config.enable
    return config.path


def flags(arguments):
    assert all(re.fullmatch(r"--\w+=\S+", argument) for argument in arguments)
    return dict(argument[2:].split("=", 1) for argument in arguments)


def test_the_compose_file_matches_the_page():
    (compose,) = read_yaml("compose.yaml")
    servers = compose["services"]
    assert set(servers) == {"gitseg", "windows"} and servers["windows"]["profiles"] == ["windows"]
    for server in servers.values():
        assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+", server["image"]) and server["image"] in PAGE
        options = flags(server["command"])
        # With this option TensorFlow Serving would omit the numbers from its JSON.
        assert "enable_serialization_as_tensor_content" not in options
        ports = [port.rsplit(":", 1) for port in server["ports"]]
        assert [inside for _, inside in ports] == [options["port"], options["rest_api_port"]]
        assert all(outside.startswith("127.0.0.1:") for outside, _ in ports)
        (model, config) = server["volumes"]
        assert model.startswith("${MODEL:?") and model.endswith(f":/models/{model_name()}:ro")
        assert config == "./config:/config:ro"
        files = [value for value in options.values() if value.startswith("/config/")]
        files.append(server["healthcheck"]["test"][2])
        assert len(files) >= 3 and all((SERVING / path[1:]).is_file() for path in files)
        assert server["healthcheck"]["test"][3:] == [options["rest_api_port"], model_name()]
    assert [port.split(":")[1] for port in servers["gitseg"]["ports"]] == ["8500", "8501"]
    assert "enable_batching" not in flags(servers["gitseg"]["command"])
    assert flags(servers["windows"]["command"])["enable_model_warmup"] == "false"
    for port in servers["windows"]["ports"]:
        assert port.split(":")[1] in PAGE


def test_kubernetes_starts_the_same_server_as_compose():
    deployment, service = read_yaml("kubernetes.yaml")
    (compose,) = read_yaml("compose.yaml")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == compose["services"]["gitseg"]["image"]
    options = flags(container["args"])
    threads = {"tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism"}
    assert options.keys() - threads == flags(compose["services"]["gitseg"]["command"]).keys()
    assert {options[name] for name in threads} == {container["resources"]["limits"]["cpu"]}
    assert flags(compose["services"]["gitseg"]["command"]).items() <= options.items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": int(options["port"]), "rest": int(options["rest_api_port"])}
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": f"/v1/models/{model_name()}/metadata", "port": "rest"}
    assert container["livenessProbe"]["tcpSocket"]["port"] == "grpc"
    labels = pod["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports
    notes = pod["metadata"]["annotations"]
    assert notes["prometheus.io/path"] == metrics_path() and notes["prometheus.io/port"] == options["rest_api_port"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"models": f"/models/{model_name()}", "config": "/config"}
    assert {volume["name"] for volume in pod["spec"]["volumes"]} == set(mounts)
    (kustomization,) = read_yaml("kustomization.yaml")
    (generated,) = kustomization["configMapGenerator"]
    assert generated["name"] == pod["spec"]["volumes"][1]["configMap"]["name"]
    named = {Path(value).name for value in options.values() if value.startswith("/config/")}
    assert {Path(file).name for file in generated["files"]} == named
    assert all((SERVING / file).is_file() for file in [*generated["files"], *kustomization["resources"]])


def test_the_prometheus_example_scrapes_the_configured_metrics_path():
    (text,) = blocks("yaml")
    (job,) = yaml.safe_load(text)["scrape_configs"]
    assert job["metrics_path"] == metrics_path() and job["static_configs"] == [{"targets": ["localhost:8501"]}]


def test_the_readme_lists_every_deploy_file():
    named = set(re.findall(r"`((?:config/)?\w+\.\w+)`", (SERVING / "README.md").read_text()))
    existing = {path.relative_to(SERVING).as_posix() for path in SERVING.rglob("*") if path.is_file()} - {"README.md"}
    assert named == existing


def healthy(port, model):
    return (
        subprocess.run(["bash", SERVING / "config/healthy.sh", str(port), model], capture_output=True).returncode == 0
    )


def test_the_health_check_passes_only_with_a_loaded_model(server):
    assert healthy(server.rest_port, "gitseg")
    assert not healthy(server.rest_port, "nothing")
    server.serving.faults.metadata_codes.append("UNAVAILABLE")
    assert not healthy(server.rest_port, "gitseg")
    assert not healthy(1, "gitseg")
