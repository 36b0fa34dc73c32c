"""The command that prepares the distillation of an ensemble into a single network."""

from gitseg_tf.cli.parsers import command, folds_argument, reading, reading_arguments, tta_argument
from gitseg_tf.config.loss import TEACHER_MEMBERS
from gitseg_tf.core.tensorflow_import import import_tensorflow


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands."""
    purpose = "add the probabilities of a teacher to a dataset, for training a single network on them"
    examples = ["gitseg distill runs/cv tfrecords/cohort tfrecords/distilled"]
    examples += ["gitseg distill runs/cv_2d runs/cv_3d cohort tfrecords/distilled --tta flip"]
    distill = command(commands, "distill", _distill, purpose, examples=examples, intermixed=True)
    distill.add_argument(
        "models",
        nargs="+",
        metavar="teacher",
        help="an ensemble, or runs, exports and cross-validations, whose probabilities are averaged",
    )
    distill.add_argument("data", help="TFRecords or a cohort; scans without annotation are used too")
    distill.add_argument("out", help="folder of the new dataset, for gitseg train --data")
    distill.add_argument(
        "--members",
        choices=TEACHER_MEMBERS,
        default=TEACHER_MEMBERS[0],
        help="networks that predict a scan: those that were not trained on its patient, or all (default: %(default)s)",
    )
    tta_argument(distill)
    folds_argument(distill, "5, if DATA has to be converted")
    reading_arguments(distill)
    distill.add_argument("--force", action="store_true", help="replace an existing dataset")


def _distill(options) -> None:
    import_tensorflow()
    from gitseg_tf.cli.dataset import open_data
    from gitseg_tf.inference.distill import distill

    dataset = open_data(options.data, 5 if options.folds is None else options.folds, **reading(options))
    out = distill(
        options.models, dataset, options.out, members=options.members, overrides=options.tta, force=options.force
    )
    print(f"dataset    {out.root}; train on it with gitseg train --data {out.root}")
