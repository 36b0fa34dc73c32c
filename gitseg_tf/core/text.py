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


def one_line(text: str) -> str:
    """Return a text from a file or the user for use in a message; quoted if it has line breaks or control characters.

    Example:
        >>> one_line("data.fold=1"), one_line("a\\nb")
        ('data.fold=1', "'a\\\\nb'")
    """
    return text if text.isprintable() else repr(text)
