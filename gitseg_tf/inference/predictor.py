"""`Predictor`: segment scans with the networks of runs and exports."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gitseg_tf.config import Config, load_config, read_yaml, with_overrides
from gitseg_tf.config.postprocess import LabelPostprocess
from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import ConfigError, RunError
from gitseg_tf.inference.ensemble import Member, agreed_settings, make_mean
from gitseg_tf.inference.identity import ModelIdentity, model_identity, runs_identity
from gitseg_tf.inference.networks import open_model, run_probabilities
from gitseg_tf.inference.postprocess import clean_mask, label_settings, postprocess
from gitseg_tf.inference.prediction import BasePredictor, Prediction
from gitseg_tf.inference.trust import model_training_data, model_warnings
from gitseg_tf.runs.cross_validation import is_cross_validation, read_cross_validation
from gitseg_tf.runs.ensemble import RunEnsemble, check_tuned, load_ensemble, runs_of, weights_of
from gitseg_tf.runs.fusion import is_fusion
from gitseg_tf.runs.run import Run

logger = logging.getLogger(__name__)

# Level k comprises the probabilities from k% to below (k + 1)%; the last level includes 1.
LEVELS = 100
# Bit stored in the same byte as a level: the voxel reaches the label's threshold.
_REACHED = 128


class Predictor(BasePredictor):
    """Segments whole scans with one network, or with the averaged probabilities of several networks.

    Probabilities are resampled to the scan's own size before thresholding and post-processing.

    Args:
        members: the networks, with the same labels and channels; they may differ in everything else.
        settings: post-processing of each label, with thresholds; None uses the first member's config.
        identity: what files with its masks state; None is the name of the first member, with unknown weights.

    Example:
        >>> predictor = load_predictor("runs/uwmgi")  # doctest: +SKIP
        >>> predictor.predict(scan.read_volume()).masks.shape  # doctest: +SKIP
        (3, 144, 266, 266)
    """

    config: Config

    def __init__(
        self,
        members: Sequence[Member],
        settings: Sequence[LabelPostprocess] | None = None,
        *,
        identity: ModelIdentity | None = None,
    ):
        self.config = members[0].config
        self.identity = identity or ModelIdentity(self.config.name)
        self.labels, self.channels = self.config.label_set, self.config.channels
        self.settings = label_settings(self.config) if settings is None else list(settings)
        self._mean = make_mean(members)
        self._thresholds = np.array([steps.threshold for steps in self.settings], np.float32)
        self._smoothed = any(steps.smooth_mm for steps in self.settings)

    @classmethod
    def of_network(cls, network: Callable, config: Config) -> "Predictor":
        """Create a predictor from a function from windows to probabilities, see `Member`."""
        return cls([Member(config.name, network, config)])

    @classmethod
    def of_run(cls, run: Run | RunEnsemble, network: Callable | None = None) -> "Predictor":
        """Create a predictor from a run or an ensemble; `network` is from `run_probabilities` if a run's is loaded."""
        runs = runs_of(run)
        weights = weights_of(run)
        members = [
            Member(str(one.path), network or run_probabilities(one), one.config, weights=of_labels)
            for one, of_labels in zip(runs, weights, strict=True)
        ]
        predictor = cls(members, label_settings(run.config), identity=runs_identity(run))
        predictor._distrust([(one.path, one.config) for one in runs])
        return predictor

    def probabilities(self, volume: Volume | np.ndarray, *, spacing: Sequence[float] | None = None) -> np.ndarray:
        """Compute the probabilities of a scan at its own size, without post-processing: float32 [L, D, H, W]."""
        return self._mean(self._checked(volume, spacing), tf.identity)

    def predict_levels(self, volume: Volume | np.ndarray, *, spacing: Sequence[float] | None = None) -> Prediction:
        """Compute masks and levels in one pass.

        The graph returns a voxel's level and the result of the exact threshold in one byte: unless a label is smoothed,
        a scan takes no more memory than its masks.

        Args:
            volume, spacing: as for `predict`.

        Returns:
            The masks, and the levels of the probabilities before post-processing.
        """
        volume = self._checked(volume, spacing)
        if self._smoothed:
            probabilities = self._mean(volume, tf.identity)
            return Prediction(self._masks(probabilities, volume), levels=_levels(probabilities).numpy())
        codes = self._mean(volume, lambda p: _levels(p) + tf.cast(p >= self._thresholds, tf.uint8) * _REACHED)
        masks = codes >= _REACHED
        codes &= _REACHED - 1
        return Prediction(self._cleaned(masks, volume), levels=codes)

    def _distrust(self, models: Sequence[tuple[AnyPath, Config]]) -> None:
        """Set `warnings` and `training_data` from the folders of the models."""
        known = [model_training_data(path) for path, _ in models]
        self.training_data = tuple(data for data in known if data is not None)
        each = (model_warnings(path, config, data) for (path, config), data in zip(models, known, strict=True))
        self.warnings = tuple(warning for warnings in each for warning in warnings)

    def _predict(self, volume: Volume, probabilities: bool) -> Prediction:
        if not (probabilities or self._smoothed):
            # The probabilities of the whole scan are never in memory at once.
            return Prediction(self._cleaned(self._mean(volume, lambda p: p >= self._thresholds), volume))
        values = self._mean(volume, tf.identity)
        return Prediction(self._masks(values, volume), values if probabilities else None)

    def _masks(self, probabilities: np.ndarray, volume: Volume) -> np.ndarray:
        return postprocess(probabilities, self.settings, volume.numbers, volume.spacing)

    def _cleaned(self, masks: np.ndarray, volume: Volume) -> np.ndarray:
        for k, steps in enumerate(self.settings):
            masks[k] = clean_mask(masks[k], steps, volume.spacing)
        return masks


