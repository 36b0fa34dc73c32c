import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from gitseg_tf.data.readers.base import Scan
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import load_dataset, read_scans
from gitseg_tf.labels import UWMGI

READ_VOLUME = Scan.read_volume


def shard_bytes(root):
    return {path.name: path.read_bytes() for path in root.glob("*.tfrecord")}


def names_in(root):
    return sorted(path.name for path in root.iterdir())


def index_of(root):
    return json.loads((root / "dataset.json").read_text())


@pytest.fixture
def failing_at(monkeypatch):
    """failing_at(scan id) interrupts the conversion at that scan."""

    def fail(scan_id):
        def read(scan):
            if scan.id == scan_id:
                raise KeyboardInterrupt
            return READ_VOLUME(scan)

        monkeypatch.setattr(Scan, "read_volume", read)

    return fail


@pytest.fixture
def read_again(monkeypatch):
    """read_again() starts recording the ids of the scans that are read, and returns their list."""
    ids = []

    def start():
        def read(scan):
            ids.append(scan.id)
            return READ_VOLUME(scan)

        monkeypatch.setattr(Scan, "read_volume", read)
        return ids

    return start


@pytest.fixture
def interrupted(tiny_cohort, tiny_dataset, tmp_path, failing_at):
    """A conversion that stopped in its last shard."""
    failing_at(tiny_dataset.shards[-1].scans[-1].id)
    with pytest.raises(KeyboardInterrupt):
        convert(tiny_cohort.root, tmp_path / "out", folds=3, workers=1)
    return tmp_path / "out"


def test_the_index_counts_cases_scans_and_label_slices(tiny_cohort, tiny_dataset):
    counts = index_of(tiny_dataset.root)["counts"]
    assert (counts["cases"], counts["scans"], counts["slices"]) == (6, 9, 73)
    # Per scan: large bowel on depth - 3 slices, small bowel on depth - 4, stomach on one, plus a single pixel in case4.
    assert counts["label_slices"] == {"large_bowel": 73 - 27, "small_bowel": 73 - 36, "stomach": 9 + 1}
    assert counts["annotated_scans"] == dict.fromkeys(counts["label_slices"], 9)


def test_the_index_describes_each_scan(tiny_dataset):
    scan = next(scan for scan in tiny_dataset.scans_of(range(3)) if scan.id == "case4_day0")
    assert (scan.case, scan.shape, scan.spacing) == ("case4", (7, 40, 64), (3.0, 1.5, 1.25))
    assert scan.label_slices == {"large_bowel": 4, "small_bowel": 3, "stomach": 2}
    assert scan.empty_slices == 2


def test_the_index_counts_the_slices_with_each_set_of_labels(tiny_cohort, tiny_dataset):
    for scan in tiny_dataset.scans_of(range(3)):
        masks = tiny_cohort[scan.id].masks
        shown = [[k for k in range(3) if masks[k, z].any()] for z in range(masks.shape[1])]
        assert scan.label_sets == Counter(" ".join(map(str, labels)) for labels in shown if labels)


def test_the_index_lists_both_geometries(tiny_dataset):
    assert index_of(tiny_dataset.root)["geometries"] == [[40, 64, 3.0, 1.5, 1.25], [48, 40, 3.0, 1.63, 1.63]]


def test_every_patient_is_in_the_fold_of_its_shard(tiny_dataset):
    fold_of = index_of(tiny_dataset.root)["folds"]["cases"]
    assert sorted(fold_of) == [f"case{n}" for n in range(1, 7)]
    assert all(fold_of[scan.case] == shard.fold for shard in tiny_dataset.shards for scan in shard.scans)


def test_shards_are_named_by_fold_and_number(tiny_dataset):
    assert [shard.file for shard in tiny_dataset.shards] == [f"fold{k}-00000-of-00001.tfrecord" for k in range(3)]


def test_only_shards_and_the_index_are_left(tiny_dataset):
    assert names_in(tiny_dataset.root) == ["dataset.json", *(shard.file for shard in tiny_dataset.shards)]


