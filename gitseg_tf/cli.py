"""The command line: `gitseg COMMAND`. Arguments in, one call, exit status out."""

import argparse
import sys

from gitseg_tf import __version__, quiet
from gitseg_tf.commands import data, results, training
from gitseg_tf.commands.parsers import Parser
from gitseg_tf.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: as from the command line; None takes sys.argv.

    Returns:
        Exit status: 0 done, 1 the input is at fault (one line on stderr), 130 interrupted. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        if any("://" in str(value) for value in vars(options).values()):
            quiet.import_tensorflow()  # it reads these paths, and its start-up notices would drown what they say
        options.run(options)
    except InputError as error:
        print(f"gitseg: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error).splitlines()[0]
        print(f"gitseg: {what}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gitseg: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gitseg", description="Segment stomach, small bowel and large bowel on MR scans.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for group in (data, training, results):
        group.add_parsers(commands)
    return parser
