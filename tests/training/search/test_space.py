import re
from pathlib import Path

import pytest

from gitseg_tf.training.search.space import Range, read_search


@pytest.fixture
def read(tmp_path):
    """read(text, overrides) reads a search file with that text."""

    def reading(text, overrides=None, base=None):
        (tmp_path / "space.yaml").write_text(text)
        return read_search(tmp_path / "space.yaml", base, overrides or {})

    return reading


def test_lists_and_ranges_are_read_with_the_types_of_the_config(read):
    search = read(
        "training.learning_rate: {low: 1e-4, high: 0.01, log: true}\n"
        "training.weight_decay: {low: 0, high: 1}\n"
        "model.filters: {low: 8, high: 32, step: 8}\n"
        "training.ema_decay: [0.9, 99e-2]\n"
        "data.input_size: {choices: [[32, 32], [64, 64]]}\n"
    )
    assert search.space == {
        "training.learning_rate": Range(0.0001, 0.01, log=True),
        "training.weight_decay": Range(0, 1),
        "model.filters": Range(8, 32, step=8),
        "training.ema_decay": [0.9, 0.99],
        "data.input_size": [[32, 32], [64, 64]],
    }
    assert search.is_integer("model.filters") and not search.is_integer("training.weight_decay")
    assert search.config({"model.filters": 24, "seed": 3}).model.filters == 24


def test_the_other_keys_are_those_of_the_base_and_the_overrides(read, tmp_path):
    (tmp_path / "base.yaml").write_text("training: {epochs: 7}\n")
    config = read("model.filters: [4, 8]", {"seed": 3}, tmp_path / "base.yaml").config({"model.filters": 8})
    assert (config.training.epochs, config.seed, config.model.filters) == (7, 3, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.epoch: {low: 1, high: 2}", "did you mean training.epochs"),
        (
            "training.learning_rate: {low: -1, high: 2}",
            "training.learning_rate=-1: config: training.learning_rate must",
        ),
        ("training.learning_rate: {low: 1, high: true}", "learning_rate.high must be a number, got True"),
        ("training.learning_rate: {low: 2, high: 1}", "low must be less than high, got 2 and 1"),
        ("training.learning_rate: {low: 0, high: 1, log: true}", "low must be positive with log"),
        ("training.learning_rate: {low: 1, high: 2, log: true, step: 1}", "log and step exclude each other"),
        ("training.learning_rate: {low: 1, high: 2, log: 1}", "log must be true or false, got 1"),
        ("model.dropout: {low: 0, high: 0.5, step: 0.2}", "high must be low plus a multiple of step"),
        ("training.learning_rate: {low: 1, top: 2}", "a range has the keys low and high"),
        ("training.learning_rate: {choices: [1], low: 2}", "a range has the keys low and high"),
        ("model.filters: {low: 8.5, high: 16}", "model.filters=8.5"),
        ("model.filters: {low: 8, high: 10, step: 0.5}", "model.filters is an integer; give an integer step"),
        (
            "model.presence_head: {low: 0, high: 1}",
            "model.presence_head=0: config: model.presence_head must be true or false",
        ),
        ("data.input_size: {low: 32, high: 64}", "data.input_size=32"),
        ("model.backbone: {low: 0, high: 1}", "model.backbone=0"),
        ("training.epochs: 3", "training.epochs is 3; give a list of values"),
        ("evaluation.metric: [dice, score]", "evaluation.metric varies"),
        ("training.epochs: [2, 0]", "training.epochs=0: config: training.epochs must be"),
        ("seed: {low: 1, high: 9}", "seed is also set by an override"),
    ],
)
def test_an_invalid_search_is_refused(read, refusal, text, expected):
    assert expected in refusal(read, text, {"seed": 0})


def test_a_search_without_a_held_out_fold_is_refused(read, refusal):
    assert "data.fold is null" in refusal(read, "model.filters: [4, 8]", {"data.fold": None})


def test_the_search_of_the_documentation_is_valid(read):
    page = (Path(__file__).parents[3] / "docs/how-to/train.md").read_text(encoding="utf-8")
    (text,) = [text for text in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "{low:" in text]
    assert [*read(text).space] == ["training.learning_rate", "training.weight_decay", "model.filters", "model.backbone"]
