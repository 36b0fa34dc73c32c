"""Segmenting scans by a model behind TensorFlow Serving, over gRPC or REST."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import cv2
import numpy as np

from gitseg_tf.errors import InputError, ScanError
from gitseg_tf.progress import say_above
from gitseg_tf.serving.address import GRPC_SCHEMES, Address, parse_address

TIMEOUT = 300.0
MASKS = "masks_bytes"
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
    image_input: str  # beside spacing and numbers

    def signatures(self) -> dict[str, tuple[set[str], set[str]]]:
        """Signatures of the model: names to the names of inputs and outputs."""

    def segment(self, image: np.ndarray, spacing: np.ndarray, numbers: np.ndarray) -> list[bytes]:
        """uint16 [D, H, W], float32 [3] and int64 [D] to the slices' masks, RGB PNGs."""


def connect(
    url: str, timeout: float = TIMEOUT, say: Callable[[str], None] = say_above, back_off: Iterable[float] = BACK_OFF
) -> Callable[[np.ndarray, list[int], np.ndarray, tuple], np.ndarray]:
    """A predictor, as `make_predictor` gives, that asks a server.

    The server has to be TensorFlow Serving, or speak as it does, with a model of `gitseg export`: gRPC uses its
    signature segment_volume_to_png, REST segment_png_to_png.

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
    _check_signature(address, transport, attempt(transport.signatures))

    def predict(image, numbers, percentiles, spacing):
        spacing, numbers = np.asarray(spacing, np.float32), np.asarray(numbers, np.int64)
        pngs = attempt(lambda: transport.segment(image, spacing, numbers))
        masks = read_masks(pngs, image.shape)
        if masks is None:
            raise InputError(
                f"{address.url}: the answer is not an RGB PNG of {image.shape[1]} x {image.shape[2]} for each of "
                f"{len(image)} slices; serve what this version of gitseg export writes"
            )
        return masks

    return predict


def read_masks(pngs: list[bytes], shape: tuple[int, int, int]) -> np.ndarray | None:
    """The masks of a scan from what `gitseg_tf.serving.graph.encode_masks` made of them.

    Args:
        pngs: of each slice.
        shape: slices, rows and columns.

    Returns:
        bool [3, D, H, W]; None where they are no such pictures, or not so many.
    """
    if len(pngs) != shape[0]:
        return None
    masks = np.empty((3, *shape), bool)
    for z, png in enumerate(pngs):
        plane = _decoded(png)
        if plane is None or plane.dtype != np.uint8 or plane.shape != (*shape[1:], 3):
            return None
        for organ, channel in enumerate((2, 1, 0)):  # OpenCV has blue first
            np.not_equal(plane[..., channel], 0, out=masks[organ, z])
    return masks


def _decoded(png: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    except cv2.error:  # larger than OpenCV reads
        return None


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


def _check_signature(address: Address, transport: Transport, found: dict[str, tuple[set[str], set[str]]]) -> None:
    name, needed = transport.signature, {transport.image_input, "spacing", "numbers"}
    if name not in found:
        others = {other for other in found if not other.startswith("__")}
        raise InputError(
            f"{address.url}: {address.model} has no signature {name} (it has {_names(others) or 'none'}); "
            "serve what this version of gitseg export writes"
        )
    inputs, outputs = found[name]
    if inputs != needed or outputs != {MASKS}:
        raise InputError(
            f"{address.url}: the signature {name} of {address.model} goes from {_names(inputs)} to {_names(outputs)}, "
            f"not from {_names(needed)} to {MASKS}; serve what this version of gitseg export writes"
        )


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))
