"""Export SavedModels for TensorFlow Serving that contain everything between a scan and its masks."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config, save_config
from gitseg_tf.core.paths import AnyPath, as_path, os_errors, replace_folder
from gitseg_tf.core.text import plural
from gitseg_tf.core.trees import parse_json
from gitseg_tf.data.pipeline.planes import AXES
from gitseg_tf.errors import RunError, first_line
from gitseg_tf.evaluation.evaluate import postprocess_facts
from gitseg_tf.export.graph import encode_masks, make_segment
from gitseg_tf.export.inputs import checked_image, checked_keys, checked_scan, checked_windows, decode_slices
from gitseg_tf.export.model_card import model_card, model_facts
from gitseg_tf.export.warmup import write_warmup
from gitseg_tf.inference.ensemble import mean_network, view_key
from gitseg_tf.inference.networks import channel_count, run_probabilities, window_shape
from gitseg_tf.inference.postprocess import label_settings
from gitseg_tf.runs.ensemble import RunEnsemble, runs_of
from gitseg_tf.runs.folder import training_progress
from gitseg_tf.runs.run import Run, weights_digest
from gitseg_tf.runs.training_data import merge_training_data, read_training_data, write_training_data

logger = logging.getLogger(__name__)

MARKER = "saved_model.pb"
NEXT = "next"
# Dtype of the stored weights to the dtype policy with which the network then computes.
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}

# No scanner's slices are wider; larger values indicate a spacing in another unit than mm.
_WIDEST_MM = 2000.0
# The size is left open, so that the graph can reject a wrong number of values with a clear message.
_SPACING = tf.TensorSpec([None], tf.float32, name="spacing")
_NUMBERS = tf.TensorSpec([None], tf.int64, name="numbers")
_KEYS = tf.TensorSpec([None], tf.string, name="keys")


def export(
    run: Run | RunEnsemble,
    out: str | AnyPath | None = None,
    *,
    version: int | str = 1,
    force: bool = False,
    weights: str = "float32",
    network: Callable | None = None,
) -> AnyPath:
    """Write a run as a SavedModel: its network with the best weights, and all other steps of prediction.

    The networks of a cross-validation become one that averages their probabilities, as in prediction.

    docs/how-to/serve.md lists the signatures. The weights are constants of the graph, with batch normalization folded
    in; the SavedModel needs neither Keras nor this package.

    Args:
        run: a trained run, or the runs of a cross-validation.
        out: the folder that will contain VERSION/; None is RUN/export.
        version: the number of the folder, or "next" for one more than the highest existing one.
        force: replace an existing version, and export a run that has not finished.
        weights: float32, or bfloat16, in which the network then also computes; inputs and outputs are float32.
        network: from `run_probabilities` with these weights, if it is already loaded; not used for a run with a
            presence head, whose probabilities the export also returns.

    Returns:
        out/VERSION, written atomically.

    Raises:
        RunError: the version exists, the run has not finished, its evaluation.json is damaged, or the weights do not
            fit the config.
        OSError: not enough disk space, or missing permissions.
    """
    for one in runs_of(run) if not force else ():
        check_finished(one)
    out = as_path(out or run.path / "export")
    target = _target(out, version, force)
    runs = runs_of(run)
    presence = {"presence": True} if all(one.config.gates_slices for one in runs) else {}
    if network is None or presence:
        networks = [run_probabilities(one, PRECISIONS[weights], **presence) for one in runs]
        network = mean_network(networks, weights=_shares(run, presence=bool(presence)))
    signatures = _signatures(network, run.config, presence=bool(presence))
    # Exports are not trained, and layers' custom gradients cannot be saved with constant weights.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with replace_folder(target, marker=MARKER) as folder, os_errors(target):
        tf.saved_model.save(tf.Module(), str(folder), signatures=signatures, options=options)
        extra = folder / "assets.extra"
        extra.mkdir()
        for line in [*write_assets(run, extra, {"weights": weights}), *write_warmup(folder, run.config)]:
            logger.info(line)
    return target


def _shares(run: Run | RunEnsemble, *, presence: bool) -> np.ndarray | None:
    """Return the weights of the networks of an ensemble.yaml, which must share their windows; None elsewhere.

    With `presence`, equal weights of their presence heads follow.
    """
    if not isinstance(run, RunEnsemble) or run.weights is None:
        return None
    if len({view_key(one.config) for one in run.runs}) > 1:
        raise RunError(
            f"{run.path}: its runs differ in plane, windows, input size or test-time augmentation, but a SavedModel "
            "takes one kind of windows; distill the ensemble into one run, or export its runs"
        )
    shares = np.array(run.weights, np.float32)
    return np.hstack([shares, np.full_like(shares, 1 / len(shares))]) if presence else shares


def _target(out: AnyPath, version: int | str, force: bool) -> AnyPath:
    if version == NEXT:
        existing = [int(path.name) for path in out.iterdir() if re.fullmatch(r"\d+", path.name)] if out.is_dir() else []
        return out / str(max(existing, default=0) + 1)
    target = out / str(version)
    if target.exists() and not force:
        raise RunError(f"{target}: already exists; choose the next version, or force its replacement")
    return target


def check_finished(run: Run) -> None:
    """Check that a run was trained for all its epochs, or was ended by early stopping.

    Raises:
        RunError: the run has not finished.
    """
    epochs, ended = training_progress(run.path, run.config)
    if not ended:
        raise RunError(
            f"{run.path}: {epochs} of its {run.config.training.epochs} epochs are done; "
            "resume training first, or force the export of an unfinished run"
        )


def _signatures(network: Callable, config: Config, *, presence: bool) -> dict[str, Callable]:
    windows, channels = tf.TensorSpec([None, *window_shape(config)], tf.float32, name="windows"), channel_count(config)
    # With one channel, the last axis may be omitted; the graph checks the rank.
    image_spec = tf.TensorSpec(None if channels == 1 else [None, None, None, channels], tf.float32, name="image")
    png_spec = tf.TensorSpec([None] if channels == 1 else [None, channels], tf.string, name="png_bytes")
    labels, gated = len(config.label_set), any(steps.min_presence for steps in label_settings(config))
    if gated and not presence:
        raise RunError(
            f"{config.name}: a label has min_presence, but the network has no presence head; set it to 0 in postprocess"
        )
    segmenting = network if gated == presence else lambda windows: network(windows)[..., :labels]
    segment_checked = make_segment(segmenting, config)
    # If scans are resampled to a pixel size in mm, memory and time grow with the extent in mm.
    widest = None if config.data.pixel_mm is None else _WIDEST_MM
    facts = {"labels": config.label_set.to_tree(), "channels": list(config.channels or ["image"])}

    @_traced(tf.TensorSpec([None, None, None, channels], tf.float32), _SPACING, _NUMBERS)
    def segment(image, spacing, numbers):
        return segment_checked(*checked_scan(image, spacing, numbers, widest, AXES[config.data.plane][1:]))

    def contiguous(image):
        return tf.range(tf.shape(image, tf.int64)[0])

    @_traced(windows)
    def serve(windows):
        probabilities = network(checked_windows(windows))
        if not presence:
            return {"probabilities": probabilities}
        return {"probabilities": probabilities[..., :labels], "presence": probabilities[:, 0, 0, labels:]}

    @_traced(image_spec, _SPACING)
    def segment_volume(image, spacing):
        image = checked_image(image, channels)
        return {"masks": segment(image, spacing, contiguous(image))}

    @_traced(image_spec, _SPACING, _NUMBERS)
    def segment_volume_to_png(image, spacing, numbers):
        return {"masks_bytes": encode_masks(segment(checked_image(image, channels), spacing, numbers))}

    @_traced(png_spec, _SPACING)
    def segment_png(png_bytes, spacing):
        image = decode_slices(png_bytes, channels)
        return {"masks": segment(image, spacing, contiguous(image))}

    @_traced(png_spec, _SPACING, _NUMBERS)
    def segment_png_to_png(png_bytes, spacing, numbers):
        return {"masks_bytes": encode_masks(segment(decode_slices(png_bytes, channels), spacing, numbers))}

    @_traced(_KEYS)
    def describe(keys):
        return {"json_bytes": tf.gather([json.dumps(fact) for fact in facts.values()], checked_keys(keys, list(facts)))}

    others = (segment_volume, segment_volume_to_png, segment_png, segment_png_to_png, describe)
    return {"serving_default": serve} | {function.__name__: function for function in others}


def _traced(*specs: tf.TensorSpec) -> Callable:
    return tf.function(input_signature=specs, autograph=False)


def write_assets(run: Run | RunEnsemble, folder: Path, more: dict[str, Any]) -> list[str]:
    """Write the files that accompany a network.

    Args:
        run: the run, or the runs of a cross-validation.
        folder: the folder for the files.
        more: facts for model.json in addition to `model_facts`.

    Returns:
        Lines for the user.

    Raises:
        RunError: the run's evaluation.json is damaged.
    """
    (folder / "labels.txt").write_text("\n".join(run.config.label_set.names) + "\n", encoding="utf-8")
    runs = runs_of(run)
    digests = [weights_digest(one) for one in runs]
    provenance = run.config.provenance | {"best_weights": digests if isinstance(run, RunEnsemble) else digests[0]}
    progress = [(one, *training_progress(one.path, one.config)) for one in runs]
    if unfinished := [
        f"{epochs} of its {plural(one.config.training.epochs, 'epoch')}" for one, epochs, ended in progress if not ended
    ]:
        provenance["unfinished"] = ", ".join(unfinished)
    save_config(run.config.model_copy(update={"provenance": provenance}), folder / "config.yaml")
    if data := [known for one in runs if (known := read_training_data(one.path)) is not None]:
        write_training_data(folder, merge_training_data(data))
    scores = run.path / "evaluation.json"
    evaluation = _read_scores(scores) if scores.is_file() else None
    reason = _why_no_scores(run, evaluation)
    if evaluation is not None and reason is None:
        (folder / "evaluation.json").write_bytes(scores.read_bytes())
    facts = model_facts(run.config) | more
    if isinstance(run, RunEnsemble):
        facts["networks"] = len(run.runs)
    (folder / "model.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    try:
        card = model_card(run, facts, None if reason else evaluation, None if evaluation is None else reason)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        if evaluation is None:
            raise
        raise _damaged(scores, error) from None
    (folder / "model_card.md").write_text(card, encoding="utf-8")
    return [f"model card without scores, because {reason}"] if reason else []


def _why_no_scores(run: Run | RunEnsemble, evaluation: dict | None) -> str | None:
    """Explain why the scores in a run's folder are not those of its export; None if they are."""
    config, fix = run.config, f"run gitseg evaluate {run.path}"
    scores = run.path / "evaluation.json"
    if evaluation is None:
        if config.data.fold is None and isinstance(run, Run):
            return "the run held out no fold"
        return f"{scores} does not exist"
    trained_on = config.provenance.get("dataset")
    if trained_on is not None and evaluation.get("dataset", trained_on) != trained_on:
        return f"{scores} has the scores of another dataset; {fix}"
    expected = postprocess_facts(config), config.evaluation.tta.model_dump(mode="json")
    if (evaluation.get("postprocess", expected[0]), evaluation.get("tta", expected[1])) != expected:
        return f"{scores} was written with other post-processing or test-time augmentation; {fix}"
    return None


def _read_scores(path: AnyPath) -> dict[str, Any]:
    try:
        scores = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(scores["labels"], dict):
            raise TypeError("labels have no scores")
        return scores
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: AnyPath, error: Exception) -> RunError:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return RunError(f"{path}: is damaged ({reason}); write it again with gitseg evaluate {path.parent}")
