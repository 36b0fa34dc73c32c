"""Train a network on a dataset, and write a run folder."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import tensorflow as tf

from gitseg_tf.config import Config
from gitseg_tf.config.evaluation import METRICS
from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.core.text import plural
from gitseg_tf.data.pipeline.batches import training_windows, validation_steps, validation_windows
from gitseg_tf.data.pipeline.epochs import steps_per_epoch
from gitseg_tf.data.pipeline.service import using_service
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.data.tfrecords.verify import naming_damaged_shards
from gitseg_tf.errors import RunError
from gitseg_tf.runs.folder import read_history
from gitseg_tf.runs.run import Run, load_run
from gitseg_tf.training.callbacks.after_epoch import AfterEpoch
from gitseg_tf.training.callbacks.checkpoints import RunningEpoch, WithinEpoch
from gitseg_tf.training.callbacks.divergence import StopsAtDivergence
from gitseg_tf.training.callbacks.early_stopping import EarlyStopping
from gitseg_tf.training.callbacks.held_out import HeldOutMetric
from gitseg_tf.training.callbacks.initial_loss import InitialLoss
from gitseg_tf.training.callbacks.overlays import Overlays
from gitseg_tf.training.callbacks.recorder import AveragedValidation, EpochBars, RunRecorder
from gitseg_tf.training.callbacks.tensorboard import EpochLog, open_loggers
from gitseg_tf.training.callbacks.unfreezing import Unfreezes
from gitseg_tf.training.distribute.consistency import check_agreement, naming_lost_workers
from gitseg_tf.training.initial_weights import read_initial_weights, resumed_weights
from gitseg_tf.training.run_folder import open_run
from gitseg_tf.training.setup import check_metric, compiled_model, set_up

logger = logging.getLogger(__name__)


def train(
    config: Config,
    dataset: Dataset,
    run: str | AnyPath,
    *,
    resume: bool = False,
    after_epoch: Callable[[int, float], bool] | None = None,
) -> Run | None:
    """Train a model and write the run folder: config.yaml, history.csv, checkpoints/, logs/.

    Args:
        config: the experiment. The network gets one output per label and one input per channel of the dataset.
        dataset: all folds but config.data.fold are used for training, and that fold for validation after each epoch. If
            it is None, all folds are used for training. With an evaluation.metric of whole scans, that fold's scans are
            also predicted whole after each epoch.
        run: the run's folder, which must be new unless `resume` is set.
        resume: continue after the last saved step of an interrupted run; a run that has not started is started.
        after_epoch: called once each epoch is saved, with the number of finished epochs and their last
            evaluation.metric on the held-out fold; training stops if it returns True. For a single worker.

    Returns:
        The run, whose best weights are those of the epoch with the highest evaluation.metric on the held-out fold, or
        of the last epoch if no fold is held out. None on a worker other than the chief, which does not write the run.

    Raises:
        ConfigError: the config does not fit the data or the devices.
        RunError: the run exists (without resume), belongs to another experiment or dataset, or diverged; or model.init
            does not fit, or was trained on held-out patients.
    """
    run = as_path(run)
    config = config.for_dataset(dataset.labels, dataset.channels, dataset.intensities)
    strategy, precision = set_up(config, dataset)
    check_metric(config, strategy)
    with naming_lost_workers(strategy, run):
        return _train(
            config, dataset, run, resume=resume, strategy=strategy, precision=precision, after_epoch=after_epoch
        )


def _train(
    config: Config,
    dataset: Dataset,
    run: AnyPath,
    *,
    resume: bool,
    strategy: tf.distribute.Strategy,
    precision: str,
    after_epoch: Callable[[int, float], bool] | None,
) -> Run | None:
    """Train after `set_up`; all workers must call it, because building, restoring and comparing are collective."""
    steps = steps_per_epoch(dataset, config)
    begins = tf.train.latest_checkpoint(str(run / "checkpoints" / "state")) is None
    initial = read_initial_weights(config, dataset) if begins else resumed_weights(config, run)
    if strategy.extended.should_checkpoint:
        open_run(run, config, dataset, resume=resume, init=initial.provenance)
        initial.write(run)
    model = compiled_model(config, strategy, precision, steps=steps, weights=initial.weights, loaded=initial.loaded)
    with strategy.scope():
        finished = tf.Variable(0, dtype=tf.int64, trainable=False)
        stopping = EarlyStopping(config.training.early_stopping_patience, config.evaluation.monitored)
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
        within = f" and {plural(running.steps, 'step')}" if running.steps else ""
        epoch, epochs = int(finished.numpy()), config.training.epochs
        logger.info("resuming   %s after epoch %d%s of %d", run, epoch, within, epochs)
    check_agreement(strategy, *_shared_facts(config, dataset, run, f"{int(finished.numpy())} + {running.steps}"))
    rows = read_history(run)[: int(finished.numpy())]
    parameters = f"{model.count_params():,}"
    logger.info("training   %s, %s parameters, %s per epoch", model.name, parameters, plural(steps, "step"))
    with _worker_folder(run, strategy) as folder:
        manager = tf.train.CheckpointManager(state, str(folder / "checkpoints" / "state"), max_to_keep=2)
        with naming_damaged_shards(dataset), using_service(config.data.service):
            _fit(
                model,
                config,
                dataset,
                run=folder,
                manager=manager,
                finished=finished,
                rows=rows,
                steps=steps,
                stopping=stopping,
                after_epoch=after_epoch,
            )
    if stopping.ends(int(finished.numpy())):
        logger.info(stopping.reason(int(finished.numpy())))
    _log_planned_minutes(config, read_history(run))
    return load_run(run) if strategy.extended.should_checkpoint else None


def _log_planned_minutes(config: Config, rows: list[dict]) -> None:
    """Compare the duration of a planned training with the plan."""
    planned = config.provenance.get("plan")
    if isinstance(planned, dict) and isinstance(planned.get("minutes"), int | float):
        minutes = sum(row.get("seconds", 0.0) for row in rows) / 60
        logger.info("time       %.3g minutes of training; the plan expected %.3g", minutes, planned["minutes"])


def _restore(state: tf.train.Checkpoint, finished: tf.Variable, run: AnyPath) -> None:
    """Restore the last saved state; a run without one starts from the beginning."""
    epochs = len(read_history(run))
    latest = tf.train.latest_checkpoint(str(run / "checkpoints" / "state"))
    if latest is None:
        if epochs > 1:  # it may have been killed between the first epoch and its checkpoint
            raise RunError(
                f"{run}: the checkpoint of {plural(epochs, 'finished epoch')} is missing; choose another run folder"
            )
        return
    try:
        state.restore(latest).assert_existing_objects_matched()
    except (AssertionError, ValueError):
        fix = "resume with the precision and the training section that it was started with"
        raise RunError(f"{run}: its checkpoint does not fit the optimizer; {fix}") from None
    except (IndexError, OSError, tf.errors.OpError):
        fix = "name the previous one in checkpoints/state/checkpoint, or choose another run folder"
        raise RunError(f"{latest}: the checkpoint is damaged; {fix}") from None
    if epochs < int(finished.numpy()):
        raise RunError(
            f"{run / 'history.csv'}: has {plural(epochs, 'epoch')}, but the checkpoint has {int(finished.numpy())}; "
            "restore it"
        )


def _shared_facts(config: Config, dataset: Dataset, run: AnyPath, begun: str) -> tuple[dict[str, str], dict[str, str]]:
    """Collect the values that must be the same on all workers, and how to fix a difference."""
    experiment = config.model_dump_json(exclude={"provenance": True, "data": {"path"}})
    facts = {
        "the experiment": experiment,
        "the dataset": dataset.source["fingerprint"] + (dataset.teacher.weights if dataset.teacher else ""),
        "the number of finished epochs and steps": begun,
    }
    fixes = (
        "give all workers the same config",
        f"give all workers a copy of the same dataset as {dataset.root}",
        f"put the run folder {run} on a file system that all workers share",
    )
    return facts, dict(zip(facts, fixes, strict=True))


@contextmanager
def _worker_folder(run: AnyPath, strategy: tf.distribute.Strategy) -> Iterator[AnyPath]:
    """Provide the run's folder on the chief, and a temporary one on other workers, which also take part in saving."""
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
    *,
    run: AnyPath,
    manager: tf.train.CheckpointManager,
    finished: tf.Variable,
    rows: list[dict],
    steps: int,
    stopping: EarlyStopping,
    after_epoch: Callable[[int, float], bool] | None,
) -> None:
    epochs, first, first_step = config.training.epochs, int(finished.numpy()), manager.checkpoint.running.steps
    if first >= epochs or stopping.ends(first):
        return
    held_out, swa = config.data.fold is not None, config.training.swa_epochs
    batches = validation_steps(dataset, config) if held_out else None
    windows = training_windows(dataset, config, first, first_step)
    # The expected loss is that of an untrained head.
    initial = None if first or first_step or config.model.init is not None else InitialLoss(model.loss_of)
    if initial:
        windows = initial.watching(windows)
    monitor = config.evaluation.monitored
    recorder = RunRecorder(run, manager, finished, rows, monitor)
    bars = EpochBars(steps, batches, epochs, monitor)
    scorer = (
        METRICS.get(config.evaluation.metric)(config, dataset) if held_out and config.evaluation.whole_scans else None
    )
    try:
        with open_loggers(run, config, model.distribute_strategy) as loggers:
            # Create them on all workers even if only the chief logs: reading the statistics of batch normalization is
            # a collective operation.
            overlays = Overlays(dataset, config) if held_out else None
            callbacks = [
                Unfreezes(model.freezing) if model.freezing else None,
                initial,
                # These two must precede the callback that swaps the averages back, to use the validated weights.
                HeldOutMetric(scorer, monitor) if scorer else None,
                overlays,
                AveragedValidation(partial(training_windows, dataset, config) if swa else None, epochs - swa, steps),
                StopsAtDivergence(dataset, config),
                stopping,
                WithinEpoch(manager, config.training.checkpoint_minutes),
                recorder,
                bars,
                EpochLog(loggers, recorder, overlays, config.data.batch_size),
                AfterEpoch(after_epoch, monitor) if after_epoch else None,
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
