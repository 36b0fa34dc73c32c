"""Segmentation of medical scans with TensorFlow: read cohorts, train, evaluate, predict and export.

The names in `__all__` are imported on first use; `import gitseg_tf` does not import TensorFlow.

Example:
    >>> import gitseg_tf
    >>> labels = gitseg_tf.LabelSet.of("liver", "spleen")
    >>> gitseg_tf.metrics.dice([[1, 1, 0]], [[0, 1, 0]])
    0.6666666666666666
"""

import importlib
import importlib.util
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gitseg_tf import metrics
    from gitseg_tf.api import convert, evaluate, load, open_cohort, open_dataset, plan, score, train
    from gitseg_tf.config import Config, load_config
    from gitseg_tf.data.readers.base import Cohort, Scan
    from gitseg_tf.data.tfrecords.dataset import Dataset
    from gitseg_tf.data.volume import Annotation, Volume
    from gitseg_tf.errors import (
        ConfigError,
        DataError,
        DependencyError,
        GitsegError,
        RunError,
        ScanError,
        ServerError,
    )
    from gitseg_tf.inference.predictor import Prediction, Predictor
    from gitseg_tf.labels import Label, LabelSet
    from gitseg_tf.models.build import build_model
    from gitseg_tf.runs.run import Run

__version__ = "0.1.0"

__all__ = [
    "Annotation",
    "Cohort",
    "Config",
    "ConfigError",
    "DataError",
    "Dataset",
    "DependencyError",
    "GitsegError",
    "Label",
    "LabelSet",
    "Prediction",
    "Predictor",
    "Run",
    "RunError",
    "Scan",
    "ScanError",
    "ServerError",
    "Volume",
    "__version__",
    "build_model",
    "convert",
    "evaluate",
    "load",
    "load_config",
    "metrics",
    "open_cohort",
    "open_dataset",
    "plan",
    "score",
    "train",
]

_MODULES = {
    "gitseg_tf.api": ("convert", "evaluate", "load", "open_cohort", "open_dataset", "plan", "score", "train"),
    "gitseg_tf.config": ("Config", "load_config"),
    "gitseg_tf.data.readers.base": ("Cohort", "Scan"),
    "gitseg_tf.data.tfrecords.dataset": ("Dataset",),
    "gitseg_tf.data.volume": ("Annotation", "Volume"),
    "gitseg_tf.errors": (
        "ConfigError",
        "DataError",
        "DependencyError",
        "GitsegError",
        "RunError",
        "ScanError",
        "ServerError",
    ),
    "gitseg_tf.inference.predictor": ("Prediction", "Predictor"),
    "gitseg_tf.labels": ("Label", "LabelSet"),
    "gitseg_tf.models.build": ("build_model",),
    "gitseg_tf.runs.run": ("Run",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return importlib.import_module("gitseg_tf.metrics")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _use_tf_keras() -> None:
    """Make `tf.keras` the Keras 2 API (tf_keras), even if TensorFlow is already imported.

    Raises:
        ImportError: tf.keras has already been used in this process and is Keras 3.
    """
    tensorflow = sys.modules.get("tensorflow")
    chosen_elsewhere = os.environ.get("TF_USE_LEGACY_KERAS") not in ("1", "true", "True")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    if tensorflow is None or not chosen_elsewhere or not hasattr(tensorflow, "keras"):
        return
    version = getattr(tensorflow.keras, "__version__", "2")  # loads the Keras chosen above unless one is already loaded
    if not version.startswith("2"):
        raise ImportError(
            f"tf.keras is already Keras {version} in this process, but gitseg_tf needs tf_keras; restart Python (in a "
            "notebook, restart the kernel) and import gitseg_tf before tensorflow, or set the environment variable "
            "TF_USE_LEGACY_KERAS=1 first"
        )
    spec = importlib.util.find_spec("tf_keras")
    # TensorFlow has already chosen the location of the module `tensorflow.keras`, which keras-cv imports.
    for root in (spec and spec.submodule_search_locations) or ():
        tensorflow.__path__.insert(0, os.path.join(root, "api", "_v2"))


_use_tf_keras()
logging.getLogger(__name__).addHandler(logging.NullHandler())
