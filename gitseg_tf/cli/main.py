"""The command line, `gitseg COMMAND`: parse arguments, make one call, return the exit status."""

import os
import sys

from gitseg_tf import __version__
from gitseg_tf.cli import (
    completion,
    data,
    distillation,
    ensembles,
    evaluation,
    export,
    few_labels,
    labels,
    planning,
    prediction,
    structures,
    training,
)
from gitseg_tf.cli.log import shown_logs
from gitseg_tf.cli.parsers import Parser
from gitseg_tf.core.memory import is_out_of_memory, out_of_memory_line
from gitseg_tf.core.tensorflow_import import import_tensorflow
from gitseg_tf.errors import GitsegError, first_line

# What takes the memory in the commands of a module of this package.
_WORK = {"training": "training"} | dict.fromkeys(
    ("distillation", "evaluation", "ensembles", "prediction", "few_labels", "export"), "inference"
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: command-line arguments; None uses sys.argv.

    Returns:
        Exit status: 0 success, 1 invalid input (one line on stderr), 130 interrupted, 141 stdout was closed.

    Raises:
        SystemExit: 2 for wrong usage, 0 for --help and --version.
    """
    options = build_parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # lines appear in a log file immediately
    try:
        with shown_logs(getattr(options, "results_only", False)):
            if any("://" in str(value) for value in vars(options).values()):
                import_tensorflow()  # TensorFlow reads these paths; its start-up notices would bury other messages
            options.run(options)
    except GitsegError as error:
        print(f"gitseg: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        return _status_of(error, options)
    except KeyboardInterrupt:
        print("gitseg: interrupted", file=sys.stderr)
        return 130
    return 0


def _status_of(error: Exception, options) -> int:
    """Print the line of a failed system call or allocation and return the exit status; raise any other error."""
    if is_out_of_memory(error):
        work = _WORK.get(options.run.__module__.rpartition(".")[2], "reading")
        print(f"gitseg: {out_of_memory_line(error, work)}", file=sys.stderr)
    elif not isinstance(error, OSError):
        raise error
    else:
        if isinstance(error, BrokenPipeError) and not error.filename:  # the reader of stdout, such as `head`, exited
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        what = f"{error.filename}: {error.strerror}" if error.filename else first_line(error)
        print(f"gitseg: {what}", file=sys.stderr)
    return 1


def build_parser() -> Parser:
    """Build the parser of all commands."""
    parser = Parser(
        "gitseg",
        description="Train, evaluate and serve segmentation networks for medical scans.",
        examples=["gitseg train", "gitseg convert cohort tfrecords/cohort", "gitseg predict runs/default scans out"],
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_command_parsers()
    for group in (
        data,
        labels,
        planning,
        training,
        evaluation,
        ensembles,
        prediction,
        few_labels,
        distillation,
        structures,
        export,
    ):
        group.add_parsers(commands)
    completion.add_parsers(commands, parser)
    return parser
