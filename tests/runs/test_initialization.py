"""Where initial weights come from, and which patients they have seen; without TensorFlow."""

import hashlib

import pytest
from helpers.configs import tiny_config

from gitseg_tf.config import save_config
from gitseg_tf.runs.cross_validation import MARKER
from gitseg_tf.runs.initialization import check_all_folds, check_patients, find_source, read_table, seen_patients


def make_run(folder, trained_on, dataset="d1", **provenance):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.weights.h5").write_bytes(b"weights")
    facts = {"dataset": dataset, "trained_on": trained_on} | provenance
    save_config(tiny_config().model_copy(update={"provenance": facts}), folder / "config.yaml")
    return folder


def make_folds(folder, cases):
    for fold in range(len(cases)):
        others = [case for k, listed in enumerate(cases) if k != fold for case in listed]
        make_run(folder / f"fold{fold}", others)
    save_config(tiny_config().model_copy(update={"provenance": {"dataset": "d1", "folds": cases}}), folder / MARKER)
    return folder


def test_a_run_and_its_weights_file_are_the_same_source(tmp_path):
    run = make_run(tmp_path / "run", ["case1", "case2"])
    for path in (run, run / "checkpoints" / "best.weights.h5"):
        source = find_source(path, fold=0)
        assert source.seen == {"d1": ("case1", "case2")} and source.config.label_set.names
        facts = {
            "path": str(path),
            "weights": hashlib.sha256(b"weights").hexdigest(),
            "seen": {"d1": ["case1", "case2"]},
        }
        assert source.provenance() == facts


def test_patients_that_were_trained_on_cannot_be_held_out(tmp_path, refusal):
    source = find_source(make_run(tmp_path / "run", ["case1", "case2"]), fold=0)
    check_patients(source, {"case3"}, "d1")
    check_patients(source, set(), "d1")
    message = refusal(check_patients, source, {"case2", "case3"}, "d1")
    assert message.startswith(f"{source.path}: was trained on patients held out here (case2), so the scores")


def test_the_same_ids_in_other_data_are_a_warning(tmp_path, caplog):
    source = find_source(make_run(tmp_path / "run", ["case1", "case2"]), fold=0)
    check_patients(source, {"case2"}, "d2")
    (record,) = caplog.records
    assert "ids of 1 patient held out here (case2), in other data" in record.getMessage()


def test_patients_of_an_earlier_source_count_too(tmp_path, refusal):
    init = {"path": "runs/a", "weights": "0", "seen": {"d1": ["case5"], "d0": ["case1"]}}
    source = find_source(make_run(tmp_path / "run", ["case1"], init=init), fold=0)
    assert source.seen == {"d0": ("case1",), "d1": ("case1", "case5")}
    assert "(case5)" in refusal(check_patients, source, {"case5"}, "d1")


def test_an_evaluation_counts_them_among_the_patients_of_that_dataset(tmp_path):
    init = {"path": "runs/a", "weights": "0", "seen": {"d1": ["case5"], "d0": ["case7"]}}
    config = find_source(make_run(tmp_path / "run", ["case1"], init=init), fold=0).config
    assert seen_patients(config, "d1") == {"case1", "case5"} and seen_patients(config, "d2") == {"case1"}


def test_a_file_that_does_not_name_its_patients_is_a_warning(tmp_path, caplog):
    (tmp_path / "network.h5").write_bytes(b"")
    source = find_source(tmp_path / "network.h5", fold=0)
    assert source.config is None
    check_patients(source, {"case2"}, "d2")
    assert "does not say which patients it was trained on" in caplog.text


def test_a_cross_validation_starts_each_fold_from_the_run_that_held_out_the_same_one(tmp_path, refusal):
    cases = [["case1"], ["case2"], ["case3", "case4"]]
    folds = make_folds(tmp_path / "cv", cases)
    assert find_source(folds, fold=2).path == folds / "fold2"
    assert find_source(folds, fold=2).seen == {"d1": ("case1", "case2")}
    check_all_folds(folds, cases, "d1")
    assert "(case2)" in refusal(check_all_folds, folds, [["case2"], ["case1"], ["case3", "case4"]], "d1")
    assert "has folds 0 to 2, not 3" in refusal(find_source, folds, fold=3)
    assert f"choose one of its runs, such as {folds / 'fold0'}" in refusal(find_source, folds, fold=None)


def test_one_run_cannot_start_all_folds_of_its_own_data(tmp_path, refusal):
    run = make_run(tmp_path / "run", ["case1", "case2"])
    assert "(case2)" in refusal(check_all_folds, run, [["case3"], ["case2"]], "d1")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nothing", "no such run or file of weights"),
        ("empty", "is not a run"),
        ("x.txt", "is not a run or an .h5 file"),
    ],
)
def test_anything_else_is_refused(tmp_path, refusal, name, problem):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").write_text("")
    assert problem in refusal(find_source, tmp_path / name, fold=0)


def test_a_missing_table_is_refused(tmp_path, refusal):
    assert f"{tmp_path / 'initial_weights.csv'}: is missing or damaged" in refusal(read_table, tmp_path)
