"""What has to be right before a training begins: devices, precision, config and data; and the model made for them."""

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.addons import import_addons
from gitseg_tf.config import Config
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.errors import InputError
from gitseg_tf.models.build import build_model
from gitseg_tf.models.weights import set_backbone_weights
from gitseg_tf.sections.training import ADDONS
from gitseg_tf.training.optimizers import addons_class
from gitseg_tf.training.step import TrainingModel, training_model
from gitseg_tf.training.strategy import choose_precision, choose_strategy
from gitseg_tf.training.wandb_log import import_wandb


def set_up(config: Config, dataset: Dataset, say: Callable[[str], None] = print) -> tuple[tf.distribute.Strategy, str]:
    """Choose devices and precision, say which, and refuse what they and the data do not fit.

    Args:
        config: the experiment.
        dataset: what it is to be trained on.
        say: takes lines for the user.

    Returns:
        The strategy, and keras's dtype policy.

    Raises:
        InputError: no such devices, or the config fits neither them nor the data.
    """
    strategy, strategy_line = choose_strategy(config.training.strategy)
    precision, precision_line = choose_precision(
        config.training.precision,
        isinstance(strategy, tf.distribute.TPUStrategy),
        volumes=config.data.patch is not None,
    )
    say(f"strategy   {strategy_line}\nprecision  {precision_line}")
    replicas = strategy.num_replicas_in_sync
    _check_optimisation(config, replicas)
    if config.data.service and isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise InputError("data.service: serves one training process, not the workers of TF_CONFIG; set it to null")
    if config.augment.on == "accelerator":
        _check_accelerator_changes(config, replicas)
    if config.training.wandb is not None:
        import_wandb()
    _check_scans(config, dataset, say)
    return strategy, precision


def compiled_model(
    config: Config,
    strategy: tf.distribute.Strategy,
    precision: str,
    steps: int,
    weights: list | None = None,
    schedule=None,
) -> TrainingModel:
    """Build the network and its optimizer with fresh weights, ready for `fit`.

    Args:
        config: the experiment; everything random is seeded by config.seed.
        strategy, precision: from `set_up`.
        steps: training steps in an epoch, for the schedule of the learning rate.
        weights: of the encoder, from `read_backbone_weights`; None leaves those of the seed.
        schedule: a keras LearningRateSchedule instead of the config's.

    Returns:
        The compiled model, its variables placed by the strategy.
    """
    keras.utils.set_random_seed(config.seed)
    if config.training.deterministic:
        tf.config.experimental.enable_op_determinism()
    with strategy.scope():
        network = build_model(config, precision, synchronized=strategy.num_replicas_in_sync > 1)
        if weights:
            set_backbone_weights(network, weights)
        return training_model(network, config, steps, schedule)


def _check_optimisation(config: Config, replicas: int) -> None:
    parts, batch = config.training.accumulate, config.data.batch_size
    if batch % (replicas * parts):
        which = f"the {replicas} replicas" + (f" times training.accumulate ({parts})" if parts > 1 else "")
        raise InputError(f"data.batch_size is {batch}: it must be a multiple of {which}")
    if config.training.optimizer.startswith(ADDONS):
        addons_class(config.training.optimizer)


def _check_accelerator_changes(config: Config, replicas: int) -> None:
    if config.augment.accelerator_warp == "addons":
        import_addons()
    if config.data.batch_size == replicas and (config.augment.mixup.p or config.augment.cutmix.p):
        raise InputError("augment.mixup and augment.cutmix need two windows a replica; enlarge data.batch_size")


def _check_scans(config: Config, dataset: Dataset, say: Callable[[str], None]) -> None:
    fold, excluded = config.data.fold, config.data.exclude_scans
    training = dataset.training_folds(fold)
    absent = sorted(set(excluded) - {scan.id for scan in dataset.scans_of(range(dataset.folds))})
    if absent:
        say(f"excluded   {len(excluded) - len(absent)} scans; not in this dataset: {', '.join(absent)}")
    parts = (("the folds", training),) if fold is None else ((f"fold {fold}", [fold]), ("the other folds", training))
    for what, folds in parts:
        if not dataset.scans_of(folds, excluded):
            cause = "data.exclude_scans names all scans of" if dataset.scans_of(folds) else "there is no scan in"
            raise InputError(f"{dataset.root}: {cause} {what}; choose another --fold")
