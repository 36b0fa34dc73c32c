"""Search for good config values with Optuna: sample, train, prune, compare. Does not import TensorFlow."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from gitseg_tf.config import Config, save_config
from gitseg_tf.core.locks import locked
from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.core.text import plural
from gitseg_tf.core.trees import parse_json, shown
from gitseg_tf.errors import ConfigError, DependencyError, GitsegError, RunError, first_line
from gitseg_tf.runs.folder import read_history
from gitseg_tf.training.distribute.cluster import has_workers
from gitseg_tf.training.run_folder import clear_unbegun
from gitseg_tf.training.search.grid import Trial, compare
from gitseg_tf.training.search.process import AfterEpochFunction, train_run
from gitseg_tf.training.search.space import JOURNAL, Range, Search, to_tree
from gitseg_tf.training.search.study_plot import cell, draw_search

logger = logging.getLogger(__name__)

Objective = Callable[[str, Config, AfterEpochFunction], float | None]
# Keys that do not change the results, or that may differ between two machines.
_MAY_CHANGE: dict[str, Any] = {
    "name": True,
    "provenance": True,
    "data": {"path", "service"},
    "training": {"strategy", "checkpoint_minutes", "wandb"},
}


def import_optuna() -> ModuleType:
    """Import Optuna.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise DependencyError(
            f"sampling trials needs Optuna, which cannot be imported ({error}); pip install 'gitseg-tf[search]'"
        ) from None
    return optuna


def run_search(
    search: Search,
    out: str | AnyPath,
    *,
    trials: int,
    prune_after: int = 5,
    dataset: str = "",
    objective: Objective | None = None,
) -> pd.DataFrame:
    """Sample trials with Optuna, train each in a separate process, and stop those that fall behind.

    Values are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011, NeurIPS), with seeds that follow
    from config.seed and the number of the trial. A trial is pruned after an epoch if its best evaluation.metric so far
    is below the median of the completed trials at the same epoch (Golovin et al. 2017, KDD), but not in the first
    quarter of the epochs. Repeating the call continues the search: finished trials are kept, and an interrupted one is
    repeated with the same values, from its last checkpoint.

    Args:
        search: what varies.
        out: the search's folder on this machine. Each trial has NAME/, an ordinary run, NAME.yaml (its config) and
            NAME.log (its output). grid.csv, grid.png and best.yaml, the config of the best trial, are updated after
            each trial; study.journal is Optuna's record.
        trials: number of trials, including those that the folder already has.
        prune_after: number of completed trials before the first one may be pruned.
        dataset: fingerprint of the data, by which a search is recognized.
        objective: trains a trial, given its name, its config and a function to call after each epoch, which returns
            whether to stop; returns evaluation.metric, or raises a RunError. None trains runs.

    Returns:
        The table of grid.csv: see `grid.compare`; status is "finished", "pruned" or the error.

    Raises:
        ConfigError: the folder is a run or a grid, or has a search with other values, or this process is one of several
            workers.
        DependencyError: Optuna is not installed.
        RunError: study.journal is damaged.
    """
    optuna = import_optuna()
    if has_workers():
        fix = "unset TF_CONFIG and start one task"
        raise ConfigError(f"a search trains from one process and cannot use several workers; {fix}")
    out = Path(out)
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    # An interrupted search may have left a process, which holds the lock until its epoch is over.
    with locked(out, wait=True) as lock, _quiet(optuna):
        study = _open_study(optuna, search, out, prune_after=prune_after, dataset=dataset)
        _repeat_interrupted(optuna, study)
        objective = objective or _training(out, lock)
        done, epochs = len(_by_run(study)), search.base.training.epochs
        more = f", {done} of them already started" if done else ""
        what = f"{plural(max(trials, done), 'trial')} of {plural(epochs, 'epoch')}"
        logger.info("search     %s%s, in %s", what, more, out)
        while (number := len(_by_run(study))) < trials or _waiting(optuna, study):
            _run_trial(optuna, study, search, out, number=number, objective=objective)
            write_results(study_results(study, search), out)
        table = write_results(study_results(study, search), out)
        draw_search(out / "grid.png", table, out, search)
    return table


@dataclass(frozen=True)
class Results:
    """The ended trials of a study, and their states.

    Attributes:
        trials: name, values and config of each.
        status: "pruned" or the error, by name; no entry for a completed trial.
    """

    trials: list[Trial]
    status: dict[str, str | None]


