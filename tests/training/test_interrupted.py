import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from gitseg_tf.config import load_config
from gitseg_tf.data.pipeline import training_batch, training_windows

SCRIPT = Path(__file__).with_name("interrupted.py")
STEPS, EPOCHS = 4, 3


@pytest.fixture(scope="module")
def runs(drawn_dataset, tmp_path_factory):
    """What became of the trainings of interrupted.py, and the folder with their runs."""
    out = tmp_path_factory.mktemp("interrupted")
    command = [sys.executable, str(SCRIPT), str(drawn_dataset.root), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"out": out}


def history_of(run):
    with open(run / "history.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def state_of(run):
    """All variables of the newest checkpoint, as bytes."""
    reader = tf.train.load_checkpoint(str(run / "checkpoints" / "state"))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return {name: np.asarray(reader.get_tensor(name)).tobytes() for name in names if "save_counter" not in name}


def assert_same_end(run, other):
    assert history_of(run) == history_of(other) and len(history_of(run)) == EPOCHS
    one, two = state_of(run), state_of(other)
    assert one.keys() == two.keys() and len(one) > 20
    assert [name for name in one if one[name] != two[name]] == []


def test_the_same_seed_twice_gives_the_same_bytes(runs):
    assert runs["ended"]["undisturbed"] == [0, ""]
    assert_same_end(runs["out"] / "again", runs["out"] / "undisturbed")


def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(runs):
    """Also where it was killed between its first epoch and the first checkpoint: then it begins anew."""
    kills = {name: status for name, (status, _) in runs["ended"].items() if name.startswith("killed_")}
    assert len(kills) == 5 and set(kills.values()) == {-9}
    assert runs["ended"]["resumed"] == [0, ""]
    assert_same_end(runs["out"] / "killed", runs["out"] / "undisturbed")


def test_whenever_a_run_dies_its_folder_holds_a_state_that_the_undisturbed_run_had(runs):
    """Of the history and the best weights too: a resumed run goes on from these and from nothing else."""
    had = dict(line.split() for line in (runs["out"] / "steps.txt").read_text().splitlines())
    losses = [row["loss"] for row in history_of(runs["out"] / "undisturbed")]
    assert len(had) == STEPS * EPOCHS and len(runs["photographs"]) >= 10
    assert len({photograph["step"] for photograph in runs["photographs"]}) >= 5
    for photograph in runs["photographs"]:
        step = photograph["step"]
        assert photograph["weights"] == had[str(step)]
        assert step == photograph["finished"] * STEPS + photograph["within"]
        assert photograph["epochs"] in (losses[: photograph["finished"]], losses[: photograph["finished"] + 1])
        assert photograph["best_is_whole"] in ([True] if photograph["finished"] else [None, True])


def test_a_full_disk_ends_the_run_with_one_line_and_costs_nothing_that_was_saved(runs):
    """It then goes on and ends as the test above says."""
    status, said = runs["ended"]["without_space"]
    assert status == 1 and "\n" not in said
    assert re.search(r"(cannot be saved|best\.weights\.h5).*", said) and "{{" not in said
    # Of the epoch before: three states within it were saved by those that were killed.
    assert {"history.csv", "checkpoints/best.weights.h5", "checkpoints/state/ckpt-4.index"} <= set(runs["left"])
    new = set(runs["left"]) - set(runs["before"])
    assert not [name for name in new if "tmp" in name or "temp" in name]


SETTINGS = {"data.size": [32, 32], "data.slices": 1, "data.fold": 1, "data.batch_size": 8, "training.epochs": 2}


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_the_batches_from_a_step_on_are_those_that_the_whole_training_has_there(drawn_dataset, cache_mib):
    config = load_config(None, SETTINGS | {"data.cache_mib": cache_mib})
    whole = list(training_windows(drawn_dataset, config).as_numpy_iterator())
    rest = list(training_windows(drawn_dataset, config, 1, 2).as_numpy_iterator())
    assert len(whole) == 2 * STEPS and len(rest) == STEPS - 2
    for one, other in zip(whole[STEPS + 2 :], rest, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_is_made_once_more_with_the_names_of_its_scans(drawn, drawn_dataset):
    config = load_config(None, SETTINGS | {"augment.on": "accelerator"})
    *_, (image, mask) = training_windows(drawn_dataset, config).take(3).as_numpy_iterator()
    scans, again, mask_again = training_batch(drawn_dataset, config, 0, 2)
    assert np.array_equal(again, image) and np.array_equal(mask_again, mask)
    assert set(scans) <= {scan.id for scan in drawn.scans} and 1 <= len(scans) <= 8
