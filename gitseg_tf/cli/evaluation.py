"""Commands that score runs and compare them."""

from gitseg_tf.cli import ensembles
from gitseg_tf.cli.ensembles import per_label_argument
from gitseg_tf.cli.log import terminal_width
from gitseg_tf.cli.parsers import command, data_argument, reading, reading_arguments, tta_argument
from gitseg_tf.core.tensorflow_import import import_tensorflow

_RUN = "the folder of a run"


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands."""
    examples = ["gitseg evaluate runs/default", "gitseg evaluate runs/default --data other_cohort --tta flip"]
    purpose = "score a run or a cross-validation and write a report"
    evaluate = command(commands, "evaluate", _evaluate, purpose, examples=examples)
    evaluate.add_argument("run_folder", metavar="run", help=f"{_RUN}, of a cross-validation or of an ensemble")
    data_argument(evaluate)
    which = "fold to score (default: the held-out fold, or all scans of another dataset)"
    evaluate.add_argument("--fold", type=int, help=which)
    tta_argument(evaluate)

    examples = ["gitseg score predictions cohort --out scores/mine", "gitseg score submission.csv cohort"]
    purpose = "score the masks of any tool: NIfTI, RT structure sets, or a table"
    score = command(commands, "score", _score, purpose, examples=examples)
    score.add_argument("predictions", help="a folder or file of predicted masks; see docs/how-to/evaluate.md")
    score.add_argument("reference", help="a cohort with annotations, in any layout")
    score.add_argument("--out", metavar="DIR", help="folder for the scores and the report (default: only print)")
    score.add_argument("--force", action="store_true", help="replace other scores in --out")
    reading_arguments(score)

    examples = ["gitseg compare runs/default runs/unet --out compare.png"]
    purpose = "compare the scores of two runs, patient by patient"
    compare = command(commands, "compare", _compare, purpose, examples=examples)
    compare.add_argument("one", metavar="run", help="a run or cross-validation that gitseg evaluate has scored")
    compare.add_argument("other", metavar="other", help="another run or cross-validation, scored on the same patients")
    compare.add_argument(
        "--out", default="compare.png", metavar="FILE.png", help="plot to write (default: %(default)s)"
    )

    examples = [
        "gitseg tune runs/default --dry-run",
        "gitseg tune runs/default --metric score",
        "gitseg tune runs/folds",
    ]
    purpose = "tune the post-processing of a run or cross-validation on patients that it was not trained on"
    tune = command(commands, "tune", _tune, purpose, examples=examples)
    tune.add_argument("run_folder", metavar="run", help=f"{_RUN}, of a cross-validation or of an ensemble")
    data_argument(tune)
    tune.add_argument("--fold", type=int, help="fold to tune on (default: the held-out fold)")
    metric = "what to maximize: dice, score, score_volume or surface_dice (default: the run's evaluation.metric)"
    tune.add_argument("--metric", metavar="NAME", help=metric)
    tune.add_argument("--dry-run", action="store_true", help="show the gain of each step without saving anything")
    per_label_argument(tune, "for an ensemble: ")
    tta_argument(tune)


def _evaluate(options) -> None:
    from gitseg_tf.runs.cross_validation import is_cross_validation, read_cross_validation
    from gitseg_tf.runs.fusion import is_fusion

    import_tensorflow()
    from gitseg_tf.cli.dataset import run_and_data
    from gitseg_tf.evaluation.evaluate import evaluate, summary_lines
    from gitseg_tf.evaluation.scope import choose_scope

    if is_fusion(options.run_folder):
        return ensembles.evaluate(options)
    if is_cross_validation(options.run_folder):
        if options.fold is None:
            return _evaluate_folds(options)
        # The run of the fold is scored on the fold that it held out, or on all scans of another dataset.
        options.run_folder, options.fold = read_cross_validation(options.run_folder).run_of(options.fold), None
    run, dataset = run_and_data(options)
    print(*summary_lines(evaluate(run, dataset, options.fold), terminal_width()), sep="\n")
    print(f"report     {choose_scope(run, dataset, options.fold).folder / 'report.html'}")


def _evaluate_folds(options) -> None:
    from gitseg_tf.cli.dataset import open_data
    from gitseg_tf.evaluation.cross_validation import score_cross_validation
    from gitseg_tf.evaluation.evaluate import summary_lines
    from gitseg_tf.runs.cross_validation import read_cross_validation

    folds = read_cross_validation(options.run_folder)
    data = options.data or folds.config.provenance["records"]
    dataset = open_data(data, len(folds.cases), **reading(options))
    summary, folder = score_cross_validation(folds.path, dataset, overrides=options.tta)
    print(*summary_lines(summary, terminal_width()), sep="\n")
    print(f"report     {folder / 'report.html'}")


def _score(options) -> None:
    import_tensorflow()
    from gitseg_tf.evaluation.evaluate import summary_lines
    from gitseg_tf.evaluation.predictions import score_predictions

    summary = score_predictions(
        options.predictions, options.reference, options.out, force=options.force, **reading(options)
    )
    print(*summary_lines(summary, terminal_width()), sep="\n")
    if options.out:
        print(f"report     {options.out.rstrip('/')}/report.html")


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
    from gitseg_tf.runs.cross_validation import is_cross_validation, read_cross_validation
    from gitseg_tf.runs.fusion import is_fusion

    if options.per_label and not is_fusion(options.run_folder):
        options.wrong_usage("--per-label requires an ensemble of gitseg ensemble")
    import_tensorflow()
    from gitseg_tf.cli.dataset import open_data, run_and_data
    from gitseg_tf.evaluation.tuning.tune import tune

    if is_fusion(options.run_folder):
        if options.fold is not None:
            options.wrong_usage(
                "--fold does not apply to an ensemble, which is tuned on all folds that its runs held out"
            )
        ensembles.tune(options, options.run_folder)
        return
    if is_cross_validation(options.run_folder):
        from gitseg_tf.evaluation.tuning.cross_validation import tune_cross_validation

        folds = read_cross_validation(options.run_folder)
        if options.fold is None:
            data = options.data or folds.config.provenance["records"]
            dataset = open_data(data, len(folds.cases), **reading(options))
            tune_cross_validation(
                folds.path, dataset, overrides=options.tta, metric=options.metric, dry_run=options.dry_run
            )
            return
        options.run_folder = folds.run_of(options.fold)
    run, dataset = run_and_data(options)
    tune(run, dataset, fold=options.fold, metric=options.metric, dry_run=options.dry_run)