def study_results(study: Any, search: Search) -> Results:
    """Collect the ended trials of an Optuna study."""
    trials: list[Trial] = []
    status: dict[str, str | None] = {}
    for name, trial in _by_run(study).items():
        if trial.state.is_finished():
            values = _values(search, trial.params)
            trials.append(Trial(name, values, _config_or_base(search, values)))
            if trial.state.name == "PRUNED":
                status[name] = "pruned"
            elif trial.state.name == "FAIL":
                status[name] = trial.user_attrs.get("error", "failed")
    return Results(trials, status)


def write_results(results: Results, out: Path) -> pd.DataFrame:
    """Write grid.csv and best.yaml; return the table."""
    table = compare(results.trials, out, results.status)
    write_atomically(out / "grid.csv", table.to_csv(index=False).encode())
    if table["status"].iloc[0] == "finished":
        save_config(next(t.config for t in results.trials if t.name == table["run"].iloc[0]), out / "best.yaml")
    return table


def _check_folder(out: Path) -> None:
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names & {"config.yaml", "history.csv"}:
        raise ConfigError(f"{out}: is a run; choose another folder")
    if "grid.csv" in names and JOURNAL not in names:
        raise ConfigError(f"{out}: is a grid of all combinations; choose another folder")


@contextmanager
def _quiet(optuna: ModuleType) -> Iterator[None]:
    """Show only Optuna's warnings, because `search` logs the trials itself."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _open_study(optuna: ModuleType, search: Search, out: Path, *, prune_after: int, dataset: str) -> Any:
    """Open the study in the folder, or create it; check that it is the same search."""
    journal = out / JOURNAL
    _repair(journal)
    warm_up = search.base.training.epochs // 4 + 1
    pruner = optuna.pruners.MedianPruner(n_startup_trials=prune_after, n_warmup_steps=warm_up)
    try:
        backend = optuna.storages.journal.JournalFileBackend(str(journal))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="search",
            pruner=pruner,
            direction="maximize",
            load_if_exists=True,
        )
        before = study.user_attrs.get("experiment")
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{journal}: is damaged ({first_line(error)}); restore it or choose another folder") from None
    experiment = {
        "space": to_tree(search.space),
        "dataset": dataset,
        "config": search.base.model_dump(mode="json", exclude=_MAY_CHANGE),
    }
    now = json.loads(json.dumps(experiment))
    if before is None:
        study.set_user_attr("experiment", now)
    elif before != now:
        difference = _difference(before, now)
        raise ConfigError(f"{out}: has a search with other settings: {difference}; choose another folder")
    return study


def _repair(journal: Path) -> None:
    """Remove what a process killed while writing left: Optuna's lock, and half a line. The folder is locked."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    content = journal.read_bytes() if journal.is_file() else b""
    if content and not content.endswith(b"\n"):
        write_atomically(journal, content[: content.rfind(b"\n") + 1])


def _difference(before: Any, now: Any, key: str = "") -> str:
    """Describe the first difference of two trees."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before | now:
            if before.get(name) != now.get(name):
                return _difference(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    return f"{key.removeprefix('config.')} was {shown(before)} and is now {shown(now)}"


def _by_run(study: Any) -> dict[str, Any]:
    """Return the last trial of each run by the run's name, in the order of the runs."""
    return {t.user_attrs["run"]: t for t in study.get_trials(deepcopy=False) if "run" in t.user_attrs}


def _waiting(optuna: ModuleType, study: Any) -> bool:
    return bool(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)))


def _repeat_interrupted(optuna: ModuleType, study: Any) -> None:
    """Mark trials that ended without a result as failed, and enqueue them again with the same values."""
    states = optuna.trial.TrialState
    waiting = {t.user_attrs["run"] for t in study.get_trials(states=(states.WAITING,))}
    for trial in study.get_trials(states=(states.RUNNING,)):
        name = trial.user_attrs.get("run")
        if name is not None and name not in waiting:
            # A repeated trial that is interrupted at once may not have all of its values yet.
            tries = [t.params for t in study.get_trials() if t.user_attrs.get("run") == name]
            study.enqueue_trial({k: v for values in tries for k, v in values.items()}, user_attrs={"run": name})
        study.tell(trial.number, state=states.FAIL)


