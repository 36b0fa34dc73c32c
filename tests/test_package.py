"""What a user sees first: the import, the console command and the shipped configs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gitseg_tf
from gitseg_tf.config import load_config

ROOT = Path(__file__).parents[1]


FRESH = {k: v for k, v in os.environ.items() if k not in ("TF_USE_LEGACY_KERAS", "TF_CPP_MIN_LOG_LEVEL")}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=FRESH)


@pytest.mark.process
def test_importing_after_tensorflow_switches_tf_keras_to_keras_2():
    code = "import tensorflow as tf, gitseg_tf; print(tf.keras.layers.Dense.__module__.split('.')[0])"
    assert python(code).stdout.strip() == "tf_keras"


@pytest.mark.process
def test_keras_cv_networks_use_tf_keras_when_tensorflow_was_imported_first():
    code = "import tensorflow, gitseg_tf; from keras_cv.models import ResNetBackbone; print(ResNetBackbone.__mro__)"
    assert "tf_keras" in python(code).stdout


@pytest.mark.process
def test_keras_3_already_in_use_is_refused_with_the_fix():
    completed = python("import tensorflow as tf; tf.keras.layers.Dense; import gitseg_tf")
    assert completed.returncode == 1
    last = completed.stderr.strip().splitlines()[-1]
    assert "Keras 3" in last and "import gitseg_tf before tensorflow" in last and "TF_USE_LEGACY_KERAS=1" in last
    assert "restart the kernel" in last


@pytest.mark.process
@pytest.mark.parametrize(
    "first", ["import tensorflow as tf; tf.config.list_physical_devices()", "import gitseg_tf; import tensorflow as tf"]
)
def test_a_network_builds_when_tensorflow_was_imported_first(first):
    code = f"""{first}
import gitseg_tf
config = gitseg_tf.load_config(overrides={{"model.filters": 4, "data.input_size": [32, 32]}})
model = gitseg_tf.build_model(config.for_dataset(gitseg_tf.LabelSet.of("a", "b"), ("image",)))
assert isinstance(model, tf.keras.Model)
"""
    completed = python(code)
    assert completed.returncode == 0, completed.stderr


def test_importing_the_package_is_fast_and_does_not_import_tensorflow_or_numpy():
    code = (
        "import sys, time; start = time.perf_counter(); import gitseg_tf; seconds = time.perf_counter() - start\n"
        "print(seconds, [name for name in ('tensorflow', 'tf_keras', 'numpy', 'pandas') if name in sys.modules])"
    )
    seconds, loaded = python(code).stdout.split(maxsplit=1)
    assert float(seconds) < 1 and loaded.strip() == "[]"


# Importable without TensorFlow, for scripts that only read or score data.
WITHOUT_TENSORFLOW = sorted(set(gitseg_tf.__all__) - {"Prediction", "Predictor", "build_model"})


def test_public_names_are_imported_without_tensorflow():
    used = f"import sys, gitseg_tf\nfor name in {WITHOUT_TENSORFLOW}: getattr(gitseg_tf, name)"
    completed = python(f"{used}\nprint('tensorflow' in sys.modules)")
    assert completed.stdout.strip() == "False", completed.stderr


def test_dir_lists_the_public_names_and_an_unknown_name_is_an_attribute_error():
    assert set(gitseg_tf.__all__) <= set(dir(gitseg_tf))
    with pytest.raises(AttributeError, match="no attribute 'open_cohrot'"):
        gitseg_tf.open_cohrot  # noqa: B018


def test_type_checkers_see_the_lazily_imported_names():
    tree = ast.parse(Path(gitseg_tf.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checked.body for alias in node.names}
    assert seen.pop("metrics") == "gitseg_tf"
    assert seen == gitseg_tf._MODULE_OF and {*seen, "metrics", "__version__"} == set(gitseg_tf.__all__)
    assert Path(gitseg_tf.__file__).with_name("py.typed").is_file()


@pytest.mark.process
def test_the_console_command_hides_tensorflow_startup_messages():
    command = Path(sys.executable).with_name("gitseg")
    completed = subprocess.run([command, "doctor"], capture_output=True, text=True, check=True, env=FRESH)
    assert "strategy" in completed.stdout
    assert completed.stderr.split() == ["loading", "TensorFlow"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    assert load_config(path).name == path.stem


def test_train_py_runs_the_train_command():
    completed = subprocess.run(
        [sys.executable, ROOT / "train.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--strategy" in completed.stdout
