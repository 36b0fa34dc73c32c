from pathlib import Path

import pytest

from gitseg_tf.config import load_config

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
CORES = 8


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_named_like_its_file_and_is_an_experiment(recipe):
    config = load_config(recipe)
    assert config.name == recipe.stem
    assert len(config.data.exclude_scans) == (12 if recipe.stem.startswith("uwmgi") else 0)


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem.endswith("_tpu")], ids=lambda path: path.stem)
def test_a_tpu_s_recipe_is_that_of_the_gpu_with_batches_for_its_cores(recipe):
    config, gpu = load_config(recipe), load_config(recipe.with_stem(recipe.stem.removesuffix("_tpu")))
    assert config.training.strategy == "tpu" and config.data.batch_size % CORES == 0
    assert config.model == gpu.model and config.augment == gpu.augment
    assert config.data == gpu.data.model_copy(update={"batch_size": config.data.batch_size})


# Tracing these networks takes minutes.
@pytest.mark.parametrize("recipe", ["uwmgi", "uwmgi_deeplab"])
def test_a_2d_recipe_trains_at_reduced_size(recipe, whole_table, drawn_dataset, tmp_path):
    from gitseg_tf.training.callbacks import read_history
    from gitseg_tf.training.trainer import train

    changes = {"data.size": [64, 64], "data.batch_size": 8, "data.fold": 1, "model.weights": None}
    changes |= {"training.epochs": 1, "training.strategy": "one_device", "training.precision": "float32"}
    path = Path(__file__).parents[1] / "configs" / f"{recipe}.yaml"
    run = train(load_config(path, changes), drawn_dataset, tmp_path / "run", say=lambda line: None)
    (row,) = read_history(run.path)
    assert 0 < row["loss"] < 5 and 0 < row["val_loss"] < 5
