"""Commands that export a run's model and compare the exports."""

import argparse

from gitseg_tf.cli.parsers import command, data_argument, positive_integer
from gitseg_tf.core.tensorflow_import import import_tensorflow
from gitseg_tf.errors import RunError
from gitseg_tf.export.formats.registry import FORMATS

_FORMATS = FORMATS.names()


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands."""
    examples = ["gitseg export runs/default", "gitseg export runs/default models/gitseg --model-version next"]
    examples += ["gitseg export runs/default --format onnx,tflite-int8"]
    purpose = "export a run or cross-validation as a SavedModel, or a run's network for other runtimes"
    export = command(commands, "export", _export, purpose, examples=examples)
    export.add_argument("run_folder", metavar="run", help="the folder of a run or of a cross-validation")
    export.add_argument(
        "out",
        nargs="?",
        help="output folder, with a folder per version, such as 1/, and per other format (default: RUN/export)",
    )
    export.add_argument(
        "--format",
        type=_formats,
        default=["savedmodel"],
        metavar="NAME[,NAME...]",
        help=f"one or more of {', '.join(_FORMATS)}; see docs/how-to/serve.md (default: savedmodel)",
    )
    export.add_argument(
        "--model-version",
        type=_version,
        metavar="N",
        help="a version number, or next for one above the highest existing one (default: 1)",
    )
    export.add_argument(
        "--weights",
        choices=["float32", "bfloat16"],
        help="weight type of the SavedModel; bfloat16 halves its size, and is faster on hardware that supports it "
        "(default: float32)",
    )
    data_argument(export, "what the run was trained on", "; only for formats other than savedmodel")
    export.add_argument(
        "--representative",
        type=positive_integer,
        metavar="N",
        help="number of training windows to calibrate tflite-int8 with (default: 200)",
    )
    export.add_argument("--force", action="store_true", help="replace existing files, and allow an unfinished run")
    export.set_defaults(tta={})

    examples = ["gitseg formats runs/default", "gitseg formats runs/default --scans 2"]
    purpose = "compare the size, speed and scores of a run's exported formats"
    formats = command(commands, "formats", _compare_formats, purpose, examples=examples)
    formats.add_argument("run_folder", metavar="run", help="the folder of a run")
    formats.add_argument("out", nargs="?", help="the folder that gitseg export wrote (default: RUN/export)")
    data_argument(formats)
    formats.set_defaults(tta={})
    formats.add_argument(
        "--scans",
        type=positive_integer,
        metavar="N",
        help="use only the first N scans of the held-out fold (default: all)",
    )


def _export(options) -> None:
    if options.model_version is not None and "savedmodel" not in options.format:
        options.wrong_usage("--model-version requires the format savedmodel")
    if options.weights and "savedmodel" not in options.format:
        options.wrong_usage("--weights requires the format savedmodel")
    if options.data and options.format == ["savedmodel"]:
        options.wrong_usage("--data requires a format other than savedmodel")
    if options.representative and "tflite-int8" not in options.format:
        options.wrong_usage("--representative requires the format tflite-int8")
    import_tensorflow()
    from gitseg_tf.cli.dataset import run_and_data
    from gitseg_tf.export.savedmodel import export
    from gitseg_tf.runs.cross_validation import is_cross_validation
    from gitseg_tf.runs.ensemble import load_ensemble
    from gitseg_tf.runs.fusion import is_fusion
    from gitseg_tf.runs.run import load_run

    version, weights = options.model_version or 1, options.weights or "float32"
    folds = is_cross_validation(options.run_folder) or is_fusion(options.run_folder)
    if folds and options.format != ["savedmodel"]:
        other = next(name for name in options.format if name != "savedmodel")
        raise RunError(f"{options.run_folder}: several networks cannot be exported as {other}; export one of its runs")
    if options.format == ["savedmodel"]:
        run = load_ensemble(options.run_folder) if folds else load_run(options.run_folder)
        print(f"SavedModel {export(run, options.out, version=version, force=options.force, weights=weights)}")
        return
    from gitseg_tf.export.formats.export import REPRESENTATIVE, export_formats

    run, dataset = run_and_data(options)
    export_formats(
        run,
        dataset,
        options.format,
        out=options.out,
        version=version,
        force=options.force,
        representative=options.representative or REPRESENTATIVE,
        weights=weights,
    )


def _compare_formats(options) -> None:
    import_tensorflow()
    from gitseg_tf.cli.dataset import run_and_data
    from gitseg_tf.export.formats.comparison import compare_formats

    run, dataset = run_and_data(options)
    compare_formats(run, dataset, out=options.out, scans=options.scans)


def _formats(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in _FORMATS]:
        raise argparse.ArgumentTypeError(f"unknown format {unknown[0]!r}; allowed are {', '.join(_FORMATS)}")
    return names


def _version(text: str) -> int | str:
    if text == "next":
        return text
    if (number := positive_integer(text)) >= 1 << 63:  # TensorFlow Serving ignores versions beyond 63 bits
        raise argparse.ArgumentTypeError(f"must be below 2**63, got {text!r}")
    return number
