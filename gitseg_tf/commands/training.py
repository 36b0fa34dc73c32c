"""Commands that train, and what helps to train."""

import argparse
import shlex
from collections.abc import Callable
from functools import partial

from gitseg_tf import quiet
from gitseg_tf.commands.parsers import command
from gitseg_tf.errors import InputError


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands to argparse's subparsers."""
    train = command(commands, "train", _train, "train, score and export a model")
    train.add_argument("--out", help="the run's folder (runs/NAME, numbered)")
    train.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, or the newest of the config's name"
    )
    train.add_argument(
        "--overfit-batches",
        type=int,
        metavar="N",
        help="only check that the network can learn N fixed batches by heart; --epochs are passes over them",
    )
    train.set_defaults(wrong_usage=train.error)

    lr_find = command(commands, "lr-find", _lr_find, "find a learning rate by a range test")
    lr_find.add_argument("--out", help="the test's folder (runs/NAME-lr-find, numbered)")
    lr_find.add_argument("--lowest", type=float, default=1e-6, help="the first rate (%(default)s)")
    lr_find.add_argument("--highest", type=float, default=1.0, help="the last rate (%(default)s)")
    lr_find.add_argument("--steps", type=int, default=100, help="between them (%(default)s)")

    grid = command(commands, "grid", _grid, "train all combinations of some values, and compare them")
    grid.add_argument("grid", metavar="GRID.yaml", help="lists by key: training.learning_rate: [0.001, 0.003]")
    grid.add_argument("--out", help="the grid's folder; what is finished there is not run again (runs/GRID)")
    _experiment_arguments(train, _fold_or_all, ", or all: each fold in turn, then the scores over all patients")
    for parser in (lr_find, grid):
        _experiment_arguments(parser)

    models = command(commands, "models", _models, "what each network costs: parameters, operations, speed")
    models.add_argument("--architecture", help="this decoder alone, with each backbone")
    models.add_argument("--backbone", help="this encoder alone, with each architecture")
    models.add_argument("--size", type=int, default=256, help="height and width of a window (%(default)s)")
    models.add_argument("--slices", type=int, default=5, help="slices of a window (%(default)s)")
    models.add_argument(
        "--measure", action=argparse.BooleanOptionalAction, default=True, help="time inference, some seconds each"
    )
    models.add_argument("--csv", metavar="FILE.csv", help="write the table there too")

    command(commands, "doctor", _doctor, "versions, devices, and what auto would choose")


def _experiment_arguments(parser: argparse.ArgumentParser, fold: Callable | None = None, more: str = "") -> None:
    parser.add_argument("--config", help="YAML file; what it leaves out has the default (configs/default.yaml)")
    parser.add_argument("--data", help="TFRecords or a cohort; without it the phantom")
    parser.add_argument("--strategy", help="auto, one_device, mirrored, multiworker or tpu")
    parser.add_argument("--precision", help="auto, float32, mixed_float16 or mixed_bfloat16")
    held_out = f"the fold that is held out, or none: train on all, score nothing{more}"
    parser.add_argument("--fold", type=fold or _fold, help=held_out)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, help="over all replicas")
    parser.add_argument("--data-service", metavar="grpc://HOST:PORT", help="a data service prepares the training data")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any config key, dotted")


