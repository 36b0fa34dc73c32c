"""Helpers for the wording of messages."""


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
