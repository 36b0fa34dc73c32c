"""A trained run, exported and served: what comes back is what the run itself predicts."""

import nibabel
import numpy as np
import pytest
import tensorflow as tf
from server import serve

from gitseg_tf import cli
from gitseg_tf.config import load_config, save_config
from gitseg_tf.data.records import intensity_percentiles
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.inference.predictor import make_scan_function, run_probabilities
from gitseg_tf.serving.export import export
from gitseg_tf.training.trainer import load_run, train

SETTINGS = {
    "data.size": [64, 64],
    "data.fold": 1,
    "data.batch_size": 4,
    "model.filters": 4,
    "training.epochs": 1,
    "training.strategy": "one_device",
    "training.precision": "float32",
    "evaluation.batch_size": 3,
}
GAP = ("case5_day0", (48, 40), (1, 2, 3, 7, 8, 9, 10))


@pytest.fixture(scope="module")
def run(drawn_dataset, drawn, tmp_path_factory):
    """A run of one epoch, with thresholds that a tenth of a scan's voxels reach."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run = train(load_config(None, SETTINGS), drawn_dataset, out, say=lambda line: None)
    scan = drawn["case1_day0"]
    find = make_scan_function(run_probabilities(run), run.config, tf.identity)
    found = find(scan.image, scan.numbers, intensity_percentiles(scan.image), scan.spacing)
    settings = {f"postprocess.{organ}.threshold": float(np.quantile(found[k], 0.9)) for k, organ in enumerate(ORGANS)}
    settings["postprocess.large_bowel.smallest_ml"] = 0.05
    save_config(load_config(out / "config.yaml", settings), out / "config.yaml")
    return load_run(out)


@pytest.fixture(scope="module")
def cohort(draw, tmp_path_factory):
    scans = (("case1_day0", (40, 64), range(1, 9)), GAP)
    return draw(tmp_path_factory.mktemp("new") / "cohort", scans, labelled=False)


@pytest.fixture(scope="module")
def served(run):
    with serve({"gitseg": {1: export(run)}}) as started:
        yield started


def masks_in(folder):
    return {
        scan.name: np.stack([nibabel.load(scan / f"{organ}.nii.gz").get_fdata() > 0 for organ in ORGANS])
        for scan in folder.iterdir()
    }


@pytest.mark.parametrize("transport", ["grpc_url", "rest_url"])
def test_the_served_export_predicts_as_the_run_does(run, served, cohort, tmp_path, transport):
    url = getattr(served, transport)("gitseg")
    places = [(run.path,), ("--server", url)]
    for number, model in enumerate(places):
        arguments = ["predict", *model, cohort.root, tmp_path / str(number), "--format", "nifti"]
        assert cli.main([str(argument) for argument in arguments]) == 0
    here, there = (masks_in(tmp_path / str(number)) for number in range(2))
    assert set(here) == set(there) == {"case1_day0", "case5_day0"}
    for name, masks in here.items():
        assert masks.any() and not masks.all()
        assert (masks == there[name]).mean() >= 0.999, name
