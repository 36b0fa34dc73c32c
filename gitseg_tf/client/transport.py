"""Signatures, time limits and errors shared by both transports."""

from gitseg_tf.client.address import Address
from gitseg_tf.errors import ScanError

MASKS = "masks_bytes"
DESCRIBE, KEYS, DESCRIPTION = "describe", "keys", "json_bytes"
# Time limit for connecting, and for the metadata of a loaded model.
CONNECT_SECONDS = 20.0


class Unavailable(Exception):
    """The server is temporarily unavailable."""


class Busy(Unavailable):
    """All threads of the server are in use."""


def required_signatures(*segmenting: tuple[str, str]) -> dict[str, tuple[set[str], str]]:
    """List the signatures that a client uses, with the names of their inputs and output.

    Args:
        segmenting: (signature, name of its input for the voxels).

    Returns:
        Signature to (inputs, output), including `describe`.
    """
    return {DESCRIBE: ({KEYS}, DESCRIPTION)} | {
        name: ({image, "spacing", "numbers"}, MASKS) for name, image in segmenting
    }


def no_answer(timeout: float) -> str:
    """Describe a server that does not answer, for messages."""
    return f"no response within {timeout:g} s"


def too_slow(address: Address, timeout: float) -> ScanError:
    """Create the error for a scan that exceeds the time limit."""
    return ScanError(f"{address.url}: {no_answer(timeout)}; increase the timeout")
