"""Reading and writing ensemble.yaml."""

import pytest
import yaml

from gitseg_tf.config.postprocess import PostprocessConfig
from gitseg_tf.runs.fusion import FusedMember, Fusion, is_fusion, normalized_weights, read_fusion, write_fusion

NAMES = ("a", "b")


def fusion(folder, *weights):
    members = tuple(FusedMember(folder.parent / f"run{k}", weight) for k, weight in enumerate(weights))
    return Fusion(folder, members)


def test_an_ensemble_is_read_as_it_was_written_and_can_be_moved(tmp_path):
    settings = PostprocessConfig.model_validate({"stomach": {"threshold": 0.4}})
    tuned = {"fold": "all", "cases": ["case1"], "scans": ["case1_day0"]}
    written = Fusion(
        tmp_path / "here/ensemble",
        (FusedMember(tmp_path / "here/axial", 2.0), FusedMember(tmp_path / "here/cv", {"a": 0.5})),
        settings,
        tuned,
    )
    write_fusion(written)
    (tmp_path / "here").rename(tmp_path / "there")
    folder = tmp_path / "there/ensemble"
    assert is_fusion(folder) and is_fusion(folder / "ensemble.yaml") and not is_fusion(tmp_path)
    for path in (folder, folder / "ensemble.yaml"):
        found = read_fusion(path)
        assert found.path == folder and found.postprocess == settings and found.tuned == tuned
        assert [member.path.resolve() for member in found.members] == [tmp_path / "there/axial", tmp_path / "there/cv"]
        assert [member.weight for member in found.members] == [2.0, {"a": 0.5}]


def test_only_the_ratios_of_weights_matter(tmp_path):
    shares = normalized_weights(fusion(tmp_path, 3, 1.0, {"b": 4}), NAMES)
    assert shares == [(0.75, 3 / 8), (0.25, 1 / 8), (0.0, 0.5)]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [((0, {"a": 1}), "above 0 for b"), ((1, {"spleen": 1}), "unknown label 'spleen'")],
    ids=["no member", "unknown label"],
)
def test_weights_that_do_not_fit_the_labels_are_refused(tmp_path, refusal, weights, reason):
    assert reason in refusal(normalized_weights, fusion(tmp_path, *weights), NAMES)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("members: [{run: a}]", "two or more members"),
        ("members: [a, b]", "keys run and weight"),
        ("members: [{run: a, weight: -1}, {run: b}]", "weight of a is -1"),
        ("members: [{run: a, weight: .nan}, {run: b}]", "weight of a is nan"),
        ("members: [{run: a, weight: true}, {run: b}]", "weight of a is True"),
        ("members: [{run: a}, {run: b}]\npost: {}", "unknown key 'post'"),
        ("members: [{run: a}, {run: b}]\npostprocess: {default: {threshold: 2}}", "postprocess.default.threshold"),
        ("members: [{run: a}, {run: b}]\nprovenance: {tuned: {fold: 1}}", "lacks fold, cases or scans"),
        ("members: [", "cannot be read"),
    ],
    ids=lambda value: value.split("\n")[-1][:40],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, refusal, content, reason):
    (tmp_path / "ensemble.yaml").write_text(content)
    line = refusal(read_fusion, tmp_path)
    assert str(tmp_path / "ensemble.yaml") in line and reason in line


def test_the_file_explains_itself(tmp_path):
    write_fusion(fusion(tmp_path / "ensemble", 1.0, 2.0))
    text = (tmp_path / "ensemble/ensemble.yaml").read_text()
    assert text.startswith("# An ensemble of gitseg")
    assert yaml.safe_load(text)["members"] == [{"run": "../run0", "weight": 1.0}, {"run": "../run1", "weight": 2.0}]
