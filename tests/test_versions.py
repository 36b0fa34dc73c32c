import configparser
import importlib.metadata
from pathlib import Path

import pytest

from gitseg_tf import quiet
from gitseg_tf.versions import check_versions

ROOT = Path(__file__).parents[1]


@pytest.fixture
def having(monkeypatch):
    """having(name=version, ...): the distributions that are installed, _ for -."""

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
def test_a_tf_keras_of_the_same_minor_version_is_fine(having, versions):
    having(**versions)
    check_versions()


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"tensorflow": "2.21.0", "tf_keras": "2.20.1"}, ("tensorflow 2.21.0", "tf-keras 2.20.1", "tf-keras~=2.21.0")),
        ({"tensorflow_tpu": "2.20.0", "tf_keras": "2.21.0"}, ("tensorflow-tpu 2.20.0", '"tf-keras~=2.20.0"')),
    ],
)
def test_another_tf_keras_is_refused_with_the_command_that_mends_it(having, refusal, versions, said):
    having(**versions)
    line = refusal(quiet.import_tensorflow)
    assert all(words in line for words in said) and "--no-deps" in line


def test_the_requirements_for_tpus_are_those_of_setup_cfg_without_tensorflow():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked, others = (
        [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        for text in (setup["options"]["install_requires"], (ROOT / "requirements-tpu.txt").read_text())
    )
    left_out = [line for line in asked if line not in others]
    assert [line.split()[0] for line in left_out] == ["tensorflow", "tf-keras"]
    assert others == [line for line in asked if line not in left_out]
