"""Progress bars for long-running work."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], title: str, *, total: int | None = None, unit: str = "it", delay: float = 0
) -> "tqdm[T]":
    """Iterate over `items` behind a progress bar on stderr.

    Args:
        items: what to iterate over.
        title: one or two words that describe the work.
        total: the number of items, if `len(items)` is not available.
        unit: name of one item.
        delay: seconds before the bar appears, for work that usually finishes quickly.

    Returns:
        A tqdm bar, redrawn ten times a second on a terminal and every ten seconds in a log file.
    """
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(
        items,
        desc=title,
        total=total,
        unit=unit,
        mininterval=interval,
        maxinterval=interval,
        dynamic_ncols=True,
        delay=delay,
    )
