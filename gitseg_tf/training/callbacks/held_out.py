"""The metric of whole held-out scans after each validation."""

import math
from typing import Any

import tf_keras as keras

from gitseg_tf.training.distribute.consistency import sum_over_workers, worker_of, workers_of


class HeldOutMetric(keras.callbacks.Callback):
    """Predicts the held-out scans whole after each validation, with the validated weights, and logs their metric.

    Place it before the callback that swaps the averages back, and before those that read the metric. The workers share
    the scans, and all log the same value.

    Args:
        scorer: object with `terms(model, part, parts)` and `value(terms)`, see `config.evaluation.METRICS`.
        name: name of the metric in the logs, such as val_score.
    """

    def __init__(self, scorer: Any, name: str):
        super().__init__()
        self._scorer, self._name, self._value = scorer, name, math.nan

    def on_test_end(self, logs=None):
        strategy = self.model.distribute_strategy
        terms = self._scorer.terms(self.model, worker_of(strategy), workers_of(strategy))
        self._value = self._scorer.value(sum_over_workers(strategy, terms))

    def on_epoch_end(self, epoch, logs=None):
        logs[self._name] = self._value
