"""What a user meets before any command runs: the import, the console command, the configs that ship."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gitseg_tf.config import load_config

ROOT = Path(__file__).parents[1]


FRESH = {k: v for k, v in os.environ.items() if k not in ("TF_USE_LEGACY_KERAS", "TF_CPP_MIN_LOG_LEVEL")}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=FRESH)


def test_importing_after_tensorflow_makes_tf_keras_the_keras_2_api():
    code = "import tensorflow as tf, gitseg_tf; print(tf.keras.layers.Dense.__module__.split('.')[0])"
    assert python(code).stdout.strip() == "tf_keras"


def test_networks_of_keras_cv_are_built_after_tensorflow_was_imported_first():
    code = "import tensorflow, gitseg_tf; from keras_cv.models import ResNetBackbone; print(ResNetBackbone.__mro__)"
    assert "tf_keras" in python(code).stdout


def test_a_keras_3_already_in_use_is_said_with_the_cure():
    done = python("import tensorflow as tf; tf.keras.layers.Dense; import gitseg_tf")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "Keras 3" in last and "import gitseg_tf before tensorflow" in last and "TF_USE_LEGACY_KERAS=1" in last


def test_the_console_command_is_installed_and_shows_no_notices_of_tensorflows():
    command = Path(sys.executable).with_name("gitseg")
    done = subprocess.run([command, "doctor"], capture_output=True, text=True, check=True, env=FRESH)
    assert "strategy" in done.stdout
    assert done.stderr.split() == ["loading", "TensorFlow"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_that_ships_is_valid(path):
    assert load_config(path).name == path.stem


def test_the_training_script_is_a_thin_door():
    done = subprocess.run([sys.executable, ROOT / "train.py", "--help"], capture_output=True, text=True, check=True)
    assert "--strategy" in done.stdout
