import json
import re
import subprocess
import sys

import numpy as np
import pytest

from gitseg_tf.data import shards
from gitseg_tf.data.convert import convert
from gitseg_tf.data.dataset import load_dataset, read_scans
from gitseg_tf.data.scans import read_image


def shard_bytes(root):
    return {path.name: path.read_bytes() for path in root.glob("*.tfrecord")}


def names_in(root):
    return sorted(path.name for path in root.iterdir())


def index_of(root):
    return json.loads((root / "dataset.json").read_text())


@pytest.fixture
def failing_at(monkeypatch):
    """failing_at(scan id) makes the conversion stop there, as when the machine does."""

    def fail(scan_id):
        def read(scan):
            if scan.id == scan_id:
                raise KeyboardInterrupt
            return read_image(scan)

        monkeypatch.setattr(shards, "read_image", read)

    return fail


@pytest.fixture
def read_again(monkeypatch):
    """The ids of the scans whose slices are read from now on."""
    ids = []

    def start():
        def read(scan):
            ids.append(scan.id)
            return read_image(scan)

        monkeypatch.setattr(shards, "read_image", read)
        return ids

    return start


@pytest.fixture
def interrupted(drawn, drawn_dataset, tmp_path, failing_at):
    """A conversion that stopped in its last shard."""
    failing_at(drawn_dataset.shards[-1].scans[-1].id)
    with pytest.raises(KeyboardInterrupt):
        convert(drawn.root, tmp_path / "out", folds=3, workers=1)
    return tmp_path / "out"


def test_the_index_counts_what_was_drawn(drawn, drawn_dataset):
    counts = index_of(drawn_dataset.root)["counts"]
    assert (counts["cases"], counts["scans"], counts["slices"]) == (6, 9, 73)
    # Large bowel: depth - 3 slices a scan; small bowel: depth - 4; stomach: one a scan and the single pixel of case4.
    assert counts["organ_slices"] == {"large_bowel": 73 - 27, "small_bowel": 73 - 36, "stomach": 9 + 1}


def test_the_index_tells_a_scan_as_it_was_drawn(drawn_dataset):
    scan = next(scan for scan in drawn_dataset.scans_of(range(3)) if scan.id == "case4_day0")
    assert (scan.case, scan.shape, scan.spacing) == ("case4", (7, 40, 64), (3.0, 1.5, 1.25))
    assert scan.organ_slices == {"large_bowel": 4, "small_bowel": 3, "stomach": 2}
    assert scan.empty_slices == 2


def test_the_index_lists_both_geometries(drawn_dataset):
    assert index_of(drawn_dataset.root)["geometries"] == [[40, 64, 3.0, 1.5, 1.25], [48, 40, 3.0, 1.63, 1.63]]


def test_every_patient_is_in_the_fold_of_its_shard(drawn_dataset):
    fold_of = index_of(drawn_dataset.root)["folds"]["cases"]
    assert sorted(fold_of) == [f"case{n}" for n in range(1, 7)]
    assert all(fold_of[scan.case] == shard.fold for shard in drawn_dataset.shards for scan in shard.scans)


def test_shards_are_named_by_fold_and_number(drawn_dataset):
    assert [shard.file for shard in drawn_dataset.shards] == [f"fold{k}-00000-of-00001.tfrecord" for k in range(3)]


def test_nothing_but_shards_and_index_is_left(drawn_dataset):
    assert names_in(drawn_dataset.root) == ["dataset.json", *(shard.file for shard in drawn_dataset.shards)]


def test_many_scans_make_several_shards_a_fold(drawn, tmp_path):
    dataset = convert(drawn.root, tmp_path / "out", folds=2, shard_bytes=2 * 8 * 40 * 64 * 2)
    names = [re.fullmatch(r"fold(\d)-(\d{5})-of-(\d{5})\.tfrecord", shard.file) for shard in dataset.shards]
    for fold in range(2):
        numbers = [int(name[2]) for name in names if int(name[1]) == fold]
        assert len(numbers) > 1 and numbers == list(range(len(numbers)))
        assert all(int(name[3]) == len(numbers) for name in names if int(name[1]) == fold)
    assert sorted(scan["id"] for scan in read_scans(dataset, range(2))) == sorted(scan.id for scan in drawn.scans)


def test_a_shard_of_no_size_is_refused(drawn, tmp_path, refusal):
    assert "--shard-mib 0: " in refusal(convert, drawn.root, tmp_path / "out", folds=3, shard_bytes=0)


def test_one_worker_and_two_write_the_same_bytes(drawn, drawn_dataset, tmp_path):
    dataset = convert(drawn.root, tmp_path / "out", folds=3, workers=2)
    assert shard_bytes(dataset.root) == shard_bytes(drawn_dataset.root)
    assert index_of(dataset.root) == index_of(drawn_dataset.root)


