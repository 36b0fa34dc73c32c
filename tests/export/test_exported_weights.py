"""Exports with float32 and bfloat16 weights: the written files, the graph that TensorFlow runs, and the outputs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import ndimage
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from gitseg_tf.cli import main
from gitseg_tf.client.client import read_masks
from gitseg_tf.config import load_config, save_config
from gitseg_tf.export.savedmodel import export
from gitseg_tf.inference.predictor import load_predictor, run_probabilities
from gitseg_tf.labels import UWMGI
from gitseg_tf.models.build import build_model
from gitseg_tf.runs.folder import best_weights_path
from gitseg_tf.runs.network import load_model
from gitseg_tf.runs.run import load_run
from gitseg_tf.training.callbacks.recorder import write_history

pytestmark = pytest.mark.slow

SPACING = np.float32([3.0, 1.5, 1.25])
NETWORKS = {
    "unet": {"data.input_size": [32, 32], "model.filters": 16},
    "unet3d": {
        "data.input_size": [64, 64],
        "data.patch": [4, 32, 32],
        "model.architecture": "unet3d",
        "model.filters": 8,
    },
}
# Kernels have more values than any other constant of the graph.
KERNEL = 4096


def write_run(path, settings):
    """A run with nontrivial batch normalization and probabilities on both sides of 0.5."""
    config = load_config(overrides={"training.epochs": 1, "evaluation.batch_size": 3, **settings})
    config = config.for_dataset(UWMGI, ("mr",))
    (path / "checkpoints").mkdir(parents=True)
    keras.utils.set_random_seed(0)
    model, rng = build_model(config), np.random.default_rng(0)
    for layer in model.submodules:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, array.shape) for array in layer.get_weights()])
    head = [layer for layer in model.layers if layer.get_weights()][-1]
    kernel, bias = head.get_weights()
    head.set_weights([5 * kernel, 0 * bias])
    model.save_weights(str(best_weights_path(path)))
    save_config(config, path / "config.yaml")
    write_history(path, [{"epoch": 1, "loss": 1.0}])
    return load_run(path)


@pytest.fixture(scope="module", params=NETWORKS)
def written(request, tmp_path_factory):
    """A run, and its exports by weight type."""
    folder = tmp_path_factory.mktemp("weights")
    run = write_run(folder / "run", NETWORKS[request.param])
    names = ("float32", "bfloat16")
    return run, {name: export(run, folder / name, weights=name) for name in names}


def nodes_written(path):
    model = SavedModel.FromString(Path(path, "saved_model.pb").read_bytes())
    for graph in (meta.graph_def for meta in model.meta_graphs):
        yield from graph.node
        for function in graph.library.function:
            yield from function.node_def


def kernel_types(path):
    tensors = [node.attr["value"].tensor for node in nodes_written(path) if node.op == "Const"]
    return {
        tf.dtypes.as_dtype(tensor.dtype).name
        for tensor in tensors
        if np.prod([dim.size for dim in tensor.tensor_shape.dim]) > KERNEL
    }


def session_graph(path, signature, **inputs):
    """The graph that the session loader runs after TensorFlow's optimization, and its output."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        definition = tf.compat.v1.saved_model.load(session, ["serve"], str(path)).signature_def[signature]
        (output,) = definition.outputs.values()
        options, metadata = tf.compat.v1.RunOptions(output_partition_graphs=True), tf.compat.v1.RunMetadata()
        feed = {definition.inputs[name].name: value for name, value in inputs.items()}
        found = session.run(output.name, feed, options=options, run_metadata=metadata)
    return [node for graph in metadata.partition_graphs for node in graph.node], found


def windows_of(run):
    shape = run.config.data.patch or run.config.data.input_size
    return np.random.default_rng(0).random((2, *shape, 5 if len(shape) == 2 else 1), np.float32)


def scan():
    field = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((7, 50, 64)), (1, 3, 3), mode="wrap")
    return ((field - field.min()) / np.ptp(field) * 2000).astype(np.uint16)


def test_a_bfloat16_export_is_half_as_large_with_all_kernels_in_bfloat16(written):
    _, paths = written
    sizes = {name: Path(path, "saved_model.pb").stat().st_size for name, path in paths.items()}
    assert 0.45 < sizes["bfloat16"] / sizes["float32"] < 0.65
    assert kernel_types(paths["bfloat16"]) == {"bfloat16"} and kernel_types(paths["float32"]) == {"float32"}


