"""Shell completion."""

import argparse

from gitseg_tf.cli.parsers import Parser, command

_SHELLS = ("bash", "zsh", "fish")
# The arguments that a shell completes as paths, by name.
_PATHS = {
    "data", "out", "config", "grid", "csv", "verify", "labels", "postprocess", "run_folder", "one", "other", "models",
    "input", "source", "allow",
}  # fmt: skip


def add_parsers(commands, program: Parser) -> None:
    """Add the parser of the command `completion`, which prints completion scripts for `program`."""
    examples = ['eval "$(gitseg completion bash)"', "gitseg completion zsh > ~/.zfunc/_gitseg"]
    examples += ["gitseg completion fish > ~/.config/fish/completions/gitseg.fish"]
    purpose = "print a shell completion script for commands, options and paths"
    completion = command(commands, "completion", _completion, purpose, examples=examples)
    completion.add_argument("shell", choices=_SHELLS, help="the shell to write the script for")
    completion.set_defaults(results_only=True, program=program)


def _completion(options: argparse.Namespace) -> None:
    import shtab

    for parser in (options.program, *options.program.commands.values()):
        for action in parser._actions:
            if action.dest in _PATHS and not action.choices:
                action.complete = shtab.FILE
    print(shtab.complete(options.program, shell=options.shell))
