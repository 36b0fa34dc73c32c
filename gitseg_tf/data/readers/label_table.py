"""The table that ends a conversion: how many scans have each label, and how a missing label was read."""

import textwrap
from collections import Counter
from collections.abc import Mapping

from gitseg_tf.core.text import cut_middle, plural
from gitseg_tf.data.readers.base import Cohort

WIDTH = 79
_COLUMNS = ("present", "absent", "unannotated", "slices")
_LISTED = 20
_NAMES = 5


def label_table(cohort: Cohort, slices: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Tabulate the labels of a cohort.

    Args:
        cohort: from `read_cohort`.
        slices: the scans to count; scan id to {annotated label: number of slices that show it}, which is empty for a
            scan without annotation.

    Returns:
        Lines of at most 79 characters. One row per label has the number of scans that show it, that are annotated
        without showing it, and in which it is unannotated, and its number of slices. Below are the scans without
        annotation, how labels that annotated scans lack were read, and the names in the data that match no label.
        Empty for a cohort without labels.
    """
    if not cohort.labels.names:
        return []
    rows = []
    for name in cohort.labels.names:
        counts = [labels[name] for labels in slices.values() if name in labels]
        present = sum(count > 0 for count in counts)
        rows.append((name, present, len(counts) - present, len(slices) - len(counts), sum(counts)))
    widths = [max(len(title), *(len(str(row[i])) for row in rows)) for i, title in enumerate(_COLUMNS, 1)]
    room = WIDTH - sum(widths) - 2 * len(widths)
    first = min(room, max(len("label"), *(len(row[0]) for row in rows)))
    lines = [
        "  ".join([cut_middle(name, first).ljust(first), *(f"{n:>{w}}" for n, w in zip(numbers, widths, strict=True))])
        for name, *numbers in [("label", *_COLUMNS), *rows]
    ]
    return [*lines, *_unlabeled(slices), *_lacking(cohort, slices), *_left_over(cohort)]


def _unlabeled(slices: Mapping[str, Mapping[str, int]]) -> list[str]:
    without = [scan for scan, labels in slices.items() if not labels]
    if not without:
        return []
    having = "has" if len(without) == 1 else "have"
    return _wrapped("unlabeled", f"{len(without)} of {plural(len(slices), 'scan')} {having} no annotation: ", without)


def _lacking(cohort: Cohort, slices: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say what a label that an annotated scan lacks was taken as, and how often."""
    counts = Counter(name for scan in slices for name in cohort.lacking.get(scan, ()))
    lacks = [f"{name} in {plural(counts[name], 'scan')}" for name in cohort.labels.names if counts[name]]
    return _wrapped("missing", f"read as {cohort.missing}: ", lacks) if lacks else []


def _left_over(cohort: Cohort) -> list[str]:
    more = len(cohort.left_over) - _LISTED
    listed = [*cohort.left_over[:_LISTED], *([f"and {more} more"] if more > 0 else [])]
    return [line for i, text in enumerate(listed) for line in _wrapped("" if i else "left over", text)]


def _wrapped(title: str, text: str, names: list[str] | None = None) -> list[str]:
    if names:
        more = len(names) - _NAMES
        text += ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")
    return textwrap.wrap(
        f"{title:<10} {text}", WIDTH, subsequent_indent=" " * 11, drop_whitespace=True, break_on_hyphens=False
    )
