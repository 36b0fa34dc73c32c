from pathlib import Path

import pytest
from helpers.configs import tiny_config

from gitseg_tf.cli import main
from gitseg_tf.data.tfrecords.convert import convert
from gitseg_tf.training.run_folder import choose_run, open_run


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    return tmp_path


def begin(*names):
    for name in names:
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.yaml").write_text("name: default\n")


@pytest.mark.parametrize(
    ("existing", "new", "resumed"),
    [
        ([], "net", "net"),
        (["net"], "net-2", "net"),
        (["net", "net-2"], "net-3", "net-2"),
        (["net-2"], "net-3", "net-2"),
        (["other"], "net", "net"),
    ],
)
def test_a_new_run_gets_the_next_number_and_resume_uses_the_last(existing, new, resumed):
    begin(*existing)
    assert choose_run(None, "net") == Path("runs", new)
    assert choose_run(None, "net", resume=True) == Path("runs", resumed)


def test_an_occupied_folder_is_refused_before_any_work(working_directory, tiny_cohort, capsys):
    begin("taken")
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("no run")
    for out, expected in (("runs/taken", "already contains a run"), ("notes", "is not empty and is not a run")):
        before = sorted(working_directory.rglob("*"))
        assert main(["train", "--data", str(tiny_cohort.root), "--out", out]) == 1
        printed = capsys.readouterr()
        assert f"{out}: {expected}" in printed.err and "converting" not in printed.out
        assert sorted(working_directory.rglob("*")) == before


def test_workers_use_the_folder_created_by_the_chief(monkeypatch):
    begin("shared")
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert choose_run("runs/shared", "net") == Path("runs/shared")


def test_an_empty_folder_and_a_new_remote_folder_are_accepted():
    Path("empty").mkdir()
    assert choose_run("empty", "net") == Path("empty")
    assert str(choose_run("ram://test-run-folder/run", "net")) == "ram://test-run-folder/run"


def test_a_run_is_not_resumed_with_other_folds_of_the_same_cohort(tiny_cohort, refusal):
    """Otherwise patients that it was trained on would become held-out ones."""
    folds = {"case1": 0, "case2": 1, "case3": 2, "case4": 0, "case5": 1, "case6": 2}
    for name, changes in (("one", {}), ("two", {"case1": 1, "case2": 0})):
        rows = [f"{case},{fold}" for case, fold in (folds | changes).items()]
        Path(f"{name}.csv").write_text("\n".join(["patient,fold", *rows]))
    one, two = (convert(tiny_cohort.root, name, folds=f"{name}.csv", workers=1) for name in ("one", "two"))
    config = tiny_config(data__fold=0)
    open_run(Path("runs/net"), config, one, resume=False)
    open_run(Path("runs/net"), config, one, resume=True)
    message = refusal(open_run, Path("runs/net"), config, two, resume=True)
    assert message.startswith("runs/net: was trained on other patients, because two has other folds; ")
