"""Training: from a dataset and a config to a run folder."""

import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
import tf_keras as keras

from gitseg_tf import __version__
from gitseg_tf.config import Config, load_config, save_config
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.data.pipeline import steps_per_epoch, training_windows, validation_steps, validation_windows
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.models.build import build_model
from gitseg_tf.training.augmented import AugmentedModel
from gitseg_tf.training.callbacks import AveragedValidation, EpochBars, RunRecorder, best_weights_path, read_history
from gitseg_tf.training.losses import bce_dice_loss
from gitseg_tf.training.metrics import StreamingDice
from gitseg_tf.training.optimizers import build_optimizer
from gitseg_tf.training.strategy import choose_precision, choose_strategy


@dataclass(frozen=True)
class Run:
    """A run folder that was trained: its config, and the file with its best weights."""

    path: Path
    config: Config
    weights: Path


def train(
    config: Config, dataset: Dataset, run: str | Path, resume: bool = False, say: Callable[[str], None] = print
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
    run = Path(run)
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
    if config.data.patch is not None:
        raise InputError(
            f"data.patch is {list(config.data.patch)}: {config.model.architecture} is no 3-D network; leave it null"
        )
    steps = steps_per_epoch(dataset, config)
    if not dataset.scans_of([config.data.fold], config.data.exclude_scans):
        raise InputError(f"{dataset.root}: fold {config.data.fold} has no scans; choose another with --fold")
    if strategy.extended.should_checkpoint:
        _open_run(run, config, dataset, resume)
    keras.utils.set_random_seed(config.seed)
    if config.training.deterministic:
        tf.config.experimental.enable_op_determinism()
    with strategy.scope():
        model = build_model(config, precision, synchronized=replicas > 1)
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
        with naming_damaged_shards(dataset):
            _fit(model, config, dataset, folder, manager, finished, steps)
    return load_run(run) if strategy.extended.should_checkpoint else None


def load_run(path: str | Path) -> Run:
    """Open a trained run.

    Args:
        path: the run's folder.

    Returns:
        The run.

    Raises:
        InputError: no run there, or no epoch of it has finished.
    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
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
        Model from float32 [N, H, W, slices] to float32 logits [N, H, W, 3].

    Raises:
        InputError: the weights do not fit the config.
    """
    model = build_model(run.config)
    try:
        model.load_weights(run.weights)
    except (ValueError, OSError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{run.weights}: does not fit the network of {run.path / 'config.yaml'} ({reason})") from None
    return model


def _open_run(run: Path, config: Config, dataset: Dataset, resume: bool) -> None:
    if (run / "config.yaml").is_file():
        if not resume:
            raise InputError(f"{run}: a run is there already; go on with --resume or choose another --out")
        _check_same_experiment(run, config, dataset)
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"{run}: is not empty and no run; choose another --out")
    provenance = {
        "dataset": dataset.source["fingerprint"],
        "records": str(dataset.root.resolve()),
        "trained_on": sorted({scan.case for scan in dataset.scans_of(dataset.training_folds(config.data.fold))}),
        "gitseg_tf": __version__,
        "tensorflow": tf.__version__,
        "tf_keras": keras.__version__,
        "python": platform.python_version(),
    }
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_config(config.model_copy(update={"provenance": provenance}), run / "config.yaml")


def _check_same_experiment(run: Path, config: Config, dataset: Dataset) -> None:
    before = load_config(run / "config.yaml")
    if before.provenance.get("dataset") != dataset.source["fingerprint"]:
        raise InputError(f"{run}: was trained on another dataset than {dataset.root}; choose another --out")
    free = {"data": {"path"}, "training": {"epochs", "strategy"}}
    for section in ("data", "augment", "model", "training"):
        was, wanted = (getattr(c, section).model_dump(exclude=free.get(section)) for c in (before, config))
        for key in was:
            if was[key] != wanted[key]:
                differs = f"{section}.{key} was {was[key]} and is now {wanted[key]}"
                raise InputError(f"{run}: {differs}; resume with the same or choose another --out")
    if before.seed != config.seed:
        raise InputError(f"{run}: seed was {before.seed} and is now {config.seed}; resume with the same")


def _restore(state: tf.train.Checkpoint, finished: tf.Variable, run: Path) -> None:
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
def _own_folder(run: Path, strategy: tf.distribute.Strategy) -> Iterator[Path]:
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
        loss=bce_dice_loss(training.bce_weight, training.dice_weight),
        weighted_metrics=[StreamingDice(config.evaluation.threshold)],
        jit_compile=training.jit_compile,
    )
    model.optimizer.build(model.trainable_variables)


def _fit(model, config: Config, dataset: Dataset, run: Path, manager, finished, steps: int) -> None:
    epochs, first = config.training.epochs, int(finished.numpy())
    if first >= epochs:
        return
    validation = validation_windows(dataset, config)
    slices = sum(scan.shape[0] for scan in dataset.scans_of([config.data.fold], config.data.exclude_scans))
    batches = validation_steps(dataset, config)
    # Keras divides a batch's loss by its size, filler included; this factor makes the mean that over the slices.
    share = batches * config.data.batch_size / slices
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
                keras.callbacks.TensorBoard(run / "logs", write_graph=False),
            ],
        )
    finally:
        bars.close()
