"""Names of the values of label maps that have no dataset.json."""

from pathlib import Path

import numpy as np

from gitseg_tf.data.readers.nifti.files import open_image
from gitseg_tf.data.readers.nifti.source import integers
from gitseg_tf.errors import DataError


def named_values(paths: list[Path]) -> tuple[list[tuple[str, tuple[int, ...]]], str]:
    """Name the values of label maps that have no dataset.json.

    Args:
        paths: the label maps.

    Returns:
        Names and their values: from the label table in the headers, as TotalSegmentator and Connectome Workbench write
        it, or label1, label2, ... for the values that occur; and where the names are from.

    Raises:
        DataError: the tables of two files differ, or a label map has values that are not integers.
    """
    tables = {path: open_image(path).names for path in paths}
    named: dict[int, str] = {}
    for path, table in tables.items():
        for value, name in table.items():
            if named.setdefault(value, name) != name:
                raise DataError(
                    f"{path}: its header names the value {value} {name!r}, but another file names it {named[value]!r}; "
                    "add a dataset.json"
                )
    if named and all(tables.values()):
        return [(name, (value,)) for value, name in sorted(named.items())], "the label tables in the headers"
    values: set[int] = set()
    for path in paths:
        values |= set(np.unique(integers(path, open_image(path).read())).tolist())
    return [(f"label{value}", (value,)) for value in sorted(values - {0})], "the values in the label maps"
