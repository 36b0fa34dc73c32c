"""From a scan's voxels to its organ masks, at the scan's own size."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from gitseg_tf.config import Config, load_config, read_yaml, with_overrides
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path
from gitseg_tf.inference.ensemble import Member, Predictor, agreed_settings, make_ensemble, make_mean_function
from gitseg_tf.inference.exported import exported_config, exported_file, exported_formats, exported_version
from gitseg_tf.inference.postprocess import organ_settings
from gitseg_tf.inference.runtimes import open_network
from gitseg_tf.models.frozen import freeze, inference_network
from gitseg_tf.training.cross_validation import is_cross_validation, read_cross_validation
from gitseg_tf.training.run_folder import has_begun
from gitseg_tf.training.trainer import Run, load_model, load_run


def make_predictor(probabilities: Callable, config: Config) -> Predictor:
    """Wrap a network so that it segments whole scans.

    Args:
        probabilities: as in `Member`.
        config: as in `Member`, with thresholds and post-processing.

    Returns:
        Function of (image uint16 [D, H, W], slice numbers [D], percentiles float32 [11] of the scan, spacing
        (z, y, x) in mm) to bool masks [3, D, H, W]. Probabilities are scaled to the scan's size before the threshold.
    """
    return make_ensemble([Member(config.name, probabilities, config)], organ_settings(config))


def make_scan_function(probabilities: Callable, config: Config, finish: Callable) -> Predictor:
    """Run a network over whole scans, with no post-processing.

    Args:
        probabilities: as in `Member`.
        config: as in `Member`.
        finish: function of TensorFlow's from probabilities at the scan's size, float32 [N, H, W, 3], to what is wanted
            of them, of the same shape and any dtype; tf.identity gives the probabilities.

    Returns:
        Function as from `make_predictor`, to [3, D, H, W] of what `finish` gives.
    """
    return make_mean_function([Member(config.name, probabilities, config)], finish)


def load_predictor(
    models: str | AnyPath | Sequence[str | AnyPath],
    overrides: dict[str, Any] | None = None,
    postprocess: str | AnyPath | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Predictor:
    """A predictor, as `make_predictor` gives, of one model or of the mean of several.

    Args:
        models: each a run (RUN), an exported SavedModel (RUN/export/1, or RUN/export for its highest version), an
            ONNX or TFLite file of gitseg export or its folder (RUN/export/onnx), or a cross-validation, which is all
            its runs.
        overrides: dotted keys of the sections evaluation and postprocess, for all models.
        postprocess: a YAML file whose section postprocess takes the place of the models' own, and evaluation.tta too,
            if it is there.
        say: takes lines for the user.

    Returns:
        The predictor.

    Raises:
        InputError: none, no such model, a damaged one, a cross-validation with a fold that is not finished, a key of
            another section, or models that differ in post-processing.
    """
    overrides = checked_overrides(overrides or {}, postprocess)
    listed = [models] if isinstance(models, str) or not isinstance(models, Sequence) else models
    if not listed:
        raise InputError("no model is named; give one or more runs, exported SavedModels or cross-validations")
    opened = [
        (path, with_overrides(config, overrides, path), probabilities)
        for path, config, probabilities in map(open_model, _single_models(listed))
    ]
    settings = agreed_settings([(path, config) for path, config, _ in opened])
    for line in dict.fromkeys(line for path, config, _ in opened for line in doubtful_augmentation(path, config)):
        say(line)
    if len(opened) > 1:
        say(f"the mean of {len(opened)} models: {', '.join(str(path) for path, *_ in opened)}")
    # The networks last: all else that can be wrong with the models is known by then.
    return make_ensemble([Member(str(path), load(), config) for path, config, load in opened], settings)


def checked_overrides(overrides: dict[str, Any], postprocess: str | AnyPath | None = None) -> dict[str, Any]:
    """What may be set otherwise than a model was trained with.

    Args:
        overrides: dotted keys of the sections evaluation and postprocess.
        postprocess: a YAML file with a section postprocess, and evaluation.tta where it was tuned under that.

    Returns:
        The overrides, those of the file first.

    Raises:
        InputError: a key of another section, or a file without such a section.
    """
    for key in overrides:
        if key.split(".")[0] not in ("evaluation", "postprocess"):
            raise InputError(
                f"--set {key}: the model is as it was trained; evaluation and postprocess are all that can be set"
            )
    if postprocess is None:
        return overrides
    path = as_path(postprocess)
    if "postprocess" not in read_yaml(path):
        raise InputError(f"{path}: has no section postprocess; give a file such as gitseg tune writes")
    config = load_config(path)
    of_file = {"postprocess": config.postprocess.model_dump(mode="json")}
    if "tta" in config.evaluation.model_fields_set:
        of_file["evaluation.tta"] = config.evaluation.tta.model_dump(mode="json")
    return of_file | overrides


def run_probabilities(run: Run, precision: str = "float32") -> Callable:
    """The network of a run, best weights, as a function of windows to probabilities; precision as of `build_model`."""
    return inference_network(load_model(run, precision))


def open_model(path: AnyPath) -> tuple[AnyPath, Config, Callable[[], Callable]]:
    """One model, of which the config is read at once and the network when it is wanted.

    Args:
        path: as of `load_predictor`, but for cross-validations.

    Returns:
        The path, the config, and a function that gives the network as `Member` takes it.

    Raises:
        InputError: as `load_predictor`.
    """
    if (file := exported_file(path)) is not None:
        config = exported_config(file)
        return path, config, lambda: open_network(file, window_shape(config))
    exported = exported_version(path)
    if exported is None:
        if not has_begun(path) and (inside := exported_formats(path)):
            raise InputError(
                f"{path}: holds networks of other formats, each in a folder; name one, such as {inside[0]}"
            )
        run = load_run(path)
        return path, run.config, lambda: run_probabilities(run)
    config = exported_config(exported)
    return path, config, lambda: _exported_probabilities(exported, window_shape(config))


def window_shape(config: Config) -> tuple[int, ...]:
    """The shape of what a network looks at: (height, width, slices) of a window, (D, H, W, 1) of a patch."""
    data = config.data
    return (*data.size, data.slices) if data.patch is None else (*data.patch, 1)


def doubtful_augmentation(path: AnyPath, config: Config) -> Iterator[str]:
    """Lines on test-time augmentation that makes what the network has not seen in training."""
    tta, augment = config.evaluation.tta, config.augment
    if tta.flip and not augment.flip.p:
        yield f"{path}: was trained without flips (augment.flip.p is 0); mirrored scans are new to it"
    reach = augment.affine.scale if augment.affine.p else 0.0
    far = [scale for scale in tta.scales if abs(scale - 1) > reach + 1e-6]
    if far:
        yield f"{path}: was trained on sizes up to {reach:g} apart (augment.affine); {far[0]} is new to it"


def _single_models(paths: Sequence[str | AnyPath]) -> Iterator[AnyPath]:
    for path in map(as_path, paths):
        if not is_cross_validation(path):
            yield path
            continue
        folds = read_cross_validation(path)
        if unfinished := folds.unfinished():
            which = f"fold {unfinished[0]} of {len(folds.cases)} is not finished"
            cure = f"go on with train.py --fold all --resume --out {path}, or name the runs that there are one by one"
            raise InputError(f"{path}: {which}; {cure}")
        yield from folds.runs


def _exported_probabilities(exported: AnyPath, window: tuple[int, ...]) -> Callable:
    try:
        serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
        spec = serve.structured_input_signature[1]["windows"]
    except (OSError, IndexError, KeyError, ValueError, tf.errors.OpError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{exported}: the SavedModel is damaged ({reason}); export it again") from None
    if (*spec.shape[1:],) != window:
        raise InputError(
            f"{exported}: takes windows of {spec.shape.as_list()[1:]}, its config.yaml says {list(window)}; "
            "export the run again"
        )
    return freeze(lambda windows: serve(windows=windows)["probabilities"], spec)
