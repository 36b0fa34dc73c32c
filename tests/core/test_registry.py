"""The registry behind backbones, decoders, losses, readers, writers and formats."""

import subprocess
import sys

import pytest

from gitseg_tf.core.registry import Registry
from gitseg_tf.errors import ConfigError


@pytest.fixture
def shapes():
    registry = Registry("shape")
    registry.register("circle", "math:pi", round=True)
    registry.register("square", len, corners=4)
    return registry


def test_get_returns_the_object_or_imports_it(shapes):
    assert shapes.get("circle") == pytest.approx(3.14159, abs=1e-5)
    assert shapes.get("square") is len
    assert shapes.names() == tuple(shapes) == ("circle", "square")
    assert "circle" in shapes and "line" not in shapes and len(shapes) == 2


def test_register_works_as_a_decorator(shapes):
    @shapes.register("triangle", corners=3)
    def triangle():
        return 0.5

    assert triangle() == 0.5
    assert shapes.get("triangle") is triangle
    assert shapes.facts("triangle") == {"corners": 3}


def test_names_can_be_selected_by_their_facts(shapes):
    assert shapes.names(corners=4) == ("square",)
    assert shapes.names(round=True) == ("circle",)


@pytest.mark.parametrize("call", ["get", "check", "facts", "remove"])
def test_an_unknown_name_gets_a_suggestion(shapes, call):
    with pytest.raises(ConfigError, match=r"^unknown shape 'Cirle'; did you mean circle\?$"):
        getattr(shapes, call)("Cirle")
    with pytest.raises(ConfigError, match=r"^unknown shape 'xyz'; choose one of circle, square$"):
        getattr(shapes, call)("xyz")


def test_a_taken_name_is_refused_unless_it_is_the_same_object_again(shapes):
    shapes.register("square", len, corners=4)
    with pytest.raises(ConfigError, match="shape 'square' is already registered"):
        shapes.register("square", max)
    shapes.get("circle")
    with pytest.raises(ConfigError, match="shape 'circle' is already registered"):
        shapes.register("circle", "math:e")


def test_a_removed_name_can_be_registered_again(shapes):
    shapes.remove("square")
    shapes.register("square", max)
    assert shapes.get("square") is max


def test_entries_are_registered_without_being_imported():
    script = (
        "import sys; from gitseg_tf.core.registry import Registry; "
        "Registry('network').register('unet', 'tensorflow:keras'); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
