import pytest

from gitseg_tf.core.palette import palette
from gitseg_tf.errors import ConfigError
from gitseg_tf.labels import MAX_LABELS, UWMGI, LabelSet, read_labels


def test_the_competition_preset_has_three_labels_in_order():
    assert UWMGI.names == ("large_bowel", "small_bowel", "stomach")
    assert [UWMGI.match(name).name for name in ("Bowel_Large", "COLON", "small intestine", "Stomach")] == [
        "large_bowel",
        "large_bowel",
        "small_bowel",
        "stomach",
    ]
    assert UWMGI.match("liver") is None


def test_labels_round_trip_through_their_tree():
    tree = [
        {"name": "liver", "color": "#ff0000", "aliases": ["hepar"], "roi_name": "Liver"},
        {"name": "spleen", "color": [0, 1, 2], "code": {"value": "78961009", "scheme": "SCT", "meaning": "Spleen"}},
        "left kidney",
    ]
    labels = LabelSet.from_tree(tree)
    assert LabelSet.from_tree(labels.to_tree()) == labels == LabelSet.from_tree({"labels": tree})
    assert labels.colors[:2] == ((255, 0, 0), (0, 1, 2)) and labels[1].code.meaning == "Spleen"
    assert labels.match("HEPAR").name == "liver" and labels.index("left kidney") == 2 and "spleen" in labels


def test_a_subset_keeps_the_given_order():
    assert UWMGI.subset(["stomach", "large_bowel"]).names == ("stomach", "large_bowel")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ([], "at least one label"),
        (["liver", "liver"], "label 'liver' is defined twice"),
        ([{"name": "liver"}, {"name": "hepar", "aliases": ["Liver"]}], "labels 'liver' and 'hepar' share the name"),
        ([str(i) for i in range(MAX_LABELS + 1)], "at most 255"),
        (["a/b"], "can be used as a file name"),
        ([{"name": "liver", "colour": "red"}], "unknown key 'colour'"),
        ([{"name": "liver", "color": "red"}], "#rrggbb"),
        ([{"name": "liver", "aliases": "hepar"}], "must be a list of names"),
        ([3], "must be a name or a mapping"),
        ("liver", "must be a list of labels"),
    ],
)
def test_invalid_labels_are_refused(tree, expected, refusal):
    assert expected in refusal(LabelSet.from_tree, tree)


def test_an_unknown_label_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="unknown label 'stomch'; did you mean 'stomach'"):
        UWMGI.index("stomch")


def test_a_file_is_named_when_its_labels_are_refused(tmp_path, refusal):
    path = tmp_path / "labels.yaml"
    for text, expected in (("labels: [a, a]", "defined twice"), ("labels: [", "invalid YAML")):
        path.write_text(text)
        assert refusal(read_labels, path).startswith(f"{path}: ") and expected in refusal(read_labels, path)
    path.write_text("labels:\n- liver\n- {name: spleen, color: '#123456'}\n")
    assert read_labels(path).names == ("liver", "spleen")
    refused = refusal(read_labels, tmp_path / "none.yaml")
    assert "cannot be read" in refused and "the name of a preset (uwmgi)" in refused


def test_a_preset_is_read_by_its_name(tmp_path, monkeypatch):
    assert read_labels("uwmgi") is UWMGI
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uwmgi").write_text("[liver]")
    assert read_labels("uwmgi") is UWMGI and read_labels("./uwmgi").names == ("liver",)


def test_a_label_without_a_color_gets_an_unused_one():
    labels = LabelSet.from_tree(["a", {"name": "b", "color": list(palette(1)[0])}, "c"])
    assert len(set(labels.colors)) == 3
