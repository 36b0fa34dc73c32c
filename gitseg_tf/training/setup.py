"""Set up training: devices, precision, checks of config and data, and the compiled model."""

import logging

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.config.training import ADDONS
from gitseg_tf.config.volumetric import feature_depths
from gitseg_tf.core.addons import import_addons
from gitseg_tf.core.text import plural
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.index import PSEUDO
from gitseg_tf.errors import ConfigError
from gitseg_tf.models.backbones.backbone import Weights
from gitseg_tf.models.build import build_model
from gitseg_tf.models.transfer import set_layer_weights
from gitseg_tf.training.callbacks.wandb_log import import_wandb
from gitseg_tf.training.distribute.strategy import choose_precision, choose_strategy
from gitseg_tf.training.optim.optimizers import addons_class
from gitseg_tf.training.step import TrainingModel, training_model

logger = logging.getLogger(__name__)


def set_up(config: Config, dataset: Dataset) -> tuple[tf.distribute.Strategy, str]:
    """Choose and log devices and precision, and check that the config fits them and the data.

    Args:
        config: the experiment.
        dataset: the dataset to train on.

    Returns:
        The strategy, and the Keras dtype policy.

    Raises:
        ConfigError: the devices are not available, or the config does not fit them or the data.
    """
    strategy, strategy_line = choose_strategy(config.training.strategy)
    precision, precision_line = choose_precision(
        config.training.precision,
        tpu=isinstance(strategy, tf.distribute.TPUStrategy),
        depths=feature_depths(config.data.patch, config.model.levels) if config.data.patch else (),
    )
    logger.info("strategy   %s", strategy_line)
    logger.info("precision  %s", precision_line)
    replicas = strategy.num_replicas_in_sync
    _check_optimization(config, replicas)
    if config.data.service and isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise ConfigError("data.service: serves a single training process, not several workers; set it to null")
    if config.augment.backend == "tensorflow":
        _check_augmentation(config, replicas)
    if config.training.wandb is not None:
        import_wandb()
    _check_scans(config, dataset)
    return strategy, precision


def check_metric(config: Config, strategy: tf.distribute.Strategy) -> None:
    """Check that the devices can compute evaluation.metric during training.

    Raises:
        ConfigError: it needs predictions of whole scans, which do not run on TPUs during training.
    """
    if (
        isinstance(strategy, tf.distribute.TPUStrategy)
        and config.data.fold is not None
        and config.evaluation.whole_scans
    ):
        raise ConfigError(
            f"evaluation.metric is {config.evaluation.metric}: TPUs cannot predict whole scans during training; set it "
            "to dice, and choose post-processing by another metric with tune"
        )


def compiled_model(
    config: Config,
    strategy: tf.distribute.Strategy,
    precision: str,
    *,
    steps: int,
    weights: Weights | None = None,
    schedule=None,
    loaded: frozenset[str] = frozenset(),
) -> TrainingModel:
    """Build the network and its optimizer with initial weights, ready for `fit`.

    Args:
        config: the experiment; all random numbers are seeded by config.seed.
        strategy, precision: from `set_up`.
        steps: number of training steps per epoch, for the learning rate schedule.
        weights: initial weights by the names of layers; layers that are not listed keep the random ones.
        schedule: a Keras LearningRateSchedule that replaces the config's.
        loaded: names of the layers whose weights were loaded, also those of a resumed run.

    Returns:
        The compiled model, with variables placed by the strategy.
    """
    keras.utils.set_random_seed(config.seed)
    if config.training.deterministic:
        tf.config.experimental.enable_op_determinism()
    with strategy.scope():
        network = build_model(config, precision, synchronized=strategy.num_replicas_in_sync > 1)
        if weights:
            set_layer_weights(network, weights)
        return training_model(network, config, steps, schedule=schedule, loaded=loaded)


def _check_optimization(config: Config, replicas: int) -> None:
    parts, batch = config.training.gradient_accumulation_steps, config.data.batch_size
    if batch % (replicas * parts):
        which = f"the number of replicas ({replicas})" + (
            f" times training.gradient_accumulation_steps ({parts})" if parts > 1 else ""
        )
        raise ConfigError(f"data.batch_size is {batch}: it must be a multiple of {which}")
    if config.training.optimizer.startswith(ADDONS):
        addons_class(config.training.optimizer)


def _check_augmentation(config: Config, replicas: int) -> None:
    if config.augment.tensorflow_warp == "addons":
        import_addons()
    if config.data.batch_size == replicas and (config.augment.mixup.p or config.augment.cutmix.p):
        raise ConfigError(
            "augment.mixup and augment.cutmix need at least two windows per replica; increase data.batch_size"
        )


def _check_scans(config: Config, dataset: Dataset) -> None:
    fold, excluded = config.data.fold, config.data.exclude_scans
    training = dataset.training_folds(fold)
    absent = sorted(set(excluded) - {scan.id for scan in dataset.scans_of([PSEUDO, *range(dataset.folds)])})
    if absent:
        known = len(excluded) - len(absent)
        logger.info("excluded   %s; not in this dataset: %s", plural(known, "scan"), ", ".join(absent))
    parts = (("the folds", training),) if fold is None else ((f"fold {fold}", [fold]), ("the other folds", training))
    for what, folds in parts:
        if not dataset.scans_of(folds, excluded):
            cause = "data.exclude_scans excludes all scans of" if dataset.scans_of(folds) else "no scan in"
            raise ConfigError(f"{dataset.root}: {cause} {what}; choose another data.fold")