@pytest.mark.parametrize("signature", ["serving_default", "segment_volume"])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_executed_graph_has_no_variables_batchnorm_or_weight_casts(written, name, signature):
    run, paths = written
    whole = {"image": scan().astype(np.float32), "spacing": SPACING}
    inputs = {"windows": windows_of(run)} if signature == "serving_default" else whole
    nodes, _ = session_graph(paths[name], signature, **inputs)
    ops = {node.op for node in [*nodes, *nodes_written(paths[name])]}
    assert not [op for op in ops if "Variable" in op or "VarHandle" in op or "FusedBatchNorm" in op]
    by_name = {node.name: node for node in nodes}
    convolutions = [node for node in nodes if "Conv2D" in node.op or "Conv3D" in node.op]
    # The logits are float32.
    types = [tf.dtypes.as_dtype(node.attr["T"].type).name for node in convolutions]
    assert len(types) > 10 and types.count(name) >= len(types) - 1
    assert {_origin(by_name, node.input[1]).op for node in convolutions} == {"Const"}


def _origin(by_name, name):
    """The node that a kernel comes from, outside the loop that it is passed through."""
    node = by_name[name.split(":")[0]]
    while node.op in ("Enter", "Identity", "Merge", "Switch"):
        node = by_name[node.input[0].split(":")[0]]
    return node


def test_the_best_weights_of_the_run_are_exported(written):
    run, paths = written
    windows = windows_of(run)
    expected = tf.sigmoid(load_model(run)(windows, training=False)).numpy()
    assert 0.05 < (expected > 0.5).mean() < 0.95
    _, actual = session_graph(paths["float32"], "serving_default", windows=windows)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    _, rounded = session_graph(paths["bfloat16"], "serving_default", windows=windows)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - expected).max() < 0.1
    one, other = expected > 0.5, rounded > 0.5
    assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.98


def test_every_signature_matches_predict_with_the_same_export(written):
    _, paths = written
    image = scan()
    masks = {}
    for name, path in paths.items():
        predicted = load_predictor(path).predict(image, spacing=SPACING).masks
        loaded = tf.saved_model.load(str(path)).signatures
        given = {"image": tf.constant(image, tf.float32), "spacing": tf.constant(SPACING)}
        pngs = tf.stack([tf.io.encode_png(plane[..., None]) for plane in image])
        found = [
            loaded["segment_volume"](**given),
            loaded["segment_png"](png_bytes=pngs, spacing=given["spacing"]),
        ]
        for answer in found:
            assert (np.moveaxis(answer["masks"].numpy(), -1, 0) == predicted).mean() >= 0.999
        numbers = tf.range(1, 8, dtype=tf.int64)
        pictures = loaded["segment_volume_to_png"](**given, numbers=numbers)["masks_bytes"].numpy()
        assert (read_masks([*pictures], image.shape, 3) == predicted).mean() >= 0.999
        masks[name] = predicted
    assert 0.02 < masks["float32"].mean() < 0.98
    assert 2 * (masks["float32"] & masks["bfloat16"]).sum() / sum(mask.sum() for mask in masks.values()) > 0.98


def test_model_json_and_the_model_card_record_the_weight_type(written):
    _, paths = written
    for name, path in paths.items():
        extra = Path(path, "assets.extra")
        assert json.loads((extra / "model.json").read_text())["weights"] == name
        card = (extra / "model_card.md").read_text()
        assert f"best epoch; {name}, stored as constants of the graph" in card
        assert ("the scores below are those of the run in float32" in card) == (name == "bfloat16")


def test_the_weights_option_accepts_bfloat16_and_refuses_unknown_types(written, tmp_path, capsys):
    run, _ = written
    assert main(["export", str(run.path), str(tmp_path / "out"), "--weights", "bfloat16"]) == 0
    assert kernel_types(tmp_path / "out" / "1") == {"bfloat16"}
    with pytest.raises(SystemExit) as exit_info:
        main(["export", str(run.path), str(tmp_path / "other"), "--weights", "float16"])
    assert exit_info.value.code == 2 and "bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_an_already_loaded_network_is_reused(written, tmp_path, monkeypatch):
    run, paths = written
    network = run_probabilities(run)
    monkeypatch.setattr("gitseg_tf.export.savedmodel.run_probabilities", None)
    path = export(run, tmp_path, network=network)
    windows = windows_of(run)
    both = [session_graph(one, "serving_default", windows=windows)[1] for one in (path, paths["float32"])]
    np.testing.assert_allclose(*both, atol=1e-6)


def test_the_documented_agreement_measurement_runs(written, tiny_dataset, capsys):
    run, _ = written
    docs = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", docs, re.DOTALL) if "run_probabilities" in block)
    exec(code.replace('"RUN"', repr(str(run.path))).replace('"DATA"', repr(str(tiny_dataset.root))), {})
    lines = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(r"(\w+) Dice (\S+) probabilities (\S+)", line).groups() for line in lines]
    held_out = [scan.id for scan in tiny_dataset.scans_of([run.config.data.fold])]
    assert sorted(name for name, *_ in found) == sorted(held_out) and held_out
    for _, dice, difference in found:
        assert 0.98 < float(dice) <= 1 and 0 < float(difference) < 0.1
