from pathlib import Path

import pytest

from gitseg_tf.config import load_config

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CORES = 8


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_is_named_after_its_file(recipe):
    config = load_config(recipe)
    assert config.name == recipe.stem
    assert len(config.data.exclude_scans) == (12 if recipe.stem.startswith("uwmgi") else 0)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_packaged_config_loads_by_name_from_any_folder(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(recipe.stem) == load_config(recipe)


def test_a_file_in_the_working_directory_takes_precedence_over_a_packaged_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uwmgi").write_text("name: mine")
    assert load_config("uwmgi").name == "mine"


def test_an_unknown_config_name_is_refused_with_the_known_ones(refusal):
    line = refusal(load_config, "uwmgii")
    assert "uwmgii: no such config; give a YAML file or one of accuracy, cpu, default," in line


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem.endswith("_tpu")], ids=lambda path: path.stem)
def test_a_tpu_recipe_uses_the_gpu_model_and_data_with_batches_for_its_cores(recipe):
    config, gpu = load_config(recipe), load_config(recipe.with_stem(recipe.stem.removesuffix("_tpu")))
    assert config.training.strategy == "tpu" and config.data.batch_size % CORES == 0
    assert config.model == gpu.model and config.augment == gpu.augment
    assert config.data == gpu.data.model_copy(update={"batch_size": config.data.batch_size})


# Slow, because tracing these networks takes minutes.
@pytest.mark.parametrize("recipe", ["uwmgi", "uwmgi_deeplab"])
def test_a_2d_recipe_trains_at_reduced_size(recipe, whole_table, tiny_dataset, tmp_path):
    from gitseg_tf.runs.folder import read_history
    from gitseg_tf.training.trainer import train

    changes = {"data.input_size": [64, 64], "data.batch_size": 8, "data.fold": 1, "model.pretrained": None}
    changes |= {"training.epochs": 1, "training.strategy": "one_device", "training.precision": "float32"}
    path = Path(__file__).parents[2] / "configs" / f"{recipe}.yaml"
    run = train(load_config(path, changes), tiny_dataset, tmp_path / "run")
    (row,) = read_history(run.path)
    assert 0 < row["loss"] < 5 and 0 < row["val_loss"] < 5
