"""The command line: `gitseg COMMAND`. Arguments in, one call, exit status out."""

import argparse
import shlex
import sys
from functools import partial

from gitseg_tf import __version__, quiet
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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    phantom = _command(commands, "phantom", _phantom, "make a synthetic cohort in the competition's layout")
    phantom.add_argument("out", help="a new folder")
    phantom.add_argument("--cases", type=int, default=10, help="patients (%(default)s)")
    phantom.add_argument("--days", type=int, default=2, help="scans of each patient (%(default)s)")
    phantom.add_argument("--slices", type=int, default=80, help="slices of each scan (%(default)s)")
    phantom.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (%(default)s)")
    phantom.add_argument("--workers", type=int, help="processes (one a core)")

    convert = _command(commands, "convert", _convert, "convert a cohort to TFRecords, or check some")
    convert.add_argument(
        "data", nargs="?", help="the competition's folders with train.csv, NIfTI or DICOM; see docs/data.md"
    )
    convert.add_argument("out", nargs="?", help="a new folder; --dry-run needs none")
    convert.add_argument("--dry-run", action="store_true", help="say what would be converted, and write nothing")
    convert.add_argument("--workers", type=int, help="scans read at the same time (one a core)")
    convert.add_argument("--folds", type=int, default=5, help="folds by patient (%(default)s)")
    convert.add_argument("--seed", type=int, default=0, help="of the folds (%(default)s)")
    convert.add_argument("--resume", action="store_true", help="go on with an interrupted conversion")
    convert.add_argument("--exclude", nargs="+", default=[], metavar="ID", help="scans to leave out (case123_day20)")
    convert.add_argument("--shard-mib", type=int, default=256, help="voxels of a shard in MiB (%(default)s)")
    convert.add_argument("--runner", choices=["local", "beam"], default="local", help="who does it (%(default)s)")
    convert.add_argument(
        "--beam-options", default="", metavar="=OPTIONS", help="Beam's own: --beam-options='--runner=FlinkRunner ...'"
    )
    convert.add_argument("--verify", metavar="OUT", help="convert nothing, read OUT again and check all of it")
    convert.set_defaults(wrong_usage=convert.error)

    inspect = _command(commands, "inspect", _inspect, "report what is in a cohort or dataset, and what is odd about it")
    inspect.add_argument("data", help="a source cohort, or TFRecords made by gitseg convert")
    inspect.add_argument("--out", default="inspection.html", metavar="FILE.html", help="the page (%(default)s)")
    inspect.add_argument("--strict", action="store_true", help="exit status 1 when there is an error or a warning")

    augment = _command(commands, "augment", _augment, "draw a picture of what each random change does")
    augment.add_argument("out", help="the PNG")
    augment.add_argument("--data", help="TFRecords or a cohort; without it the phantom")
    augment.add_argument("--config", help="YAML file with the ranges")
    augment.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any config key, dotted")

    train = _command(commands, "train", _train, "train, score and export a model")
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

    lr_find = _command(commands, "lr-find", _lr_find, "find a learning rate by a range test")
    lr_find.add_argument("--out", help="the test's folder (runs/NAME-lr-find, numbered)")
    lr_find.add_argument("--lowest", type=float, default=1e-6, help="the first rate (%(default)s)")
    lr_find.add_argument("--highest", type=float, default=1.0, help="the last rate (%(default)s)")
    lr_find.add_argument("--steps", type=int, default=100, help="between them (%(default)s)")

    grid = _command(commands, "grid", _grid, "train all combinations of some values, and compare them")
    grid.add_argument("grid", metavar="GRID.yaml", help="lists by key: training.learning_rate: [0.001, 0.003]")
    grid.add_argument("--out", help="the grid's folder; what is finished there is not run again (runs/GRID)")
    for command in (train, lr_find, grid):
        _experiment_arguments(command)

    evaluate = _command(commands, "evaluate", _evaluate, "score a run and write its report")
    evaluate.add_argument("run_folder", metavar="run")
    evaluate.add_argument("--data", help="TFRecords or a cohort (what the run trained on)")
    evaluate.add_argument("--fold", type=int, help="the fold to score (the one held out)")

    tune = _command(commands, "tune", _tune, "find a run's post-processing on patients that it has not seen")
    tune.add_argument("run_folder", metavar="run")
    tune.add_argument("--data", help="TFRecords or a cohort (what the run trained on)")
    tune.add_argument("--fold", type=int, help="the fold to tune on (the one held out)")
    tune.add_argument("--dry-run", action="store_true", help="show what each step gains, and save nothing")

    predict = _command(commands, "predict", _predict, "segment the scans of a folder, or a single PNG or NIfTI file")
    predict.add_argument("model", help="a run, or an exported SavedModel")
    predict.add_argument("input", help="a folder in the competition's layout, NIfTI or DICOM, or a file")
    predict.add_argument("out", help="the folder for the predictions")
    predict.add_argument(
        "--format",
        choices=["submission", "nifti", "rtstruct", "png", "gif"],
        default="submission",
        help="of the predictions, see docs/prediction.md (%(default)s)",
    )

    export = _command(commands, "export", _export, "write a run's SavedModel")
    export.add_argument("run_folder", metavar="run")
    export.add_argument("out", nargs="?", help="gets 1/ (RUN/export)")

    service = _command(commands, "data-service", _data_service, "prepare training data in processes of their own")
    role = service.add_mutually_exclusive_group(required=True)
    role.add_argument("--dispatcher", action="store_true", help="run the dispatcher, whose address train.py takes")
    role.add_argument("--worker", action="store_true", help="run a worker")
    role.add_argument("--workers", type=int, metavar="N", help="run a dispatcher and N workers on this machine")
    service.add_argument("--dispatcher-address", metavar="grpc://HOST:PORT", help="of a worker's dispatcher")
    service.add_argument("--port", type=int, default=0, help="where to listen (a free one)")
    service.add_argument("--host", help="the name by which others reach this machine")
    service.set_defaults(wrong_usage=service.error)

    models = _command(commands, "models", _models, "what each network costs: parameters, operations, speed")
    models.add_argument("--architecture", help="this decoder alone, with each backbone")
    models.add_argument("--backbone", help="this encoder alone, with each architecture")
    models.add_argument("--size", type=int, default=256, help="height and width of a window (%(default)s)")
    models.add_argument("--slices", type=int, default=5, help="slices of a window (%(default)s)")
    models.add_argument(
        "--measure", action=argparse.BooleanOptionalAction, default=True, help="time inference, some seconds each"
    )
    models.add_argument("--csv", metavar="FILE.csv", help="write the table there too")

    _command(commands, "doctor", _doctor, "versions, devices, and what auto would choose")
    return parser


