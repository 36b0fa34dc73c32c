import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

NOTEBOOKS = {name: Path(__file__).parents[1] / "notebooks" / f"{name}.ipynb" for name in ("kaggle", "colab")}
TINY = (
    "--set data.input_size=[32,32] --set data.window_slices=1 --set data.batch_size=8 --set model.filters=4 "
    "--set training.epochs=1 --set evaluation.threshold=0.05 --strategy one_device --precision float32"
)


def cells_of(name, *tags):
    """The code of the cells with one of the tags, or of those without tags if none is given."""
    cells = json.loads(NOTEBOOKS[name].read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return [
        "".join(c["source"])
        for c in code
        if set(c["metadata"].get("tags", [])) & set(tags) or (not tags and not c["metadata"])
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_valid_without_outputs_and_names_its_parameters(name):
    notebook = json.loads(NOTEBOOKS[name].read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    (parameters,) = cells_of(name, "parameters")
    names = [node.targets[0].id for node in ast.parse(parameters).body]
    assert names == ["CODE", "DATA", "TEST", "WORK", "PHANTOM", "FOLDS", "TRAINING"]


def test_the_notebooks_differ_only_in_parameters_and_installation():
    assert cells_of("kaggle") == cells_of("colab")
    assert cells_of("kaggle", "install") == cells_of("colab", "install")[1:]


@pytest.fixture
def pips(monkeypatch):
    """The pip calls of the installation cell on a machine with these environment variables and distributions."""

    def install(variables=None, **versions):
        for name in ("TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (variables or {}).items():
            monkeypatch.setenv(name, value)

        def version(name):
            try:
                return versions[name.replace("-", "_")]
            except KeyError:
                raise importlib.metadata.PackageNotFoundError(name) from None

        calls = []
        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command[5:]))
        exec(cells_of("kaggle", "install")[-1], {"CODE": "REPO"})
        return calls

    return install


def test_a_gpu_machine_installs_all_requirements(pips):
    assert pips({"TPU_WORKER_ID": "", "TPU_ACCELERATOR_TYPE": ""}) == [["REPO"]]


def test_a_tpu_machine_keeps_its_tensorflow(pips):
    around = [["--no-deps", "REPO", "tf-keras~=2.19.0"], ["-r", "REPO/requirements-tpu.txt"]]
    assert pips({"TPU_WORKER_ID": "0"}, tensorflow_tpu="2.19.1") == around
    first, *rest = pips({"TPU_ACCELERATOR_TYPE": "v5e-1"})
    assert re.fullmatch(r"tensorflow-tpu==2\.\d+\.\d+", first[0]) and len(rest) == 2


def test_the_notebook_trains_scores_and_writes_a_submission_for_the_phantom(tmp_path):
    parameters = {
        "CODE": "nowhere",
        "DATA": "nowhere",
        "TEST": "nowhere",
        "WORK": str(tmp_path),
        "PHANTOM": "--cases 2 --days 1 --slices 24 --workers 1",
        "FOLDS": 2,
        "TRAINING": TINY,
    }
    script = "\n".join([*(f"{name} = {value!r}" for name, value in parameters.items()), *cells_of("kaggle")])
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path, env=environment)
    assert completed.returncode == 0, completed.stderr[-3000:]
    submission = pd.read_csv(tmp_path / "submission.csv", keep_default_na=False)
    assert list(submission.columns) == ["id", "class", "predicted"]
    assert len(submission) == 2 * 24 * 3 and f"{len(submission)} rows" in completed.stdout
    assert "score" in completed.stdout and (tmp_path / "run" / "report.html").is_file()