def test_another_seed_is_written_into_the_index(drawn, tmp_path):
    assert index_of(convert(drawn.root, tmp_path / "out", folds=2, seed=11).root)["folds"]["seed"] == 11


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_dataset_is_never_overwritten(drawn, drawn_dataset, refusal, resume):
    before = shard_bytes(drawn_dataset.root)
    assert "finished dataset already" in refusal(convert, drawn.root, drawn_dataset.root, resume=resume)
    assert shard_bytes(drawn_dataset.root) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_files_is_left_alone(drawn, tmp_path, refusal, resume):
    (tmp_path / "thesis.tfrecord").write_text("years of work")
    assert f"{tmp_path}: is not empty" in refusal(convert, drawn.root, tmp_path, resume=resume)
    assert names_in(tmp_path) == ["thesis.tfrecord"]


def test_a_file_in_the_place_of_the_folder_is_left_alone(drawn, tmp_path, refusal):
    (tmp_path / "out").write_text("mine")
    assert f"{tmp_path / 'out'}: is " in refusal(convert, drawn.root, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_empty_folder_is_used(drawn, tmp_path):
    assert len(convert(drawn.root, tmp_path, folds=2).shards) == 2


def test_an_interrupted_conversion_is_no_dataset(interrupted, refusal):
    assert not (interrupted / "dataset.json").exists()
    assert "no finished dataset" in refusal(load_dataset, interrupted)


def test_resuming_writes_only_what_was_missing(interrupted, drawn, drawn_dataset, read_again):
    finished = {path.name: path.stat().st_mtime_ns for path in interrupted.glob("*.tfrecord")}
    assert finished.keys() == {shard.file for shard in drawn_dataset.shards[:-1]}
    read = read_again()
    convert(drawn.root, interrupted, folds=3, workers=1, resume=True)
    assert read == [scan.id for scan in drawn_dataset.shards[-1].scans]
    assert {name: (interrupted / name).stat().st_mtime_ns for name in finished} == finished


def test_a_resumed_conversion_ends_in_the_same_bytes(interrupted, drawn, drawn_dataset, read_again):
    read_again()
    convert(drawn.root, interrupted, folds=3, workers=1, resume=True)
    assert shard_bytes(interrupted) == shard_bytes(drawn_dataset.root)
    assert index_of(interrupted) == index_of(drawn_dataset.root)
    assert names_in(interrupted) == names_in(drawn_dataset.root)


def test_half_written_files_of_a_killed_conversion_are_swept_away(interrupted, drawn, drawn_dataset, read_again):
    (interrupted / f".{drawn_dataset.shards[-1].file}.json.77.tmp").write_text("{")
    (interrupted / f".{drawn_dataset.shards[-1].file}.77.tmp").write_text("half")
    read_again()
    convert(drawn.root, interrupted, folds=3, workers=1, resume=True)
    assert names_in(interrupted) == names_in(drawn_dataset.root)


def test_a_finished_shard_that_was_damaged_since_is_written_again(interrupted, drawn, drawn_dataset, read_again):
    path = interrupted / drawn_dataset.shards[0].file
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    read_again()
    convert(drawn.root, interrupted, folds=3, workers=1, resume=True)
    assert shard_bytes(interrupted) == shard_bytes(drawn_dataset.root)


def test_without_resume_an_interrupted_conversion_starts_again(interrupted, drawn, drawn_dataset, read_again):
    read = read_again()
    convert(drawn.root, interrupted, folds=3, workers=1)
    assert len(read) == 9 and shard_bytes(interrupted) == shard_bytes(drawn_dataset.root)


def test_resuming_with_other_folds_is_refused(interrupted, drawn, refusal):
    before = names_in(interrupted)
    assert "other scans or folds" in refusal(convert, drawn.root, interrupted, folds=2, resume=True)
    assert names_in(interrupted) == before


def test_resuming_another_cohort_is_refused(interrupted, draw, tmp_path, refusal):
    other = draw(tmp_path / "other", [(f"case{n}_day0", (40, 64), range(1, 6)) for n in range(11, 17)])
    assert "other scans or folds" in refusal(convert, other.root, interrupted, folds=3, resume=True)


def test_resuming_nothing_is_a_conversion(drawn, drawn_dataset, tmp_path):
    convert(drawn.root, tmp_path / "out", folds=3, resume=True)
    assert shard_bytes(tmp_path / "out") == shard_bytes(drawn_dataset.root)


def test_after_a_truncated_slice_was_repaired_resuming_goes_on(draw, drawn_dataset, tmp_path, refusal, read_again):
    cohort, out = draw(tmp_path / "cohort"), tmp_path / "out"
    broken = drawn_dataset.shards[1].scans[0]
    path = sorted((cohort.root / "train" / broken.case / broken.id / "scans").iterdir())[2]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert str(path) in refusal(convert, cohort.root, out, folds=3, workers=1)
    path.write_bytes(whole)
    read = read_again()
    convert(cohort.root, out, folds=3, workers=1, resume=True)
    assert not {scan.id for scan in drawn_dataset.shards[0].scans} & set(read)
    assert shard_bytes(out) == shard_bytes(drawn_dataset.root)


def test_resuming_takes_no_shard_of_a_scan_that_changed_since(
    draw, drawn_dataset, tmp_path, failing_at, read_again, rows_of, save_table
):
    cohort, out = draw(tmp_path / "cohort"), tmp_path / "out"
    failing_at(drawn_dataset.shards[-1].scans[-1].id)
    with pytest.raises(KeyboardInterrupt):
        convert(cohort.root, out, folds=3, workers=1)
    changed = cohort[drawn_dataset.shards[0].scans[0].id]
    changed.masks[0, 3, 30, 30] = True
    save_table(cohort.root, rows_of(cohort.scans))
    read_again()
    dataset = convert(cohort.root, out, folds=3, workers=1, resume=True)
    bits = next(scan["bits"] for scan in read_scans(dataset, range(3)) if scan["id"] == changed.id)
    assert np.array_equal(bits & 1, changed.masks[0])


def test_a_wrong_row_of_the_table_stops_the_conversion_and_is_named(draw, tmp_path, refusal, rows_of, save_table):
    cohort = draw(tmp_path / "cohort")
    rows = rows_of(cohort.scans)
    rows[5] = (*rows[5][:2], "2550 100")
    save_table(cohort.root, rows)
    assert f"train.csv, {rows[5][0]}, {rows[5][1]}" in refusal(convert, cohort.root, tmp_path / "out", folds=3)


def test_more_folds_than_patients_are_refused_before_anything_is_written(drawn, tmp_path, refusal):
    assert "6 patients" in refusal(convert, drawn.root, tmp_path / "out", folds=7)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def unlabelled(draw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabelled")
    cohort = draw(folder / "cohort", [("case1_day0", (40, 64), range(1, 5))], labelled=False, folder="test")
    return cohort, convert(cohort.root, folder / "out")


def test_a_cohort_without_contours_is_in_no_fold(unlabelled):
    _, dataset = unlabelled
    assert [(shard.file, shard.fold) for shard in dataset.shards] == [("unlabelled-00000-of-00001.tfrecord", -1)]
    assert index_of(dataset.root)["folds"] == {"count": 0, "seed": 0, "cases": {"case1": -1}}


def test_a_cohort_without_contours_keeps_its_images_and_has_zero_masks(unlabelled):
    cohort, dataset = unlabelled
    (scan,) = read_scans(dataset, [-1])
    assert np.array_equal(scan["image"], cohort.scans[0].image) and not scan["bits"].any()


def test_a_cohort_without_contours_cannot_train(unlabelled, refusal):
    assert "no contours" in refusal(unlabelled[1].training_folds, 0)


def test_scans_that_are_excluded_are_in_no_shard(drawn, tmp_path):
    dataset = convert(drawn.root, tmp_path / "out", folds=3, exclude=["case1_day5", "case4_day0"])
    assert sorted(scan["id"] for scan in read_scans(dataset, range(3))) == sorted(
        scan.id for scan in drawn.scans if scan.id not in ("case1_day5", "case4_day0")
    )
    assert index_of(dataset.root)["source"]["excluded"] == "case1_day5 case4_day0"


def test_an_excluded_scan_that_is_not_there_is_named_before_anything_is_written(drawn, tmp_path, refusal):
    assert "--exclude case9_day9: no such scan" in refusal(
        convert, drawn.root, tmp_path / "out", exclude=["case9_day9"]
    )
    assert not (tmp_path / "out").exists()


def test_excluding_every_scan_is_refused(drawn, tmp_path, refusal):
    everything = [scan.id for scan in drawn.scans]
    assert "leaves no scan" in refusal(convert, drawn.root, tmp_path / "out", exclude=everything)


def test_resuming_a_finished_conversion_leaves_it_as_it_is(drawn, tmp_path):
    dataset = convert(drawn.root, tmp_path / "out", folds=3)
    written = {path: path.stat().st_mtime_ns for path in dataset.root.iterdir()}
    assert convert(drawn.root, tmp_path / "out", folds=3, resume=True) == dataset
    assert {path: path.stat().st_mtime_ns for path in dataset.root.iterdir()} == written


def test_resuming_takes_no_finished_dataset_of_other_contours(draw, tmp_path, refusal, rows_of, save_table):
    cohort = draw(tmp_path / "cohort")
    convert(cohort.root, tmp_path / "out", folds=3)
    cohort.scans[0].masks[0, 3, 30, 30] = True
    save_table(cohort.root, rows_of(cohort.scans))
    said = refusal(convert, cohort.root, tmp_path / "out", folds=3, resume=True)
    assert "finished dataset already" in said


def test_a_conversion_does_not_wait_for_tensorflow(drawn, tmp_path):
    code = (
        "import sys\nfrom gitseg_tf.cli import main\n"
        "assert main(['convert', *sys.argv[1:], '--folds', '3']) == 0\nprint('tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(drawn.root), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
