"""The one place where tensorflow-addons is imported."""

import importlib.util
import sys
import warnings

from gitseg_tf.errors import InputError


def import_addons():
    """Import tensorflow-addons 0.23 on TensorFlow 2.21.

    Its optimizers, losses and image functions made of TensorFlow operations work there; its C++ operations do not load.

    Returns:
        The module tensorflow_addons.

    Raises:
        InputError: it is not installed; there is none for Python 3.12 and later.
    """
    if importlib.util.find_spec("tensorflow_addons") is None:
        raise InputError("tensorflow-addons is not installed; use Python 3.10 or 3.11, or an option that needs it not")
    import tf_keras.src.engine
    import tf_keras.src.engine.keras_tensor

    # It looks for Keras 2 where TensorFlow had it until 2.15.
    sys.modules.setdefault("keras.src.engine", tf_keras.src.engine)
    sys.modules.setdefault("keras.src.engine.keras_tensor", tf_keras.src.engine.keras_tensor)
    with warnings.catch_warnings():
        # That it is at the end of its life, and was made for TensorFlow up to 2.15.
        warnings.simplefilter("ignore", UserWarning)
        import tensorflow_addons

    return tensorflow_addons
