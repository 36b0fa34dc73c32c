"""A run's network alone, in formats of other runtimes, each compared with float32 before it is kept."""

from collections.abc import Callable, Sequence

import numpy as np

from gitseg_tf.config import Config
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.data.pipeline import sample_windows, validation_samples, validation_windows
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.errors import InputError
from gitseg_tf.evaluation.scores import dice
from gitseg_tf.files import AnyPath, as_path, replace_folder
from gitseg_tf.inference.postprocess import organ_settings
from gitseg_tf.inference.predictor import window_shape
from gitseg_tf.inference.runtimes import import_extra, open_network
from gitseg_tf.quiet import held_back
from gitseg_tf.serving.card import counts
from gitseg_tf.serving.conversion import FORMATS, float32_operators, inference, versions
from gitseg_tf.serving.export import check_finished, export, write_assets
from gitseg_tf.training.trainer import Run, load_model

SAVED_MODEL = "savedmodel"
NAMES = (SAVED_MODEL, *FORMATS)
REPRESENTATIVE = 200
_COMPARED, _APART = 16, 9
_AGREED = 0.95


def export_formats(
    run: Run,
    dataset: Dataset,
    names: Sequence[str],
    out: str | AnyPath | None = None,
    version: int | str = 1,
    force: bool = False,
    representative: int = REPRESENTATIVE,
    say: Callable[[str], None] = print,
    weights: str = "float32",
) -> list[AnyPath]:
    """Write a run in several formats: its SavedModel, and its network alone as ONNX and TFLite.

    All but the SavedModel take float32 windows, or patches, to probabilities, as its `serving_default` does; what is
    around that is done by `gitseg predict`.

    Args:
        run: a trained run.
        dataset: that it was trained on.
        names: of NAMES.
        out: gets a folder a format, out/onnx/ and so on, and the SavedModel's out/VERSION/; None is RUN/export.
        version, force: as of `export`.
        representative: windows of the training folds by which tflite-int8 finds the ranges of its numbers.
        say: takes lines for the user.
        weights: of the SavedModel, as of `export`.

    Returns:
        The folders, each there whole or not at all.

    Raises:
        InputError: a package is missing, a target exists, the run has not finished, or the dataset is another one:
            nothing is written then. Or a format cannot hold the network, or is too far from float32: it is not written.
    """
    others, out = [name for name in FORMATS if name in names], as_path(out or run.path / "export")
    _check_before(run, dataset, {name: out / name for name in others}, force)
    model = load_model(run)
    written = []
    if SAVED_MODEL in names:
        written.append(export(run, out, version, force, say, weights))
        say(f"{SAVED_MODEL:<14} {written[0]}")
    windows = compared_windows(dataset, run.config)
    expected = _in_batches(lambda part: inference(model)(part)["probabilities"], windows, run.config)
    scans, chosen = [], None
    if any(FORMATS[name].quantised for name in others):
        scans, chosen = sample_windows(dataset, run.config, representative)
    lines = []
    for name in others:
        form = FORMATS[name]
        with held_back(InputError):
            content = form.convert(model, chosen)
        with replace_folder(out / name, marker=form.file) as folder:
            (folder / form.file).write_bytes(content)
            network = open_network(folder / form.file, window_shape(run.config))
            compared = _compare(_in_batches(network, windows, run.config), expected, run.config)
            _check_agreement(name, compared, say)
            calibrated = {"windows": len(chosen), "scans": scans} if form.quantised else None
            in_float32 = float32_operators(content) if form.quantised else None
            lines += write_assets(run, folder, _facts(name, run.config, compared, calibrated, in_float32))
        written.append(out / name)
        say(f"{name:<14} {out / name}, at most {compared['largest_difference']:.1e} from float32")
        if in_float32:
            say(f"{name:<14} computes {counts(in_float32)} in float32, for which LiteRT has no kernel of integers")
    for line in dict.fromkeys(lines):
        say(line)
    return written


def compared_windows(dataset: Dataset, config: Config) -> np.ndarray:
    """Some windows of the fold that a run held out, from all heights of its first scans.

    Args:
        dataset: that the run was trained on.
        config: of the run; where no fold was held out they are of the folds that it was trained on.

    Returns:
        float32 [N, ...], up to 16.
    """
    if config.data.fold is None:
        return sample_windows(dataset, config, _COMPARED)[1]
    config = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 1, "cache_mib": 0})})
    apart = max(1, min(_APART, validation_samples(dataset, config) // _COMPARED))
    spread = validation_windows(dataset, config).shard(apart, apart // 2).take(_COMPARED)
    return np.concatenate([image for image, *_ in spread.as_numpy_iterator()])


def _check_before(run: Run, dataset: Dataset, targets: dict[str, AnyPath], force: bool) -> None:
    for name, target in targets.items():
        for module in FORMATS[name].modules:
            import_extra(module)
        if target.exists() and not force:
            raise InputError(f"{target}: exists already; --force replaces it")
    if not force:
        check_finished(run)
    check_trained_on(run, dataset)


def check_trained_on(run: Run, dataset: Dataset) -> None:
    """Refuse another dataset than the one that a run was trained on, of which it has not seen a fold.

    Raises:
        InputError: it is another one.
    """
    trained_on = run.config.provenance.get("dataset", dataset.source["fingerprint"])
    if trained_on != dataset.source["fingerprint"]:
        raise InputError(
            f"{run.path}: was trained on another dataset than {dataset.root}; "
            "name that one with --data, for formats are compared on its held-out fold"
        )


def _in_batches(network: Callable, windows: np.ndarray, config: Config) -> np.ndarray:
    size = config.evaluation.batch_size
    return np.concatenate([np.asarray(network(windows[k : k + size])) for k in range(0, len(windows), size)])


def _compare(found: np.ndarray, expected: np.ndarray, config: Config) -> dict[str, float]:
    difference = np.abs(found - expected)
    thresholds = np.array([organ.threshold for organ in organ_settings(config)], np.float32)
    return {
        "windows": len(found),
        "fold": config.data.fold,
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "dice_of_masks": dice(expected >= thresholds, found >= thresholds),
    }


def _check_agreement(name: str, compared: dict[str, float], say: Callable[[str], None]) -> None:
    # Probabilities are no further apart than 1. Written so that it catches what is no number, too.
    largest, most = compared["largest_difference"], FORMATS[name].most or 1.0
    if not largest <= most:
        raise InputError(
            f"{name}: its probabilities are up to {largest:.2g} from those of float32 on windows of the validation "
            f"fold, more than {most:g}; it is not written, take another format"
        )
    if compared["dice_of_masks"] < _AGREED:
        say(
            f"warning    {name}: its masks have a Dice of {compared['dice_of_masks']:.3f} with those of float32; "
            "gitseg formats says what that costs"
        )


def _facts(name: str, config: Config, compared: dict, calibrated: dict | None, in_float32: dict | None) -> dict:
    form, window = FORMATS[name], window_shape(config)
    batch = form.details["batch"]
    return {
        "format": {
            "name": name,
            "file": form.file,
            **form.details,
            "input": {"name": "windows", "shape": [batch, *window], "dtype": "float32"},
            "output": {"name": "probabilities", "shape": [batch, *window[:-1], len(ORGANS)], "dtype": "float32"},
            "calibrated_on": calibrated,
            "float32_operators": in_float32,
            "compared_with_float32": compared,
            "versions": versions(form),
        },
        "postprocess": {
            organ: {"inside": {}, "outside": settings.model_dump()}
            for organ, settings in zip(ORGANS, organ_settings(config), strict=True)
        },
    }
