"""Commands that judge and use what was trained."""

import argparse
from dataclasses import replace
from functools import partial

from gitseg_tf import quiet
from gitseg_tf.commands.parsers import command
from gitseg_tf.errors import InputError

_FORMATS = ("savedmodel", "onnx", "tflite-float16", "tflite-int8")


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands to argparse's subparsers."""
    evaluate = command(commands, "evaluate", _evaluate, "score a run or a cross-validation, and write a report")
    evaluate.add_argument("run_folder", metavar="run", help="the folder of a run, or of train.py --fold all")
    evaluate.add_argument("--data", help="TFRecords or a cohort (what the run trained on)")
    evaluate.add_argument("--fold", type=int, help="the fold to score (the one held out)")
    _tta_argument(evaluate)

    compare = command(commands, "compare", _compare, "compare the scores of two runs, patient by patient")
    compare.add_argument("one", metavar="run", help="scored by gitseg evaluate; a run or a cross-validation")
    compare.add_argument("other", metavar="other", help="another, on the same patients")
    compare.add_argument("--out", default="compare.png", metavar="FILE.png", help="the picture (%(default)s)")

    tune = command(commands, "tune", _tune, "find a run's post-processing on patients that it has not seen")
    tune.add_argument("run_folder", metavar="run")
    tune.add_argument("--data", help="TFRecords or a cohort (what the run trained on)")
    tune.add_argument("--fold", type=int, help="the fold to tune on (the one held out)")
    tune.add_argument("--dry-run", action="store_true", help="show what each step gains, and save nothing")
    _tta_argument(tune)

    purpose = "segment the scans of a folder, or a single PNG or NIfTI file"
    predict = command(commands, "predict", _predict, purpose, intermixed=True)
    predict.add_argument(
        "models",
        nargs="*",
        metavar="model",
        help="a run, what gitseg export wrote, or a cross-validation; of several the mean of their probabilities",
    )
    predict.add_argument("input", help="a folder in the competition's layout, NIfTI or DICOM, or a file")
    predict.add_argument("out", help="the folder for the predictions")
    predict.add_argument(
        "--format",
        choices=["submission", "nifti", "rtstruct", "png", "gif"],
        default="submission",
        help="of the predictions, see docs/prediction.md (%(default)s)",
    )
    _tta_argument(predict)
    predict.add_argument("--postprocess", metavar="FILE.yaml", help="its section postprocess, not the models' own")
    predict.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of evaluation or postprocess, dotted"
    )
    predict.add_argument(
        "--server",
        metavar="URL",
        help="in place of MODEL: grpc://HOST:8500/NAME or http://HOST:8501/NAME, see docs/serving.md",
    )
    predict.add_argument("--timeout", type=_seconds, help="for a scan, with --server (300)", metavar="SECONDS")
    predict.set_defaults(wrong_usage=predict.error)

    export = command(commands, "export", _export, "write a run's SavedModel, or its network for other runtimes")
    export.add_argument("run_folder", metavar="run")
    export.add_argument("out", nargs="?", help="gets a folder a version, such as 1/, and one a format (RUN/export)")
    export.add_argument(
        "--format",
        type=_formats,
        default=["savedmodel"],
        metavar="NAME[,NAME...]",
        help=f"of {', '.join(_FORMATS)}, see docs/serving.md (savedmodel)",
    )
    export.add_argument(
        "--model-version", type=_version, metavar="N", help="a number, or next: one more than is there (1)"
    )
    export.add_argument(
        "--weights",
        choices=["float32", "bfloat16"],
        help="of the SavedModel; bfloat16: half the size, and faster where the hardware has it (float32)",
    )
    export.add_argument("--data", help="for the other formats: TFRecords or a cohort (what the run trained on)")
    export.add_argument(
        "--representative",
        type=_count,
        metavar="N",
        help="windows of the training folds that tflite-int8 is fitted to (200)",
    )
    export.add_argument("--force", action="store_true", help="replace what is there; take a run that has not finished")
    export.set_defaults(tta={}, wrong_usage=export.error)

    formats = command(commands, "formats", _compare_formats, "size, time and scores of a run's exported formats")
    formats.add_argument("run_folder", metavar="run")
    formats.add_argument("out", nargs="?", help="where gitseg export wrote them (RUN/export)")
    formats.add_argument("--data", help="TFRecords or a cohort (what the run trained on)")
    formats.set_defaults(tta={})
    formats.add_argument("--scans", type=_count, metavar="N", help="of the held-out fold the first ones alone (all)")

    view = command(commands, "view", _view, "look through scans, contours and predictions in a browser")
    view.add_argument("source", metavar="run_or_data", help="a run, TFRecords, or a folder of scans")
    view.add_argument("--data", help="of a run: TFRecords or a cohort (what the run trained on)")
    view.add_argument("--port", type=int, default=8750, help="of the page, 0 for any that is free (%(default)s)")
    view.add_argument("--host", default="127.0.0.1", help="who can see it: this machine alone (%(default)s)")
    view.add_argument("--allow", action="append", default=[], metavar="DIR", help="a folder that links may lead to")
    view.add_argument("--open", action="store_true", help="open the page in a browser")


def _tta_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tta",
        type=_tta,
        metavar="flip,scale",
        default={},
        help="test-time augmentation: flip, scale (0.9 and 1.1), both, or none (as the config has it)",
    )


