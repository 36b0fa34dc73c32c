"""The examples in docstrings pass as doctests. Those that need TensorFlow are marked +SKIP."""

import doctest
import importlib
from pathlib import Path

import pytest

from gitseg_tf.phantom import make_phantom

ROOT = Path(__file__).parents[1] / "gitseg_tf"
EXAMPLES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
PUBLIC = ("api", "metrics", "labels", "errors", "data.volume")


def module_name(path):
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def needs_tensorflow(path):
    text = path.read_text(encoding="utf-8")
    return "\nimport tensorflow" in text or "\nimport tf_keras" in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a cohort, in which the examples run."""
    root = tmp_path_factory.mktemp("examples")
    make_phantom(root / "cohort", cases=1, days=1, slices=24)
    return root


@pytest.mark.parametrize("path", [path for path in EXAMPLES if not needs_tensorflow(path)], ids=module_name)
def test_docstring_examples_pass(path, folder, monkeypatch):
    monkeypatch.chdir(folder)
    module = importlib.import_module(module_name(path))
    assert any(found.examples for found in doctest.DocTestFinder().find(module))
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failures


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_have_examples(name):
    module = importlib.import_module(f"gitseg_tf.{name}")
    for attribute in getattr(module, "__all__", ()):
        value = getattr(module, attribute)
        if value.__module__ == module.__name__:
            assert ">>> " in (value.__doc__ or ""), f"{name}.{attribute} has no example"
