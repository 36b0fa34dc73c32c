"""Which TensorFlow is installed, and whether the Keras beside it is of the same version."""

import importlib.metadata

from gitseg_tf.errors import InputError

# All of them hold the module `tensorflow`; the one for TPUs stands first: where it is, it is the one that is imported.
TENSORFLOWS = ("tensorflow-tpu", "tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly")


def installed(names: tuple[str, ...]) -> tuple[str, str] | None:
    """Name and version of the first of some distributions that is installed; None if none is."""
    for name in names:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_versions() -> None:
    """Refuse a tf-keras that was made for another TensorFlow.

    Raises:
        InputError: their minor versions differ.
    """
    tensorflow, keras = installed(TENSORFLOWS), installed(("tf-keras",))
    if tensorflow is None or keras is None:  # built in another way: the import itself will tell
        return
    minor = ".".join(tensorflow[1].split(".")[:2])
    if keras[1].split(".")[:2] != minor.split("."):
        raise InputError(
            f"tf-keras {keras[1]} does not belong to {tensorflow[0]} {tensorflow[1]}; "
            f'run: pip install --no-deps "tf-keras~={minor}.0"'
        )
