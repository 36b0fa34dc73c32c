"""All commands on a cohort with twelve labels and two channels, unlike the competition's."""

import json

import nibabel
import numpy as np
import pandas as pd
import pytest
from helpers import many_labels

from gitseg_tf.cli import main

pytestmark = pytest.mark.slow
TINY = ["--epochs", "20", "--batch-size", "8", "--precision", "float32", "--strategy", "one_device"]
TINY += ["--set", "data.intensity=[{kind: percentiles}, {kind: window, low: -200, high: 600}]"]
TINY += ["--set", "model.filters=8", "--set", "model.levels=3", "--set", "augment.flip.p=0"]
TINY += ["--set", "training.learning_rate=2e-2"]
KINDS = {
    "2.5-D": ["--set", "data.window_slices=3", "--set", "data.input_size=[64, 64]"],
    "3-D": [
        *("--set", "model.architecture=unet3d", "--set", "data.patch=[8, 32, 32]", "--set", "data.input_size=[64, 64]"),
        # A patch has 8 slices, so the number of slices per step is as in 2.5-D; each epoch has fewer steps.
        *("--batch-size", "1", "--epochs", "60"),
    ],
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return many_labels.write(tmp_path_factory.mktemp("many") / "cohort", ignore=True)


# For a network trained for seconds; an untrained one is below 0.05.
LEAST_DICE = {"2.5-D": 0.2, "3-D": 0.2}


@pytest.fixture(scope="module", params=KINDS)
def run(request, cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert main(["convert", str(cohort), str(folder / "records"), "--folds", "3"]) == 0
    arguments = ["train", "--data", str(folder / "records"), "--out", str(folder / "run"), *TINY, *KINDS[request.param]]
    assert main(arguments) == 0
    return folder / "run", LEAST_DICE[request.param]


def test_labels_and_inspect_list_every_label(cohort, tmp_path, capsys):
    assert main(["labels", str(cohort)]) == 0
    text = capsys.readouterr().out
    assert all(f"name: {name}" in text for name in many_labels.LABELS) and "ignore" not in text
    assert main(["inspect", str(cohort), "--out", str(tmp_path / "page.html")]) == 0
    assert (
        "structure 12" in (tmp_path / "page.html").read_text() or "structure_12" in (tmp_path / "page.html").read_text()
    )


def test_twelve_labels_are_scored_tuned_exported_and_predicted(run, cohort, tmp_path):
    run, least_dice = run
    summary = json.loads((run / "evaluation.json").read_text())
    assert summary["dice"] > least_dice
    rows = pd.read_csv(run / "evaluation.csv")
    assert set(rows["label"]) == set(many_labels.LABELS)
    assert main(["tune", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert main(["export", str(run), str(tmp_path / "export"), "--force"]) == 0
    for model, out in ((run, "by_run"), (tmp_path / "export", "by_export")):
        arguments = ["predict", str(model), str(cohort), str(tmp_path / out), "--format", "labelmap"]
        assert main(arguments) == 0
    maps = {out: sorted((tmp_path / out).rglob("*.nii.gz")) for out in ("by_run", "by_export")}
    assert len(maps["by_run"]) == len(maps["by_export"]) == 6
    for one, other in zip(*maps.values(), strict=True):
        voxels = np.asarray(nibabel.load(one).dataobj), np.asarray(nibabel.load(other).dataobj)
        assert (voxels[0] == voxels[1]).mean() >= 0.999
    _, label_map = many_labels.make_scan(0)
    predicted = np.asarray(nibabel.load(maps["by_run"][0]).dataobj).transpose(2, 1, 0)
    assert ((predicted > 0) & (label_map > 0)).sum() > least_dice * (label_map > 0).sum()
