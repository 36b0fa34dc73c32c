"""The parsers: help, examples, suggestions, completion."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gitseg_tf.cli import main
from gitseg_tf.cli.main import build_parser
from gitseg_tf.cli.parsers import reading
from gitseg_tf.labels import UWMGI, LabelSet

COMMANDS = build_parser().commands


def wrong_usage(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(list(arguments))
    assert exit_info.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_help_has_one_to_three_valid_examples(name):
    parser = COMMANDS[name] if name else build_parser()
    assert 1 <= len(parser.examples) <= 3
    assert "examples:\n  " in parser.format_help()
    for example in parser.examples:
        program, *words = shlex.split(example.split(" > ")[0].removeprefix('eval "$(').removesuffix(')"'))
        assert program == "gitseg" and (words[0] == name or not name)
        assert build_parser().parse_args(words).run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_has_help(name):
    assert [action.dest for action in COMMANDS[name]._actions if not action.help] == []


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        ("trian", "unknown command 'trian'; did you mean train?"),
        ("--verison", "unknown option --verison; did you mean --version?"),
        ("train --epcohs 3", "unknown option --epcohs; did you mean --epochs?"),
        ("predict run in out --sevrer=grpc://host", "unknown option --sevrer; did you mean --server?"),
        ("data-service --dispatchr", "unknown option --dispatchr; did you mean --dispatcher?"),
        ("xyzzy", "unknown command 'xyzzy'"),
        ("train --lr 1e-3", "unknown option --lr; did you mean --set training.learning_rate=...?"),
        ("train -lr 1e-3", "unknown option -lr; did you mean --set training.learning_rate=...?"),
        (
            "train --learning-rate=1e-3",
            "unknown option --learning-rate; did you mean --set training.learning_rate=...?",
        ),
        ("grid rates.yaml --backb plain", "unknown option --backb; did you mean --set model.backbone=...?"),
        ("train -e 3", "unknown option -e"),
        ("predict run in out --lr 1", "unknown option --lr"),
        ("predict run in out -lr", "unknown option -lr"),
        ("convert a b --learning-rate 1", "unknown option --learning-rate"),
        ("train --s 1", "ambiguous option: --s could match --structure-set, --strategy, --set"),
        ("train cohort", "unexpected argument 'cohort'"),
        ("compare one other third", "unexpected argument 'third'"),
        ("train --epochs", "argument --epochs: expected one argument"),
    ],
)
def test_a_mistyped_command_or_option_gets_a_suggestion(capsys, words, suggestion):
    assert wrong_usage(capsys, *words.split()).endswith(f"error: {suggestion}")


@pytest.mark.parametrize(
    "words", ["train --lr 1", "train -lr 1", "train --s 1", "train cohort", "compare one other third", "predict run -x"]
)
def test_wrong_usage_prints_the_usage_of_the_command(capsys, words):
    with pytest.raises(SystemExit) as exit_info:
        main(words.split())
    assert exit_info.value.code == 2
    name = words.split()[0]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"usage: gitseg {name} [-h]") and lines[-1].startswith(f"gitseg {name}: error: ")


def test_negative_numbers_and_quoted_values_are_not_options():
    parse = build_parser().parse_args
    assert parse(["lr-find", "--lowest", "-1"]).lowest == -1
    assert parse(["train", "--set", "name=- a"]).set == ["name=- a"]
    assert parse(["predict", "run", "in", "--format", "nifti", "out"]).out == "out"


def test_a_mistyped_command_gets_a_suggestion_with_python_m():
    completed = subprocess.run([sys.executable, "-m", "gitseg_tf", "evalute"], capture_output=True, text=True)
    assert completed.returncode == 2 and "did you mean evaluate?" in completed.stderr


def test_options_can_be_abbreviated_and_values_can_start_with_dashes():
    options = build_parser().parse_args(["convert", "a", "b", "--work", "2", "--beam-options=--runner=FlinkRunner"])
    assert (options.workers, options.beam_options) == (2, "--runner=FlinkRunner")


def test_reader_options_are_passed_on_only_when_given(tmp_path):
    labels = LabelSet.of("liver", "spleen")
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump(labels.to_tree()))
    parse = build_parser().parse_args
    assert reading(parse(["inspect", "cohort"])) == {}
    words = ["--labels", str(tmp_path / "labels.yaml"), "--missing", "absent"]
    assert reading(parse(["inspect", "cohort", *words])) == {"labels": labels, "missing": "absent"}
    assert reading(parse(["inspect", "cohort", "--labels", "uwmgi"])) == {"labels": UWMGI}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_valid_shell_script(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS) and "--strategy" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_a_command_and_an_option(capsys):
    main(["completion", "bash"])
    ask = "\nCOMP_WORDS=({words}); COMP_CWORD={last}; {function}; echo ${{COMPREPLY[@]}}"
    script = capsys.readouterr().out
    function = next(line.split()[-2] for line in script.splitlines() if line.startswith("complete "))
    for words, completed in (("gitseg conv", "convert"), ("gitseg train --strat", "--strategy")):
        question = ask.format(words=words, last=len(words.split()) - 1, function=function)
        done = subprocess.run(["bash"], input=script + question, capture_output=True, text=True)
        assert done.stdout.split() == [completed], done.stderr


def test_only_the_cli_prints_and_exits():
    root = Path(__file__).parents[2] / "gitseg_tf"
    prints = [
        f"{path.relative_to(root)}:{number}"
        for path in sorted(root.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.lstrip().startswith(("print(", "sys.exit("))
        and path.parts[len(root.parts)] not in ("cli", "__main__.py")
    ]
    assert prints == []


def messages(path):
    """(line, text) of each string in a module, without the docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_only_the_cli_names_command_line_options():
    """A string that is just an option is an argument of a process that the library starts."""
    options = {option for parser in COMMANDS.values() for option in parser._option_string_actions}
    root = Path(__file__).parents[2] / "gitseg_tf"
    named = {
        f"{path.relative_to(root).as_posix()}:{line} {option}"
        for path in root.rglob("*.py")
        if path.parts[len(root.parts)] != "cli"
        for line, text in messages(path)
        for option in re.findall(r"--[a-z][a-z-]*", text)
        if option in options and text != option
    }
    assert named == set()


def test_a_closed_output_pipe_ends_a_command_silently():
    command = f"{shlex.quote(sys.executable)} -m gitseg_tf completion fish | head -c 1"
    completed = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (completed.stdout, completed.stderr) == ("#", "")
