"""The command `gitseg plan`, and the plan of `gitseg train --config auto`."""

import argparse
import logging
from typing import TYPE_CHECKING

from gitseg_tf.cli.parsers import Parser, command, folds_argument, positive_number, reading, reading_arguments
from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.errors import ConfigError

if TYPE_CHECKING:
    from gitseg_tf.config import Config

logger = logging.getLogger(__name__)

AUTO = "auto"


def add_parsers(commands) -> None:
    """Add the parser of the command `plan`."""
    examples = ["gitseg plan cohort --minutes 20", "gitseg plan cohort --minutes 60 --memory 8 --out plan.yaml"]
    purpose = "choose a config for a dataset, this machine, and a time, and explain each choice"
    plan = command(commands, "plan", _plan, purpose, examples=examples)
    plan.add_argument("data", nargs="?", help="TFRecords or a cohort (default: the phantom)")
    plan.add_argument("--out", metavar="FILE.yaml", help="config to write (default: print it)")
    plan.add_argument("--force", action="store_true", help="replace an existing file")
    limit_arguments(plan)
    plan.add_argument(
        "--fold", type=_fold, default=0, help="fold that training will hold out, or none (default: %(default)s)"
    )
    folds_argument(plan, "5")
    reading_arguments(plan)
    plan.set_defaults(results_only=True)  # the printed plan is a file


def limit_arguments(parser: Parser, when: str = "") -> None:
    """Add --minutes and --memory; `when` says when they apply."""
    parser.add_argument(
        "--minutes", type=positive_number, help=f"{when}time for training, without conversion and scores (default: 20)"
    )
    parser.add_argument(
        "--memory",
        type=positive_number,
        metavar="GIB",
        help=f"{when}most resident memory (default: 80%% of the machine's)",
    )


def is_automatic(options: argparse.Namespace) -> bool:
    """Check whether a training is to be planned, and reject options that contradict it."""
    automatic = options.config == AUTO
    if not automatic and (options.minutes or options.memory):
        options.wrong_usage("--minutes and --memory are limits of a plan; add --config auto")
    if automatic and (options.fold == "all" or options.overfit_batches is not None):
        options.wrong_usage("--config auto plans one training; make the plan with gitseg plan, then give --config FILE")
    if automatic and options.strategy in ("multiworker", "tpu"):
        options.wrong_usage(f"--config auto plans for one machine without TPUs, not for --strategy {options.strategy}")
    return automatic


def planned_config(options: argparse.Namespace, overrides: dict, out: AnyPath) -> "Config":
    """Plan a training, and write the plan into the folder of its run.

    Args:
        options: parsed options of `gitseg train`.
        overrides: config keys given by the user, which replace those of the plan.
        out: the run's folder, which need not exist.

    Returns:
        The config.
    """
    from gitseg_tf.cli.dataset import open_experiment
    from gitseg_tf.config import load_config, with_overrides
    from gitseg_tf.planning.plan import MINUTES, make_plan
    from gitseg_tf.runs.folder import PLAN

    given, dataset = open_experiment(load_config(None, overrides), options)
    planned = make_plan(
        dataset,
        minutes=options.minutes or MINUTES,
        memory_gib=options.memory,
        fold=given.data.fold,
        name=given.name if "name" in overrides else AUTO,
    )
    out.mkdir(parents=True, exist_ok=True)
    planned.save(out / PLAN)
    logger.info("plan       %s", out / PLAN)
    # A dataset with one fold holds out none, unless the user insists.
    keys = overrides | {"data.path": given.data.path, "data.folds": given.data.folds}
    return with_overrides(planned.config, keys, AUTO)


def _plan(options: argparse.Namespace) -> None:
    from gitseg_tf.cli.dataset import open_data
    from gitseg_tf.planning.plan import MINUTES, make_plan

    out = as_path(options.out) if options.out else None
    if out is not None and out.exists() and not options.force:
        raise ConfigError(f"{out}: exists; choose another file, or give --force")
    dataset = open_data(options.data, 5 if options.folds is None else options.folds, **reading(options))
    planned = make_plan(
        dataset, minutes=options.minutes or MINUTES, memory_gib=options.memory, fold=options.fold,
        name=out.stem if out is not None else "plan",
    )  # fmt: skip
    if out is None:
        print(planned.text, end="")
        return
    planned.save(out)
    expected = planned.plan.prediction
    print(f"plan       {out}: about {expected.training_minutes:.3g} minutes, {expected.peak_gib:.2g} GiB")
    print(f"train with gitseg train --config {out} --data {dataset.root}")


def _fold(text: str) -> int | None:
    if text != "none" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number or none, got {text!r}")
    return None if text == "none" else int(text)
