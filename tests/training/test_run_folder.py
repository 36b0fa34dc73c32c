from pathlib import Path

import pytest

from gitseg_tf.cli import main
from gitseg_tf.training.run_folder import choose_run


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    return tmp_path


def begin(*names):
    for name in names:
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.yaml").write_text("name: default\n")


@pytest.mark.parametrize(
    ("there", "new", "resumed"),
    [
        ([], "net", "net"),
        (["net"], "net-2", "net"),
        (["net", "net-2"], "net-3", "net-2"),
        (["net-2"], "net-3", "net-2"),
        (["other"], "net", "net"),
    ],
)
def test_a_new_run_has_the_next_number_and_a_resumed_one_the_last(there, new, resumed):
    begin(*there)
    assert choose_run(None, "net") == Path("runs", new)
    assert choose_run(None, "net", resume=True) == Path("runs", resumed)


def test_a_folder_that_is_taken_is_said_before_anything_is_done_for_the_run(place, drawn, capsys):
    begin("taken")
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("no run")
    for out, says in (("runs/taken", "a run is there already"), ("notes", "is not empty and no run")):
        before = sorted(place.rglob("*"))
        assert main(["train", "--data", str(drawn.root), "--out", out]) == 1
        printed = capsys.readouterr()
        assert f"{out}: {says}" in printed.err and "converting" not in printed.out
        assert sorted(place.rglob("*")) == before


def test_workers_take_the_folder_that_their_chief_has_begun(monkeypatch):
    begin("shared")
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert choose_run("runs/shared", "net") == Path("runs/shared")


def test_an_empty_folder_and_a_bucket_are_free():
    Path("empty").mkdir()
    assert choose_run("empty", "net") == Path("empty")
    assert str(choose_run("ram://test-run-folder/run", "net")) == "ram://test-run-folder/run"
