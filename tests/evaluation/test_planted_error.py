"""A trained network puts the scan with a planted annotation error at the top of the ranking."""

import csv

import pytest

from gitseg_tf.config import load_config
from gitseg_tf.data.readers.registry import read_cohort
from gitseg_tf.data.readers.rle import mask_to_rle
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import load_dataset
from gitseg_tf.evaluation.disagreement import rank_training_scans
from gitseg_tf.phantom import make_phantom
from gitseg_tf.training.trainer import train

SETTINGS = {
    "data.input_size": [64, 64],
    "data.window_slices": 3,
    "data.batch_size": 8,
    "data.fold": 0,
    "model.filters": 8,
    "model.levels": 4,
    "training.epochs": 4,
    "training.precision": "float32",
    "training.strategy": "one_device",
}


@pytest.mark.slow
def test_a_label_with_the_wrong_name_on_a_few_slices_comes_first_of_ten(tmp_path):
    root = make_phantom(tmp_path / "cohort", cases=20, days=1, slices=24)
    folds = tmp_path / "folds.csv"
    folds.write_text("patient,fold\n" + "".join(f"case{n},{n % 2}\n" for n in range(1, 21)))
    with (root / "train.csv").open(newline="") as table:
        head, *rows = csv.reader(table)
    scan = next(scan for scan in read_cohort(root).scans if scan.id == "case8_day0")
    masks = scan.read_annotation().masks.copy()
    small, stomach = (scan.labels.index(name) for name in ("small_bowel", "stomach"))
    middle = slice(14, 19)
    masks[stomach, middle] |= masks[small, middle]
    masks[small, middle] = False
    changed = {
        (name, label.name): mask_to_rle(mask)
        for k, label in enumerate(scan.labels)
        for name, mask in zip(scan.slice_ids, masks[k], strict=True)
    }
    with (root / "train.csv").open("w", newline="") as table:
        csv.writer(table).writerows([head, *([i, name, changed.get((i, name), text)] for i, name, text in rows)])
    dataset = convert(root, tmp_path / "records", folds=str(folds))
    train(load_config(None, SETTINGS), dataset, tmp_path / "run")
    ranking, labels = rank_training_scans(tmp_path / "run", lambda records, _: load_dataset(records))
    assert len(ranking) == 10 and labels.names == dataset.labels.names
    assert ranking[0].scan == "case8_day0" and ranking[0].score > 1.5 * ranking[1].score
    assert ranking[0].worst.label in ("small_bowel", "stomach")
    first, last = ranking[0].worst.slices
    assert first <= 19 and last >= 15
