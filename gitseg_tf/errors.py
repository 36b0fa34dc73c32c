"""What goes wrong through no fault of the program."""

import re


class InputError(Exception):
    """The user's input is at fault. The message is one line: what, where, what to do. The command line exits with 1."""


class ScanError(InputError):
    """A scan cannot be segmented; others may be."""


def first_line(error: Exception) -> str:
    """What a library's exception says, for a message of one line: without TensorFlow's note of the operation."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return re.sub(r"^{{.*?}} | \[Op:\w*\].*$", "", line)
