"""The one place where tensorflow-addons is imported."""

import importlib.util
import sys
import warnings

from gitseg_tf.errors import DependencyError


def import_addons():
    """Import tensorflow-addons 0.23 on TensorFlow 2.21.

    Optimizers, losses and image functions written in TensorFlow operations work; its C++ operations do not load.

    Returns:
        The module tensorflow_addons.

    Raises:
        DependencyError: it is not installed; it does not exist for Python 3.12 and later.
    """
    if importlib.util.find_spec("tensorflow_addons") is None:
        raise DependencyError(
            "tensorflow-addons is not installed; install it under Python 3.10 or 3.11, or choose another option"
        )
    import tf_keras.src.engine
    import tf_keras.src.engine.keras_tensor

    # tensorflow-addons looks for Keras 2 where TensorFlow kept it until 2.15.
    sys.modules.setdefault("keras.src.engine", tf_keras.src.engine)
    sys.modules.setdefault("keras.src.engine.keras_tensor", tf_keras.src.engine.keras_tensor)
    with warnings.catch_warnings():
        # Ignore the warnings that it is no longer maintained and was built for TensorFlow up to 2.15.
        warnings.simplefilter("ignore", UserWarning)
        import tensorflow_addons

    return tensorflow_addons
