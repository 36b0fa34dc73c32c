"""Segmenting scans by a model behind TensorFlow Serving, over gRPC or REST."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import numpy as np

from gitseg_tf.errors import InputError, ScanError
from gitseg_tf.progress import say_above
from gitseg_tf.serving.address import GRPC_SCHEMES, Address, parse_address

TIMEOUT = 300.0
WITH_NUMBERS = "_with_numbers"
BACK_OFF = (0.5, 1.0, 2.0, 4.0)
# For a connection, and for what a model that is loaded says of itself.
CONNECT_SECONDS = 20.0


class Unavailable(Exception):
    """The server cannot answer now, and may a moment later."""


def no_answer(timeout: float) -> str:
    """What is said of a server that does not answer."""
    return f"no answer within {timeout:g} s"


def too_slow(address: Address, timeout: float) -> ScanError:
    """The error of a scan that takes longer than it may."""
    return ScanError(f"{address.url}: {no_answer(timeout)}; give it more with --timeout")


class Transport(Protocol):
    """A way to a server. Both calls raise Unavailable; ScanError and InputError where trying again is of no use."""

    signature: str
    image_input: str

    def signatures(self) -> dict[str, tuple[set[str], set[str]]]:
        """Signatures of the model: names to the names of inputs and outputs."""

    def segment(self, image: np.ndarray, spacing: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
        """uint16 [D, H, W], float32 [3] and, where there are gaps, int64 [D], to uint8 [D, H, W, 3]."""


def connect(
    url: str, timeout: float = TIMEOUT, say: Callable[[str], None] = say_above, back_off: Iterable[float] = BACK_OFF
) -> Callable[[np.ndarray, list[int], np.ndarray, tuple], np.ndarray]:
    """A predictor, as `make_predictor` gives, that asks a server.

    The server has to be TensorFlow Serving, or speak as it does, with a model of `gitseg export`: gRPC uses its
    signature segment_volume, REST segment_png, and for a scan with gaps in the slice numbers segment_..._with_numbers.
    To a model without the latter such a scan goes as if it had no gaps, and a line says so: sent in parts, it would be
    normalised part by part, which changes every slice; so only the windows at the gaps differ.

    Args:
        url: as `parse_address` takes it.
        timeout: seconds for a scan.
        say: takes lines for the user.
        back_off: seconds to wait before each new attempt when the server is unavailable.

    Returns:
        Function of (image uint16 [D, H, W], slice numbers [D], percentiles, which are not sent, spacing (z, y, x) in
        mm) to bool masks [3, D, H, W]. It raises ScanError where the server refuses a scan or has no answer in time,
        and InputError where the server is gone.

    Raises:
        InputError: no such server, model, version or signature, or a package is missing.
    """
    address = parse_address(url)
    transport = _open(address, timeout)
    attempt = partial(_attempt, address=address, say=say, back_off=tuple(back_off))
    looks_at_gaps = _check_signatures(address, transport, attempt(transport.signatures))

    def predict(image, numbers, percentiles, spacing):
        spacing, gaps = np.asarray(spacing, np.float32), np.flatnonzero(np.diff(numbers) != 1)
        if gaps.size and not looks_at_gaps:
            say(f"the slice numbers have a gap after {numbers[gaps[0]]}, which the served model does not look at")
        numbers = np.asarray(numbers, np.int64) if gaps.size and looks_at_gaps else None
        masks = attempt(lambda: transport.segment(image, spacing, numbers))
        expected = (*image.shape, 3)
        if masks.shape != expected or masks.dtype != np.uint8:
            raise InputError(
                f"{address.url}: gave masks {masks.dtype} {list(masks.shape)} for uint8 {list(expected)}; "
                "serve a model of gitseg export"
            )
        return np.moveaxis(masks, -1, 0) != 0

    return predict


def _open(address: Address, timeout: float) -> Transport:
    try:
        if address.scheme in GRPC_SCHEMES:
            from gitseg_tf.serving.grpc_transport import GrpcTransport as Opened
        else:
            from gitseg_tf.serving.rest_transport import RestTransport as Opened
    except ModuleNotFoundError as error:
        package = error.name.partition(".")[0]
        raise InputError(
            f"--server {address.url}: the package {package} is missing; pip install 'gitseg-tf[serving]'"
        ) from None
    return Opened(address, timeout)


def _attempt(call: Callable, *, address: Address, say: Callable[[str], None], back_off: tuple[float, ...]):
    for wait in back_off:
        try:
            return call()
        except Unavailable as error:
            say(f"{address.url}: {error}; next attempt in {wait:g} s")
            time.sleep(wait)
    try:
        return call()
    except Unavailable as error:
        raise InputError(
            f"{address.url}: no answer in {len(back_off) + 1} attempts ({error}); start the server, or correct --server"
        ) from None


def _check_signatures(address: Address, transport: Transport, found: dict[str, tuple[set[str], set[str]]]) -> bool:
    """Whether the model has a signature that takes the slices' numbers."""
    name, needed = transport.signature, {transport.image_input, "spacing"}
    if name not in found:
        others = {other for other in found if not other.startswith("__")}
        raise InputError(
            f"{address.url}: {address.model} has no signature {name} (it has {_names(others) or 'none'}); "
            "serve a model of gitseg export"
        )
    inputs, outputs = found[name]
    if inputs != needed or "masks" not in outputs:
        raise InputError(
            f"{address.url}: the signature {name} of {address.model} goes from {_names(inputs)} to {_names(outputs)}, "
            f"not from {_names(needed)} to masks; serve a model of gitseg export"
        )
    return name + WITH_NUMBERS in found


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))
