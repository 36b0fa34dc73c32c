"""The formats of `gitseg export`. A format is a module with a `Format`, and a row in FORMATS.

A format that contains only the network also needs a runtime for its files in `gitseg_tf.inference.exported.RUNTIMES`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gitseg_tf.core.registry import Registry

if TYPE_CHECKING:
    import tf_keras as keras

SAVED_MODEL = "savedmodel"
# Rows with network_alone=True are a `Format`; the SavedModel, which also contains everything around the network, has
# its own function. `calibrated` formats need windows of the training folds.
FORMATS = Registry("export format")
FORMATS.register(SAVED_MODEL, "gitseg_tf.export.savedmodel:export", network_alone=False, calibrated=False)
FORMATS.register("onnx", "gitseg_tf.export.formats.onnx:ONNX", network_alone=True, calibrated=False)
FORMATS.register("tflite-float16", "gitseg_tf.export.formats.tflite:FLOAT16", network_alone=True, calibrated=False)
FORMATS.register("tflite-int8", "gitseg_tf.export.formats.tflite:INT8", network_alone=True, calibrated=True)


@dataclass(frozen=True)
class Format:
    """A file format for networks.

    Attributes:
        file: the file's name.
        convert: function from the model and windows of the training folds, float32 [N, ...] or None if they are not
            needed, to the file's content.
        details: entries for model.json, such as batch, weights and activations.
        modules: modules of the extra [export] for writing and checking files.
        packages: names of modules whose versions are recorded.
        max_difference: largest accepted difference from the probabilities in float32; None accepts any.
        float32_operators: function from the content to {operator: count} of operators that an integer format computes
            in float32; None if that does not apply.
    """

    file: str
    convert: Callable[["keras.Model", Any], bytes]
    details: dict[str, Any]
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    max_difference: float | None
    float32_operators: Callable[[bytes], dict[str, int]] | None = field(default=None)

    def versions(self) -> dict[str, str | None]:
        """Return the versions of `packages`, None for a package without a version."""
        # Query the modules, because the module onnxruntime is also provided by the distribution onnxruntime-gpu.
        return {name: getattr(importlib.import_module(name), "__version__", None) for name in self.packages}
