"""What the parsers of commands have in common."""

import argparse


class Parser(argparse.ArgumentParser):
    """argparse's, for commands and what they are made of.

    Args:
        intermixed: options may stand between positional arguments, also where the number of these is open.
    """

    def __init__(self, *args, intermixed: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self._intermixed = intermixed

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, which subparsers are called by."""
        if not self._intermixed:
            return super().parse_known_args(args, namespace)
        self._intermixed = False  # this is called again, for the options and for the rest
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = True


def command(commands, name: str, run, purpose: str, intermixed: bool = False) -> Parser:
    """Add the parser of a command to argparse's subparsers."""
    parser = commands.add_parser(name, help=purpose, description=purpose, intermixed=intermixed)
    parser.set_defaults(run=run)
    return parser
