"""The documentation: examples run, links resolve, and the documented layout is the real one."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from test_layout import PACKAGES

import gitseg_tf
from gitseg_tf.cli import main
from gitseg_tf.phantom import make_phantom

ROOT = Path(__file__).parents[1]
README, ARCHITECTURE = ROOT / "README.md", ROOT / "docs/explanation/architecture.md"
TUTORIAL = ROOT / "docs/getting-started/first-model.md"
OWN_DATA = ROOT / "docs/how-to/own-data.md"
API, DATA = ROOT / "docs/reference/api.md", ROOT / "docs/how-to/data.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "tfrecords/README.md", ROOT / "deploy/README.md")
# Calls that train, or need a trained run.
TRAINS = ("gitseg_tf.train(", "gitseg_tf.evaluate(", "gitseg_tf.load(")


def blocks(page, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of the examples, with a phantom cohort."""
    make_phantom(tmp_path / "cohort", cases=2, days=1, slices=24)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_api_page_lists_every_public_name():
    documented = set(re.findall(r"\b\w+\b", " ".join(re.findall(r"`([^`]*)`", API.read_text(encoding="utf-8")))))
    assert set(gitseg_tf.__all__) - {"__version__"} <= documented


def test_api_examples_without_training_run(folder):
    names = {}
    for code in blocks(API):
        if not any(call in code for call in TRAINS):
            exec(compile(code, API.name, "exec"), names)


@pytest.mark.slow
def test_api_examples_with_training_run(folder):
    names = {}
    for code in blocks(API):
        exec(compile(code, API.name, "exec"), names)
    assert (folder / "runs/first/report.html").is_file()


@pytest.mark.slow
def test_the_tutorial_commands_train_and_predict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks(TUTORIAL, "sh")).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "gitseg" and main(arguments) in (None, 0), line
    assert (tmp_path / "inspection.html").is_file()
    for name in re.findall(r"`(runs/first/[^`]+)`", TUTORIAL.read_text(encoding="utf-8")):
        assert (tmp_path / name).exists(), name
    assert json.loads((tmp_path / "runs/first/evaluation.json").read_text())["dice"] > 0.7
    assert len(list((tmp_path / "predictions").rglob("*.nii.gz"))) == 6 * (3 + 1)  # three labels and the image


@pytest.mark.slow
def test_the_commands_for_own_data_plan_train_and_predict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for line in "".join(blocks(OWN_DATA, "sh")).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "gitseg" and main(arguments) in (None, 0), line
    assert (tmp_path / "plan.yaml").is_file() and (tmp_path / "runs/mine/report.html").is_file()
    assert len(list((tmp_path / "predictions").rglob("*.nii.gz"))) == 4 * (3 + 1)  # three labels and the image


def test_the_readme_python_uses_existing_names():
    (code,) = blocks(README)
    compile(code, README.name, "exec")
    used = set(re.findall(r"gitseg_tf\.(\w+)", code))
    assert len(used) >= 6 and used <= set(gitseg_tf.__all__)


def test_the_yaml_examples_of_the_data_page_are_valid():
    labels, intensity = (yaml.safe_load(text) for text in blocks(DATA, "yaml"))
    assert gitseg_tf.LabelSet.from_tree(labels).match("liver v2").code.scheme == "SCT"
    config = gitseg_tf.load_config(overrides={"data.intensity": intensity["data"]["intensity"]})
    assert config.data.intensity[1].bounds == (-160, 240)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_point_to_existing_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_architecture_page_lists_the_packages_in_import_order():
    rows = re.findall(r"^\| (`.*?) \|", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    listed = [re.split(r"[/.]", name)[0] for row in rows for name in re.findall(r"`([^`]+)`", row)]
    order = list(dict.fromkeys(name for name in listed if name in PACKAGES))
    assert order == list(PACKAGES)
