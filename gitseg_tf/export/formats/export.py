"""Export a run's network in formats for other runtimes; each is compared with float32 before it is kept."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.core.paths import AnyPath, as_path, replace_folder
from gitseg_tf.core.tensorflow_import import held_back
from gitseg_tf.data.pipeline.batches import sample_windows, validation_samples, validation_windows
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import RunError
from gitseg_tf.evaluation.metrics.scores import dice
from gitseg_tf.export.formats.inference import inference
from gitseg_tf.export.formats.registry import FORMATS, SAVED_MODEL, Format
from gitseg_tf.export.model_card import counts
from gitseg_tf.export.savedmodel import check_finished, export, write_assets
from gitseg_tf.inference.networks import window_shape
from gitseg_tf.inference.postprocess import label_settings
from gitseg_tf.inference.runtimes import import_extra, open_network
from gitseg_tf.runs.matching import check_matches
from gitseg_tf.runs.network import load_model
from gitseg_tf.runs.run import Run

logger = logging.getLogger(__name__)

REPRESENTATIVE = 200
_COMPARED, _APART = 16, 9
_MIN_DICE = 0.95


def export_formats(
    run: Run,
    dataset: Dataset,
    names: Sequence[str],
    out: str | AnyPath | None = None,
    *,
    version: int | str = 1,
    force: bool = False,
    representative: int = REPRESENTATIVE,
    weights: str = "float32",
) -> list[AnyPath]:
    """Write a run in several formats: its SavedModel, and only its network as ONNX and TFLite.

    All formats except the SavedModel map float32 windows, or patches, to probabilities, like the SavedModel's
    `serving_default`; `gitseg predict` performs the remaining steps.

    Args:
        run: a trained run.
        dataset: the dataset on which the run was trained.
        names: names in FORMATS.
        out: folder for one subfolder per format, such as out/onnx/, and out/VERSION/ of the SavedModel; None is
            RUN/export.
        version, force: as for `export`.
        representative: number of windows of the training folds for calibrating tflite-int8.
        weights: weights of the SavedModel, as for `export`.

    Returns:
        The folders, each written atomically.

    Raises:
        ConfigError: an unknown format.
        DependencyError: a package is missing.
        RunError: a target exists, the run has not finished, or another dataset, in which case nothing is written; or a
            format does not support the network or differs too much from float32, in which case it is not written.
    """
    for name in names:
        FORMATS.check(name)
    others = {name: FORMATS.get(name) for name in FORMATS.names(network_alone=True) if name in names}
    out = as_path(out or run.path / "export")
    _check_before(run, dataset, {out / name: form for name, form in others.items()}, force)
    model = load_model(run)
    written = []
    if SAVED_MODEL in names:
        written.append(export(run, out, version=version, force=force, weights=weights))
        logger.info("%-14s %s", SAVED_MODEL, written[0])
    windows = compared_windows(dataset, run.config)
    expected = _in_batches(lambda part: inference(model)(part)["probabilities"], windows, run.config)
    scans: list[str] = []
    chosen: np.ndarray | None = None
    if any(FORMATS.facts(name)["calibrated"] for name in others):
        scans, chosen = sample_windows(dataset, run.config, representative)
    lines = []
    for name, form in others.items():
        calibrated = FORMATS.facts(name)["calibrated"]
        with held_back(RunError):
            content = form.convert(model, chosen if calibrated else None)
        with replace_folder(out / name, marker=form.file) as folder:
            (folder / form.file).write_bytes(content)
            network = open_network(folder / form.file, window_shape(run.config), len(run.config.label_set))
            compared = _compare(_in_batches(network, windows, run.config), expected, run.config)
            _check_agreement(name, form, compared)
            on = {"windows": len(chosen), "scans": scans} if chosen is not None and calibrated else None
            in_float32 = form.float32_operators(content) if form.float32_operators else None
            lines += write_assets(run, folder, _facts(name, form, run.config, compared, on, in_float32))
        written.append(out / name)
        logger.info("%-14s %s, at most %.1e from float32", name, out / name, compared["largest_difference"])
        if in_float32:
            logger.info(
                "%-14s computes %s in float32, because LiteRT has no integer kernel for them", name, counts(in_float32)
            )
    for line in dict.fromkeys(lines):
        logger.info(line)
    return written


def compared_windows(dataset: Dataset, config: Config) -> np.ndarray:
    """Select windows of the fold that a run held out, spread over the heights of its first scans.

    Args:
        dataset: the dataset on which the run was trained.
        config: the run's config; if no fold was held out, the windows are from the training folds.

    Returns:
        float32 [N, ...], up to 16.
    """
    if config.data.fold is None:
        return sample_windows(dataset, config, _COMPARED)[1]
    config = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 1, "cache_mib": 0})})
    apart = max(1, min(_APART, validation_samples(dataset, config) // _COMPARED))
    spread = validation_windows(dataset, config).shard(apart, apart // 2).take(_COMPARED)
    return np.concatenate([image for image, *_ in spread.as_numpy_iterator()])


def _check_before(run: Run, dataset: Dataset, targets: dict[AnyPath, Format], force: bool) -> None:
    for target, form in targets.items():
        for module in form.modules:
            import_extra(module)
        if target.exists() and not force:
            raise RunError(f"{target}: already exists; choose another folder, or force its replacement")
    if not force:
        check_finished(run)
    check_trained_on(run, dataset)
    check_matches(run.config, dataset)


def check_trained_on(run: Run, dataset: Dataset) -> None:
    """Check that a run was trained on this dataset.

    Raises:
        RunError: it was trained on another one.
    """
    trained_on = run.config.provenance.get("dataset", dataset.source["fingerprint"])
    if trained_on != dataset.source["fingerprint"]:
        raise RunError(
            f"{run.path}: was trained on a dataset other than {dataset.root}; formats are compared on the held-out "
            "fold, so use the dataset it was trained on"
        )


def _in_batches(network: Callable, windows: np.ndarray, config: Config) -> np.ndarray:
    size = config.evaluation.batch_size
    return np.concatenate([np.asarray(network(windows[k : k + size])) for k in range(0, len(windows), size)])


def _compare(actual: np.ndarray, expected: np.ndarray, config: Config) -> dict[str, Any]:
    difference = np.abs(actual - expected)
    thresholds = np.array([steps.threshold for steps in label_settings(config)], np.float32)
    return {
        "windows": len(actual),
        "fold": config.data.fold,
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "dice_of_masks": dice(expected >= thresholds, actual >= thresholds),
    }


def _check_agreement(name: str, form: Format, compared: dict[str, float]) -> None:
    # Probabilities differ by at most 1. The negated comparison below also rejects NaN.
    largest, limit = compared["largest_difference"], form.max_difference or 1.0
    if not largest <= limit:
        raise RunError(
            f"{name}: its probabilities differ by up to {largest:.2g} from float32 on windows of the validation fold, "
            f"more than {limit:g}, so it was not written; choose another format"
        )
    if compared["dice_of_masks"] < _MIN_DICE:
        logger.warning(
            "%s: its masks have a Dice of %.3f against those of float32; gitseg formats measures the effect on scores",
            name,
            compared["dice_of_masks"],
        )


def _facts(
    name: str, form: Format, config: Config, compared: dict, calibrated: dict | None, in_float32: dict | None
) -> dict:
    window, labels = window_shape(config), config.label_set.names
    batch = form.details["batch"]
    return {
        "format": {
            "name": name,
            "file": form.file,
            **form.details,
            "input": {"name": "windows", "shape": [batch, *window], "dtype": "float32"},
            "output": {"name": "probabilities", "shape": [batch, *window[:-1], len(labels)], "dtype": "float32"},
            "calibrated_on": calibrated,
            "float32_operators": in_float32,
            "compared_with_float32": compared,
            "versions": form.versions(),
        },
        "postprocess": {
            label: {"inside": {}, "outside": settings.model_dump()}
            for label, settings in zip(labels, label_settings(config), strict=True)
        },
    }
