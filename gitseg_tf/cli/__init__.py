"""The command line: parsers and commands. Only this package knows flags, prints results and sets exit statuses."""

from gitseg_tf.cli.main import main

__all__ = ["main"]
