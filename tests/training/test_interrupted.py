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
from gitseg_tf.data.pipeline.batches import training_batch, training_windows
from gitseg_tf.labels import UWMGI

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).parents[1] / "helpers" / "interrupted.py"
STEPS, EPOCHS = 4, 3


@pytest.fixture(scope="module")
def runs(tiny_dataset, tmp_path_factory):
    """The results of interrupted.py, and the folder with its runs."""
    out = tmp_path_factory.mktemp("interrupted")
    command = [sys.executable, str(SCRIPT), str(tiny_dataset.root), str(out)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert completed.returncode == 0, completed.stderr[-3000:]
    return json.loads(completed.stdout.splitlines()[-1]) | {"out": out}


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


def test_the_same_seed_gives_the_same_bytes(runs):
    assert runs["ended"]["uninterrupted"] == [0, ""]
    assert_same_end(runs["out"] / "again", runs["out"] / "uninterrupted")


def test_a_repeatedly_killed_run_finishes_as_if_never_interrupted(runs):
    """Even if it was killed between the first epoch and the first checkpoint, when it starts over."""
    kills = {name: status for name, (status, _) in runs["ended"].items() if name.startswith("killed_")}
    assert len(kills) == 5 and set(kills.values()) == {-9}
    assert runs["ended"]["resumed"] == [0, ""]
    assert_same_end(runs["out"] / "killed", runs["out"] / "uninterrupted")


def test_a_run_folder_always_holds_a_consistent_state(runs):
    """Checkpoint, history and best weights are those of the uninterrupted run; a resumed run reads nothing else."""
    had = dict(line.split() for line in (runs["out"] / "steps.txt").read_text().splitlines())
    losses = [row["loss"] for row in history_of(runs["out"] / "uninterrupted")]
    assert len(had) == STEPS * EPOCHS and len(runs["photographs"]) >= 10
    assert len({photograph["step"] for photograph in runs["photographs"]}) >= 5
    for photograph in runs["photographs"]:
        step = photograph["step"]
        assert photograph["weights"] == had[str(step)]
        assert step == photograph["finished"] * STEPS + photograph["within"]
        assert photograph["epochs"] in (losses[: photograph["finished"]], losses[: photograph["finished"] + 1])
        assert photograph["best_is_whole"] in ([True] if photograph["finished"] else [None, True])


def test_a_full_disk_is_a_one_line_error_and_loses_no_saved_state(runs):
    """The run then resumes and finishes as tested above."""
    status, message = runs["ended"]["without_space"]
    assert status == 1 and "\n" not in message
    assert re.search(r"(cannot be saved|best\.weights\.h5).*", message) and "{{" not in message
    # From the epoch before, in which the killed runs saved three mid-epoch checkpoints.
    assert {"history.csv", "checkpoints/best.weights.h5", "checkpoints/state/ckpt-4.index"} <= set(runs["left"])
    new = set(runs["left"]) - set(runs["before"])
    assert not [name for name in new if "tmp" in name or "temp" in name]


SETTINGS = {
    "data.input_size": [32, 32],
    "data.window_slices": 1,
    "data.fold": 1,
    "data.batch_size": 8,
    "training.epochs": 2,
}


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_batches_from_a_mid_epoch_step_match_the_full_stream(tiny_dataset, cache_mib):
    config = load_config(None, SETTINGS | {"data.cache_mib": cache_mib}).for_dataset(UWMGI, ("image",))
    whole = list(training_windows(tiny_dataset, config).as_numpy_iterator())
    rest = list(training_windows(tiny_dataset, config, 1, 2).as_numpy_iterator())
    assert len(whole) == 2 * STEPS and len(rest) == STEPS - 2
    for one, other in zip(whole[STEPS + 2 :], rest, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_can_be_reproduced_with_its_scan_ids(tiny_cohort, tiny_dataset):
    config = load_config(None, SETTINGS | {"augment.backend": "tensorflow"}).for_dataset(UWMGI, ("image",))
    *_, (image, mask) = training_windows(tiny_dataset, config).take(3).as_numpy_iterator()
    scans, again, mask_again = training_batch(tiny_dataset, config, 0, 2)
    assert np.array_equal(again, image) and np.array_equal(mask_again, mask)
    assert set(scans) <= {scan.id for scan in tiny_cohort.scans} and 1 <= len(scans) <= 8
