"""Match the names of files, ROIs, classes and label tables to labels."""

import re
from collections.abc import Iterable, Mapping

from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import FoundLabel
from gitseg_tf.errors import ConfigError, DataError
from gitseg_tf.labels import LabelSet, normalized


def resolve_labels(
    counts: Mapping[str, int], labels: LabelSet | None, where: str
) -> tuple[LabelSet, tuple[FoundLabel, ...]]:
    """Match the names found in a cohort to labels.

    Args:
        counts: name to the number of scans that have it, in the desired order of the labels.
        labels: the labels to read; None creates a label for each name. Names that differ only in case, spaces or
            punctuation become one label.
        where: the folder or file, for errors.

    Returns:
        The labels, and the label that each name matches.

    Raises:
        DataError: no name at all, or none that matches one of `labels`.
    """
    if not counts:
        raise DataError(f"{where}: no label names found; add annotations")
    if labels is None:
        spellings: dict[str, str] = {}
        for name in counts:
            spellings.setdefault(normalized(name), name)
        names = {key: re.sub(r"[\s/\\,;:\"'<>|?*\x00-\x1f]+", "_", name).strip("_") for key, name in spellings.items()}
        try:
            labels = LabelSet.from_tree(
                [{"name": name, "roi_name": spellings[key][:64]} for key, name in names.items()], str(where)
            )
        except ConfigError as error:
            raise DataError(f"{where}: {error}") from None
    found = []
    for name, scans in counts.items():
        label = labels.match(name)
        found.append(FoundLabel(name, scans, label.name if label else None))
    if all(item.label is None for item in found):
        known, found_names = ", ".join(labels.names[:8]), ", ".join(list(counts)[:8])
        raise DataError(
            f"{where}: none of the names ({found_names}) matches a label ({known}); add aliases to the labels"
        )
    return labels, tuple(found)


def found_notes(found: Iterable[FoundLabel], kind: str, total: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Describe which names match a label, and which do not.

    Args:
        found: from `resolve_labels`.
        kind: "ROI", "file", ...
        total: the number of scans.

    Returns:
        Lines on names that are read as a label of another name, and lines on names that match none.
    """
    matched, left = [], []
    for item in found:
        where = f"({item.scans} of {plural(total, 'scan')})"
        if item.label is None:
            left.append(f"{kind} {item.name!r} matches no label {where}")
        elif item.name != item.label:
            matched.append(f"{kind} {item.name!r} is read as {item.label} {where}")
    return tuple(matched), tuple(left)
