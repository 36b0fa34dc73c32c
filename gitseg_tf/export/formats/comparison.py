"""Compare the exported formats of a run: size, time per window, scores on the held-out patients."""

import io
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from gitseg_tf.config import Config
from gitseg_tf.core.paths import AnyPath, as_path, file_size, write_atomically
from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.selection import select_labels
from gitseg_tf.data.tfrecords.dataset import Dataset, read_scans
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.errors import RunError
from gitseg_tf.evaluation.evaluate import scans_of_fold
from gitseg_tf.evaluation.metrics.scores import score_scan, summarize
from gitseg_tf.export.formats.export import check_trained_on, compared_windows
from gitseg_tf.export.formats.registry import FORMATS, SAVED_MODEL
from gitseg_tf.export.model_card import with_section
from gitseg_tf.inference.ensemble import Member
from gitseg_tf.inference.exported import exported_file, exported_version
from gitseg_tf.inference.networks import open_model, run_probabilities
from gitseg_tf.inference.postprocess import label_settings
from gitseg_tf.inference.predictor import Predictor
from gitseg_tf.runs.matching import check_matches
from gitseg_tf.runs.run import Run, weights_digest

logger = logging.getLogger(__name__)

TABLE = "formats.csv"
HEADING = "## Size, time and scores of each format"
_LEAST_ROUNDS, _CALLS, _SECONDS = 5, 5, 1.0
_FLOAT32 = "float32"


@dataclass(frozen=True)
class FormatRow:
    """A format of a run.

    Attributes:
        format: its name.
        mib: size of the network in MiB: the file, or the SavedModel's graph and variables.
        ms: median time for a single window on this machine, in milliseconds.
        dice, score: means over scans and labels, as in `gitseg evaluate`.
        dice_loss: decrease of the Dice compared with the run's network in float32.
    """

    format: str
    mib: float
    ms: float
    dice: float
    score: float
    dice_loss: float


def compare_formats(
    run: Run,
    dataset: Dataset,
    out: str | AnyPath | None = None,
    *,
    scans: int | None = None,
) -> list[FormatRow]:
    """Measure and score the exports of a run, compared with its network in float32; log and write the table.

    All are scored with the run's test-time augmentation and post-processing, as `gitseg predict` segments scans. The
    table is written to out/formats.csv and to the model card of each format.

    Args:
        run: the run that was exported.
        dataset: the dataset on which the run was trained; the fold that it held out is scored.
        out: the folder of `gitseg export`; None is RUN/export.
        scans: number of scans of the fold to score; None is all.

    Returns:
        The rows, the SavedModel first if there is one.

    Raises:
        RunError: no exports, an export of other weights, another dataset, no fold was held out, no scan is annotated,
            or a damaged shard.
        DependencyError: a runtime is missing.
    """
    out = as_path(out or run.path / "export")
    exports = _find_exports(out)
    check_trained_on(run, dataset)
    check_matches(run.config, dataset)
    fold, entries = scans_of_fold(run, dataset, None)
    entries = entries[:scans]
    if not any(any(entry.label_slices.values()) for entry in entries):
        raise RunError(
            f"{dataset.root}: no label to score in {plural(len(entries), 'scan')} of fold {fold}; use more scans"
        )
    digest = weights_digest(run)
    networks = {name: _open(run, path, digest) for name, path in exports.items()}
    window = compared_windows(dataset, run.config)[:1]
    means = {
        name: _scores(name, network, run.config, dataset, fold, entries)
        for name, network in {_FLOAT32: run_probabilities(run), **networks}.items()
    }
    exact, times = means.pop(_FLOAT32)["dice"], _milliseconds(networks, window)
    rows = [
        FormatRow(name, _mib(exports[name]), times[name], mean["dice"], mean["score"], exact - mean["dice"])
        for name, mean in means.items()
    ]
    for line in lines(rows):
        logger.info(line)
    how = _how(len(entries), fold, exact)
    logger.info(how)
    _write(out, rows, how)
    logger.info("written    %s", out / TABLE)
    return rows


