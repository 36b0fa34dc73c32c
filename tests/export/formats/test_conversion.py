"""Conversion of networks to ONNX and TFLite: which convert, their outputs, and the errors of those that do not."""

import importlib.metadata

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import load_config
from gitseg_tf.config.model import DECODERS, NETWORKS_3D
from gitseg_tf.core.tensorflow_import import held_back
from gitseg_tf.errors import GitsegError
from gitseg_tf.export.formats.registry import FORMATS
from gitseg_tf.export.formats.tflite import float32_operators
from gitseg_tf.inference.runtimes import open_network
from gitseg_tf.labels import UWMGI
from gitseg_tf.models.build import build_model

onnxruntime = pytest.importorskip("onnxruntime")
for _module in ("ai_edge_litert.interpreter", "tf2onnx"):
    pytest.importorskip(_module)


def small(architecture, backbone=None):
    settings = {"model.architecture": architecture, "model.filters": 8, "data.input_size": [64, 64]}
    settings |= {"model.backbone": backbone} if backbone else {"data.patch": [8, 32, 32]}
    # The quantization error depends on the random weights.
    keras.utils.set_random_seed(0)
    model = build_model(load_config(None, settings).for_dataset(UWMGI, ("image",)))
    head = [layer for layer in model.layers if layer.get_weights()][-1]
    head.set_weights([3 * head.get_weights()[0], 0 * head.get_weights()[1]])
    return model


def converted(model, name, tmp_path):
    """The probabilities of the converted file and of the model, on the int8 calibration windows."""
    windows = np.random.default_rng(0).random((3, *model.input_shape[1:]), np.float32)
    file = tmp_path / FORMATS.get(name).file
    file.write_bytes(FORMATS.get(name).convert(model, windows))
    network = open_network(file, model.input_shape[1:], model.output_shape[-1])
    return network(windows).numpy(), tf.sigmoid(model(windows, training=False)).numpy()


def layers(*stack, shape):
    """A small network of three channels."""
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x, name="stack")


def test_keras_gelu_is_exported_to_onnx(tmp_path):
    model = layers(keras.layers.Conv2D(3, 1, activation="gelu", kernel_initializer="ones"), shape=(8, 8, 2))
    model.set_weights([4 * np.random.default_rng(1).normal(size=(1, 1, 2, 3)), np.zeros(3)])
    actual, expected = converted(model, "onnx", tmp_path)
    assert np.ptp(expected) > 0.4
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_an_operation_unsupported_by_onnx_is_a_one_line_error(refusal):
    model = layers(keras.layers.Lambda(tf.math.bessel_i0), shape=(8, 8, 3))
    line = refusal(FORMATS.get("onnx").convert, model, None)
    assert line.startswith("onnx: cannot represent stack (") and "BesselI0" in line


@pytest.mark.parametrize("name", ["tflite-float16", "tflite-int8"])
def test_3d_pooling_is_a_one_line_error_in_tflite(refusal, capfd, name):
    model = layers(keras.layers.MaxPool3D(), keras.layers.AveragePooling3D(), shape=(4, 8, 8, 3))
    windows = np.zeros((2, 4, 8, 8, 3), np.float32)
    with held_back(GitsegError):
        line = refusal(FORMATS.get(name).convert, model, windows)
    assert (
        line.startswith(f"{name}: cannot represent stack (TFLite does not support AvgPool3D, MaxPool3D)")
        and "onnx" in line
    )
    assert capfd.readouterr().err == ""


def test_operators_without_an_integer_kernel_stay_float32_in_int8(tmp_path):
    model = layers(keras.layers.Conv2D(3, 1), keras.layers.Lambda(tf.math.sin), shape=(8, 8, 2))
    model.set_weights([np.random.default_rng(1).normal(size=(1, 1, 2, 3)), np.zeros(3)])
    actual, expected = converted(model, "tflite-int8", tmp_path)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(actual, expected, atol=0.02)
    assert float32_operators((tmp_path / FORMATS.get("tflite-int8").file).read_bytes()) == {"SIN": 1}


TOLERANCES = {"onnx": 1e-4, "tflite-float16": 1e-2, "tflite-int8": 0.2}


@pytest.mark.parametrize("name", FORMATS.names(network_alone=True))
@pytest.mark.parametrize(
    "architecture, backbone",
    [(name, "resnet18") for name in DECODERS]
    + [
        ("unet", name)
        for name in ("plain", "mobilenetv3", "efficientnetv2_b0", "efficientnet_lite0", "convnext_tiny", "mit_b0")
    ],
)
def test_every_2d_network_converts_to_every_format(whole_table, tmp_path, architecture, backbone, name):
    actual, expected = converted(small(architecture, backbone), name, tmp_path)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCES[name])
    if name == "tflite-int8":
        in_float32 = float32_operators((tmp_path / FORMATS.get(name).file).read_bytes())
        assert in_float32.keys() == ({"SQUARE"} if architecture == "fpn" else set())


@pytest.mark.parametrize("architecture", NETWORKS_3D)
def test_3d_networks_convert_to_onnx_and_are_refused_by_tflite(whole_table, tmp_path, refusal, architecture):
    model = small(architecture)
    actual, expected = converted(model, "onnx", tmp_path)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    assert "TFLite does not support" in refusal(FORMATS.get("tflite-float16").convert, model, None)


def test_versions_come_from_the_modules_not_the_distributions(monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", unknown)
    assert FORMATS.get("onnx").versions()["onnxruntime"] == onnxruntime.__version__
    assert FORMATS.get("tflite-int8").versions()["tensorflow"] == tf.__version__