def _command(commands, name: str, run, purpose: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=purpose)
    parser.set_defaults(run=run)
    return parser


def _experiment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="YAML file; what it leaves out has the default (configs/default.yaml)")
    parser.add_argument("--data", help="TFRecords or a cohort; without it the phantom")
    parser.add_argument("--strategy", help="auto, one_device, mirrored, multiworker or tpu")
    parser.add_argument("--precision", help="auto, float32, mixed_float16 or mixed_bfloat16")
    parser.add_argument("--fold", type=_fold, help="the fold that is held out, or none: train on all, score nothing")
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
    return dict(map(parse_assignment, options.set)) | given


def _fold(text: str) -> int | str:
    if text != "none" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none")
    return text if text == "none" else int(text)


def _phantom(options) -> None:
    from gitseg_tf.data.phantom import make_phantom

    out = make_phantom(options.out, options.cases, options.days, options.slices, options.seed, options.workers)
    print(f"cohort     {out}\npicture    {out / 'preview.png'}")


def _convert(options) -> None:
    if options.verify is not None and not options.data:
        return _verify(options.verify)
    if options.verify is not None or options.data is None or (options.out is None and not options.dry_run):
        options.wrong_usage("give DATA and OUT, or DATA and --dry-run, or --verify OUT alone")
    if "://" in options.data + (options.out or ""):
        quiet.import_tensorflow()
    if options.dry_run:
        from gitseg_tf.data.summary import describe

        print(*describe(options.data), sep="\n")
        return
    from gitseg_tf.data.convert import convert

    dataset = convert(
        options.data,
        options.out,
        options.folds,
        options.seed,
        options.workers,
        options.resume,
        options.exclude,
        options.shard_mib << 20,
        options.runner,
        options.beam_options,
    )
    print(f"dataset    {dataset.root}: {_counts(dataset)}, {dataset.folds} folds")


def _verify(root: str) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.data.verify import verify_dataset

    dataset = verify_dataset(root)
    size = sum(shard.bytes for shard in dataset.shards) / 2**20
    print(
        f"verified   {dataset.root}: {len(dataset.shards)} shards ({size:.0f} MiB), {_counts(dataset)}: sizes, CRC-32, "
        "and every record's id, shape, spacing, slice numbers, percentiles and organ counts"
    )


