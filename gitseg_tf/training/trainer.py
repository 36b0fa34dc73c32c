"""Training: from a dataset and a config to a run folder."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.data.dataset import Dataset
from gitseg_tf.data.pipeline import steps_per_epoch, training_windows, validation_steps, validation_windows
from gitseg_tf.data.service import using_service
from gitseg_tf.data.verify import naming_damaged_shards
from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath, as_path, local_copy
from gitseg_tf.models.build import build_model, logits_of
from gitseg_tf.models.weights import read_backbone_weights
from gitseg_tf.training.agreement import check_agreement, naming_lost_workers
from gitseg_tf.training.callbacks import AveragedValidation, EpochBars, RunRecorder, best_weights_path, read_history
from gitseg_tf.training.checkpoints import RunningEpoch, WithinEpoch
from gitseg_tf.training.cross_validation import is_cross_validation
from gitseg_tf.training.divergence import StopsAtDivergence
from gitseg_tf.training.early_stopping import EarlyStopping
from gitseg_tf.training.initial_loss import InitialLoss
from gitseg_tf.training.overlays import Overlays
from gitseg_tf.training.run_folder import has_begun, load_run_config, open_run
from gitseg_tf.training.setup import compiled_model, set_up
from gitseg_tf.training.tensorboard import EpochLog, open_loggers


@dataclass(frozen=True)
class Run:
    """A run folder that was trained: its config, tuned where it was, and the file with its best weights."""

    path: AnyPath
    config: Config
    weights: AnyPath


def train(
    config: Config, dataset: Dataset, run: str | AnyPath, resume: bool = False, say: Callable[[str], None] = print
) -> Run | None:
    """Train a model and write the run folder: config.yaml, history.csv, checkpoints/, logs/.

    Args:
        config: the experiment.
        dataset: folds but config.data.fold are trained on, that fold is validated after each epoch; None trains on all.
        run: the folder; a new one, unless `resume`.
        resume: go on after the last saved step of an interrupted run; a run that has not begun is begun.
        say: takes lines for the user.

    Returns:
        The run, whose best weights are those of the epoch with the highest validation Dice, or of the last one where no
        fold is held out. None on a worker that is
        not the chief: it has nothing of its own to show.

    Raises:
        InputError: the run exists (without resume), was of another dataset or network, diverged, or the data does not
            fit the config.
    """
    run = as_path(run)
    strategy, precision = set_up(config, dataset, say)
    with naming_lost_workers(strategy, run):
        return _train(config, dataset, run, resume, say, strategy, precision)


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
    if is_cross_validation(path):
        raise InputError(f"{path}: is a cross-validation; give one of its runs, such as {path / 'fold0'}")
    if not has_begun(path):
        raise InputError(f"{path}: is no run (config.yaml is missing); give the folder that train.py wrote")
    weights = best_weights_path(path)
    if (path / "model.json").is_file():
        raise InputError(
            f"{path}: is what gitseg export wrote of a run, not a run; give the folder that train.py wrote"
        )
    if not weights.is_file():
        raise InputError(f"{path}: no epoch of this run has finished; train it with --resume")
    return Run(path, load_run_config(path), weights)


def load_model(run: Run, precision: str = "float32") -> keras.Model:
    """Build a run's network and load its best weights.

    Args:
        run: from `load_run` or `train`.
        precision: keras's dtype policy, as of `build_model`.

    Returns:
        Model from float32 [N, H, W, slices] to float32 logits [N, H, W, 3]; other heads, which serve the training
        alone, are left out.

    Raises:
        InputError: the weights do not fit the config.
    """
    model = build_model(run.config, precision)
    with local_copy(run.weights) as weights:
        try:
            model.load_weights(weights)
        except (ValueError, OSError, KeyError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            cause = f"does not fit the network of {run.path / 'config.yaml'}"
            raise InputError(f"{run.weights}: {cause} ({reason})") from None
    return keras.Model(model.input, logits_of(model.output), name=model.name)


def _train(
    config: Config, dataset: Dataset, run: AnyPath, resume: bool, say, strategy: tf.distribute.Strategy, precision: str
) -> Run | None:
    """`train` after `set_up`. Building, restoring and agreeing wait for the other workers as much as the steps do."""
    steps = steps_per_epoch(dataset, config)
    begins = tf.train.latest_checkpoint(str(run / "checkpoints" / "state")) is None
    weights = read_backbone_weights(config) if begins else None
    if strategy.extended.should_checkpoint:
        open_run(run, config, dataset, resume)
    model = compiled_model(config, strategy, precision, steps, weights)
    with strategy.scope():
        finished = tf.Variable(0, dtype=tf.int64, trainable=False)
        stopping = EarlyStopping(config.training.early_stopping)
    running = RunningEpoch()
    state = tf.train.Checkpoint(
        model=model,
        optimizer=model.optimizer,
        average=model.average.values,
        finished=finished,
        progress=stopping.progress,
        running=running,
    )
    if resume:
        _restore(state, finished, run)
        within = f" and {running.steps} steps" if running.steps else ""
        say(f"resuming   {run} after epoch {int(finished.numpy())}{within} of {config.training.epochs}")
    check_agreement(strategy, *_shared_facts(config, dataset, run, f"{int(finished.numpy())} + {running.steps}"))
    rows = read_history(run)[: int(finished.numpy())]
    say(f"training   {model.name}, {model.count_params():,} parameters, {steps} steps an epoch")
    with _own_folder(run, strategy) as folder:
        manager = tf.train.CheckpointManager(state, str(folder / "checkpoints" / "state"), max_to_keep=2)
        with naming_damaged_shards(dataset), using_service(config.data.service):
            _fit(model, config, dataset, folder, manager, finished, rows, steps, stopping, say)
    if stopping.ends(int(finished.numpy())):
        say(stopping.reason(int(finished.numpy())))
    return load_run(run) if strategy.extended.should_checkpoint else None


def _restore(state: tf.train.Checkpoint, finished: tf.Variable, run: AnyPath) -> None:
    """Bring back the state after the last finished epoch; a run of which no epoch has finished starts anew."""
    epochs = len(read_history(run))
    latest = tf.train.latest_checkpoint(str(run / "checkpoints" / "state"))
    if latest is None:
        if epochs > 1:  # after the first one it may have been killed before it had a checkpoint
            raise InputError(f"{run}: {epochs} epochs have finished but their checkpoint is gone; choose another --out")
        return
    try:
        state.restore(latest).assert_existing_objects_matched()
    except (AssertionError, ValueError):
        cure = "resume with the precision and the section training that it was begun with"
        raise InputError(f"{run}: its checkpoint does not fit the optimizer; {cure}") from None
    except (IndexError, OSError, tf.errors.OpError):
        cure = "name the one before it in checkpoints/state/checkpoint, or choose another --out"
        raise InputError(f"{latest}: the checkpoint is damaged; {cure}") from None
    if epochs < int(finished.numpy()):
        raise InputError(
            f"{run / 'history.csv'}: has {epochs} epochs, the checkpoint {int(finished.numpy())}; restore it"
        )


def _shared_facts(config: Config, dataset: Dataset, run: AnyPath, begun: str) -> tuple[dict[str, str], dict[str, str]]:
    """What all workers must see alike, and what to do where they do not."""
    experiment = config.model_dump_json(exclude={"provenance": True, "data": {"path"}})
    facts = {
        "the experiment": experiment,
        "the dataset": dataset.source["fingerprint"],
        "the epochs and steps that are done": begun,
    }
    cures = (
        "give all of them the same config",
        f"give all of them the dataset of which {dataset.root} is a copy",
        f"all of them must see the same {run}: put --out on a file system that they share",
    )
    return facts, dict(zip(facts, cures, strict=True))


@contextmanager
def _own_folder(run: AnyPath, strategy: tf.distribute.Strategy) -> Iterator[AnyPath]:
    """The run, if this process is the chief. Every worker takes part in saving, but what the others save is dropped."""
    if strategy.extended.should_checkpoint:
        yield run
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        yield Path(folder)


def _fit(
    model,
    config: Config,
    dataset: Dataset,
    run: AnyPath,
    manager,
    finished,
    rows: list[dict],
    steps: int,
    stopping,
    say,
) -> None:
    epochs, first, first_step = config.training.epochs, int(finished.numpy()), manager.checkpoint.running.steps
    if first >= epochs or stopping.ends(first):
        return
    held_out, swa = config.data.fold is not None, config.training.swa
    batches = validation_steps(dataset, config) if held_out else None
    windows = training_windows(dataset, config, first, first_step)
    initial = None if first or first_step else InitialLoss(model.loss_of, say)
    if initial:
        windows = initial.watching(windows)
    recorder, bars = RunRecorder(run, manager, finished, rows), EpochBars(steps, batches, epochs)
    try:
        with open_loggers(run, config, model.distribute_strategy) as loggers:
            # On all workers, whoever logs: batch normalisation's statistics are read from all of them together.
            overlays = Overlays(dataset, config) if held_out else None
            callbacks = [
                initial,
                overlays,  # before the averages leave again: what is drawn is what is validated
                AveragedValidation(partial(training_windows, dataset, config) if swa else None, epochs - swa, steps),
                StopsAtDivergence(dataset, config),
                stopping,
                WithinEpoch(manager, config.training.checkpoint_minutes),
                recorder,
                bars,
                EpochLog(loggers, recorder, overlays, config.data.batch_size),
            ]
            model.fit(
                windows,
                validation_data=validation_windows(dataset, config) if held_out else None,
                epochs=epochs,
                initial_epoch=first,
                steps_per_epoch=steps,
                validation_steps=batches,
                verbose=0,
                callbacks=[callback for callback in callbacks if callback],
            )
    finally:
        bars.close()
