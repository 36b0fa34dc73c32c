"""Commands for training and for choosing hyperparameters."""

import argparse
import shlex
from collections.abc import Callable

from gitseg_tf.cli import planning
from gitseg_tf.cli.log import terminal_width
from gitseg_tf.cli.parsers import (
    Parser,
    command,
    data_argument,
    folds_argument,
    positive_integer,
    reading,
    set_argument,
)
from gitseg_tf.core.tensorflow_import import import_tensorflow
from gitseg_tf.core.text import plural
from gitseg_tf.errors import ConfigError


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands."""
    examples = ["gitseg train --config uwmgi --data cohort --strategy mirrored"]
    examples += ["gitseg train --data cohort --config auto --minutes 20"]
    examples += ["gitseg train --data cohort --fold all --resume --out runs/folds"]
    train = command(commands, "train", _train, "train, score and export a model", examples=examples)
    train.add_argument("--out", help="run folder (default: runs/NAME, numbered)")
    train.add_argument(
        "--resume", action="store_true", help="resume the run in --out, or the latest one with the config's name"
    )
    train.add_argument(
        "--overfit-batches",
        type=int,
        metavar="N",
        help="only check that the network can memorize N fixed batches; --epochs is the number of passes over them",
    )

    # For `gitseg grid --trials`: a socket on which each epoch is reported.
    train.add_argument("--report-epochs", type=int, help=argparse.SUPPRESS)

    examples = ["gitseg lr-find --data cohort --config uwmgi"]
    lr_find = command(commands, "lr-find", _lr_find, "find a learning rate with a range test", examples=examples)
    lr_find.add_argument("--out", help="output folder (default: runs/NAME-lr-find, numbered)")
    lr_find.add_argument("--lowest", type=float, default=1e-6, help="first learning rate (default: %(default)s)")
    lr_find.add_argument("--highest", type=float, default=1.0, help="last learning rate (default: %(default)s)")
    lr_find.add_argument("--steps", type=int, default=100, help="number of training steps (default: %(default)s)")

    examples = ["gitseg grid rates.yaml --data cohort --epochs 5", "gitseg grid ranges.yaml --data cohort --trials 20"]
    purpose = "train all combinations of config values, or a sample of them (--trials), and compare them"
    grid = command(commands, "grid", _grid, purpose, examples=examples)
    grid.add_argument(
        "grid",
        metavar="GRID.yaml",
        help="a list of values per key, such as training.learning_rate: [0.001, 0.003]; with --trials also a range, "
        "such as {low: 0.0001, high: 0.01, log: true}",
    )
    grid.add_argument("--out", help="output folder; finished runs in it are kept (default: runs/GRID)")
    grid.add_argument(
        "--trials",
        type=positive_integer,
        metavar="N",
        help="train N trials that Optuna chooses, and stop those that fall behind; repeat the command to resume",
    )
    grid.add_argument(
        "--prune-after",
        type=int,
        metavar="N",
        help="with --trials: completed trials before the first one may be stopped (default: 5)",
    )
    _experiment_arguments(train, _fold_or_all, "; all trains every fold in turn, then scores all patients")
    planning.limit_arguments(train, "with --config auto: ")
    for parser in (lr_find, grid):
        _experiment_arguments(parser)

    examples = ["gitseg models --no-measure", "gitseg models --architecture unet --csv models.csv"]
    purpose = "list the cost of each network: parameters, operations, speed"
    models = command(commands, "models", _models, purpose, examples=examples)
    models.add_argument("--architecture", help="only this architecture, with every backbone")
    models.add_argument("--backbone", help="only this backbone, with every architecture")
    models.add_argument("--size", type=int, default=256, help="height and width of a window (default: %(default)s)")
    models.add_argument("--slices", type=int, default=5, help="slices per window (default: %(default)s)")
    models.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time inference, which takes a few seconds per network",
    )
    models.add_argument("--csv", metavar="FILE.csv", help="also write the table to this file")

    purpose = "show versions, devices, and what auto selects"
    command(commands, "doctor", _doctor, purpose, examples=["gitseg doctor"])


def _experiment_arguments(parser: Parser, fold: Callable | None = None, more: str = "") -> None:
    parser.add_argument("--config", help="a YAML file, or a config's name; omitted keys fall back to the defaults")
    data_argument(parser, "the phantom")
    folds_argument(parser, "as configured, 5")
    parser.add_argument("--strategy", help="distribution strategy: auto, one_device, mirrored, multiworker or tpu")
    parser.add_argument("--precision", help="numeric precision: auto, float32, mixed_float16 or mixed_bfloat16")
    held_out = f"fold to hold out; none trains on all data and scores nothing{more}"
    parser.add_argument("--fold", type=fold or _fold, help=held_out)
    parser.add_argument(
        "--init",
        metavar="RUN|WEIGHTS",
        help="start from the network of a run, of each fold of a cross-validation, or of an .h5 file of weights",
    )
    parser.add_argument("--epochs", type=int, help="training epochs")
    parser.add_argument("--batch-size", type=int, help="windows or patches per step, across all replicas")
    parser.add_argument("--data-service", metavar="grpc://HOST:PORT", help="let a data service prepare the batches")
    set_argument(parser)


def _overrides(options) -> dict:
    """Convert the arguments of `_experiment_arguments` to overrides of config keys."""
    from gitseg_tf.config import parse_assignment

    flags = {
        "data.path": options.data,
        "data.fold": options.fold,
        "data.folds": options.folds if isinstance(options.folds, int) else None,
        "data.batch_size": options.batch_size,
        "data.service": options.data_service,
        "model.init": options.init,
        "training.strategy": options.strategy,
        "training.precision": options.precision,
        "training.epochs": options.epochs,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    if options.fold == "none":
        given["data.fold"] = None
    if options.fold == "all":
        given["data.fold"] = 0  # replaced by each run's fold
    return dict(map(parse_assignment, options.set)) | given


def _fold(text: str) -> int | str:
    if text != "none" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number or none, got {text!r}")
    return text if text == "none" else int(text)


def _fold_or_all(text: str) -> int | str:
    if text != "all" and text != "none" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number, none or all, got {text!r}")
    return text if text == "all" else _fold(text)


def _train(options) -> None:
    from gitseg_tf.config import load_config
    from gitseg_tf.runs.cross_validation import is_cross_validation
    from gitseg_tf.runs.folder import has_begun
    from gitseg_tf.training.run_folder import choose_run

    automatic = planning.is_automatic(options)
    if options.overfit_batches is not None:
        return _overfit(options)
    if options.fold == "all":
        return _train_folds(options)
    if options.out and is_cross_validation(options.out):
        fix = "resume it with --fold all --resume, or choose another --out"
        raise ConfigError(f"{options.out}: is a cross-validation; {fix}")
    overrides = _overrides(options)
    name = overrides.get("name", "auto") if automatic else load_config(options.config, overrides).name
    out = choose_run(options.out, name, resume=options.resume)
    resumed = options.resume and has_begun(out)
    if options.resume and not resumed:
        print(f"starting   {out}; there is nothing to resume")
    if automatic and not resumed:
        config = planning.planned_config(options, overrides, out)
    else:
        given = options.config if options.config and not automatic else None
        config = load_config(out / "config.yaml" if resumed and not given else given, overrides)

    import_tensorflow()
    from gitseg_tf.cli.dataset import open_experiment
    from gitseg_tf.evaluation.evaluate import evaluate, summary_lines
    from gitseg_tf.export.savedmodel import export
    from gitseg_tf.inference.predictor import run_probabilities
    from gitseg_tf.training.search.process import EpochReport
    from gitseg_tf.training.trainer import train

    config, dataset = open_experiment(config, options)
    report = None if options.report_epochs is None else EpochReport(options.report_epochs)
    run = train(config, dataset, out, resume=options.resume, after_epoch=report)
    if report is not None and report.stopped:
        print("stopped    by the search")
        return
    if run is None:
        return
    print(f"run        {out}", flush=True)
    network = run_probabilities(run)
    if config.data.fold is None:
        print("scores     none; no fold was held out")
    else:
        print(*summary_lines(evaluate(run, dataset, network=network), terminal_width()), sep="\n")
        print(f"report     {out / 'report.html'}")
    print(f"SavedModel {export(run, force=True, network=network)}")


def _train_folds(options) -> None:
    from gitseg_tf.cli.dataset import open_experiment
    from gitseg_tf.config import load_config
    from gitseg_tf.runs.cross_validation import MARKER, is_cross_validation
    from gitseg_tf.training.cross_validation import choose_cross_validation, train_folds

    overrides = _overrides(options)
    out = choose_cross_validation(options.out, load_config(options.config, overrides).name, resume=options.resume)
    resumed = is_cross_validation(out)
    if options.resume and not resumed:
        print(f"starting   {out}; there is nothing to resume")
    config = load_config(out / MARKER if resumed and not options.config else options.config, overrides)
    if "://" in str(config.data.path):
        import_tensorflow()
    config, dataset = open_experiment(config, options)
    train_folds(config, dataset, out, resume=options.resume)

    import_tensorflow()
    from gitseg_tf.evaluation.cross_validation import evaluate_cross_validation
    from gitseg_tf.evaluation.evaluate import summary_lines

    print(*summary_lines(evaluate_cross_validation(out, dataset), terminal_width()), sep="\n")
    print(f"report     {out / 'report.html'}")


def _overfit(options) -> None:
    from gitseg_tf.config import load_config
    from gitseg_tf.training.run_folder import choose_run

    if options.fold == "all":
        options.wrong_usage("--overfit-batches trains one network; choose one --fold")
    if options.resume:
        options.wrong_usage("--overfit-batches cannot be resumed; leave out --resume")
    config = load_config(options.config, _overrides(options))
    out = choose_run(options.out, f"{config.name}-overfit")
    import_tensorflow()
    from gitseg_tf.cli.dataset import open_experiment
    from gitseg_tf.training.search.overfit import overfit

    config, dataset = open_experiment(config, options)
    verdict = overfit(config, dataset, out, batches=options.overfit_batches, passes=options.epochs)
    if not verdict.passed:
        raise ConfigError(verdict.lines())
    print(verdict.lines())


def _lr_find(options) -> None:
    from gitseg_tf.config import load_config
    from gitseg_tf.training.run_folder import choose_run

    config = load_config(options.config, _overrides(options))
    out = choose_run(options.out, f"{config.name}-lr-find")
    import_tensorflow()
    from gitseg_tf.cli.dataset import open_experiment
    from gitseg_tf.training.search.lr_find import lr_find

    config, dataset = open_experiment(config, options)
    suggestion = lr_find(config, dataset, out, lowest=options.lowest, highest=options.highest, steps=options.steps)
    print(f"minimum    at {suggestion.minimum:.2g}; the steepest descent is at {suggestion.steepest:.2g}")
    print(f"suggested  {suggestion.rate:.2g}, a tenth of the rate at the minimum of the smoothed loss")
    print(f"picture    {out / 'lr_find.png'}")
    print(f"train with gitseg train {_again(options)}--set training.learning_rate={suggestion.rate:.2g}")


def _again(options) -> str:
    """Format the given arguments of `_experiment_arguments` for another command."""
    flags = (
        "config",
        "data",
        "folds",
        "labels",
        "missing",
        "strategy",
        "precision",
        "fold",
        "init",
        "epochs",
        "batch_size",
        "data_service",
    )
    given = [(name.replace("_", "-"), getattr(options, name)) for name in flags]
    given = [(name, value) for name, value in given if value is not None] + [("set", value) for value in options.set]
    return "".join(f"--{name} {shlex.quote(str(value))} " for name, value in given)


def _grid(options) -> None:
    from pathlib import Path

    from gitseg_tf.cli.dataset import open_experiment
    from gitseg_tf.training.search.grid import failures, read_grid, run_grid, table_lines

    if options.trials is not None:
        return _search(options)
    if options.prune_after is not None:
        options.wrong_usage("--prune-after needs --trials")
    overrides = _overrides(options)
    trials = read_grid(options.grid, options.config, overrides)
    out = Path(options.out or Path("runs", Path(options.grid).stem))
    # Open the data before the runs start, so that errors are reported once and a cohort is converted once.
    config = trials[0].config
    if "://" in str(config.data.path):
        import_tensorflow()
    given = reading(options) or isinstance(options.folds, str)
    _, dataset = open_experiment(config, options)
    if given:  # let the runs use the dataset that was converted here with these labels
        trials = read_grid(options.grid, options.config, overrides | {"data.path": str(dataset.root)})
    table = run_grid(trials, out)
    print(f"{table_lines(table)}\ntable      {out / 'grid.csv'}\npicture    {out / 'grid.png'}")
    failed = failures(table)
    if failed:
        raise ConfigError(
            f"{len(failed)} of {plural(len(table), 'run')} failed: {', '.join(failed)}; see their .log files in {out}"
        )


def _search(options) -> None:
    from pathlib import Path

    from gitseg_tf.cli.dataset import open_experiment
    from gitseg_tf.training.search.space import read_search
    from gitseg_tf.training.search.study import import_optuna, run_search
    from gitseg_tf.training.search.study_plot import search_lines

    import_optuna()
    overrides = _overrides(options)
    search = read_search(options.grid, options.config, overrides)
    out = Path(options.out or Path("runs", Path(options.grid).stem))
    if "://" in str(search.base.data.path):
        import_tensorflow()
    given = reading(options) or isinstance(options.folds, str)
    _, dataset = open_experiment(search.base, options)
    if given:  # as in _grid
        search = read_search(options.grid, options.config, overrides | {"data.path": str(dataset.root)})
    prune_after = 5 if options.prune_after is None else options.prune_after
    fingerprint = dataset.source["fingerprint"]
    table = run_search(search, out, trials=options.trials, prune_after=prune_after, dataset=fingerprint)
    print(*search_lines(table, search, terminal_width()), sep="\n")
    print(f"table      {out / 'grid.csv'}\npicture    {out / 'grid.png'}")
    failed = table.loc[~table["status"].isin(["finished", "pruned"]), "run"]
    if table["status"].iloc[0] != "finished":
        raise ConfigError(f"no trial was completed; see their .log files in {out}")
    if len(failed):
        print(f"failed     {plural(len(failed), 'trial')}: {', '.join(failed)}; see their .log files")
    print(f"train with gitseg train --config {shlex.quote(str(out / 'best.yaml'))}")


def _models(options) -> None:
    import_tensorflow()
    from gitseg_tf.core.progress import progress
    from gitseg_tf.models.cost import networks, print_table

    chosen = networks(options.architecture, options.backbone)
    print_table(
        progress(chosen, "networks"),
        size=options.size,
        slices=options.slices,
        measured=options.measure,
        csv=options.csv,
    )


def _doctor(options) -> None:
    import_tensorflow()
    from gitseg_tf.cli.doctor import doctor

    print(doctor())
