"""The command that combines runs into an ensemble, and how other commands work on one."""

import argparse

from gitseg_tf.cli.parsers import command, data_argument, reading, tta_argument
from gitseg_tf.core.tensorflow_import import import_tensorflow


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands."""
    examples = ["gitseg ensemble runs/axial runs/coronal runs/3d --out runs/ensemble --tune"]
    examples += ["gitseg ensemble runs/a runs/b --out runs/ab --weights 2,1"]
    purpose = "combine runs or cross-validations into one model, with weights that can be tuned out of fold"
    ensemble = command(commands, "ensemble", _ensemble, purpose, examples=examples, intermixed=True)
    ensemble.add_argument(
        "members", nargs="+", metavar="run", help="the folders of two or more runs or cross-validations"
    )
    ensemble.add_argument("--out", required=True, metavar="DIR", help="folder for ensemble.yaml and its evaluations")
    ensemble.add_argument(
        "--weights", type=_weights, metavar="W,W,...", help="one weight per run, in this order (default: equal)"
    )
    ensemble.add_argument("--tune", action="store_true", help="choose weights and post-processing, as gitseg tune does")
    ensemble.add_argument("--force", action="store_true", help="replace an existing ensemble.yaml")
    ensemble.add_argument("--metric", metavar="NAME", help="with --tune: what to maximize, see gitseg tune")
    per_label_argument(ensemble, "with --tune: ")
    data_argument(ensemble, "what the first run was trained on", ", with --tune")
    tta_argument(ensemble)


def per_label_argument(parser: argparse.ArgumentParser, when: str) -> None:
    """Add --per-label."""
    parser.add_argument("--per-label", action="store_true", help=f"{when}also choose the weights of each label")


def _ensemble(options) -> None:
    if len(options.members) < 2:
        options.wrong_usage("give two or more runs")
    if options.weights and options.tune:
        options.wrong_usage("give --weights or --tune, not both")
    if options.weights and len(options.weights) != len(options.members):
        options.wrong_usage(f"--weights has {len(options.weights)} values, but there are {len(options.members)} runs")
    for name in ("metric", "data", "per_label", "tta"):
        if getattr(options, name) and not options.tune:
            options.wrong_usage(f"--{name.replace('_', '-')} requires --tune")
    import_tensorflow()
    from gitseg_tf.core.paths import as_path
    from gitseg_tf.errors import RunError
    from gitseg_tf.runs.ensemble import load_ensemble
    from gitseg_tf.runs.fusion import FusedMember, Fusion, check_fusion, write_fusion

    weights = options.weights or [1.0] * len(options.members)
    members = [FusedMember(as_path(path), weight) for path, weight in zip(options.members, weights, strict=True)]
    fusion = Fusion(as_path(options.out), tuple(members))
    if fusion.file.is_file() and not options.force:
        raise RunError(f"{fusion.file}: already exists; choose another folder, or replace it with --force")
    check_fusion(fusion)
    write_fusion(fusion)
    print(f"written    {fusion.file}, an ensemble of {len(load_ensemble(fusion.path).runs)} runs")
    if options.tune:
        tune(options, options.out)


def tune(options, path: str) -> None:
    """Tune an ensemble with the options of gitseg tune."""
    from gitseg_tf.evaluation.tuning.fusion import tune_ensemble

    tune_ensemble(
        path, _dataset(options, path), overrides=options.tta, metric=options.metric, per_label=options.per_label,
        dry_run=getattr(options, "dry_run", False),
    )  # fmt: skip


def evaluate(options) -> None:
    """Score an ensemble with the options of gitseg evaluate."""
    from gitseg_tf.cli.log import terminal_width
    from gitseg_tf.evaluation.ensemble import score_ensemble
    from gitseg_tf.evaluation.evaluate import summary_lines

    dataset = _dataset(options, options.run_folder)
    summary, folder = score_ensemble(options.run_folder, dataset, fold=options.fold, overrides=options.tta)
    print(*summary_lines(summary, terminal_width()), sep="\n")
    print(f"report     {folder / 'report.html'}")


def _dataset(options, path: str):
    """Open --data, or the dataset of the first run of an ensemble."""
    from gitseg_tf.cli.dataset import open_data
    from gitseg_tf.errors import ConfigError
    from gitseg_tf.runs.ensemble import load_ensemble

    config = load_ensemble(path).config
    data = options.data or config.provenance.get("records")
    if data is None:
        raise ConfigError(f"{path}: its first run does not record the training data; specify it with --data")
    return open_data(data, config.data.folds, **reading(options))


def _weights(text: str) -> list[float]:
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if not weights or not all(0 <= weight < float("inf") for weight in weights) or not sum(weights):
        raise argparse.ArgumentTypeError(f"must be numbers >= 0, separated by commas, got {text!r}")
    return weights
