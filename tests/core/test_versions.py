import configparser
import importlib.metadata
from pathlib import Path

import pytest

from gitseg_tf.core.tensorflow_import import import_tensorflow
from gitseg_tf.core.versions import check_versions

ROOT = Path(__file__).parents[2]


@pytest.fixture
def install(monkeypatch):
    """install(name=version, ...) sets the installed distributions; write _ for -."""

    def have(**versions):
        def version(name):
            try:
                return versions[name.replace("-", "_")]
            except KeyError:
                raise importlib.metadata.PackageNotFoundError(name) from None

        monkeypatch.setattr(importlib.metadata, "version", version)

    return have


@pytest.mark.parametrize(
    "versions",
    [
        {"tensorflow": "2.21.0", "tf_keras": "2.21.3"},
        {"tensorflow_tpu": "2.20.0", "tf_keras": "2.20.1"},
        {"tensorflow_tpu": "2.20.0", "tensorflow": "2.21.0", "tf_keras": "2.20.1"},
        {"tf_keras": "2.21.0"},
    ],
)
def test_a_tf_keras_with_the_same_minor_version_is_accepted(install, versions):
    install(**versions)
    check_versions()


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"tensorflow": "2.21.0", "tf_keras": "2.20.1"}, ("tensorflow 2.21.0", "tf-keras 2.20.1", "tf-keras~=2.21.0")),
        ({"tensorflow_tpu": "2.20.0", "tf_keras": "2.21.0"}, ("tensorflow-tpu 2.20.0", '"tf-keras~=2.20.0"')),
    ],
)
def test_a_mismatched_tf_keras_is_refused_with_the_pip_command_that_fixes_it(install, refusal, versions, expected):
    install(**versions)
    line = refusal(import_tensorflow)
    assert all(words in line for words in expected) and "--no-deps" in line


def test_tpu_requirements_match_setup_cfg_without_tensorflow():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required, others = (
        [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        for text in (setup["options"]["install_requires"], (ROOT / "requirements-tpu.txt").read_text())
    )
    left_out = [line for line in required if line not in others]
    assert [line.split()[0] for line in left_out] == ["tensorflow", "tf-keras"]
    assert others == [line for line in required if line not in left_out]
