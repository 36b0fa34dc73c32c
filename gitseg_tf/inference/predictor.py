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
from gitseg_tf.inference.networks import has_presence, open_model, run_probabilities
from gitseg_tf.inference.postprocess import clean_mask, label_settings, postprocess
from gitseg_tf.inference.prediction import BasePredictor, Prediction
from gitseg_tf.inference.trust import model_training_data, model_warnings
from gitseg_tf.labels import LabelSet
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
        presence: compute the presence of labels even if no label has min_presence, for `measure`.

    Raises:
        RunError: a label has min_presence, but no member has a presence head.

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
        presence: bool = False,
    ):
        self.config = members[0].config
        self.identity = identity or ModelIdentity(self.config.name)
        self.labels, self.channels = self.config.label_set, self.config.channels
        self.settings = label_settings(self.config) if settings is None else list(settings)
        self._presence = presence or any(steps.min_presence for steps in self.settings)
        if self._presence and not any(member.has_presence for member in members):
            raise _without_presence(members, self.labels, self.settings)
        self._mean = make_mean(members, presence=self._presence)
        self._least_presence = np.array([steps.min_presence for steps in self.settings], np.float32)
        self._thresholds = np.array([steps.threshold for steps in self.settings], np.float32)
        self._smoothed = any(steps.smooth_mm for steps in self.settings)

    @classmethod
    def of_network(cls, network: Callable, config: Config) -> "Predictor":
        """Create a predictor from a function from windows to probabilities, see `Member`."""
        return cls([Member(config.name, network, config)])

    @classmethod
    def of_run(cls, run: Run | RunEnsemble, network: Callable | None = None, *, presence: bool = False) -> "Predictor":
        """Create a predictor from a run or an ensemble.

        Args:
            run: the run, or the runs of a cross-validation.
            network: from `run_probabilities`, if a run's network is already loaded; not used if its presence head is
                needed.
            presence: as for `Predictor`; the runs must have a presence head.
        """
        runs = runs_of(run)
        settings = label_settings(run.config)
        presence = presence or any(steps.min_presence for steps in settings)
        members = []
        for one, weights in zip(runs, weights_of(run), strict=True):
            head = presence and one.config.gates_slices
            probabilities = run_probabilities(one, presence=True) if head else network or run_probabilities(one)
            members.append(Member(str(one.path), probabilities, one.config, weights=weights, has_presence=head))
        predictor = cls(members, settings, identity=runs_identity(run), presence=presence)
        predictor._distrust([(one.path, one.config) for one in runs])
        return predictor

    def probabilities(self, volume: Volume | np.ndarray, *, spacing: Sequence[float] | None = None) -> np.ndarray:
        """Compute the probabilities of a scan at its own size, without post-processing: float32 [L, D, H, W]."""
        return self.measure(volume, spacing=spacing)[0]

    def measure(
        self, volume: Volume | np.ndarray, *, spacing: Sequence[float] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Compute what post-processing needs: the probabilities of a scan, and the presence of labels in its slices.

        Args:
            volume, spacing: as for `predict`.

        Returns:
            float32 [L, D, H, W], and float32 [L, D], or None if presence is not computed. In a slice larger than the
            network's input, it is the highest of all tiles.
        """
        values, labels = self._mean(self._checked(volume, spacing), tf.identity), len(self.labels)
        return values[:labels], values[labels:].max((2, 3)) if self._presence else None

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
            probabilities, presence = self.measure(volume)
            masks = self._masks(probabilities, volume, presence)
            return Prediction(masks, levels=_levels(probabilities).numpy())
        labels = len(self.labels)
        codes = self._mean(volume, lambda p: _levels(p[..., :labels]) + tf.cast(self._reached(p), tf.uint8) * _REACHED)
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
            return Prediction(self._cleaned(self._mean(volume, self._reached), volume))
        values, presence = self.measure(volume)
        return Prediction(self._masks(values, volume, presence), values if probabilities else None)

    def _reached(self, values) -> tf.Tensor:
        """Apply the thresholds and the presence to slices: float32 [N, H, W, L or 2 L] to bool [N, H, W, L]."""
        labels = len(self.settings)
        masks = values[..., :labels] >= self._thresholds
        if not self._presence:
            return masks
        present = tf.reduce_max(values[..., labels:], [1, 2]) >= self._least_presence
        return masks & present[:, None, None]

    def _masks(self, probabilities: np.ndarray, volume: Volume, presence: np.ndarray | None) -> np.ndarray:
        return postprocess(probabilities, self.settings, volume.numbers, volume.spacing, presence=presence)

    def _cleaned(self, masks: np.ndarray, volume: Volume) -> np.ndarray:
        for k, steps in enumerate(self.settings):
            masks[k] = clean_mask(masks[k], steps, volume.numbers, volume.spacing)
        return masks


def _without_presence(members: Sequence[Member], labels: LabelSet, settings: Sequence[LabelPostprocess]) -> RunError:
    gated = [(name, steps.min_presence) for name, steps in zip(labels.names, settings, strict=True)]
    key, value = next(((f"{name}.min_presence", least) for name, least in gated if least), ("min_presence", 0.0))
    files = "ONNX and TFLite files never have one" if members[0].config.model.presence_head else ""
    fix = "set it to 0, or use a run trained with model.presence_head"
    problem = "the model has no presence head" if len(members) == 1 else "none of the models has a presence head"
    return RunError(f"{members[0].name}: postprocess.{key} is {value}, but {problem}{files and f' ({files})'}; {fix}")


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
    gated = any(steps.min_presence for steps in settings)
    members = []
    for path, config, load in opened:
        if gated and has_presence(path, config):
            members.append(Member(str(path), load(presence=True), config, has_presence=True))
        else:
            members.append(Member(str(path), load(), config))
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
