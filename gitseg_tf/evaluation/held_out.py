"""Score the held-out scans of a run while it is trained, exactly as `gitseg evaluate` scores the finished run."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras as keras

from gitseg_tf.config import Config
from gitseg_tf.data.selection import select_labels
from gitseg_tf.data.tfrecords.dataset import Dataset, read_scans
from gitseg_tf.evaluation.metrics.scores import metric_terms, metric_value, score_scan
from gitseg_tf.inference.ensemble import Member
from gitseg_tf.inference.postprocess import label_settings
from gitseg_tf.inference.predictor import Predictor
from gitseg_tf.models.build import build_model, logits_of, with_presence


class HeldOutScorer:
    """Predicts the scans of config.data.fold whole and computes the mean of evaluation.metric.

    The weights are copied into a network of its own, so that prediction reads no variable of a distribution strategy:
    that could be a collective operation.

    Args:
        config: the experiment, prepared by `Config.for_dataset`.
        dataset: the dataset; its fold config.data.fold is scored.
    """

    def __init__(self, config: Config, dataset: Dataset):
        self._config, self._dataset = config, dataset
        self._copy = build_model(config, "float32")
        copy, gated = self._copy, any(steps.min_presence for steps in label_settings(config))

        @tf.function(input_signature=[tf.TensorSpec(copy.input_shape, tf.float32)])
        def network(windows):
            outputs = copy(windows, training=False)
            return tf.sigmoid(with_presence(outputs) if gated else logits_of(outputs))

        self._predictor = Predictor([Member(config.name, network, config, has_presence=gated)])

    def terms(self, model: keras.Model, part: int = 0, parts: int = 1) -> np.ndarray:
        """Predict and score every `parts`-th scan.

        Args:
            model: the network, with the weights to score; its outputs are those of `build_model`.
            part: number of the first scan.
            parts: number of processes that share the scans.

        Returns:
            float64 [terms, 2], which can be added to those of the other parts; see `scores.metric_terms`.
        """
        self._copy.set_weights(keras.Model(model.inputs, model.outputs).get_weights())
        config, labels = self._config, self._config.label_set

        def score(scan: Any, masks: np.ndarray) -> list[dict]:
            annotation = select_labels(scan.reference, self._dataset.labels, labels)
            return score_scan(
                scan.id, scan.case, annotation, masks,
                labels=labels, spacing=scan.volume.spacing, numbers=scan.volume.numbers,
                tolerance_mm=config.evaluation.tolerance_mm,
            )  # fmt: skip

        scored: list[Future[list[dict]]] = []
        with ThreadPoolExecutor(1) as scoring:
            for number, scan in enumerate(read_scans(self._dataset, [config.data.fold], config.data.exclude_scans)):
                if number % parts != part:
                    continue
                masks = self._predictor.predict(scan.volume).masks
                if scored:
                    scored[-1].result()  # ensures that at most one scan is waiting
                scored.append(scoring.submit(score, scan, masks))
        rows = [row for scores in scored for row in scores.result()]
        return metric_terms(pd.DataFrame(rows), config.evaluation.metric)

    def value(self, terms: np.ndarray) -> float:
        """Compute the metric from the sum of the terms; NaN if no scan has a label to score."""
        return metric_value(terms, self._config.evaluation.metric)
