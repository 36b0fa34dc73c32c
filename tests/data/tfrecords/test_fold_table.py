"""Folds given as a table PATIENT,FOLD."""

import json

import pytest

from gitseg_tf.cli import main
from gitseg_tf.data.sources import open_dataset
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.data.tfrecords.dataset import load_dataset

FOLDS = {"case1": 1, "case2": 0, "case3": 2, "case4": 0, "case5": 1, "case6": 2}


@pytest.fixture
def table(tmp_path):
    """table(rows, header) writes a table and returns its path."""

    def write(rows=None, header="patient,fold", newline="\n"):
        rows = [f"{case},{fold}" for case, fold in FOLDS.items()] if rows is None else rows
        (tmp_path / "folds.csv").write_bytes(newline.join([header, *rows, ""]).encode())
        return tmp_path / "folds.csv"

    return write


def folds_on_disk(root):
    """Patient to fold, from the names of the shards and the ids of their scans."""
    shards = json.loads((root / "dataset.json").read_text())["shards"]
    return {scan["id"].split("_")[0]: int(shard["file"][4]) for shard in shards for scan in shard["scans"]}


@pytest.mark.parametrize(
    ("header", "newline"), [("patient,fold", "\n"), ("PATIENT,FOLD", "\r\n"), ("\ufeffPatient,Fold", "\n")]
)
def test_each_patient_is_in_the_fold_of_the_table(tiny_cohort, tmp_path, table, header, newline):
    dataset = convert(tiny_cohort.root, tmp_path / "out", folds=table(header=header, newline=newline), workers=1)
    assert folds_on_disk(dataset.root) == FOLDS and dataset.folds == 3
    index = json.loads((dataset.root / "dataset.json").read_text())
    assert index["folds"]["cases"] == FOLDS and index["source"]["folds"] == "folds.csv"


def test_columns_in_another_order_and_other_columns_are_accepted(tiny_cohort, tmp_path, table):
    rows = [f"{fold},x,{case}" for case, fold in FOLDS.items()]
    dataset = convert(tiny_cohort.root, tmp_path / "out", folds=table(rows, "fold,site,patient"), workers=1)
    assert dataset.fold_of_case == FOLDS


ROWS = [f"{case},{fold}" for case, fold in FOLDS.items()]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([*ROWS, "case77,1"], "lists patient case77, which the cohort does not have; its patients are patients case1,"),
        (["case1_day0,0", *ROWS[1:]], "lists patient case1_day0, which the cohort does not have"),
        (ROWS[2:], "does not list patients case1, case2 of the cohort; add a row per patient"),
        (["case1,one", *ROWS[1:]], "patient case1 has the fold 'one'; folds must be integers from 0"),
        (["case1,1.0", *ROWS[1:]], "patient case1 has the fold '1.0'"),
        (["case1,-1", *ROWS[1:]], "patient case1 has the fold '-1'"),
        (["case1,", *ROWS[1:]], "patient case1 has the fold ''"),
        (["case1,²", *ROWS[1:]], "patient case1 has the fold '²'"),
        ([*ROWS, "case1,0"], "patient case1 is listed twice (folds 1 and 0); remove one"),
        (
            [row.replace(",0", ",3") for row in ROWS],
            "no patient is in fold 0, but one is in fold 3; number the 3 folds",
        ),
        ([",1", *ROWS], "has a row without a patient (fold 1)"),
        ([], "lists no patients"),
        (["case1,1,2", *ROWS[1:]], "line 2 has 3 cells, but the header has 2"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tiny_cohort, tmp_path, table, refusal, rows, expected):
    path = table(rows)
    message = refusal(convert, tiny_cohort.root, tmp_path / "out", folds=path, workers=1)
    assert message.startswith(f"{path}: ") and expected in message
    assert not (tmp_path / "out").exists()


