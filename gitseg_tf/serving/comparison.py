"""What each exported format costs and what it is worth: size, time a window, scores on the held-out patients."""

import io
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from gitseg_tf.config import Config
from gitseg_tf.data.dataset import Dataset, read_scans
from gitseg_tf.data.records import unpack_masks
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.evaluation.evaluate import scans_of_fold
from gitseg_tf.evaluation.scores import score_scan, summarise
from gitseg_tf.files import AnyPath, as_path, file_size, write_atomically
from gitseg_tf.inference.exported import exported_file, exported_version
from gitseg_tf.inference.predictor import make_predictor, open_model, run_probabilities
from gitseg_tf.progress import progress
from gitseg_tf.serving.card import with_section
from gitseg_tf.serving.conversion import FORMATS
from gitseg_tf.serving.export import weights_digest
from gitseg_tf.serving.formats import SAVED_MODEL, check_trained_on, compared_windows
from gitseg_tf.training.trainer import Run

TABLE = "formats.csv"
HEADING = "## Size, time and scores of each format"
_LEAST_ROUNDS, _CALLS, _SECONDS = 5, 5, 1.0
_FLOAT32 = "float32"


@dataclass(frozen=True)
class FormatRow:
    """A format of a run.

    Attributes:
        format: its name.
        mib: of the network, in MiB: the file, or the SavedModel's graph and variables.
        ms: median time of a window alone, in milliseconds, on this machine.
        dice, score: means over scans and organs, as of `gitseg evaluate`.
        dice_loss: what the Dice of the run's network in float32 is higher by.
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
    scans: int | None = None,
    say: Callable[[str], None] = print,
) -> list[FormatRow]:
    """Measure and score what was exported of a run, against its network in float32; print the table, and write it.

    All are scored with the run's own test-time augmentation and post-processing, scan by scan as `gitseg predict`
    segments them. The table goes to out/formats.csv, and into the model card of each format.

    Args:
        run: that they were exported from.
        dataset: that the run was trained on, with contours; the fold that it held out is scored.
        out: the folder of `gitseg export`; None is RUN/export.
        scans: the first ones of the fold alone; None is all.
        say: takes lines for the user.

    Returns:
        The rows, the SavedModel first, where there is one.

    Raises:
        InputError: nothing is there, one is of other weights, a runtime is missing, another dataset, no fold was held
            out, no scan has contours, or a damaged shard.
    """
    out = as_path(out or run.path / "export")
    places = _places(out)
    check_trained_on(run, dataset)
    fold, entries = scans_of_fold(run, dataset, None)
    entries = entries[:scans]
    if not any(entry.organ_slices for entry in entries):
        raise InputError(
            f"{dataset.root}: no contour is in {len(entries)} scans of fold {fold} to score by; take more with --scans"
        )
    digest = weights_digest(run)
    networks = {name: _open(run, place, digest) for name, place in places.items()}
    window = compared_windows(dataset, run.config)[:1]
    means = {
        name: _scores(name, network, run.config, dataset, fold, entries)
        for name, network in {_FLOAT32: run_probabilities(run), **networks}.items()
    }
    exact, times = means.pop(_FLOAT32)["dice"], _milliseconds(networks, window)
    rows = [
        FormatRow(name, _mib(places[name]), times[name], mean["dice"], mean["score"], exact - mean["dice"])
        for name, mean in means.items()
    ]
    for line in lines(rows):
        say(line)
    how = _how(len(entries), fold, exact)
    say(how)
    _write(out, rows, how)
    say(f"written    {out / TABLE}")
    return rows


def lines(rows: list[FormatRow]) -> list[str]:
    """The table as text, for people."""
    text = [f"{'format':<16}{'MiB':>8}{'ms':>9}{'Dice':>8}{'score':>8}{'Dice lost':>11}"]
    for row in rows:
        mib, ms, dice, score, lost = _cells(row)
        text.append(f"{row.format:<16}{mib:>8}{ms:>9}{dice:>8}{score:>8}{lost:>11}")
    return text


def _cells(row: FormatRow) -> list[str]:
    # Plus 0: what is rounded to nothing has no sign.
    return [
        f"{row.mib:.2f}",
        f"{row.ms:.2f}",
        *(f"{round(x, 4) + 0:.4f}" for x in (row.dice, row.score, row.dice_loss)),
    ]


def _places(out: AnyPath) -> dict[str, AnyPath]:
    saved = exported_version(out)
    places = {} if saved in (None, out) else {SAVED_MODEL: saved}
    places |= {name: out / name for name in FORMATS if (out / name).is_dir()}
    if not places:
        raise InputError(f"{out}: has no folder such as 1 or onnx; give the one that gitseg export wrote them to")
    return places


def _open(run: Run, place: AnyPath, digest: str) -> Callable:
    _, config, load = open_model(place)
    if config.provenance.get("best_weights") != digest:
        raise InputError(f"{place}: was not exported from {run.weights} as it is now; export again with --force")
    return load()


def _scores(name: str, network: Callable, config: Config, dataset: Dataset, fold: int, entries: list) -> dict:
    predict, rows, chosen = make_predictor(network, config), [], {entry.id for entry in entries}
    with naming_damaged_shards(dataset):
        scans = (scan for scan in read_scans(dataset, [fold]) if scan["id"] in chosen)
        for scan in progress(scans, f"score {name}", len(entries), "scan"):
            masks = predict(scan["image"], scan["numbers"], scan["percentiles"], scan["spacing"])
            spacing = tuple(map(float, scan["spacing"]))
            truth = unpack_masks(scan["bits"])
            rows += score_scan(scan["id"], scan["case"], truth, masks, spacing, config.evaluation.tolerance_mm)
    return summarise(pd.DataFrame(rows))


def _milliseconds(networks: dict[str, Callable], window: np.ndarray) -> dict[str, float]:
    """Median times; the networks take turns, so that what else the machine does meets all of them."""
    taken = {name: [] for name in networks}
    rounds, end = 0, time.perf_counter() + _SECONDS * len(networks)
    while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
        rounds += 1
        for name, network in networks.items():
            for call in range(_CALLS):
                start = time.perf_counter()
                np.asarray(network(window))
                # Not the first: threads of the runtime before it may still have spun.
                if call:
                    taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(times)) for name, times in taken.items()}


def _mib(place: AnyPath) -> float:
    file = exported_file(place)
    parts = [file] if file else [place / "saved_model.pb", *(place / "variables").glob("*")]
    return sum(map(file_size, parts)) / 2**20


def _how(scans: int, fold: int, exact: float) -> str:
    return (
        f"Scores are means over {scans} scans of fold {fold}, which the run held out; Dice lost is against its network "
        f"in float32, {exact:.4f}; ms is the median time of one window on {os.cpu_count()} processors "
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