def _run_trial(optuna: ModuleType, study: Any, search: Search, out: Path, *, number: int, objective: Objective) -> None:
    """Sample and train a trial, and record its result."""
    states = optuna.trial.TrialState
    # A sampler with one seed would draw the same values again in each process that continues the search.
    seed = int(np.random.SeedSequence((search.base.seed, number)).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=False)
    trial = study.ask(_distributions(optuna, search))
    name = trial.user_attrs.get("run", f"trial-{number + 1:03d}")
    trial.set_user_attr("run", name)
    values = _values(search, trial.params)
    assigned = ", ".join(f"{key.rpartition('.')[2]} {cell(value)}" for key, value in values.items())
    logger.info("%s  %s", name, assigned)
    metric = search.base.evaluation.metric
    try:
        config = search.config(values)
        pruning = _Pruning(trial, config.training.epochs)
        # After an interruption, the run already has some epochs.
        history = read_history(out / name)
        monitored = config.evaluation.monitored
        stopped = any(pruning(row["epoch"], row.get(monitored, math.nan)) for row in history)
        value = None if stopped else objective(name, config, pruning)
        if not pruning.stopped and (value is None or math.isnan(value)):
            raise RunError(f"the run has no {metric}; no label is annotated in the held-out fold")
    except GitsegError as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=states.FAIL)
        logger.info("failed     %s: %s", name, error)
        return
    if pruning.stopped:
        study.tell(trial, state=states.PRUNED)
        reason = f"its val_{metric} is below the median of the earlier trials"
        logger.info("pruned     %s after epoch %d: %s", name, pruning.epoch, reason)
        return
    study.tell(trial, value)
    logger.info("finished   %s: %s %.4f; the best is %.4f", name, metric, value, study.best_value)


class _Pruning:
    """Reports the epochs of a trial to Optuna; returns whether to stop. The last epoch is never a reason to."""

    def __init__(self, trial: Any, epochs: int):
        self._trial, self._epochs, self._reported = trial, epochs, set[int]()
        self.stopped, self.epoch = False, 0

    def __call__(self, epoch: int, value: float) -> bool:
        if epoch not in self._reported:  # a resumed run may repeat an epoch
            self._trial.report(value, epoch)
            self._reported.add(epoch)
        self.epoch = epoch
        self.stopped = epoch < self._epochs and bool(self._trial.should_prune())
        return self.stopped


def _training(out: Path, lock: int | None) -> Objective:
    """Return the objective that trains a run and reads its score."""

    def objective(name: str, config: Config, after_epoch: AfterEpochFunction) -> float | None:
        clear_unbegun(out / name)
        failure = train_run(config, out, name, after_epoch=after_epoch, lock=lock)
        if failure is not None:
            raise RunError(failure)
        scores = out / name / "evaluation.json"
        if not scores.is_file():  # pruned
            return None
        try:
            value = parse_json(scores.read_text(encoding="utf-8"))[config.evaluation.metric]
            return None if value is None else float(value)
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{scores}: is damaged ({first_line(error)})") from None

    return objective


def _distributions(optuna: ModuleType, search: Search) -> dict[str, Any]:
    kinds = optuna.distributions
    distributions: dict[str, Any] = {}
    for key, values in search.space.items():
        if not isinstance(values, Range):
            distributions[key] = kinds.CategoricalDistribution([_label(value) for value in values])
        elif search.is_integer(key):
            step = int(values.step or 1)
            distributions[key] = kinds.IntDistribution(int(values.low), int(values.high), log=values.log, step=step)
        else:
            ends = float(values.low), float(values.high)
            distributions[key] = kinds.FloatDistribution(*ends, log=values.log, step=values.step)
    return distributions


def _values(search: Search, parameters: dict[str, Any]) -> dict[str, Any]:
    """Convert Optuna's parameters to config values."""
    values = {}
    for key, listed in search.space.items():
        if key in parameters:
            value = parameters[key]
            values[key] = value if isinstance(listed, Range) else listed[[*map(_label, listed)].index(value)]
    return values


def _label(value: Any) -> Any:
    """Return a value as a category of Optuna, which cannot be a list or a section."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _config_or_base(search: Search, values: dict[str, Any]) -> Config:
    try:
        return search.config(values)
    except ConfigError:
        return search.base