def _counts(dataset) -> str:
    scans = [scan for shard in dataset.shards for scan in shard.scans]
    patients, slices = len({scan.case for scan in scans}), sum(scan.shape[0] for scan in scans)
    return f"{patients} patients, {len(scans)} scans, {slices} slices"


def _inspect(options) -> None:
    from gitseg_tf.data.dataset import is_dataset
    from gitseg_tf.files import as_path

    out = as_path(options.out)
    if out.suffix != ".html" or not out.parent.is_dir():
        raise InputError(f"--out {out}: give a file whose name ends in .html, in a folder that is there")
    if is_dataset(options.data):
        quiet.import_tensorflow()
    from gitseg_tf.data.inspect import inspect_data, summary_lines, write_page

    inspection = inspect_data(options.data)
    print("\n".join(summary_lines(inspection)), flush=True)
    write_page(inspection, out)
    print(f"page       {options.out}")
    if options.strict and any(finding.severity != "note" for finding in inspection.findings):
        found = inspection.counted("error", "warning")
        raise InputError(f"{options.data}: {found}, listed above and in {options.out}")


def _augment(options) -> None:
    from gitseg_tf.config import load_config, parse_assignment

    config = load_config(options.config, dict(map(parse_assignment, options.set)))
    quiet.import_tensorflow()
    from gitseg_tf.data.augment.preview import save_augment_preview
    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.files import as_path

    save_augment_preview(
        as_path(options.out), open_dataset(options.data or config.data.path, config.data.folds), config
    )
    print(f"picture    {options.out}")


def _train(options) -> None:
    from gitseg_tf.config import load_config
    from gitseg_tf.training.run_folder import choose_run, has_begun

    if options.overfit_batches is not None:
        return _overfit(options)
    overrides = _overrides(options)
    out = choose_run(options.out, load_config(options.config, overrides).name, options.resume)
    resumed = options.resume and has_begun(out)
    if options.resume and not resumed:
        print(f"starting   {out}, for there is nothing to resume")
    config = load_config(out / "config.yaml" if resumed and not options.config else options.config, overrides)

    quiet.import_tensorflow()
    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.evaluation.evaluate import evaluate, summary_lines
    from gitseg_tf.serving.export import export
    from gitseg_tf.training.trainer import train

    dataset = open_dataset(config.data.path, config.data.folds)
    run = train(config, dataset, out, options.resume)
    if run is None:
        return
    print(f"run        {out}", flush=True)
    if config.data.fold is None:
        print("scores     none, for no fold was held out")
    else:
        summary_lines(evaluate(run, dataset))
        print(f"report     {out / 'report.html'}")
    print(f"SavedModel {export(run)}")


def _overfit(options) -> None:
    from gitseg_tf.config import load_config
    from gitseg_tf.training.run_folder import choose_run

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


def _evaluate(options) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.evaluation.evaluate import evaluate, summary_lines

    run, dataset = _run_and_data(options)
    summary_lines(evaluate(run, dataset, options.fold))
    print(f"report     {run.path / 'report.html'}")


def _tune(options) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.evaluation.tune import tune

    tune(*_run_and_data(options), options.fold, options.dry_run)


def _run_and_data(options):
    """A run, and the dataset to judge it by: --data, or what it was trained on."""
    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.training.trainer import load_run

    run = load_run(options.run_folder)
    data = options.data or run.config.provenance.get("records")
    if data is None:
        raise InputError(f"{run.path}: its config does not say what it was trained on; name the data with --data")
    return run, open_dataset(data, run.config.data.folds)


def _predict(options) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.inference.predict import predict_cohort

    print(f"written    {predict_cohort(options.model, options.input, options.out, options.format)}")


def _export(options) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.serving.export import export
    from gitseg_tf.training.trainer import load_run

    print(f"SavedModel {export(load_run(options.run_folder), options.out)}")


def _data_service(options) -> None:
    if options.worker != bool(options.dispatcher_address):
        options.wrong_usage("--worker and --dispatcher-address go together")
    if options.workers is not None and options.host:
        options.wrong_usage("--workers are for this machine alone, without --host")
    quiet.import_tensorflow()
    from gitseg_tf.data.service_servers import run_dispatcher, run_local, run_worker

    say = partial(print, flush=True)
    if options.dispatcher:
        run_dispatcher(options.port, options.host, say)
    elif options.worker:
        run_worker(options.dispatcher_address, options.port, options.host, say)
    else:
        run_local(options.workers, options.port, say)


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