def test_many_scans_are_split_into_several_shards_per_fold(tiny_cohort, tmp_path):
    dataset = convert(tiny_cohort.root, tmp_path / "out", folds=2, shard_bytes=2 * 8 * 40 * 64 * 2)
    names = [re.fullmatch(r"fold(\d)-(\d{5})-of-(\d{5})\.tfrecord", shard.file) for shard in dataset.shards]
    for fold in range(2):
        numbers = [int(name[2]) for name in names if int(name[1]) == fold]
        assert len(numbers) > 1 and numbers == list(range(len(numbers)))
        assert all(int(name[3]) == len(numbers) for name in names if int(name[1]) == fold)
    assert sorted(scan.id for scan in read_scans(dataset, range(2))) == sorted(scan.id for scan in tiny_cohort.scans)


def test_a_shard_size_of_zero_is_refused(tiny_cohort, tmp_path, refusal):
    assert "shard_bytes must be >= 1, got 0" in refusal(
        convert, tiny_cohort.root, tmp_path / "out", folds=3, shard_bytes=0
    )


def test_the_number_of_workers_does_not_change_the_bytes(tiny_cohort, tiny_dataset, tmp_path):
    dataset = convert(tiny_cohort.root, tmp_path / "out", folds=3, workers=2)
    assert shard_bytes(dataset.root) == shard_bytes(tiny_dataset.root)
    assert index_of(dataset.root) == index_of(tiny_dataset.root)


def test_the_seed_is_written_to_the_index(tiny_cohort, tmp_path):
    assert index_of(convert(tiny_cohort.root, tmp_path / "out", folds=2, seed=11).root)["folds"]["seed"] == 11


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_dataset_is_never_overwritten(tiny_cohort, tiny_dataset, refusal, resume):
    before = shard_bytes(tiny_dataset.root)
    assert "already contains a finished dataset" in refusal(convert, tiny_cohort.root, tiny_dataset.root, resume=resume)
    assert shard_bytes(tiny_dataset.root) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_files_is_left_alone(tiny_cohort, tmp_path, refusal, resume):
    (tmp_path / "thesis.tfrecord").write_text("years of work")
    assert f"{tmp_path}: is not empty and was not created by gitseg convert" in refusal(
        convert, tiny_cohort.root, tmp_path, resume=resume
    )
    assert names_in(tmp_path) == ["thesis.tfrecord"]


