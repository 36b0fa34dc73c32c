"""Progress bars for long work."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], title: str, total: int | None = None, unit: str = "it", delay: float = 0
) -> Iterator[T]:
    """Iterate over `items` behind a progress bar on stderr.

    Args:
        items: what to iterate over.
        title: what is being done, in a word or two.
        total: the number of items, where `len(items)` does not tell.
        unit: what one item is.
        delay: seconds before the bar is shown at all, for work that is often short.

    Returns:
        A tqdm bar: redrawn ten times a second on a terminal, every ten seconds in a log file.
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


def say_above(line: str) -> None:
    """Print a line to stderr, above the bars that are shown."""
    tqdm.write(line, file=sys.stderr)
