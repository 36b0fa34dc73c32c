"""Which TensorFlow is installed, and whether tf-keras has the same minor version."""

import importlib.metadata

from gitseg_tf.errors import DependencyError

# All of these provide the module `tensorflow`; if the TPU build is installed, it is the one that is imported.
TENSORFLOWS = ("tensorflow-tpu", "tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly")


def installed(names: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the name and version of the first of these distributions that is installed, or None."""
    for name in names:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_versions() -> None:
    """Check that tf-keras was built for the installed TensorFlow.

    Raises:
        DependencyError: the minor versions differ.
    """
    tensorflow, keras = installed(TENSORFLOWS), installed(("tf-keras",))
    if tensorflow is None or keras is None:  # built from source; the import itself will fail if they do not match
        return
    minor = ".".join(tensorflow[1].split(".")[:2])
    if keras[1].split(".")[:2] != minor.split("."):
        raise DependencyError(
            f"tf-keras {keras[1]} does not match {tensorflow[0]} {tensorflow[1]}; "
            f'run: pip install --no-deps "tf-keras~={minor}.0"'
        )
