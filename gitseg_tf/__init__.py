"""Segmentation of stomach, small bowel and large bowel on MR scans with TensorFlow."""

import importlib.util
import os
import sys

__version__ = "0.1.0"


def _use_tf_keras() -> None:
    """Make `tf.keras` the Keras 2 API (tf_keras) before TensorFlow decides otherwise."""
    tensorflow = sys.modules.get("tensorflow")
    chosen_elsewhere = os.environ.get("TF_USE_LEGACY_KERAS") not in ("1", "true", "True")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    if tensorflow is None or not chosen_elsewhere or not hasattr(tensorflow, "keras"):
        return
    version = getattr(tensorflow.keras, "__version__", "2")
    if not version.startswith("2"):
        raise ImportError(
            f"tf.keras is already Keras {version} in this process and gitseg_tf needs tf_keras: "
            "import gitseg_tf before tensorflow, or set the environment variable TF_USE_LEGACY_KERAS=1 and restart"
        )
    # TensorFlow has chosen already where `tensorflow.keras` is imported from, which keras-cv does.
    (root,) = importlib.util.find_spec("tf_keras").submodule_search_locations
    tensorflow.__path__.insert(0, os.path.join(root, "api", "_v2"))


_use_tf_keras()
