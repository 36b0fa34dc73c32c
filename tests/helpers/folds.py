"""A finished cross-validation with random weights, which takes no training."""

from pathlib import Path

import numpy as np
import pandas as pd
import tf_keras as keras

from gitseg_tf.config import save_config
from gitseg_tf.models.build import build_model, logits_of
from gitseg_tf.runs.cross_validation import MARKER, cases_by_fold
from gitseg_tf.runs.folder import best_weights_path
from helpers.configs import tiny_config


def random_cross_validation(root: Path, dataset, **changes) -> Path:
    """Write a cross-validation of a dataset, whose networks differ.

    Args:
        root: a new folder.
        dataset: the dataset; each of its folds gets a run.
        changes: config keys, as for `tiny_config`.

    Returns:
        The folder.
    """
    cases = cases_by_fold(dataset)
    known = {"dataset": dataset.source["fingerprint"], "records": str(dataset.root)}
    config = tiny_config(dataset.labels, dataset.channels, **changes)
    for fold in range(dataset.folds):
        run = root / f"fold{fold}"
        seen = sorted(case for k, part in enumerate(cases) if k != fold for case in part)
        data = config.data.model_copy(update={"fold": fold})
        of_fold = config.model_copy(update={"data": data, "provenance": known | {"trained_on": seen}})
        (run / "export/1/assets.extra").mkdir(parents=True)
        (run / "checkpoints").mkdir()
        keras.utils.set_random_seed(fold)
        _with_spread_logits(build_model(of_fold)).save_weights(best_weights_path(run))
        # The files that distinguish a finished run from an interrupted one.
        save_config(of_fold, run / "config.yaml")
        save_config(of_fold, run / "export/1/assets.extra/config.yaml")
        (run / "export/1/saved_model.pb").touch()
        (run / "evaluation.json").write_text("{}")
        pd.DataFrame({"epoch": range(1, config.training.epochs + 1)}).to_csv(run / "history.csv")
    marker = config.model_copy(update={"provenance": known | {"folds": list(map(list, cases))}})
    save_config(marker, root / MARKER)
    return root


def _with_spread_logits(model: keras.Model) -> keras.Model:
    """Scale the last layer such that the network predicts some voxels of each label, and not all of them."""
    noise = np.random.default_rng(0).random((4, *model.input_shape[1:])).astype(np.float32)
    layer = model.get_layer("logits")
    kernel, bias = layer.get_weights()
    logits = np.asarray(logits_of(model(noise, training=False))).reshape(-1, len(bias)) - bias
    layer.set_weights([kernel / logits.std(0), -logits.mean(0) / logits.std(0) - 0.3])
    return model
