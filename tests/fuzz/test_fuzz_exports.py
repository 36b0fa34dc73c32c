"""Damaged exports: the SavedModel and its assets, and network files."""

import shutil

import pytest
import tensorflow as tf
import yaml
from helpers.damage import Tally, damaged_bytes, damaged_yaml, generator

from gitseg_tf.export.savedmodel import export
from gitseg_tf.inference.exported import exported_config, exported_version
from gitseg_tf.inference.networks import open_model
from gitseg_tf.inference.runtimes import open_network
from gitseg_tf.runs.run import load_run

pytestmark = pytest.mark.slow


def opened(path):
    _, _, load = open_model(path)
    return load()


@pytest.fixture(scope="module")
def exported(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "export"
    export(load_run(untrained), folder, force=True)
    return folder


def test_assets_of_a_savedmodel(exported, tmp_path):
    rng, tally = generator(80), Tally()
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    path = folder / "1" / "assets.extra" / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    tree = {key: tree[key] for key in ("name", "labels", "channels", "provenance")} | {"data": {"input_size": [32, 32]}}
    others = [other for other in path.parent.iterdir() if other != path]
    for n in range(300):
        path.write_bytes(damaged_yaml(rng, tree))
        other = others[n % len(others)]  # files that no reader of this package needs
        content = other.read_bytes()
        other.write_bytes(damaged_bytes(rng, content))
        tally(path.read_bytes()[:200], lambda: exported_config(exported_version(folder)))
        other.write_bytes(content)
    tally.check(300, accepted=20, refused=50)


@pytest.mark.parametrize(("name", "inputs"), [("saved_model.pb", 60), ("variables/variables.index", 8)])
def test_a_savedmodel(exported, tmp_path, name, inputs):
    rng, tally = generator(81), Tally(60)
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    path = folder / "1" / name
    if not path.is_file():
        pytest.skip("the model has no variables")
    content = path.read_bytes()
    for n in range(inputs):
        path.write_bytes(damaged_bytes(rng, content))
        tally((name, n), opened, folder)
    tally.check(inputs, accepted=0)


def test_network_files(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert.interpreter")
    rng, tally = generator(82), Tally(60)
    tensors = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 8, 8, 2])] for name in ("in", "out")
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node("Sigmoid", ["in"], ["out"])], "network", *tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    function = tf.function(tf.sigmoid, input_signature=[tf.TensorSpec([1, 8, 8, 2])])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    contents = {"model.onnx": model.SerializeToString(), "model.tflite": converter.convert()}
    for n in range(300):
        path = tmp_path / list(contents)[n % 2]
        path.write_bytes(damaged_bytes(rng, contents[path.name]))
        tally((path.name, n), open_network, path, (8, 8, 2), 2)
    tally.check(300, accepted=10, refused=50)
