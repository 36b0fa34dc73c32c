"""Commands that judge and use what was trained."""

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
    predict.add_argument("model", help="a run, or an exported SavedModel")
    predict.add_argument("input", help="a folder in the competition's layout, NIfTI or DICOM, or a file")
    predict.add_argument("out", help="the folder for the predictions")
    predict.add_argument(
        "--format",
        choices=["submission", "nifti", "rtstruct", "png", "gif"],
        default="submission",
        help="of the predictions, see docs/prediction.md (%(default)s)",
    )

    export = command(commands, "export", _export, "write a run's SavedModel")
    export.add_argument("run_folder", metavar="run")
    export.add_argument("out", nargs="?", help="gets 1/ (RUN/export)")

    view = command(commands, "view", _view, "look through scans, contours and predictions in a browser")
    view.add_argument("source", metavar="run_or_data", help="a run, TFRecords, or a folder of scans")
    view.add_argument("--data", help="of a run: TFRecords or a cohort (what the run trained on)")
    view.add_argument("--port", type=int, default=8750, help="of the page, 0 for any that is free (%(default)s)")
    view.add_argument("--host", default="127.0.0.1", help="who can see it: this machine alone (%(default)s)")
    view.add_argument("--allow", action="append", default=[], metavar="DIR", help="a folder that links may lead to")
    view.add_argument("--open", action="store_true", help="open the page in a browser")


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


def _view(options) -> None:
    from gitseg_tf.viewer.server import view

    view(options.source, options.data, options.allow, options.host, options.port, options.open)
