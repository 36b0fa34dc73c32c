"""What accompanies an exported network: an unfinished training, and the ranges of the training data."""

import pytest
from helpers.configs import tiny_config

from gitseg_tf.config import load_config, save_config
from gitseg_tf.export.savedmodel import write_assets
from gitseg_tf.runs.run import Run
from gitseg_tf.runs.training_data import TRAINING_DATA, TrainingData, read_training_data, write_training_data

DATA = TrainingData(2, ((3, 3), (1.5, 1.5), (1.5, 1.5)), ((72, 72), (399, 399), (399, 465)), None, {"stomach": 0})


@pytest.mark.parametrize(("epochs", "unfinished"), [(1, "1 of its 2 epochs"), (2, None)])
def test_the_assets_tell_what_the_run_tells(tmp_path, epochs, unfinished):
    run, assets = tmp_path / "run", tmp_path / "assets"
    run.mkdir()
    assets.mkdir()
    config = tiny_config(training__epochs=2)
    save_config(config, run / "config.yaml")
    (run / "history.csv").write_text("epoch,loss\n" + "".join(f"{epoch},0.5\n" for epoch in range(epochs)))
    (run / "best.weights.h5").write_bytes(b"weights")
    write_training_data(run, DATA)
    write_assets(Run(run, config, run / "best.weights.h5"), assets, {"weights": "float32"})
    assert read_training_data(assets) == DATA
    assert load_config(assets / "config.yaml").provenance.get("unfinished") == unfinished
    (run / TRAINING_DATA).unlink()
    (assets / TRAINING_DATA).unlink()
    write_assets(Run(run, config, run / "best.weights.h5"), assets, {"weights": "float32"})
    assert read_training_data(assets) is None
