"""Import TensorFlow without its start-up notices, which would bury messages for the user."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from gitseg_tf.core.versions import check_versions

logger = logging.getLogger(__name__)


def import_tensorflow() -> None:
    """Import TensorFlow and tf_keras while buffering stderr; the buffer is written out if the import fails.

    TensorFlow writes some notices before it reads TF_CPP_MIN_LOG_LEVEL. Nothing is buffered if the user has set that
    variable.

    Raises:
        DependencyError: TensorFlow and tf-keras have different minor versions.
    """
    check_versions()
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    logger.info("loading    TensorFlow", extra={"progress": True})
    with held_back():
        import tf_keras  # noqa: F401


@contextmanager
def held_back(known: type[BaseException] | tuple = ()) -> Iterator[None]:
    """Buffer what native libraries write to stderr: write it out if they fail, and discard it otherwise.

    Args:
        known: exceptions whose messages need no further explanation; the output is discarded after these, too.
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
