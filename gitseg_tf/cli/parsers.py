"""Shared features of the command parsers: examples, suggestions for mistyped words, common arguments."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from gitseg_tf.cli.suggestions import suggestion


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with examples in its help, and suggestions for mistyped commands and options.

    Args:
        intermixed: allow options between positional arguments even if their number is variable.
        examples: complete commands, shown below the help.
    """

    def __init__(self, *args, intermixed: bool = False, examples: Sequence[str] = (), **kwargs):
        if examples:
            kwargs["epilog"] = "examples:\n" + textwrap.indent("\n".join(examples), "  ")
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self._intermixed, self._checked = intermixed, False
        self.takes_config_keys = False
        self.examples = tuple(examples)
        self.commands: dict[str, Parser] = {}

    def add_command_parsers(self):
        """Enable commands for this parser; return the object to which `command` adds them."""
        commands = self.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
        self.commands = commands.choices  # filled as commands are added
        return commands

    def parse_known_args(self, args=None, namespace=None):
        """Parse like argparse, which also calls this for commands, and suggest corrections for mistyped words."""
        if self._checked:  # argparse calls this again for intermixed arguments
            return super().parse_known_args(args, namespace)
        args = sys.argv[1:] if args is None else list(args)
        self._check_words(args)
        parse = self.parse_known_intermixed_args if self._intermixed else super().parse_known_args
        self._checked = True
        try:
            parsed, unknown = parse(args, namespace)
        finally:
            self._checked = False
        if unknown:  # reported here, with the usage of the command: argparse would pass them up to the top level
            self.error(f"unexpected argument {unknown[0]!r}")
        return parsed, unknown

    def _check_words(self, words: Sequence[str]) -> None:
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            name = word.split("=")[0]
            if self.commands and not word.startswith("-"):
                if word not in self.commands:
                    self.error(f"unknown command {word!r}{suggestion(word, self.commands)}")
                return  # the command's parser handles the remaining words
            if self._is_unknown_option(name):
                meant = suggestion(name, known, config_keys=self.takes_config_keys)
                self.error(f"unknown option {name}{meant}")

    def _is_unknown_option(self, word: str) -> bool:
        known = self._option_string_actions
        if word.startswith("--"):
            return not any(option.startswith(word) for option in known)
        # As argparse, take a word such as -5 or "- a sentence" for a value, and -hx for a group of one-letter options.
        is_value = (
            not word.startswith("-") or len(word) == 1 or " " in word or self._negative_number_matcher.match(word)
        )
        return not is_value and word[:2] not in known


def command(
    commands, name: str, run: Callable[..., Any], purpose: str, *, examples: Sequence[str], **settings: Any
) -> Parser:
    """Add the parser of a command.

    Args:
        commands: from `Parser.add_command_parsers`.
        name: the command.
        run: called with the parsed options.
        purpose: one line for the help.
        examples: one to three complete commands.
        settings: keyword arguments of Parser.

    Returns:
        The command's parser.
    """
    parser = commands.add_parser(name, help=purpose, description=purpose, examples=examples, **settings)
    parser.set_defaults(run=run, wrong_usage=parser.error)
    return parser


def reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for reading a cohort; `reading` passes them to the library."""
    parser.add_argument(
        "--labels",
        metavar="uwmgi|FILE.yaml",
        help="labels to read from a cohort: a preset, or a file that gitseg labels printed (default: all found)",
    )
    parser.add_argument(
        "--missing",
        choices=["unannotated", "absent"],
        help="how to treat a label that other annotated scans have but a scan lacks (default: unannotated)",
    )
    parser.add_argument(
        "--structure-set",
        metavar="newest|approved|LABEL",
        help="which of several DICOM structure sets of a series to read: the newest, the approved one, or the one with "
        "this StructureSetLabel (default: all, unless two have contours of the same label)",
    )


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """Return the given options for reading a cohort, as keyword arguments of functions that read one."""
    given: dict[str, Any] = {}
    if options.labels is not None:
        from gitseg_tf.labels import read_labels

        given["labels"] = read_labels(options.labels)
    if options.missing is not None:
        given["missing"] = options.missing
    if options.structure_set is not None:
        given["structure_set"] = options.structure_set
    return given


def data_argument(
    parser: argparse.ArgumentParser, default: str = "what the run was trained on", more: str = ""
) -> None:
    """Add --data and the options for reading a cohort."""
    parser.add_argument("--data", help=f"TFRecords or a cohort{more} (default: {default})")
    reading_arguments(parser)


def folds_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --folds, a number or the path of a table."""
    parser.add_argument(
        "--folds",
        type=lambda text: int(text) if text.lstrip("-").isdecimal() else text,
        metavar="N|FILE.csv",
        help=f"number of folds, split by patient, or a table with the columns patient and fold (default: {default})",
    )


def set_argument(parser: Parser, what: str | None = None) -> None:
    """Add --set, which may be repeated; `what` names the keys that can be set, if not all."""
    parser.takes_config_keys = what is None
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"set {what or 'any config key'}, dotted; repeatable",
    )


def positive_integer(text: str) -> int:
    """Parse a positive integer argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """Parse a positive, finite number argument."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def tta_argument(parser: argparse.ArgumentParser) -> None:
    """Add --tta, whose value is a dict of the config keys that it sets."""
    parser.add_argument(
        "--tta",
        type=_tta,
        metavar="flip,scale",
        default={},
        help="test-time augmentation: flip, scale (0.9 and 1.1), both, or none (default: as configured)",
    )


def _tta(text: str) -> dict[str, Any]:
    names = text.split(",")
    if names != ["none"] and not set(names) <= {"flip", "scale"}:
        raise argparse.ArgumentTypeError(f"must be flip, scale, flip,scale or none, got {text!r}")
    return {"evaluation.tta.flip": "flip" in names, "evaluation.tta.scales": [0.9, 1.1] if "scale" in names else []}
