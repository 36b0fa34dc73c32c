"""Segmenting scans by a model behind TensorFlow Serving, over gRPC or REST."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import numpy as np

from gitseg_tf.errors import InputError
from gitseg_tf.progress import say_above
from gitseg_tf.serving.address import Address, parse_address

TIMEOUT = 300.0
BACK_OFF = (0.5, 1.0, 2.0, 4.0)


class Unavailable(Exception):
    """The server cannot answer now, and may a moment later."""


class Transport(Protocol):
    """A way to a server. Both calls raise Unavailable; ScanError and InputError where trying again is of no use."""

    signature: str
    image_input: str

    def signatures(self) -> dict[str, tuple[set[str], set[str]]]:
        """Signatures of the model: names to the names of inputs and outputs."""

    def segment(self, image: np.ndarray, spacing: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
        """uint16 [D, H, W], float32 [3] and, for models that take them, int64 [D], to uint8 [D, H, W, 3]."""


def connect(
    url: str, timeout: float = TIMEOUT, say: Callable[[str], None] = say_above, back_off: Iterable[float] = BACK_OFF
) -> Callable[[np.ndarray, list[int], np.ndarray, tuple], np.ndarray]:
    """A predictor, as `make_predictor` gives, that asks a server.

    The server has to be TensorFlow Serving, or speak as it does, with a model of `gitseg export`: gRPC uses its signature
    segment_volume, REST segment_png. A model whose signature has the input `numbers` is given the slices' numbers. To
    any other one a scan with gaps in the numbers goes as if it had none, and a line says so: in parts it would be
    normalised part by part, which changes every slice, and so only the windows at the gaps differ.

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
    takes_numbers = _check_signature(address, transport, attempt(transport.signatures))

    def predict(image, numbers, percentiles, spacing):
        numbers = np.asarray(numbers, np.int64)
        if not takes_numbers and (np.diff(numbers) != 1).any():
            say(f"the slice numbers have a gap after {_before_gap(numbers)}, which the served model does not look at")
        masks = attempt(
            lambda: transport.segment(image, np.asarray(spacing, np.float32), numbers if takes_numbers else None)
        )
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
        if address.scheme == "grpc":
            from gitseg_tf.serving.grpc_transport import GrpcTransport as Opened
        else:
            from gitseg_tf.serving.rest_transport import RestTransport as Opened
    except ModuleNotFoundError as error:
        raise InputError(
            f"--server {address.url}: the package {error.name} is missing; pip install 'gitseg-tf[serving]'"
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


def _check_signature(address: Address, transport: Transport, found: dict[str, tuple[set[str], set[str]]]) -> bool:
    """Whether the model takes the slices' numbers."""
    inputs, outputs = found.get(transport.signature, (set(), set()))
    needed = {transport.image_input, "spacing"}
    if not inputs:
        others = {name for name in found if not name.startswith("__")}
        raise InputError(
            f"{address.url}: {address.model} has no signature {transport.signature} "
            f"(it has {_names(others) or 'none'}); serve a model of gitseg export"
        )
    if inputs - {"numbers"} != needed or "masks" not in outputs:
        raise InputError(
            f"{address.url}: the signature {transport.signature} of {address.model} goes from {_names(inputs)} to "
            f"{_names(outputs)}, not from {_names(needed)} to masks; serve a model of gitseg export"
        )
    return "numbers" in inputs


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _before_gap(numbers: np.ndarray) -> int:
    return int(numbers[np.flatnonzero(np.diff(numbers) != 1)[0]])
