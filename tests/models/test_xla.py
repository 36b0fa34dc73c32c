"""Every network trains as one XLA program.

By default one member of each family is tested, with one block per stage where the builder supports it, because it has
the same types of layers as the whole family. `pytest --whole-table` tests the rows of `gitseg models` unchanged and
lowers every architecture with every backbone; the 3-D rows are tested in tests/models/volumetric/test_unet3d.py.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from itertools import product

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from helpers.configs import tiny_config

from gitseg_tf.config.model import DECODERS
from gitseg_tf.models.backbones import BACKBONES
from gitseg_tf.models.backbones.convnext import convnext
from gitseg_tf.models.backbones.mit import mit
from gitseg_tf.models.backbones.resnet import resnet
from gitseg_tf.models.build import build_model, logits_of
from gitseg_tf.models.cost import networks

pytestmark = pytest.mark.xla

# Read when XLA first compiles: less optimization compiles faster and does not affect what can be compiled.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# At 32 x 32 the last normalizations see only two values per channel, which amplifies rounding differences.
SIZE, SLICES = 64, 5
ONE_EACH = (1, 1, 1, 1)
SHALLOW = {
    "resnet18": partial(resnet, blocks=ONE_EACH, bottleneck=False),
    "resnet50": partial(resnet, blocks=ONE_EACH, bottleneck=True),
    "convnext_tiny": partial(convnext, name="convnext_tiny", blocks=ONE_EACH),
    "mit_b0": partial(mit, widths=(32, 64, 160, 256), blocks=ONE_EACH),
}
FAMILIES = ("plain", "efficientnetv2_b0", "efficientnet_lite0", "mobilenetv3", *SHALLOW)
ROWS = [row for row in networks(None, None) if row[0] in DECODERS]
PAIRS = [pair for pair in product(DECODERS, BACKBONES) if pair not in ROWS]


def build(architecture, backbone, precision="float32"):
    keras.utils.set_random_seed(0)
    settings = {"model.architecture": architecture, "model.backbone": backbone, "model.levels": 5}
    return build_model(tiny_config(data__input_size=[SIZE, SIZE], data__window_slices=SLICES, **settings), precision)


@cache
def batch():
    rng = np.random.default_rng(0)
    image = rng.random((2, SIZE, SIZE, SLICES), np.float32)
    return tf.constant(image), tf.constant(image[..., :3] > 0.7, tf.float32)


def loss_of(model, image, mask):
    logits = logits_of(model(image, training=True))
    assert logits.dtype == tf.float32
    bce = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(mask, logits))
    p = tf.sigmoid(logits)
    return bce + 1.0 - (2.0 * tf.reduce_sum(p * mask) + 1.0) / (tf.reduce_sum(p + mask) + 1.0)


def training_step(model, scaled=False):
    """A function that makes a whole AdamW step and maps (image, mask) to (loss, whether all gradients are finite)."""
    optimizer = keras.optimizers.AdamW(1e-3)
    if scaled:
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=1024.0)
    optimizer.build(model.trainable_variables)

    def step(image, mask):
        with tf.GradientTape() as tape:
            loss = loss_of(model, image, mask)
            target = optimizer.get_scaled_loss(loss) if scaled else loss
        gradients = tape.gradient(target, model.trainable_variables)
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        gradients = optimizer.get_unscaled_gradients(gradients) if scaled else gradients
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss, finite

    return step


def lowered(architecture, backbone):
    step = tf.function(training_step(build(architecture, backbone)), jit_compile=True, autograph=False)
    return step.experimental_get_compiler_ir(*batch())(stage="hlo")


@pytest.fixture(scope="module")
def fresh():
    """Runs a check in a regularly restarted process, because XLA keeps compiled networks, a gigabyte each."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=4) as pool:
        yield lambda check, *args: pool.submit(check, *args).result()


@pytest.fixture
def shallow(monkeypatch):
    for name, builder in SHALLOW.items():
        monkeypatch.setitem(BACKBONES._rows, name, (replace(BACKBONES.get(name), build=builder), {}))


@pytest.mark.parametrize("architecture", [name for name in DECODERS if name not in ("unet", "deeplabv3plus")])
def test_a_training_step_of_each_architecture_is_lowered_to_xla(architecture, shallow):
    assert "ENTRY" in lowered(architecture, "resnet18")


@pytest.mark.parametrize(("architecture", "backbone"), PAIRS)
def test_a_training_step_of_each_pair_is_lowered_to_xla(architecture, backbone, whole_table, fresh):
    assert "ENTRY" in fresh(lowered, architecture, backbone)


def check_compiled(architecture, backbone):
    model = build(architecture, backbone)
    before = [variable.numpy() for variable in model.trainable_variables]
    expected = loss_of(model, *batch()).numpy()
    loss, finite = tf.function(training_step(model), jit_compile=True, autograph=False)(*batch())
    assert loss.numpy() == pytest.approx(expected, abs=1e-3) and finite
    after = [variable.numpy() for variable in model.trainable_variables]
    assert all(np.isfinite(array).all() for array in after)
    assert np.mean([not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]) > 0.9


@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_compiled_training_step_matches_the_eager_loss(backbone, shallow):
    check_compiled("unet", backbone)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3"])
def test_dilated_convolutions_train_with_xla(backbone, shallow):
    check_compiled("deeplabv3plus", backbone)


@pytest.mark.parametrize(("architecture", "backbone"), ROWS)
def test_each_listed_network_compiles_with_the_same_loss(architecture, backbone, whole_table, fresh):
    fresh(check_compiled, architecture, backbone)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_training_step_in_16_bits_stays_finite(backbone, precision, shallow):
    model = build("unet", backbone, precision)
    loss, finite = training_step(model, scaled=precision == "mixed_float16")(*batch())
    assert np.isfinite(loss) and finite
    assert all(np.isfinite(variable.numpy()).all() for variable in model.variables)