def _levels(probabilities) -> tf.Tensor:
    return tf.cast(tf.minimum(probabilities * LEVELS, LEVELS - 1), tf.uint8)


def load_predictor(
    models: str | AnyPath | Sequence[str | AnyPath],
    *,
    overrides: dict[str, Any] | None = None,
    postprocess: str | AnyPath | None = None,
) -> Predictor:
    """Load one model, or several whose probabilities are averaged.

    Args:
        models: a single ensemble.yaml or its folder; otherwise each is a run (RUN), an exported SavedModel
            (RUN/export/1, or RUN/export for its highest version), an ONNX or TFLite file of gitseg export or its folder
            (RUN/export/onnx), or a cross-validation, which represents all its runs.
        overrides: dotted keys of the sections evaluation and postprocess, for all models.
        postprocess: a YAML file whose section postprocess, and evaluation.tta if present, replace those of the models.

    Returns:
        The predictor.

    Raises:
        RunError: no model, a missing or damaged one, a cross-validation with an unfinished fold or an interrupted
            tuning, a key of another section, or models that differ in labels, channels or post-processing.
        ConfigError: an override with a value that is not allowed, or for an unknown label.
    """
    overrides = checked_overrides(overrides or {}, postprocess)
    listed = [models] if isinstance(models, str) or not isinstance(models, Sequence) else models
    if not listed:
        raise RunError("no model given; give one or more runs, exported SavedModels or cross-validations")
    if any(map(is_fusion, listed)):
        if len(listed) > 1:
            raise RunError(f"{next(filter(is_fusion, listed))}: is an ensemble; give it alone, or list all of its runs")
        return _load_fused(listed[0], overrides)
    opened = [
        (path, with_overrides(config, overrides, path), load)
        for path, config, load in map(open_model, _single_models(listed, own_settings=postprocess is None))
    ]
    settings = agreed_settings([(str(path), config) for path, config, _ in opened])
    for line in dict.fromkeys(line for path, config, _ in opened for line in doubtful_augmentation(path, config)):
        logger.warning(line)
    if len(opened) > 1:
        logger.info("ensemble   mean of %d models: %s", len(opened), ", ".join(str(path) for path, *_ in opened))
    # Load the networks last, after all other checks of the models.
    members = [Member(str(path), load(), config) for path, config, load in opened]
    predictor = Predictor(members, settings, identity=model_identity([path for path, *_ in opened]))
    predictor._distrust([(path, config) for path, config, _ in opened])
    return predictor


def _load_fused(path: str | AnyPath, overrides: dict[str, Any]) -> Predictor:
    ensemble = load_ensemble(path, overrides)
    for run in ensemble.runs:
        for line in doubtful_augmentation(run.path, run.config):
            logger.warning(line)
    logger.info("ensemble   weighted mean of %d runs, from %s", len(ensemble.runs), path)
    return Predictor.of_run(ensemble)


def checked_overrides(overrides: dict[str, Any], postprocess: str | AnyPath | None = None) -> dict[str, Any]:
    """Check that overrides only contain keys that may differ from the training config.

    Args:
        overrides: dotted keys of the sections evaluation and postprocess.
        postprocess: a YAML file with a section postprocess, and optionally evaluation.tta.

    Returns:
        The settings of the file, updated by the overrides.

    Raises:
        ConfigError: a key of another section, or a file without a section postprocess.
    """
    for key in overrides:
        if key.split(".")[0] not in ("evaluation", "postprocess"):
            raise ConfigError(f"{key} is fixed by training; only keys of evaluation and postprocess can be set")
    if postprocess is None:
        return overrides
    path = as_path(postprocess)
    if "postprocess" not in read_yaml(path):
        raise ConfigError(f"{path}: has no postprocess section; give a file like the one that gitseg tune writes")
    config = load_config(path)
    of_file = {"postprocess": config.postprocess.model_dump(mode="json")}
    if "tta" in config.evaluation.model_fields_set:
        of_file["evaluation.tta"] = config.evaluation.tta.model_dump(mode="json")
    return of_file | overrides


def doubtful_augmentation(path: AnyPath, config: Config) -> Iterator[str]:
    """Yield warnings about test-time augmentation that the network has not seen in training."""
    tta, augment = config.evaluation.tta, config.augment
    if tta.flip and not augment.flip.p:
        yield f"{path}: was trained without flips (augment.flip.p is 0); it has not seen flipped scans"
    reach = augment.affine.scale if augment.affine.p else 0.0
    far = [scale for scale in tta.scales if abs(scale - 1) > reach + 1e-6]
    if far:
        yield f"{path}: was trained with scales within {reach:g} of 1 (augment.affine); it has not seen scale {far[0]}"


def _single_models(paths: Sequence[str | AnyPath], *, own_settings: bool) -> Iterator[AnyPath]:
    for path in map(as_path, paths):
        if not is_cross_validation(path):
            yield path
            continue
        folds = read_cross_validation(path)
        if unfinished := folds.unfinished():
            raise RunError(
                f"{path}: fold {unfinished[0]} of {len(folds.cases)} is not finished; resume the cross-validation, or "
                "list its finished runs"
            )
        if own_settings:
            check_tuned(folds)
        yield from folds.runs
