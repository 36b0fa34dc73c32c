"""Finding a run's post-processing on the patients it did not train on."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import tensorflow as tf
import yaml

from gitseg_tf import __version__
from gitseg_tf.data.dataset import Dataset, read_scans
from gitseg_tf.data.records import unpack_masks
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.evaluation.evaluate import scans_of_fold
from gitseg_tf.evaluation.tuning import PairScores, Step, search, table_lines
from gitseg_tf.files import write_atomically
from gitseg_tf.inference.ensemble import tta_words
from gitseg_tf.inference.exported import exported_config, exported_version
from gitseg_tf.inference.predictor import make_scan_function, run_probabilities
from gitseg_tf.progress import progress
from gitseg_tf.sections.evaluation import TtaConfig
from gitseg_tf.sections.postprocess import PostprocessConfig
from gitseg_tf.training.run_folder import TUNED
from gitseg_tf.training.trainer import Run


def tune(
    run: Run,
    dataset: Dataset,
    fold: int | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[PostprocessConfig, list[Step]]:
    """Search for the post-processing with the highest score, show what each step gains, and save it with the run.

    Each scan is predicted once; its probabilities stay in a temporary folder for the search. Post-processing that the
    run has already does not count: the search begins with all off. The test-time augmentation under which it was
    found is saved with it.

    Args:
        run: a trained run; its config says with what test-time augmentation.
        dataset: with contours.
        fold: the fold to tune on; None is the one that the run held out.
        dry_run: write nothing.
        say: takes lines for the user.

    Returns:
        The section `postprocess` that was found, and what was taken.

    Raises:
        InputError: no such fold, no contours, a patient that the run was trained on, or a damaged shard.
    """
    fold, scans = scans_of_fold(run, dataset, fold)
    cases = sorted({scan.case for scan in scans})
    _check_unseen(run, cases, fold)
    threshold = run.config.evaluation.threshold
    with tempfile.TemporaryDirectory(prefix="gitseg-tune-") as folder:
        pairs = PairScores(Path(folder), threshold)
        _predict(run, dataset, fold, len(scans), pairs)
        if not pairs.organs:
            raise InputError(f"{dataset.root}: no scan of fold {fold} has contours of any organ; choose another --fold")
        bar = partial(progress, title="tune", unit="step")
        found, steps, before = search(pairs.means, pairs.organs, threshold, bar)
    after = steps[-1].after if steps else before
    for line in table_lines(steps):
        say(line)
    say(f"score      {before:.4f} before, {after:.4f} after, on the {len(scans)} scans of fold {fold}")
    settings = PostprocessConfig(**found)
    if dry_run:
        say("saved      nothing, for this is a dry run")
        return settings, steps
    tuned = {
        "fold": fold,
        "dataset": dataset.source["fingerprint"],
        "cases": cases,
        "scans": [scan.id for scan in scans],
        "score_before": before,
        "score_after": after,
        "gitseg_tf": __version__,
    }
    tta = run.config.evaluation.tta
    tree = {
        "evaluation": {"tta": tta.model_dump(mode="json")},
        "postprocess": settings.model_dump(mode="json"),
        "provenance": {"tuned": tuned},
    }
    write_atomically(run.path / TUNED, yaml.safe_dump(tree, sort_keys=False).encode())
    with_tta = f", with test-time augmentation ({tta_words(run.config)})" if tta != TtaConfig() else ""
    say(f"saved      {run.path / TUNED}{with_tta}")
    for line in _stale_export(run, settings):
        say(line)
    return settings, steps


def _stale_export(run: Run, settings: PostprocessConfig) -> Iterator[str]:
    """A line if the run's own export cleans masks otherwise than was found now."""
    exported = exported_version(run.path / "export")
    if exported is None:
        return
    before = exported_config(exported)
    if (before.postprocess, before.evaluation.tta) != (settings, run.config.evaluation.tta):
        version = "" if exported.name == "1" else f"--model-version {exported.name} "
        yield f"stale      {exported} still is as before; gitseg export {run.path} {version}--force replaces it"


def _check_unseen(run: Run, cases: list[str], fold: int) -> None:
    trained_on = run.config.provenance.get("trained_on")
    if trained_on is None:
        raise InputError(f"{run.path / 'config.yaml'}: does not say which patients the run was trained on; train anew")
    seen = sorted(set(cases) & set(trained_on))
    if seen:
        raise InputError(
            f"{run.path}: was trained on {', '.join(seen)} of fold {fold}; tune on patients that it has not seen"
        )


def _predict(run: Run, dataset: Dataset, fold: int, count: int, pairs: PairScores) -> None:
    find = make_scan_function(run_probabilities(run), run.config, tf.identity)
    with naming_damaged_shards(dataset):
        scans = read_scans(dataset, [fold], run.config.data.exclude_scans)
        for scan in progress(scans, "predict", count, "scan"):
            probabilities = find(scan["image"], scan["numbers"], scan["percentiles"], scan["spacing"])
            pairs.add(probabilities, unpack_masks(scan["bits"]), scan["numbers"], scan["spacing"])