def _overrides(options) -> dict:
    """The config keys that the arguments of `_experiment_arguments` set."""
    from gitseg_tf.config import parse_assignment

    flags = {
        "data.path": options.data,
        "data.fold": options.fold,
        "data.batch_size": options.batch_size,
        "data.service": options.data_service,
        "training.strategy": options.strategy,
        "training.precision": options.precision,
        "training.epochs": options.epochs,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    if options.fold == "none":
        given["data.fold"] = None
    if options.fold == "all":
        given["data.fold"] = 0  # each run is given its own
    return dict(map(parse_assignment, options.set)) | given


def _fold(text: str) -> int | str:
    if text != "none" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none")
    return text if text == "none" else int(text)


def _fold_or_all(text: str) -> int | str:
    if text != "all" and text != "none" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none nor all")
    return text if text == "all" else _fold(text)


def _train(options) -> None:
    from gitseg_tf.config import load_config
    from gitseg_tf.training.cross_validation import is_cross_validation
    from gitseg_tf.training.run_folder import choose_run, has_begun

    if options.overfit_batches is not None:
        return _overfit(options)
    if options.fold == "all":
        return _train_folds(options)
    if options.out and is_cross_validation(options.out):
        raise InputError(f"{options.out}: is a cross-validation; go on with --fold all --resume, or choose another")
    overrides = _overrides(options)
    out = choose_run(options.out, load_config(options.config, overrides).name, options.resume)
    resumed = options.resume and has_begun(out)
    if options.resume and not resumed:
        print(f"starting   {out}, for there is nothing to resume")
    config = load_config(out / "config.yaml" if resumed and not options.config else options.config, overrides)

    quiet.import_tensorflow()
    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.evaluation.evaluate import evaluate, summary_lines
    from gitseg_tf.inference.predictor import run_probabilities
    from gitseg_tf.serving.export import export
    from gitseg_tf.training.trainer import train

    dataset = open_dataset(config.data.path, config.data.folds)
    run = train(config, dataset, out, options.resume)
    if run is None:
        return
    print(f"run        {out}", flush=True)
    network = run_probabilities(run)
    if config.data.fold is None:
        print("scores     none, for no fold was held out")
    else:
        summary_lines(evaluate(run, dataset, network=network))
        print(f"report     {out / 'report.html'}")
    print(f"SavedModel {export(run, force=True, network=network)}")


def _train_folds(options) -> None:
    from gitseg_tf.config import load_config
    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.training.cross_validation import MARKER, choose_cross_validation, is_cross_validation, train_folds

    overrides = _overrides(options)
    out = choose_cross_validation(options.out, load_config(options.config, overrides).name, options.resume)
    resumed = is_cross_validation(out)
    if options.resume and not resumed:
        print(f"starting   {out}, for there is nothing to resume")
    config = load_config(out / MARKER if resumed and not options.config else options.config, overrides)
    if "://" in str(config.data.path):
        quiet.import_tensorflow()
    dataset = open_dataset(config.data.path, config.data.folds)
    train_folds(config, dataset, out, options.resume, partial(print, flush=True))

    quiet.import_tensorflow()
    from gitseg_tf.evaluation.evaluate import summary_lines
    from gitseg_tf.evaluation.out_of_fold import evaluate_cross_validation

    summary_lines(evaluate_cross_validation(out, dataset))
    print(f"report     {out / 'report.html'}")


def _overfit(options) -> None:
    from gitseg_tf.config import load_config
    from gitseg_tf.training.run_folder import choose_run

    if options.fold == "all":
        options.wrong_usage("--overfit-batches trains one network; name one --fold")
    if options.resume:
        options.wrong_usage("--overfit-batches makes no run that could be resumed")
    config = load_config(options.config, _overrides(options))
    out = choose_run(options.out, f"{config.name}-overfit")
    quiet.import_tensorflow()
    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.training.overfit import overfit

    dataset = open_dataset(config.data.path, config.data.folds)
    verdict = overfit(config, dataset, out, options.overfit_batches, options.epochs)
    if not verdict.passed:
        raise InputError(verdict.lines())
    print(verdict.lines())


def _lr_find(options) -> None:
    from gitseg_tf.config import load_config
    from gitseg_tf.training.run_folder import choose_run

    config = load_config(options.config, _overrides(options))
    out = choose_run(options.out, f"{config.name}-lr-find")
    quiet.import_tensorflow()
    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.training.lr_find import lr_find

    dataset = open_dataset(config.data.path, config.data.folds)
    found = lr_find(config, dataset, out, options.lowest, options.highest, options.steps)
    print(f"minimum    at {found.minimum:.2g}; the steepest descent is at {found.steepest:.2g}")
    print(f"suggested  {found.rate:.2g}, a tenth of the rate at the minimum of the smoothed loss")
    print(f"picture    {out / 'lr_find.png'}")
    print(f"train with python train.py {_again(options)}--set training.learning_rate={found.rate:.2g}")


def _again(options) -> str:
    """The arguments of `_experiment_arguments` as they were given."""
    flags = ("config", "data", "strategy", "precision", "fold", "epochs", "batch_size", "data_service")
    given = [(name.replace("_", "-"), getattr(options, name)) for name in flags]
    given = [(name, value) for name, value in given if value is not None] + [("set", value) for value in options.set]
    return "".join(f"--{name} {shlex.quote(str(value))} " for name, value in given)


def _grid(options) -> None:
    from pathlib import Path

    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.training.grid import failures, read_grid, run_grid, table_lines

    overrides = _overrides(options)
    trials = read_grid(options.grid, options.config, overrides)
    out = Path(options.out or Path("runs", Path(options.grid).stem))
    # Here, so that what is wrong with the data is said once, and a cohort is converted once.
    data = trials[0].config.data
    if "://" in str(data.path):
        quiet.import_tensorflow()
    open_dataset(data.path, data.folds)
    table = run_grid(trials, out, partial(print, flush=True))
    print(f"{table_lines(table)}\ntable      {out / 'grid.csv'}\npicture    {out / 'grid.png'}")
    failed = failures(table)
    if failed:
        raise InputError(f"{len(failed)} of {len(table)} runs failed: {', '.join(failed)}; see their .log in {out}")


def _models(options) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.models.table import networks, print_table
    from gitseg_tf.progress import progress

    chosen = networks(options.architecture, options.backbone)
    print_table(progress(chosen, "networks"), options.size, options.slices, options.measure, options.csv)


def _doctor(options) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.training.doctor import doctor

    print(doctor())