def _tta(text: str) -> dict:
    """The config keys that --tta sets."""
    names = text.split(",")
    if names != ["none"] and not set(names) <= {"flip", "scale"}:
        raise argparse.ArgumentTypeError(f"{text!r} is none of flip, scale, flip,scale and none")
    return {"evaluation.tta.flip": "flip" in names, "evaluation.tta.scales": [0.9, 1.1] if "scale" in names else []}


def _evaluate(options) -> None:
    from gitseg_tf.training.cross_validation import is_cross_validation, read_cross_validation

    quiet.import_tensorflow()
    from gitseg_tf.evaluation.evaluate import evaluate, summary_lines

    if is_cross_validation(options.run_folder):
        if options.fold is None:
            return _evaluate_folds(options)
        options.run_folder = read_cross_validation(options.run_folder).run_of(options.fold)
    run, dataset = _run_and_data(options)
    summary_lines(evaluate(run, dataset, options.fold))
    print(f"report     {run.path / 'report.html'}")


def _evaluate_folds(options) -> None:
    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.evaluation.evaluate import summary_lines
    from gitseg_tf.evaluation.out_of_fold import evaluate_cross_validation
    from gitseg_tf.training.cross_validation import read_cross_validation

    folds = read_cross_validation(options.run_folder)
    dataset = open_dataset(options.data or folds.config.provenance["records"], len(folds.cases))
    summary_lines(evaluate_cross_validation(folds.path, dataset, overrides=options.tta))
    print(f"report     {folds.path / 'report.html'}")


def _compare(options) -> None:
    from gitseg_tf.evaluation.compare import check_picture, compare, draw_comparison, read_evaluation, table_lines

    out = check_picture(options.out)
    comparison = compare(read_evaluation(options.one), read_evaluation(options.other))
    for line in table_lines(comparison):
        print(line)
    draw_comparison(out, comparison)
    print(f"picture    {out}")


def _tune(options) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.evaluation.tune import tune

    tune(*_run_and_data(options), options.fold, options.dry_run)


def _run_and_data(options):
    """A run, and the dataset to judge it by: --data, or what it was trained on."""
    from gitseg_tf.config import with_overrides
    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.inference.predictor import doubtful_augmentation
    from gitseg_tf.training.trainer import load_run

    run = load_run(options.run_folder)
    run = replace(run, config=with_overrides(run.config, options.tta, run.path))
    for line in doubtful_augmentation(run.path, run.config):
        print(f"warning    {line}")
    data = options.data or run.config.provenance.get("records")
    if data is None:
        raise InputError(f"{run.path}: its config does not say what it was trained on; name the data with --data")
    return run, open_dataset(data, run.config.data.folds)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _predict(options) -> None:
    if bool(options.server) == bool(options.models):
        options.wrong_usage("give MODEL or --server, one of them")
    if options.timeout and not options.server:
        options.wrong_usage("--timeout is for --server")
    if options.server and (options.tta or options.set or options.postprocess):
        options.wrong_usage("--tta, --set and --postprocess are for MODEL: what is served is as it was exported")
    quiet.import_tensorflow()
    from gitseg_tf.config import parse_assignment
    from gitseg_tf.inference.predict import predict_cohort

    if options.server:
        from gitseg_tf.serving.client import TIMEOUT, connect

        models, load = options.server, partial(connect, timeout=options.timeout or TIMEOUT)
    else:
        from gitseg_tf.inference.predictor import load_predictor

        overrides = options.tta | dict(map(parse_assignment, options.set))
        models, load = options.models, partial(load_predictor, overrides=overrides, postprocess=options.postprocess)
    out = predict_cohort(models, options.input, options.out, options.format, load=load)
    print(f"written    {out}")


def _export(options) -> None:
    if options.model_version is not None and "savedmodel" not in options.format:
        options.wrong_usage("--model-version is for savedmodel")
    if options.weights and "savedmodel" not in options.format:
        options.wrong_usage("--weights is for savedmodel")
    if options.data and options.format == ["savedmodel"]:
        options.wrong_usage("--data is for the formats that are compared with float32, not for savedmodel")
    if options.representative and "tflite-int8" not in options.format:
        options.wrong_usage("--representative is for tflite-int8")
    quiet.import_tensorflow()
    from gitseg_tf.serving.export import export
    from gitseg_tf.training.trainer import load_run

    version, weights = options.model_version or 1, options.weights or "float32"
    if options.format == ["savedmodel"]:
        run = load_run(options.run_folder)
        print(f"SavedModel {export(run, options.out, version, options.force, weights=weights)}")
        return
    from gitseg_tf.serving.formats import REPRESENTATIVE, export_formats

    run, dataset = _run_and_data(options)
    representative = options.representative or REPRESENTATIVE
    export_formats(run, dataset, options.format, options.out, version, options.force, representative, weights=weights)


def _compare_formats(options) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.serving.comparison import compare_formats

    compare_formats(*_run_and_data(options), options.out, options.scans)


def _view(options) -> None:
    from gitseg_tf.viewer.server import view

    view(options.source, options.data, options.allow, options.host, options.port, options.open)


def _formats(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in _FORMATS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_FORMATS)}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _version(text: str) -> int | str:
    if text == "next":
        return text
    if (number := _count(text)) >= 1 << 63:  # of 64 bits in TensorFlow Serving, which passes over others
        raise argparse.ArgumentTypeError(f"{text!r} is more than 63 bits")
    return number
