"""Names of the values of label maps that have no dataset.json."""

import html
import re
from pathlib import Path

import numpy as np

from gitseg_tf.data.readers.nifti.source import integers, open_nifti, read_voxels
from gitseg_tf.errors import DataError

_TABLE_ROW = re.compile(
    r"""<Label\b[^>]*\bKey=["'](\d+)["'][^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>""", re.DOTALL
)


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
    tables = {path: _label_table(open_nifti(path)) for path in paths}
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
        values |= set(np.unique(integers(path, read_voxels(path)[1])).tolist())
    return [(f"label{value}", (value,)) for value in sorted(values - {0})], "the values in the label maps"


def _label_table(image) -> dict[int, str]:
    """Read the table of labels in a NIfTI header, an XML extension of Caret: {value: name}."""
    table: dict[int, str] = {}
    for extension in getattr(image.header, "extensions", ()):
        # From nibabel 5.3 on, get_content raises NotImplementedError for codes such as Caret's own.
        content = extension.content if hasattr(extension, "content") else extension.get_content()
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        for value, quoted, plain in _TABLE_ROW.findall(text):
            if int(value):
                table[int(value)] = html.unescape((quoted or plain).strip())
    return table
