"""A converted dataset that tests can corrupt."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copied(tiny_dataset, tmp_path):
    """A copy of the converted dataset, to be corrupted."""
    return Path(shutil.copytree(tiny_dataset.root, tmp_path / "dataset"))


@pytest.fixture
def edited(copied):
    """edited(change) applies a function to the tree of dataset.json and returns the folder."""

    def edit(change):
        tree = json.loads((copied / "dataset.json").read_text())
        change(tree)
        (copied / "dataset.json").write_text(json.dumps(tree))
        return copied

    return edit
