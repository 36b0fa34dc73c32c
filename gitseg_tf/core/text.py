"""Helpers for the wording and the layout of messages."""

import textwrap
from collections.abc import Sequence


def plural(count: int, noun: str) -> str:
    """Format a count with its noun.

    Args:
        count: the number of things.
        noun: the singular of a noun whose plural adds an "s".

    Returns:
        The number and the noun, in the plural unless there is exactly one.

    Example:
        >>> plural(1, "slice"), plural(2, "slice")
        ('1 slice', '2 slices')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def cut_middle(text: str, width: int) -> str:
    """Replace the middle of a text that is longer than `width` characters by an ellipsis.

    Args:
        text: a name in a table; its beginning and its end are what distinguishes it from others.
        width: maximum number of characters, at least 3.

    Returns:
        The text, of at most `width` characters.

    Example:
        >>> cut_middle("vertebrae_lumbar_5", 12), cut_middle("liver", 12)
        ('verteb…bar_5', 'liver')
    """
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def one_line(text: str) -> str:
    """Return a text from a file or the user for use in a message; quoted if it has line breaks or control characters.

    Example:
        >>> one_line("data.fold=1"), one_line("a\\nb")
        ('data.fold=1', "'a\\\\nb'")
    """
    return text if text.isprintable() else repr(text)


def table_lines(names: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]], width: int | None) -> list[str]:
    """Lay out a table; columns that do not fit follow in further blocks with the same row names.

    Args:
        names: the names of the rows; shortened in the middle to a third of the width, if they stay distinct.
        columns: title and cells of each column, all of the same length, which includes the space on the left.
        width: characters per line; None sets no limit.

    Returns:
        The lines, without trailing spaces.

    Example:
        >>> table_lines(["liver"], [(" Dice", [" 0.91"]), ("   mm", ["  1.2"])], 12)
        ['      Dice', 'liver 0.91', '        mm', 'liver  1.2']
    """
    longest = max(map(len, names))
    limits = range(longest if width is None else min(longest, max(8, width // 3)), longest + 1)
    names = next(short for short in (_shortened(names, limit) for limit in limits) if len({*short}) == len({*names}))
    indent = max(map(len, names))
    blocks: list[list[tuple[str, Sequence[str]]]] = [[]]
    for column in columns:
        used = indent + sum(len(title) for title, _ in blocks[-1])
        needed = max(len(text.rstrip()) for text in (column[0], *column[1]))
        if width is not None and blocks[-1] and used + needed > width:
            blocks.append([])
        blocks[-1].append(column)
    lines = []
    for block in blocks:
        lines.append(" " * indent + "".join(title for title, _ in block))
        lines += [f"{name:<{indent}}" + "".join(cells[k] for _, cells in block) for k, name in enumerate(names)]
    return [line.rstrip() for line in lines]


def _shortened(names: Sequence[str], most: int) -> list[str]:
    return [cut_middle(name, most) for name in names]


def wrapped(line: str, width: int | None, indent: int = 11) -> list[str]:
    """Break a line of a report at spaces, with the text of further lines below that of the first one.

    Args:
        line: a keyword, padded to `indent` characters, and a text.
        width: characters per line; None sets no limit.
        indent: spaces before further lines.

    Returns:
        The lines.

    Example:
        >>> wrapped("labels     liver is unannotated", 26)
        ['labels     liver is', '           unannotated']
    """
    if width is None or len(line) <= width:
        return [line]
    keyword, text = line[:indent], line[indent:]
    return textwrap.wrap(
        text, width, initial_indent=keyword, subsequent_indent=" " * indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
