"""`gitseg labels` prints YAML that lists the labels found and that --labels reads back."""

import sys
from types import SimpleNamespace

import pytest

from gitseg_tf.cli import main
from gitseg_tf.labels import LabelSet, read_labels

LABELS = LabelSet.from_tree([{"name": "liver", "aliases": ["Leber"]}, "spleen"])


@pytest.fixture
def cohort(monkeypatch):
    """A cohort whose readers find four names; returns the list of arguments they were called with."""
    rows = [("Liver", 3, "liver"), ("Leber", 1, "liver"), ("spleen", 4, "spleen"), ("couch", 2, None)]
    found = [SimpleNamespace(name=name, scans=scans, label=label) for name, scans, label in rows]
    calls = []

    def read_cohort(root, list_orphans, list_broken, **options):
        calls.append(options)
        return SimpleNamespace(labels=LABELS, found=found)

    monkeypatch.setitem(sys.modules, "gitseg_tf.data.readers.registry", SimpleNamespace(read_cohort=read_cohort))
    return calls


def test_labels_prints_a_label_file_with_the_names_found(cohort, capsys, tmp_path):
    assert main(["labels", "scans"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "labels.yaml").write_text(text)
    assert read_labels(tmp_path / "labels.yaml") == LABELS
    lines = text.splitlines()
    assert "# Labels of scans." in lines[0]
    assert "# 'Liver' in 3 scans, 'Leber' in 1 scan" in lines and lines[-1] == "# 'couch' in 2 scans"


def test_the_labels_and_missing_options_reach_the_readers(cohort, tmp_path):
    (tmp_path / "labels.yaml").write_text("[liver]")
    assert main(["labels", "scans", "--labels", str(tmp_path / "labels.yaml"), "--missing", "absent"]) == 0
    assert cohort == [{"labels": LabelSet.of("liver"), "missing": "absent"}]


def test_labels_of_a_converted_dataset_are_printed(tiny_dataset, capsys):
    assert main(["labels", str(tiny_dataset.root)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("- name:") == len(tiny_dataset.labels) and "stomach" in printed


def test_a_missing_label_file_is_a_one_line_error(capsys):
    assert main(["labels", "scans", "--labels", "nowhere.yaml"]) == 1
    assert "nowhere.yaml: cannot be read" in capsys.readouterr().err
