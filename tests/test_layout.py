"""The layout of gitseg_tf: each package imports only from itself and earlier packages, without import cycles."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gitseg_tf"
# In import order: a package may import from itself and from the packages before it.
PACKAGES = (
    "errors",
    "core",
    "labels",
    "config",
    "html",
    "data",
    "phantom",
    "inspection",
    "models",
    "runs",
    "training",
    "planning",
    "inference",
    "evaluation",
    "export",
    "client",
    "viewer",
    "metrics",
    "api",
    "cli",
)
MOST_LINES = 350


def modules(root):
    """The modules of a package by name."""
    paths = {".".join(path.relative_to(root.parent).with_suffix("").parts): path for path in root.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def imports(name, path, known):
    """The modules of gitseg_tf that a module imports, at top level or in a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == ROOT.name:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def graph(root=ROOT):
    known = modules(root)
    return {name: set(imports(name, path, known)) - {name} for name, path in known.items()}


def package_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def forbidden(edges):
    """Imports that violate the order: (module, imported)."""
    for module, imported in edges.items():
        for other in imported:
            package, other_package = package_of(module), package_of(other)
            if not package or not other_package or module == f"{ROOT.name}.__main__":
                continue  # the public API and `python -m gitseg_tf` may import everything
            if PACKAGES.index(other_package) > PACKAGES.index(package) or (
                (other_package == "training" and package not in ("training", "planning", "api", "cli"))
                or (other_package == "planning" and package not in ("planning", "api", "cli"))
            ):
                yield module, other


def test_every_package_is_in_the_order():
    assert {package_of(module) for module in graph()} - {"", "__main__"} <= set(PACKAGES)


def test_imports_follow_the_order_of_the_packages():
    assert sorted(forbidden(graph())) == []


def test_there_are_no_import_cycles():
    edges = graph()
    # A package's __init__ re-exports its modules; a module that imports a sibling through it is not a cycle.
    packages = {name for name, path in modules(ROOT).items() if path.name == "__init__.py"}
    edges = {m: {o for o in others if not (o in packages and m.startswith(f"{o}."))} for m, others in edges.items()}
    try:
        tuple(TopologicalSorter(edges).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("module", "imported"),
    [("gitseg_tf.core.paths", "gitseg_tf.data.volume"), ("gitseg_tf.inference.predict", "gitseg_tf.training.trainer")],
)
def test_an_import_against_the_order_is_found(module, imported):
    assert list(forbidden({module: {imported}})) == [(module, imported)]


def test_no_file_is_much_longer_than_350_lines():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > 1.1 * MOST_LINES} == {}
