"""Commands that learn from scans with few annotations."""

import argparse

from gitseg_tf.cli.parsers import command, data_argument, reading
from gitseg_tf.core.tensorflow_import import import_tensorflow
from gitseg_tf.core.text import plural
from gitseg_tf.errors import DataError


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands."""
    purpose = "predict missing annotations with a run or an ensemble, and write a dataset to train on"
    examples = ["gitseg pseudo-label runs/folds tfrecords/cohort tfrecords/cohort-pseudo"]
    examples += ["gitseg pseudo-label runs/folds unlabeled_scans tfrecords/more --confidence 0.95"]
    pseudo = command(commands, "pseudo-label", _pseudo_label, purpose, examples=examples)
    pseudo.add_argument("model", help="the folder of a run, cross-validation or ensemble; runs are averaged")
    pseudo.add_argument(
        "scans", help="TFRecords whose scans lack annotations, or a cohort without any, which is added to --data"
    )
    pseudo.add_argument("out", help="output folder, new or empty")
    pseudo.add_argument(
        "--confidence",
        type=_confidence,
        default=0.9,
        metavar="C",
        help="voxels with a probability between 1 - C and C are left out of the loss (default: %(default)s)",
    )
    pseudo.add_argument("--resume", action="store_true", help="resume an interrupted call")
    data_argument(pseudo, "what the model was trained on", " with annotations, to which a cohort is added")


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0.5 and less than 1, got {text!r}")
    return value


def _pseudo_label(options) -> None:
    import_tensorflow()
    from gitseg_tf.cli.dataset import open_data
    from gitseg_tf.data.readers.registry import read_cohort
    from gitseg_tf.data.tfrecords.dataset import is_dataset, load_dataset
    from gitseg_tf.inference.pseudo_labels import pseudo_label
    from gitseg_tf.runs.cross_validation import is_cross_validation
    from gitseg_tf.runs.ensemble import load_ensemble
    from gitseg_tf.runs.fusion import is_fusion
    from gitseg_tf.runs.run import load_run

    several = is_cross_validation(options.model) or is_fusion(options.model)
    model = load_ensemble(options.model) if several else load_run(options.model)
    more = None
    if is_dataset(options.scans):
        if options.data is not None:
            options.wrong_usage("--data names the dataset to which a cohort is added; SCANS is already a dataset")
        base = load_dataset(options.scans)
        if not base.folds:
            fix = f"give its cohort instead of {options.scans}"
            raise DataError(f"{options.scans}: none of its scans is annotated; {fix}, which is added to --data")
    else:
        # test/ is preferred to train/ without a table, so first look for annotations.
        more = read_cohort(options.scans)
        if annotated := [scan for scan in more.scans if scan.labeled]:
            fix = "convert it with gitseg convert, and give the TFRecords"
            raise DataError(f"{options.scans}: {plural(len(annotated), 'scan')} of it have annotations; {fix}")
        known = model.config.provenance
        if options.data is None and known.get("dataset") == "several":
            raise DataError(f"{model.path}: its runs were trained on different datasets; specify one with --data")
        data = options.data or known.get("records")
        if data is None:
            raise DataError(f"{model.path}: does not record its training data; specify it with --data")
        base = open_data(data, model.config.data.folds, **reading(options))
    dataset = pseudo_label(model, base, options.out, more=more, confidence=options.confidence, resume=options.resume)
    print(f"dataset    {dataset.root}: {dataset.pseudo_line}")