def lines(rows: list[FormatRow]) -> list[str]:
    """Format the table as text."""
    text = [f"{'format':<16}{'MiB':>8}{'ms':>9}{'Dice':>8}{'score':>8}{'Dice lost':>11}"]
    for row in rows:
        mib, ms, dice, score, lost = _cells(row)
        text.append(f"{row.format:<16}{mib:>8}{ms:>9}{dice:>8}{score:>8}{lost:>11}")
    return text


def _cells(row: FormatRow) -> list[str]:
    # Adding 0 avoids a negative zero.
    return [
        f"{row.mib:.2f}",
        f"{row.ms:.2f}",
        *(f"{round(x, 4) + 0:.4f}" for x in (row.dice, row.score, row.dice_loss)),
    ]


def _find_exports(out: AnyPath) -> dict[str, AnyPath]:
    saved = exported_version(out)
    exports = {} if saved in (None, out) else {SAVED_MODEL: saved}
    exports |= {name: out / name for name in FORMATS.names(network_alone=True) if (out / name).is_dir()}
    if not exports:
        raise RunError(f"{out}: has no folder such as 1 or onnx; give the folder that gitseg export wrote")
    return exports


def _open(run: Run, path: AnyPath, digest: str) -> Callable:
    _, config, load = open_model(path)
    if config.provenance.get("best_weights") != digest:
        raise RunError(f"{path}: was not exported from the current {run.weights}; export the run again")
    return load()


def _scores(name: str, network: Callable, config: Config, dataset: Dataset, fold: int, entries: list) -> dict:
    # Files of other formats have no presence head, so no format uses it here.
    settings = [steps.model_copy(update={"min_presence": 0.0}) for steps in label_settings(config)]
    predictor = Predictor([Member(name, network, config)], settings)
    rows, chosen = [], {entry.id for entry in entries}
    with naming_damaged_shards(dataset):
        scans = (scan for scan in read_scans(dataset, [fold]) if scan.id in chosen)
        for scan in progress(scans, f"score {name}", total=len(entries), unit="scan"):
            masks = predictor.predict(scan.volume).masks
            rows += score_scan(
                scan.id, scan.case, select_labels(scan.reference, dataset.labels, config.label_set), masks,
                labels=config.label_set, spacing=scan.volume.spacing, numbers=scan.volume.numbers,
                tolerance_mm=config.evaluation.tolerance_mm,
            )  # fmt: skip
    return summarize(pd.DataFrame(rows))


def _milliseconds(networks: dict[str, Callable], window: np.ndarray) -> dict[str, float]:
    """Measure median times in ms; the networks take turns, so that other load on the machine affects all of them."""
    taken: dict[str, list[float]] = {name: [] for name in networks}
    rounds, end = 0, time.perf_counter() + _SECONDS * len(networks)
    while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
        rounds += 1
        for name, network in networks.items():
            for call in range(_CALLS):
                start = time.perf_counter()
                np.asarray(network(window))
                # Skip the first call: threads of the previous runtime may still be spinning.
                if call:
                    taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(times)) for name, times in taken.items()}


def _mib(path: AnyPath) -> float:
    file = exported_file(path)
    parts = [file] if file else [path / "saved_model.pb", *(path / "variables").glob("*")]
    return sum(map(file_size, parts)) / 2**20


def _how(scans: int, fold: int, exact: float) -> str:
    return (
        f"Scores are means over {plural(scans, 'scan')} of fold {fold}, which the run held out; Dice lost is relative "
        f"to the float32 network ({exact:.4f}); ms is the median time of one window on {os.cpu_count()} processors "
        f"({platform.machine()})."
    )


def _write(out: AnyPath, rows: list[FormatRow], how: str) -> None:
    text = io.StringIO()
    pd.DataFrame([asdict(row) for row in rows]).to_csv(text, index=False)
    write_atomically(out / TABLE, text.getvalue().encode())
    table = ["| format | MiB | ms | Dice | score | Dice lost |", "| --- |" + " --- |" * 5]
    table += [f"| {row.format} | {' | '.join(_cells(row))} |" for row in rows]
    for row in rows:
        if row.format == SAVED_MODEL:
            continue
        card = out / row.format / "model_card.md"
        section = "\n".join([HEADING, "", *table, "", how, ""])
        write_atomically(card, with_section(card.read_text(encoding="utf-8"), HEADING, section).encode())
