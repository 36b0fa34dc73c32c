"""Drawn scans as NIfTI and as DICOM, and a dataset to be spoilt."""

import json
import shutil
from pathlib import Path

import pytest
from clinic import clinic, dicom_writer, nifti, patients, write  # noqa: F401


@pytest.fixture
def copied(drawn_dataset, tmp_path):
    """A converted dataset to be spoilt."""
    return Path(shutil.copytree(drawn_dataset.root, tmp_path / "dataset"))


@pytest.fixture
def edited(copied):
    """edited(change) changes dataset.json by a function of its tree."""

    def edit(change):
        tree = json.loads((copied / "dataset.json").read_text())
        change(tree)
        (copied / "dataset.json").write_text(json.dumps(tree))
        return copied

    return edit
