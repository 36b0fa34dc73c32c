"""SavedModels that TensorFlow Serving loads, with the whole way from a scan to its masks inside."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from gitseg_tf.config import Config, save_config
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, os_errors, replace_folder
from gitseg_tf.inference.predictor import run_probabilities, window_shape
from gitseg_tf.serving.card import model_card, model_facts
from gitseg_tf.serving.graph import encode_masks, make_segment
from gitseg_tf.serving.inputs import checked_image, checked_scan, checked_windows, decode_slices
from gitseg_tf.serving.warmup import write_warmup
from gitseg_tf.training.callbacks import read_history
from gitseg_tf.training.trainer import Run

MARKER = "saved_model.pb"
NEXT = "next"
# What weights may be stored as, and the policy by which the network then computes.
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}

# No scanner's slices are wider; where spacing is in another unit than mm, they seem so.
_WIDEST_MM = 2000.0
_IMAGE = tf.TensorSpec([None, None, None], tf.uint16, name="image")
_PNGS = tf.TensorSpec([None], tf.string, name="png_bytes")
# Not [3]: a wrong number of them is for the graph to refuse, which says what is wrong.
_SPACING = tf.TensorSpec([None], tf.float32, name="spacing")
_NUMBERS = tf.TensorSpec([None], tf.int64, name="numbers")


def export(
    run: Run,
    out: str | AnyPath | None = None,
    version: int | str = 1,
    force: bool = False,
    say: Callable[[str], None] = print,
    weights: str = "float32",
    network: Callable | None = None,
) -> AnyPath:
    """Write a run as a SavedModel: its network with the best weights, and all that `gitseg predict` does around it.

    The signatures are in docs/serving.md. The weights are constants of the graph, batch normalisation is folded into
    them; neither Keras nor this package is needed for it.

    Args:
        run: a trained run.
        out: the folder that gets VERSION/; None is RUN/export.
        version: the number of the folder, or "next": one more than the highest that is there.
        force: replace a version that is there, and take a run that has not finished.
        say: takes lines for the user.
        weights: float32, or bfloat16, in which the network computes too; what goes in and comes out is float32.
        network: of `run_probabilities`, with these weights, where it is there already.

    Returns:
        out/VERSION, which is there whole or not at all.

    Raises:
        InputError: the version exists, the run has not finished, its evaluation.json is damaged, or the weights do not
            fit the config.
        OSError: there is no room, or no permission.
    """
    if not force:
        check_finished(run)
    out = as_path(out or run.path / "export")
    target = _target(out, version, force)
    signatures = _signatures(network or run_probabilities(run, PRECISIONS[weights]), run.config)
    # Nobody trains what is exported, and gradients of layers' own making cannot be saved with constants for weights.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with replace_folder(target, marker=MARKER) as folder, os_errors(target):
        tf.saved_model.save(tf.Module(), str(folder), signatures=signatures, options=options)
        extra = folder / "assets.extra"
        extra.mkdir()
        for line in [*write_assets(run, extra, {"weights": weights}), *write_warmup(folder, run.config)]:
            say(line)
    return target


def _target(out: AnyPath, version: int | str, force: bool) -> AnyPath:
    if version == NEXT:
        there = [int(path.name) for path in out.iterdir() if re.fullmatch(r"\d+", path.name)] if out.is_dir() else []
        return out / str(max(there, default=0) + 1)
    target = out / str(version)
    if target.exists() and not force:
        raise InputError(
            f"{target}: exists already; --model-version next puts a new version beside it, --force replaces it"
        )
    return target


def check_finished(run: Run) -> None:
    """Refuse a run that has not trained all its epochs, unless early stopping ended it.

    Raises:
        InputError: it has not finished.
    """
    history, training = read_history(run.path), run.config.training
    without_gain = history[-1].get("epochs_without_gain", 0) if history else 0
    stopped = 0 < training.early_stopping <= without_gain
    if len(history) < training.epochs and not stopped:
        raise InputError(
            f"{run.path}: {len(history)} of its {training.epochs} epochs are done; "
            "train it on with --resume, or take what there is with --force"
        )


def _signatures(network: Callable, config: Config) -> dict[str, Callable]:
    windows = tf.TensorSpec([None, *window_shape(config)], tf.float32, name="windows")
    whole_way = make_segment(network, config)
    # Where a scan is brought to pixels of a size in mm, its memory and its time grow with what it measures.
    widest = None if config.data.pixel_mm is None else _WIDEST_MM

    @_traced(_IMAGE, _SPACING, _NUMBERS)
    def segment(image, spacing, numbers):
        return whole_way(*checked_scan(image, spacing, numbers, widest))

    def contiguous(image):
        return tf.range(tf.shape(image, tf.int64)[0])

    @_traced(windows)
    def serve(windows):
        return {"probabilities": network(checked_windows(windows))}

    @_traced(_IMAGE, _SPACING)
    def segment_volume(image, spacing):
        image = checked_image(image)
        return {"masks": segment(image, spacing, contiguous(image))}

    @_traced(_IMAGE, _SPACING, _NUMBERS)
    def segment_volume_to_png(image, spacing, numbers):
        return {"masks_bytes": encode_masks(segment(checked_image(image), spacing, numbers))}

    @_traced(_PNGS, _SPACING)
    def segment_png(png_bytes, spacing):
        image = decode_slices(png_bytes)
        return {"masks": segment(image, spacing, contiguous(image))}

    @_traced(_PNGS, _SPACING, _NUMBERS)
    def segment_png_to_png(png_bytes, spacing, numbers):
        return {"masks_bytes": encode_masks(segment(decode_slices(png_bytes), spacing, numbers))}

    segmenting = (segment_volume, segment_volume_to_png, segment_png, segment_png_to_png)
    return {"serving_default": serve} | {function.__name__: function for function in segmenting}


def _traced(*specs: tf.TensorSpec) -> Callable:
    return tf.function(input_signature=specs, autograph=False)


def weights_digest(run: Run) -> str:
    """SHA-256 of the file with a run's best weights: provenance.best_weights of what was exported from them."""
    return hashlib.sha256(run.weights.read_bytes()).hexdigest()


def write_assets(run: Run, folder: Path, more: dict[str, Any]) -> list[str]:
    """Write what travels with a network.

    Args:
        run: the run.
        folder: gets the files.
        more: of model.json, on top of `model_facts`.

    Returns:
        Lines for the user.

    Raises:
        InputError: the run's evaluation.json is damaged.
    """
    (folder / "organs.txt").write_text("\n".join(ORGANS) + "\n")
    provenance = run.config.provenance | {"best_weights": weights_digest(run)}
    save_config(run.config.model_copy(update={"provenance": provenance}), folder / "config.yaml")
    scores = run.path / "evaluation.json"
    evaluation = _read_scores(scores) if scores.is_file() else None
    if evaluation is not None:
        (folder / "evaluation.json").write_bytes(scores.read_bytes())
    facts = model_facts(run.config) | more
    (folder / "model.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "model_card.md").write_text(model_card(run, facts, evaluation), encoding="utf-8")
    if evaluation is None:
        return [f"no scores   in the model card, for {scores} is not there; gitseg evaluate writes it"]
    return []


def _read_scores(path: AnyPath) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["organs"], dict):
            raise TypeError("organs have no scores")
        return found
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: is damaged ({reason}); write it again with gitseg evaluate {path.parent}") from None
