"""A served export predicts the same masks as the trained run."""

import nibabel
import numpy as np
import pytest
from helpers.server import serve

from gitseg_tf import cli
from gitseg_tf.config import load_config, save_config
from gitseg_tf.export.savedmodel import export
from gitseg_tf.inference.predictor import Predictor
from gitseg_tf.labels import UWMGI
from gitseg_tf.runs.run import load_run
from gitseg_tf.training.trainer import train

pytestmark = pytest.mark.service

SETTINGS = {
    "data.input_size": [64, 64],
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
def run(tiny_dataset, tiny_cohort, tmp_path_factory):
    """A run of one epoch, with thresholds that a tenth of the voxels of a scan exceed."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run = train(load_config(None, SETTINGS), tiny_dataset, out)
    scan = tiny_cohort["case1_day0"]
    probabilities = Predictor.of_run(run).probabilities(scan.image, spacing=scan.spacing)
    settings = {
        f"postprocess.{name}.threshold": float(np.quantile(probabilities[k], 0.9)) for k, name in enumerate(UWMGI.names)
    }
    settings["postprocess.large_bowel.min_component_ml"] = 0.05
    save_config(load_config(out / "config.yaml", settings), out / "config.yaml")
    return load_run(out)


@pytest.fixture(scope="module")
def cohort(make_cohort, tmp_path_factory):
    scans = (("case1_day0", (40, 64), range(1, 9)), GAP)
    return make_cohort(tmp_path_factory.mktemp("new") / "cohort", scans, labeled=False)


@pytest.fixture(scope="module")
def served(run):
    with serve({"gitseg": {1: export(run)}}) as started:
        yield started


def masks_in(folder):
    return {
        scan.name: np.stack([nibabel.load(scan / f"{name}.nii.gz").get_fdata() > 0 for name in UWMGI.names])
        for scan in folder.iterdir()
    }


@pytest.mark.parametrize("transport", ["grpc_url", "rest_url"])
def test_a_served_export_predicts_the_same_masks_as_the_run(run, served, cohort, tmp_path, transport):
    url = getattr(served, transport)("gitseg")
    places = [(run.path,), ("--server", url)]
    for number, model in enumerate(places):
        arguments = ["predict", *model, cohort.root, tmp_path / str(number), "--format", "nifti"]
        assert cli.main([str(argument) for argument in arguments]) == 0
    local, remote = (masks_in(tmp_path / str(number)) for number in range(2))
    assert set(local) == set(remote) == {"case1_day0", "case5_day0"}
    for name, masks in local.items():
        assert masks.any() and not masks.all()
        assert (masks == remote[name]).mean() >= 0.999, name
