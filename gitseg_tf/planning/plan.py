"""Make a plan: fingerprint, measurements, and rules."""

import logging
import math
from dataclasses import dataclass

from gitseg_tf.config import Config, load_config
from gitseg_tf.core.paths import AnyPath, as_path, write_atomically
from gitseg_tf.core.text import plural
from gitseg_tf.core.trees import parse_yaml
from gitseg_tf.data.tfrecords.dataset import Dataset
from gitseg_tf.errors import ConfigError
from gitseg_tf.planning.candidates import candidates, to_measure
from gitseg_tf.planning.fingerprint import take_fingerprint
from gitseg_tf.planning.machine import MEMORY_SHARE, Machine, this_machine
from gitseg_tf.planning.probe import Probe, probe
from gitseg_tf.planning.rules import Plan, decide
from gitseg_tf.planning.writer import plan_text

logger = logging.getLogger(__name__)

MINUTES = 20.0


@dataclass(frozen=True)
class PlannedConfig:
    """A plan as a config.

    Attributes:
        config: the experiment.
        text: the same as commented YAML.
        plan: choices and predictions.
    """

    config: Config
    text: str
    plan: Plan

    def save(self, path: str | AnyPath) -> None:
        """Write the YAML file; an existing one is replaced atomically."""
        write_atomically(as_path(path), self.text.encode())


def make_plan(
    dataset: Dataset,
    *,
    minutes: float = MINUTES,
    memory_gib: float | None = None,
    fold: int | None = 0,
    name: str = "plan",
    machine: Machine | None = None,
    measure: Probe = probe,
) -> PlannedConfig:
    """Choose a config for a dataset, this machine, and limits of time and memory.

    Args:
        dataset: the data.
        minutes: time for training; conversion, scoring and export come on top.
        memory_gib: most resident memory; None is 80% of the machine's.
        fold: the fold that training will hold out, or None. A dataset with a single fold holds out none.
        name: name of the experiment.
        machine: None is this one.
        measure: function that measures candidates.

    Returns:
        The plan.

    Raises:
        ConfigError: limits out of range, or too low for any network; the message says what would fit.
        DataError: the dataset has no annotation, or is damaged.
    """
    machine = machine or this_machine()
    memory_gib = round(MEMORY_SHARE * machine.memory_gib, 1) if memory_gib is None else memory_gib
    for what, value in (("minutes", minutes), ("memory", memory_gib)):
        if not 0 < value < math.inf:
            raise ConfigError(f"{what} must be a positive number, got {value:g}")
    if dataset.folds == 1 and fold is not None:
        logger.warning("%s has only one fold, so the plan holds out none and scores nothing", dataset.root)
        fold = None
    facts = take_fingerprint(dataset, fold)
    logger.info("planning   %s on %s", plural(facts.scans, "scan"), machine.title)
    listed = to_measure(candidates(facts, machine))
    measurements = measure(dataset, machine, listed, fold)
    plan = decide(facts, machine, measurements, minutes=minutes, memory_gib=memory_gib)
    text = plan_text(plan, name, fold)
    return PlannedConfig(load_config(None, parse_yaml(text)), text, plan)