def test_a_file_in_place_of_the_output_folder_is_left_alone(tiny_cohort, tmp_path, refusal):
    (tmp_path / "out").write_text("mine")
    assert f"{tmp_path / 'out'}: is " in refusal(convert, tiny_cohort.root, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_empty_folder_is_used(tiny_cohort, tmp_path):
    assert len(convert(tiny_cohort.root, tmp_path, folds=2).shards) == 2


def test_an_interrupted_conversion_is_not_a_dataset(interrupted, refusal):
    assert not (interrupted / "dataset.json").exists()
    assert "no finished dataset" in refusal(load_dataset, interrupted)


def test_resuming_writes_only_what_was_missing(interrupted, tiny_cohort, tiny_dataset, read_again):
    finished = {path.name: path.stat().st_mtime_ns for path in interrupted.glob("*.tfrecord")}
    assert finished.keys() == {shard.file for shard in tiny_dataset.shards[:-1]}
    read = read_again()
    convert(tiny_cohort.root, interrupted, folds=3, workers=1, resume=True)
    assert read == [scan.id for scan in tiny_dataset.shards[-1].scans]
    assert {name: (interrupted / name).stat().st_mtime_ns for name in finished} == finished


def test_a_resumed_conversion_writes_the_same_bytes(interrupted, tiny_cohort, tiny_dataset, read_again):
    read_again()
    convert(tiny_cohort.root, interrupted, folds=3, workers=1, resume=True)
    assert shard_bytes(interrupted) == shard_bytes(tiny_dataset.root)
    assert index_of(interrupted) == index_of(tiny_dataset.root)
    assert names_in(interrupted) == names_in(tiny_dataset.root)


def test_temporary_files_of_a_killed_conversion_are_removed(interrupted, tiny_cohort, tiny_dataset, read_again):
    (interrupted / f".{tiny_dataset.shards[-1].file}.json.77.tmp").write_text("{")
    (interrupted / f".{tiny_dataset.shards[-1].file}.77.tmp").write_text("half")
    read_again()
    convert(tiny_cohort.root, interrupted, folds=3, workers=1, resume=True)
    assert names_in(interrupted) == names_in(tiny_dataset.root)


def test_a_finished_shard_that_was_damaged_is_rewritten(interrupted, tiny_cohort, tiny_dataset, read_again):
    path = interrupted / tiny_dataset.shards[0].file
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    read_again()
    convert(tiny_cohort.root, interrupted, folds=3, workers=1, resume=True)
    assert shard_bytes(interrupted) == shard_bytes(tiny_dataset.root)


def test_without_resume_an_interrupted_conversion_starts_over(interrupted, tiny_cohort, tiny_dataset, read_again):
    read = read_again()
    convert(tiny_cohort.root, interrupted, folds=3, workers=1)
    assert len(read) == 9 and shard_bytes(interrupted) == shard_bytes(tiny_dataset.root)


def test_resuming_with_other_folds_is_refused(interrupted, tiny_cohort, refusal):
    before = names_in(interrupted)
    assert "different scans, folds or labels" in refusal(convert, tiny_cohort.root, interrupted, folds=2, resume=True)
    assert names_in(interrupted) == before


def test_resuming_another_cohort_is_refused(interrupted, make_cohort, tmp_path, refusal):
    other = make_cohort(tmp_path / "other", [(f"case{n}_day0", (40, 64), range(1, 6)) for n in range(11, 17)])
    assert "different scans, folds or labels" in refusal(convert, other.root, interrupted, folds=3, resume=True)


def test_resuming_with_other_labels_is_refused(interrupted, tiny_cohort, refusal):
    labels = UWMGI.subset(["stomach", "large_bowel", "small_bowel"])
    message = refusal(convert, tiny_cohort.root, interrupted, folds=3, resume=True, labels=labels)
    assert "different scans, folds or labels" in message


def test_a_finished_dataset_with_different_labels_is_not_resumed(tiny_cohort, tiny_dataset, refusal):
    labels = UWMGI.subset(["stomach", "large_bowel", "small_bowel"])
    message = refusal(convert, tiny_cohort.root, tiny_dataset.root, folds=3, resume=True, labels=labels)
    assert "already contains a finished dataset" in message


def test_a_finished_dataset_with_a_different_value_of_missing_is_not_resumed(
    make_cohort, tmp_path, rows_of, save_table, refusal
):
    cohort = make_cohort(tmp_path / "cohort")
    save_table(cohort.root, [row for row in rows_of(cohort.scans) if row[1] != "stomach" or "case1" not in row[0]])
    convert(cohort.root, tmp_path / "out", folds=3)
    message = refusal(convert, cohort.root, tmp_path / "out", folds=3, resume=True, missing="absent")
    assert "already contains a finished dataset" in message


def test_resuming_in_a_new_folder_starts_a_conversion(tiny_cohort, tiny_dataset, tmp_path):
    convert(tiny_cohort.root, tmp_path / "out", folds=3, resume=True)
    assert shard_bytes(tmp_path / "out") == shard_bytes(tiny_dataset.root)


def test_resuming_continues_after_a_truncated_slice_is_repaired(
    make_cohort, tiny_dataset, tmp_path, refusal, read_again
):
    cohort, out = make_cohort(tmp_path / "cohort"), tmp_path / "out"
    broken = tiny_dataset.shards[1].scans[0]
    path = sorted((cohort.root / "train" / broken.case / broken.id / "scans").iterdir())[2]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert str(path) in refusal(convert, cohort.root, out, folds=3, workers=1)
    path.write_bytes(whole)
    read = read_again()
    convert(cohort.root, out, folds=3, workers=1, resume=True)
    assert not {scan.id for scan in tiny_dataset.shards[0].scans} & set(read)
    assert shard_bytes(out) == shard_bytes(tiny_dataset.root)


def test_resuming_rewrites_the_shard_of_a_changed_scan(
    make_cohort, tiny_dataset, tmp_path, failing_at, read_again, rows_of, save_table
):
    cohort, out = make_cohort(tmp_path / "cohort"), tmp_path / "out"
    failing_at(tiny_dataset.shards[-1].scans[-1].id)
    with pytest.raises(KeyboardInterrupt):
        convert(cohort.root, out, folds=3, workers=1)
    changed = cohort[tiny_dataset.shards[0].scans[0].id]
    changed.masks[0, 3, 30, 30] = True
    save_table(cohort.root, rows_of(cohort.scans))
    read_again()
    dataset = convert(cohort.root, out, folds=3, workers=1, resume=True)
    masks = next(scan.annotation.masks for scan in read_scans(dataset, range(3)) if scan.id == changed.id)
    assert np.array_equal(masks[0], changed.masks[0])


def test_an_invalid_table_row_stops_the_conversion_and_is_named(make_cohort, tmp_path, refusal, rows_of, save_table):
    cohort = make_cohort(tmp_path / "cohort")
    rows = rows_of(cohort.scans)
    rows[5] = (*rows[5][:2], "2550 100")
    save_table(cohort.root, rows)
    assert f"train.csv, {rows[5][0]}, {rows[5][1]}" in refusal(convert, cohort.root, tmp_path / "out", folds=3)


def test_more_folds_than_patients_are_refused_before_anything_is_written(tiny_cohort, tmp_path, refusal):
    assert "too few patients (6) for 7 folds" in refusal(convert, tiny_cohort.root, tmp_path / "out", folds=7)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def unlabeled(make_cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabeled")
    cohort = make_cohort(folder / "cohort", [("case1_day0", (40, 64), range(1, 5))], labeled=False, folder="test")
    return cohort, convert(cohort.root, folder / "out")


def test_a_cohort_without_annotations_is_in_no_fold(unlabeled):
    _, dataset = unlabeled
    assert [(shard.file, shard.fold) for shard in dataset.shards] == [("unlabeled-00000-of-00001.tfrecord", -1)]
    assert index_of(dataset.root)["folds"] == {"count": 0, "seed": 0, "cases": {"case1": -1}}


def test_a_cohort_without_annotations_keeps_its_images(unlabeled):
    cohort, dataset = unlabeled
    (scan,) = read_scans(dataset, [-1])
    assert np.array_equal(scan.volume.voxels, cohort.scans[0].image) and scan.annotation is None
    assert len(dataset.labels) == 0 and scan.fold == -1


def test_a_cohort_without_annotations_cannot_train(unlabeled, refusal):
    assert "has no folds, because no scan is annotated" in refusal(unlabeled[1].training_folds, 0)


def test_excluded_scans_are_in_no_shard(tiny_cohort, tmp_path):
    dataset = convert(tiny_cohort.root, tmp_path / "out", folds=3, exclude=["case1_day5", "case4_day0"])
    assert sorted(scan.id for scan in read_scans(dataset, range(3))) == sorted(
        scan.id for scan in tiny_cohort.scans if scan.id not in ("case1_day5", "case4_day0")
    )
    assert index_of(dataset.root)["source"]["excluded"] == "case1_day5 case4_day0"


def test_an_unknown_excluded_scan_is_named_before_anything_is_written(tiny_cohort, tmp_path, refusal):
    assert "has no scan case9_day9 to exclude" in refusal(
        convert, tiny_cohort.root, tmp_path / "out", exclude=["case9_day9"]
    )
    assert not (tmp_path / "out").exists()


def test_excluding_every_scan_is_refused(tiny_cohort, tmp_path, refusal):
    everything = [scan.id for scan in tiny_cohort.scans]
    assert "all scans are excluded" in refusal(convert, tiny_cohort.root, tmp_path / "out", exclude=everything)


def test_resuming_a_finished_conversion_changes_nothing(tiny_cohort, tmp_path):
    dataset = convert(tiny_cohort.root, tmp_path / "out", folds=3)
    written = {path: path.stat().st_mtime_ns for path in dataset.root.iterdir()}
    assert convert(tiny_cohort.root, tmp_path / "out", folds=3, resume=True) == dataset
    assert {path: path.stat().st_mtime_ns for path in dataset.root.iterdir()} == written


def test_a_finished_dataset_with_different_masks_is_not_resumed(make_cohort, tmp_path, refusal, rows_of, save_table):
    cohort = make_cohort(tmp_path / "cohort")
    convert(cohort.root, tmp_path / "out", folds=3)
    cohort.scans[0].masks[0, 3, 30, 30] = True
    save_table(cohort.root, rows_of(cohort.scans))
    message = refusal(convert, cohort.root, tmp_path / "out", folds=3, resume=True)
    assert "already contains a finished dataset" in message


def test_a_conversion_does_not_import_tensorflow(tiny_cohort, tmp_path):
    code = (
        "import sys\nfrom gitseg_tf.cli import main\n"
        "assert main(['convert', *sys.argv[1:], '--folds', '3']) == 0\nprint('tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tiny_cohort.root), str(tmp_path / "out")]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert completed.stdout.splitlines()[-1] == "False"