def test_a_table_without_header_and_a_missing_one_are_refused(tiny_cohort, tmp_path, table, refusal):
    message = refusal(convert, tiny_cohort.root, tmp_path / "out", folds=table(ROWS[1:], ROWS[0]))
    assert message.endswith("column fold is missing; the required columns are patient, fold")
    message = refusal(convert, tiny_cohort.root, tmp_path / "out", folds=tmp_path / "other.csv")
    assert "other.csv: no such file; give a CSV file" in message


def test_a_fold_whose_only_patient_is_excluded_is_refused(tiny_cohort, tmp_path, table, refusal):
    path = table([row for row in ROWS if row[-1] != "1"] + ["case1,1", "case5,2"])
    exclude = ["case1_day0", "case1_day5"]
    message = refusal(convert, tiny_cohort.root, tmp_path / "out", folds=path, exclude=exclude)
    assert "no patient of fold 1 has an annotated scan" in message


def test_a_resumed_conversion_needs_the_same_folds(tiny_cohort, tmp_path, table, refusal):
    first = convert(tiny_cohort.root, tmp_path / "out", folds=table(), workers=1)
    assert convert(tiny_cohort.root, tmp_path / "out", folds=table(), resume=True).shards == first.shards
    other = table([*ROWS[2:], "case1,0", "case2,1"])
    assert "already contains" in refusal(convert, tiny_cohort.root, tmp_path / "out", folds=other, resume=True)


def test_open_dataset_converts_once_per_table_and_checks_finished_ones(
    tiny_cohort, tmp_path, table, refusal, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    one = open_dataset(tiny_cohort.root, table())
    assert one.fold_of_case == FOLDS and open_dataset(tiny_cohort.root, table(ROWS[::-1])).root == one.root
    other = open_dataset(tiny_cohort.root, table([*ROWS[2:], "case1,0", "case2,1"]))
    assert other.root != one.root and other.fold_of_case == FOLDS | {"case1": 0, "case2": 1}
    assert open_dataset(other.root, tmp_path / "folds.csv") == other
    message = refusal(open_dataset, one.root, tmp_path / "folds.csv")
    assert "patient case1 is in fold 1, but in fold 0 in" in message


def test_the_convert_command_takes_a_table_also_in_a_dry_run(tiny_cohort, tmp_path, table, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(tiny_cohort.root), "--dry-run", "--folds", str(table(ROWS[1:]))]) == 1
    assert "does not list patient case1 " in capsys.readouterr().err and not out.exists()
    assert main(["convert", str(tiny_cohort.root), str(out), "--folds", str(table())]) == 0
    assert load_dataset(out).fold_of_case == FOLDS
    assert main(["convert", str(tiny_cohort.root), str(tmp_path / "two"), "--folds", "2"]) == 0
    assert load_dataset(tmp_path / "two").folds == 2


def test_training_uses_the_folds_of_the_table(tiny_cohort, tmp_path, table, monkeypatch, capsys):
    from gitseg_tf.cli import parsers, training  # noqa: F401
    from gitseg_tf.training import cross_validation

    seen = []

    def stop(config, dataset, out, **_):
        seen.append((config, dataset))
        raise cross_validation.RunError("stopped")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cross_validation, "train_folds", stop)
    command = ["train", "--fold", "all", "--data", str(tiny_cohort.root), "--out", str(tmp_path / "cv")]
    assert main([*command, "--folds", str(table())]) == 1
    ((config, dataset),) = seen
    assert dataset.fold_of_case == FOLDS and config.data.path == str(dataset.root.resolve())
    assert config.data.folds == 3
    assert main([*command, "--folds", "2"]) == 1
    assert seen[1][1].folds == 2 and seen[1][0].data.folds == 2
    capsys.readouterr()
    assert main(["train", "--fold", "all", "--folds", str(table()), "--out", str(tmp_path / "cv")]) == 1
    assert "specify it with --data" in capsys.readouterr().err
