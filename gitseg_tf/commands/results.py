"""Commands that judge and use what was trained."""

from functools import partial

from gitseg_tf import quiet
from gitseg_tf.commands.parsers import command
from gitseg_tf.errors import InputError


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands to argparse's subparsers."""
    evaluate = command(commands, "evaluate", _evaluate, "score a run and write its report")
    evaluate.add_argument("run_folder", metavar="run")
    evaluate.add_argument("--data", help="TFRecords or a cohort (what the run trained on)")
    evaluate.add_argument("--fold", type=int, help="the fold to score (the one held out)")

    tune = command(commands, "tune", _tune, "find a run's post-processing on patients that it has not seen")
    tune.add_argument("run_folder", metavar="run")
    tune.add_argument("--data", help="TFRecords or a cohort (what the run trained on)")
    tune.add_argument("--fold", type=int, help="the fold to tune on (the one held out)")
    tune.add_argument("--dry-run", action="store_true", help="show what each step gains, and save nothing")

    predict = command(commands, "predict", _predict, "segment the scans of a folder, or a single PNG or NIfTI file")
    predict.add_argument("model", nargs="*", help="a run, or an exported SavedModel")
    predict.add_argument("input", help="a folder in the competition's layout, NIfTI or DICOM, or a file")
    predict.add_argument("out", help="the folder for the predictions")
    predict.add_argument(
        "--format",
        choices=["submission", "nifti", "rtstruct", "png", "gif"],
        default="submission",
        help="of the predictions, see docs/prediction.md (%(default)s)",
    )
    predict.add_argument(
        "--server",
        metavar="URL",
        help="in place of MODEL: grpc://HOST:8500/NAME or http://HOST:8501/NAME, see docs/serving.md",
    )
    predict.add_argument("--timeout", type=_seconds, help="for a scan, with --server (300)", metavar="SECONDS")
    predict.set_defaults(wrong_usage=predict.error)

    export = command(commands, "export", _export, "write a run's SavedModel")
    export.add_argument("run_folder", metavar="run")
    export.add_argument("out", nargs="?", help="gets a folder a version, such as 1/ (RUN/export)")
    export.add_argument(
        "--model-version", type=_version, default=1, metavar="N", help="a number, or next: one more than is there (1)"
    )
    export.add_argument(
        "--force", action="store_true", help="replace a version that is there; take a run that has not finished"
    )


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


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def _predict(options) -> None:
    if bool(options.server) == bool(options.model):
        options.wrong_usage("give MODEL or --server, one of them")
    if options.timeout and not options.server:
        options.wrong_usage("--timeout is for --server")
    quiet.import_tensorflow()
    from gitseg_tf.inference.predict import predict_cohort

    if options.server:
        from gitseg_tf.serving.client import TIMEOUT, connect

        connect_to = partial(connect, timeout=options.timeout or TIMEOUT)
        out = predict_cohort(options.server, options.input, options.out, options.format, load=connect_to)
    else:
        (model,) = options.model
        out = predict_cohort(model, options.input, options.out, options.format)
    print(f"written    {out}")


def _export(options) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.serving.export import export
    from gitseg_tf.training.trainer import load_run

    run = load_run(options.run_folder)
    print(f"SavedModel {export(run, options.out, options.model_version, options.force)}")


def _version(text: str) -> int | str:
    if text == "next":
        return text
    number = int(text)
    if number < 1:
        raise ValueError
    return number
