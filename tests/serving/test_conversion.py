"""Networks as ONNX and TFLite files: which go, what comes out of them, and what is said of those that do not go."""

import importlib.metadata

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import load_config
from gitseg_tf.errors import InputError
from gitseg_tf.inference.runtimes import open_network
from gitseg_tf.models.build import DECODERS, build_model
from gitseg_tf.models.unet3d import NETWORKS_3D
from gitseg_tf.quiet import held_back
from gitseg_tf.serving.conversion import FORMATS, float32_operators, versions

onnxruntime = pytest.importorskip("onnxruntime")
for _module in ("ai_edge_litert.interpreter", "tf2onnx"):
    pytest.importorskip(_module)


def small(architecture, backbone=None):
    settings = {"model.architecture": architecture, "model.filters": 8, "data.size": [64, 64]}
    settings |= {"model.backbone": backbone} if backbone else {"data.patch": [8, 32, 32]}
    # How far integers are from float32 hangs on the weights that are drawn.
    keras.utils.set_random_seed(0)
    model = build_model(load_config(None, settings))
    head = [layer for layer in model.layers if layer.get_weights()][-1]
    head.set_weights([3 * head.get_weights()[0], 0 * head.get_weights()[1]])
    return model


def converted(model, name, tmp_path):
    """The probabilities of a file, and those of the model, on what int8 is fitted to."""
    windows = np.random.default_rng(0).random((3, *model.input_shape[1:]), np.float32)
    file = tmp_path / FORMATS[name].file
    file.write_bytes(FORMATS[name].convert(model, windows))
    network = open_network(file, model.input_shape[1:])
    return network(windows).numpy(), tf.sigmoid(model(windows, training=False)).numpy()


def layers(*stack, shape):
    """A network of three channels that is quickly made."""
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x, name="stack")


def test_gelu_of_keras_goes_to_onnx(tmp_path):
    model = layers(keras.layers.Conv2D(3, 1, activation="gelu", kernel_initializer="ones"), shape=(8, 8, 2))
    model.set_weights([4 * np.random.default_rng(1).normal(size=(1, 1, 2, 3)), np.zeros(3)])
    found, expected = converted(model, "onnx", tmp_path)
    assert np.ptp(expected) > 0.4
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_operation_that_onnx_cannot_hold_is_one_line(refusal):
    model = layers(keras.layers.Lambda(tf.math.bessel_i0), shape=(8, 8, 3))
    line = refusal(FORMATS["onnx"].convert, model, None)
    assert line.startswith("onnx: cannot hold stack (") and "BesselI0" in line


@pytest.mark.parametrize("name", ["tflite-float16", "tflite-int8"])
def test_3d_pooling_is_not_in_tflite_and_one_line_says_so(refusal, capfd, name):
    model = layers(keras.layers.MaxPool3D(), keras.layers.AveragePooling3D(), shape=(4, 8, 8, 3))
    windows = np.zeros((2, 4, 8, 8, 3), np.float32)
    with held_back(InputError):
        line = refusal(FORMATS[name].convert, model, windows)
    assert line.startswith(f"{name}: cannot hold stack (TFLite has no AvgPool3D, MaxPool3D)") and "onnx" in line
    assert capfd.readouterr().err == ""


def test_what_has_no_kernel_of_integers_stays_float32_in_int8(tmp_path):
    model = layers(keras.layers.Conv2D(3, 1), keras.layers.Lambda(tf.math.sin), shape=(8, 8, 2))
    model.set_weights([np.random.default_rng(1).normal(size=(1, 1, 2, 3)), np.zeros(3)])
    found, expected = converted(model, "tflite-int8", tmp_path)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert float32_operators((tmp_path / FORMATS["tflite-int8"].file).read_bytes()) == {"SIN": 1}


FURTHEST = {"onnx": 1e-4, "tflite-float16": 1e-2, "tflite-int8": 0.2}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "architecture, backbone",
    [(name, "resnet18") for name in DECODERS]
    + [("unet", name) for name in ("plain", "mobilenetv3", "efficientnetv2_b0", "convnext_tiny", "mit_b0")],
)
def test_every_kind_of_2d_network_goes_to_every_format(whole_table, tmp_path, architecture, backbone, name):
    found, expected = converted(small(architecture, backbone), name, tmp_path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=FURTHEST[name])
    if name == "tflite-int8":
        in_float32 = float32_operators((tmp_path / FORMATS[name].file).read_bytes())
        assert in_float32.keys() == ({"SQUARE"} if architecture == "fpn" else set())


@pytest.mark.parametrize("architecture", NETWORKS_3D)
def test_3d_networks_go_to_onnx_and_are_refused_by_tflite(whole_table, tmp_path, refusal, architecture):
    model = small(architecture)
    found, expected = converted(model, "onnx", tmp_path)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert "TFLite has no" in refusal(FORMATS["tflite-float16"].convert, model, None)


def test_versions_are_those_of_the_modules_whatever_distribution_has_them(monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", unknown)
    assert versions(FORMATS["onnx"])["onnxruntime"] == onnxruntime.__version__
    assert versions(FORMATS["tflite-int8"])["tensorflow"] == tf.__version__
