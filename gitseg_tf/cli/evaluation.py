"""Commands that score runs and compare them."""

from gitseg_tf.cli.log import terminal_width
from gitseg_tf.cli.parsers import command, data_argument, reading, tta_argument
from gitseg_tf.core.tensorflow_import import import_tensorflow

_RUN = "the folder of a run"


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands."""
    examples = ["gitseg evaluate runs/default", "gitseg evaluate runs/default --data other_cohort --fold 0 --tta flip"]
    purpose = "score a run or a cross-validation and write a report"
    evaluate = command(commands, "evaluate", _evaluate, purpose, examples=examples)
    evaluate.add_argument("run_folder", metavar="run", help=f"{_RUN} or of a cross-validation")
    data_argument(evaluate)
    evaluate.add_argument("--fold", type=int, help="fold to score (default: the held-out fold)")
    tta_argument(evaluate)

    examples = ["gitseg compare runs/default runs/unet --out compare.png"]
    purpose = "compare the scores of two runs, patient by patient"
    compare = command(commands, "compare", _compare, purpose, examples=examples)
    compare.add_argument("one", metavar="run", help="a run or cross-validation that gitseg evaluate has scored")
    compare.add_argument("other", metavar="other", help="another run or cross-validation, scored on the same patients")
    compare.add_argument(
        "--out", default="compare.png", metavar="FILE.png", help="plot to write (default: %(default)s)"
    )

    examples = ["gitseg tune runs/default --dry-run", "gitseg tune runs/default"]
    purpose = "tune a run's post-processing on patients that it was not trained on"
    tune = command(commands, "tune", _tune, purpose, examples=examples)
    tune.add_argument("run_folder", metavar="run", help=_RUN)
    data_argument(tune)
    tune.add_argument("--fold", type=int, help="fold to tune on (default: the held-out fold)")
    tune.add_argument("--dry-run", action="store_true", help="show the gain of each step without saving anything")
    tta_argument(tune)


def _evaluate(options) -> None:
    from gitseg_tf.runs.cross_validation import is_cross_validation, read_cross_validation

    import_tensorflow()
    from gitseg_tf.cli.dataset import run_and_data
    from gitseg_tf.evaluation.evaluate import evaluate, summary_lines

    if is_cross_validation(options.run_folder):
        if options.fold is None:
            return _evaluate_folds(options)
        options.run_folder = read_cross_validation(options.run_folder).run_of(options.fold)
    run, dataset = run_and_data(options)
    print(*summary_lines(evaluate(run, dataset, options.fold), terminal_width()), sep="\n")
    print(f"report     {run.path / 'report.html'}")


def _evaluate_folds(options) -> None:
    from gitseg_tf.cli.dataset import open_data
    from gitseg_tf.evaluation.cross_validation import evaluate_cross_validation
    from gitseg_tf.evaluation.evaluate import summary_lines
    from gitseg_tf.runs.cross_validation import read_cross_validation

    folds = read_cross_validation(options.run_folder)
    data = options.data or folds.config.provenance["records"]
    dataset = open_data(data, len(folds.cases), **reading(options))
    scores = evaluate_cross_validation(folds.path, dataset, overrides=options.tta)
    print(*summary_lines(scores, terminal_width()), sep="\n")
    print(f"report     {folds.path / 'report.html'}")


def _compare(options) -> None:
    from gitseg_tf.evaluation.statistics.compare import (
        check_picture,
        compare,
        draw_comparison,
        read_evaluation,
        table_lines,
    )

    out = check_picture(options.out)
    comparison = compare(read_evaluation(options.one), read_evaluation(options.other))
    for line in table_lines(comparison):
        print(line)
    draw_comparison(out, comparison)
    print(f"picture    {out}")


def _tune(options) -> None:
    import_tensorflow()
    from gitseg_tf.cli.dataset import run_and_data
    from gitseg_tf.evaluation.tuning.tune import tune

    run, dataset = run_and_data(options)
    tune(run, dataset, fold=options.fold, dry_run=options.dry_run)
