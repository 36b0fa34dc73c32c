"""Commands that segment scans and show them."""

from functools import partial
from typing import Any

from gitseg_tf.cli.parsers import command, positive_number, reading, reading_arguments, set_argument, tta_argument
from gitseg_tf.core.tensorflow_import import import_tensorflow
from gitseg_tf.inference.writers.registry import WRITERS


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands."""
    purpose = "segment the scans of a folder, or a single PNG or NIfTI file"
    examples = ["gitseg predict runs/default scans predictions --preview --report predictions/report.json"]
    examples += ["gitseg predict runs/a runs/b scans predictions --format nifti --tta flip"]
    examples += ["gitseg predict --server grpc://localhost:8500/gitseg scans predictions"]
    predict = command(commands, "predict", _predict, purpose, examples=examples, intermixed=True)
    predict.add_argument(
        "models",
        nargs="*",
        metavar="model",
        help="a run, an export or a cross-validation, the probabilities of several are averaged; or an ensemble",
    )
    predict.add_argument("input", help="a folder in the competition's layout, NIfTI or DICOM, or a single file")
    predict.add_argument("out", help="output folder")
    predict.add_argument(
        "--format",
        choices=WRITERS.names(),
        help="output format; see docs/how-to/predict.md "
        "(default: submission for the competition's labels, nifti for any others)",
    )
    predict.add_argument(
        "--save-probabilities", action="store_true", help="also write OUT/SCAN/probabilities/LABEL.nii.gz"
    )
    predict.add_argument(
        "--preview",
        action="store_true",
        help="also write OUT/previews/SCAN.png: slices with contours, and the volume of each label",
    )
    predict.add_argument(
        "--report",
        metavar="FILE.json",
        help="also write volumes, warnings, versions and timings of all scans to a file",
    )
    tta_argument(predict)
    predict.add_argument(
        "--postprocess", metavar="FILE.yaml", help="use this file's postprocess section instead of the models'"
    )
    set_argument(predict, "a key of evaluation or postprocess")
    predict.add_argument(
        "--server",
        metavar="URL",
        help="use a model server instead: grpc://HOST:8500/NAME or http://HOST:8501/NAME; see docs/how-to/serve.md",
    )
    predict.add_argument(
        "--timeout", type=positive_number, help="time limit per scan, with --server (default: 300)", metavar="SECONDS"
    )

    purpose = "browse scans, contours and predictions on a local web page"
    examples = ["gitseg view cohort", "gitseg view runs/default --data cohort --open"]
    view = command(commands, "view", _view, purpose, examples=examples)
    view.add_argument("source", metavar="run_or_data", help="a run, TFRecords, or a folder of scans")
    view.add_argument("--data", help="with a run: TFRecords or a cohort (default: what the run was trained on)")
    view.add_argument(
        "--port", type=int, default=8750, help="port to listen on; 0 takes any free port (default: %(default)s)"
    )
    view.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 127.0.0.1 is this machine only (default: %(default)s)",
    )
    view.add_argument(
        "--allow", action="append", default=[], metavar="DIR", help="another folder that links may point to; repeatable"
    )
    view.add_argument("--open", action="store_true", help="open the page in a browser")
    reading_arguments(view)


def _predict(options) -> None:
    if bool(options.server) == bool(options.models):
        options.wrong_usage("give either MODEL or --server")
    if options.timeout and not options.server:
        options.wrong_usage("--timeout requires --server")
    if options.server and (options.tta or options.set or options.postprocess):
        options.wrong_usage("--tta, --set and --postprocess require MODEL; a server runs the model as it was exported")
    if options.server and options.save_probabilities:
        options.wrong_usage("--save-probabilities requires MODEL; a server returns masks only")
    import_tensorflow()
    from gitseg_tf.config import parse_assignment
    from gitseg_tf.inference.predict import predict_cohort

    models: Any
    load: Any
    if options.server:
        from gitseg_tf.client.client import TIMEOUT, connect

        models, load = options.server, partial(connect, timeout=options.timeout or TIMEOUT)
    else:
        from gitseg_tf.inference.predictor import load_predictor

        overrides = options.tta | dict(map(parse_assignment, options.set))
        models, load = options.models, partial(load_predictor, overrides=overrides, postprocess=options.postprocess)
    out = predict_cohort(
        models,
        options.input,
        options.out,
        output=options.format,
        load=load,
        save_probabilities=options.save_probabilities,
        preview=options.preview,
        report=options.report,
    )
    print(f"written    {out}")


def _view(options) -> None:
    from gitseg_tf.viewer.server import view

    view(
        options.source,
        options.data,
        allowed=options.allow,
        host=options.host,
        port=options.port,
        open_browser=options.open,
        **reading(options),
    )
