"""Importing TensorFlow without its start-up notices, which drown what a user should read."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from gitseg_tf.versions import check_versions


def import_tensorflow() -> None:
    """Import TensorFlow and tf_keras with stderr held back; what was held back is printed if the import fails.

    Some notices are written before TensorFlow reads TF_CPP_MIN_LOG_LEVEL. A user who sets that variable gets them all.

    Raises:
        InputError: TensorFlow and tf-keras are of different versions.
    """
    check_versions()
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    print("loading    TensorFlow", file=sys.stderr, flush=True)
    with held_back():
        import tf_keras  # noqa: F401


@contextmanager
def held_back(known: type[BaseException] | tuple = ()) -> Iterator[None]:
    """Hold back what libraries write to stderr by themselves, past Python; it is printed if they fail.

    Args:
        known: errors that say enough by themselves: with these it is not printed.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except known:
            raise
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
