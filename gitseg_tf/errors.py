"""What goes wrong through no fault of the program."""


class InputError(Exception):
    """The user's input is at fault. The message is one line: what, where, what to do. The command line exits with 1."""
