"""Training: from a dataset and a config to a run folder."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.addons import import_addons
from gitseg_tf.config import Config, load_config
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.data.pipeline import (
    steps_per_epoch,
    training_windows,
    validation_samples,
    validation_steps,
    validation_windows,
)
from gitseg_tf.data.service import using_service
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, local_copy
from gitseg_tf.models.build import build_model, logits_of
from gitseg_tf.models.weights import read_backbone_weights, set_backbone_weights
from gitseg_tf.training.augmented import AugmentedModel
from gitseg_tf.training.callbacks import AveragedValidation, EpochBars, RunRecorder, best_weights_path, read_history
from gitseg_tf.training.losses import training_loss
from gitseg_tf.training.metrics import StreamingDice
from gitseg_tf.training.optimizers import build_optimizer
from gitseg_tf.training.run_folder import has_begun, open_run
from gitseg_tf.training.strategy import choose_precision, choose_strategy
from gitseg_tf.training.uncounted import counting


@dataclass(frozen=True)
class Run:
    """A run folder that was trained: its config, and the file with its best weights."""

    path: AnyPath
    config: Config
    weights: AnyPath


def train(
    config: Config, dataset: Dataset, run: str | AnyPath, resume: bool = False, say: Callable[[str], None] = print
) -> Run | None:
    """Train a model and write the run folder: config.yaml, history.csv, checkpoints/, logs/.

    Args:
        config: the experiment.
        dataset: folds but config.data.fold are trained on, that fold is validated after each epoch.
        run: the folder; a new one, unless `resume`.
        resume: go on after the last finished epoch of an interrupted run; a run that has not begun is begun.
        say: takes lines for the user.

    Returns:
        The run, whose best weights are those of the epoch with the highest validation Dice. None on a worker that is
        not the chief: it has nothing of its own to show.

    Raises:
        InputError: the run exists (without resume), was of another dataset or network, diverged, or the data does not
            fit the config.
    """
    run = as_path(run)
    strategy, strategy_line = choose_strategy(config.training.strategy)
    precision, precision_line = choose_precision(
        config.training.precision, isinstance(strategy, tf.distribute.TPUStrategy)
    )
    say(f"strategy   {strategy_line}\nprecision  {precision_line}")
    replicas = strategy.num_replicas_in_sync
    if config.data.batch_size % replicas:
        raise InputError(
            f"data.batch_size is {config.data.batch_size}: it must be a multiple of the {replicas} replicas"
        )
    if config.data.service and isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise InputError("data.service: serves one training process, not the workers of TF_CONFIG; set it to null")
    if config.augment.on == "accelerator":
        _check_accelerator_changes(config, replicas)
    _check_scans(config, dataset, say)
    steps = steps_per_epoch(dataset, config)
    begins = tf.train.latest_checkpoint(str(run / "checkpoints" / "state")) is None
    weights = read_backbone_weights(config) if begins else None
    if strategy.extended.should_checkpoint:
        open_run(run, config, dataset, resume)
    keras.utils.set_random_seed(config.seed)
    if config.training.deterministic:
        tf.config.experimental.enable_op_determinism()
    with strategy.scope():
        model = build_model(config, precision, synchronized=replicas > 1)
        if weights:
            set_backbone_weights(model, weights)
        if config.augment.on == "accelerator":
            model = AugmentedModel(
                model.inputs, model.outputs, name=model.name, augment=config.augment, seed=config.seed
            )
        _compile(model, config, steps)
        finished = tf.Variable(0, dtype=tf.int64, trainable=False)
        state = tf.train.Checkpoint(model=model, optimizer=model.optimizer, finished=finished)
    if resume:
        _restore(state, finished, run)
        say(f"resuming   {run} after epoch {int(finished.numpy())} of {config.training.epochs}")
    say(f"training   {model.name}, {model.count_params():,} parameters, {steps} steps an epoch")
    with _own_folder(run, strategy) as folder:
        manager = tf.train.CheckpointManager(state, str(folder / "checkpoints" / "state"), max_to_keep=2)
        with naming_damaged_shards(dataset), using_service(config.data.service):
            _fit(model, config, dataset, folder, manager, finished, steps)
    return load_run(run) if strategy.extended.should_checkpoint else None


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
    for what, folds in ((f"fold {fold}", [fold]), ("the other folds", training)):
        if not dataset.scans_of(folds, excluded):
            cause = "data.exclude_scans names all scans of" if dataset.scans_of(folds) else "there is no scan in"
            raise InputError(f"{dataset.root}: {cause} {what}; choose another --fold")


def load_run(path: str | AnyPath) -> Run:
    """Open a trained run.

    Args:
        path: the run's folder.

    Returns:
        The run.

    Raises:
        InputError: no run there, or no epoch of it has finished.
    """
    path = as_path(path)
    if not has_begun(path):
        raise InputError(f"{path}: is no run (config.yaml is missing); give the folder that train.py wrote")
    weights = best_weights_path(path)
    if not weights.is_file():
        raise InputError(f"{path}: no epoch of this run has finished; train it with --resume")
    return Run(path, load_config(path / "config.yaml"), weights)


def load_model(run: Run) -> keras.Model:
    """Build a run's network in float32 and load its best weights.

    Args:
        run: from `load_run` or `train`.

    Returns:
        Model from float32 [N, H, W, slices] to float32 logits [N, H, W, 3]; other heads, which serve the training
        alone, are left out.

    Raises:
        InputError: the weights do not fit the config.
    """
    model = build_model(run.config)
    with local_copy(run.weights) as weights:
        try:
            model.load_weights(weights)
        except (ValueError, OSError, KeyError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            cause = f"does not fit the network of {run.path / 'config.yaml'}"
            raise InputError(f"{run.weights}: {cause} ({reason})") from None
    return keras.Model(model.input, logits_of(model.output), name=model.name)


def _restore(state: tf.train.Checkpoint, finished: tf.Variable, run: AnyPath) -> None:
    """Bring back the state after the last finished epoch; a run of which no epoch has finished starts anew."""
    epochs = len(read_history(run))
    latest = tf.train.latest_checkpoint(str(run / "checkpoints" / "state"))
    if latest is None:
        if epochs:
            raise InputError(f"{run}: {epochs} epochs have finished but their checkpoint is gone; choose another --out")
        return
    try:
        state.restore(latest).assert_existing_objects_matched()
    except (AssertionError, ValueError):
        cure = "resume with the precision and the training.ema that it was begun with"
        raise InputError(f"{run}: its checkpoint does not fit the optimizer; {cure}") from None
    except (IndexError, OSError, tf.errors.OpError):
        cure = "name the one before it in checkpoints/state/checkpoint, or choose another --out"
        raise InputError(f"{latest}: the checkpoint is damaged; {cure}") from None
    if epochs < int(finished.numpy()):
        raise InputError(
            f"{run / 'history.csv'}: has {epochs} epochs, the checkpoint {int(finished.numpy())}; restore it"
        )


@contextmanager
def _own_folder(run: AnyPath, strategy: tf.distribute.Strategy) -> Iterator[AnyPath]:
    """The run, if this process is the chief. Every worker takes part in saving, but what the others save is dropped."""
    if strategy.extended.should_checkpoint:
        yield run
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        yield Path(folder)


def _compile(model: keras.Model, config: Config, steps: int) -> None:
    training = config.training
    model.compile(
        optimizer=build_optimizer(training, steps * training.epochs),
        loss=counting(training_loss(training.loss)),
        weighted_metrics=[StreamingDice(config.evaluation.threshold)],
        jit_compile=training.jit_compile,
    )
    model.optimizer.build(model.trainable_variables)


def _fit(model, config: Config, dataset: Dataset, run: AnyPath, manager, finished, steps: int) -> None:
    epochs, first = config.training.epochs, int(finished.numpy())
    if first >= epochs:
        return
    validation = validation_windows(dataset, config)
    batches = validation_steps(dataset, config)
    # Keras divides a batch's loss by its size, filler included; this factor makes the mean that over the samples.
    share = batches * config.data.batch_size / validation_samples(dataset, config)
    validation = validation.map(lambda image, mask, weight: (image, mask, weight * share))
    bars = EpochBars(steps, batches, epochs)
    try:
        model.fit(
            training_windows(dataset, config, first),
            validation_data=validation,
            epochs=epochs,
            initial_epoch=first,
            steps_per_epoch=steps,
            validation_steps=batches,
            verbose=0,
            callbacks=[
                AveragedValidation(),
                RunRecorder(run, manager, finished),
                bars,
                keras.callbacks.TensorBoard(str(run / "logs"), write_graph=False),
            ],
        )
    finally:
        bars.close()
