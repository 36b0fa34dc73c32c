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
