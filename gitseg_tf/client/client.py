"""Segment scans with a model served by TensorFlow Serving, over gRPC or REST."""

import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import cv2
import numpy as np

from gitseg_tf.client.address import GRPC_SCHEMES, Address, parse_address
from gitseg_tf.client.transport import Busy, Unavailable
from gitseg_tf.core.text import one_line
from gitseg_tf.core.trees import parse_json
from gitseg_tf.data.readers.png import png_size
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import ConfigError, DependencyError, ScanError, ServerError
from gitseg_tf.inference.identity import ModelIdentity
from gitseg_tf.inference.prediction import BasePredictor, Prediction
from gitseg_tf.labels import LabelSet

logger = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT = 300.0
BACK_OFF = (0.5, 1.0, 2.0, 4.0)
_BUSY_SECONDS = (0.2, 1.0)
_UPDATE = "serve a model exported by this version of gitseg-tf"


class Transport(Protocol):
    """A connection to a server. Calls raise Unavailable, or ScanError and ServerError if a retry would not help."""

    required: dict[str, tuple[set[str], str]]  # name of each signature used, to the names of its inputs and output

    def signatures(self) -> dict[str, tuple[set[str], set[str]]]:
        """List the signatures of the model: name to the names of its inputs and outputs."""

    def describe(self, keys: list[str]) -> list[bytes]:
        """Query the values of some keys, as JSON, with the signature `describe`."""

    def segment(self, volume: Volume) -> list[bytes]:
        """Segment a scan; return the masks of its slices as gray PNGs, see `read_masks`."""


class ServerPredictor(BasePredictor):
    """Segments whole scans with a model on a server; created by `connect`.

    A server only returns masks: probabilities are not available, and `config` is None.
    """

    config = None
    has_probabilities = False

    def __init__(self, address: Address, transport: Transport, back_off: tuple[float, ...], *, timeout: float):
        self._address, self._transport, self._back_off, self._timeout = address, transport, back_off, timeout
        _check_signatures(address, transport, self._attempt(transport.signatures))
        self.labels, self.channels = self._description()
        version = "" if address.version is None else f"/{address.version}"
        self.identity = ModelIdentity(f"{address.name}{version}")

    def _predict(self, volume: Volume, probabilities: bool) -> Prediction:
        if probabilities:
            raise ConfigError(
                f"{self._address.url}: a server returns masks only, not probabilities; load the run instead"
            )
        pngs = self._attempt(lambda: self._transport.segment(volume))
        masks = read_masks(pngs, volume.shape, len(self.labels))
        if masks is None:
            depth, height, width = volume.shape
            raise ServerError(
                f"{self._address.url}: the response is not a grayscale PNG of {len(self.labels)} x {height} rows and "
                f"{width} columns for each of {depth} slices; {_UPDATE}"
            )
        return Prediction(masks)

    def _description(self) -> tuple[LabelSet, tuple[str, ...]]:
        try:
            labels, channels = map(parse_json, self._attempt(lambda: self._transport.describe(["labels", "channels"])))
            return LabelSet.from_tree(labels), tuple(map(str, channels))
        except (ValueError, TypeError, ConfigError, ScanError) as error:
            raise ServerError(
                f"{self._address.url}: the model does not describe its labels ({error}); {_UPDATE}"
            ) from None

    def _attempt(self, call: Callable[[], T]) -> T:
        """Call the server; repeat the call while the server is busy or unavailable, within limits."""
        waits, last = iter(self._back_off), time.monotonic() + self._timeout
        busy = False
        while True:
            try:
                return call()
            except Busy as error:
                if time.monotonic() > last:
                    why = f"busy for {self._timeout:g} s ({error})"
                    raise ScanError(f"{self._address.url}: {why}; use fewer clients or a larger server") from None
                if not busy:
                    logger.warning("%s: busy (%s); retrying for up to %g s", self._address.url, error, self._timeout)
                busy = True
                # At random, so that clients that were refused together do not come back together.
                time.sleep(random.uniform(*_BUSY_SECONDS))
            except Unavailable as error:
                wait = next(waits, None)
                if wait is None:
                    raise ServerError(
                        f"{self._address.url}: no response in {len(self._back_off) + 1} attempts ({error}); "
                        "start the server or correct the address"
                    ) from None
                logger.warning("%s: %s; retrying in %g s", self._address.url, error, wait)
                time.sleep(wait)


def connect(url: str, *, timeout: float = TIMEOUT, back_off: Iterable[float] = BACK_OFF) -> ServerPredictor:
    """Connect to a server, and return a predictor that uses it.

    The server must be TensorFlow Serving, or compatible with it, and serve a model of `gitseg export`. gRPC uses its
    signature segment_volume_to_png; REST uses segment_png_to_png if PNG can represent the voxels.

    Args:
        url: the address, see `parse_address`.
        timeout: time limit for a scan in seconds.
        back_off: seconds to wait before each retry when the server is unavailable.

    Returns:
        The predictor. Its `predict` raises ScanError if the server rejects a scan or does not answer in time, and
        ServerError if the server is unavailable.

    Raises:
        ServerError: no such server, model, version or signature.
        DependencyError: a package is missing.

    Example:
        >>> predictor = connect("grpc://localhost:8500/gitseg")  # doctest: +SKIP
        >>> predictor.predict(scan.read_volume()).masks.shape  # doctest: +SKIP
        (3, 144, 266, 266)
    """
    address = parse_address(url)
    return ServerPredictor(address, _open(address, timeout), tuple(back_off), timeout=timeout)


def read_masks(pngs: list[bytes], shape: tuple[int, int, int], labels: int) -> np.ndarray | None:
    """Decode the masks of a scan from the output of `gitseg_tf.export.graph.encode_masks`.

    Args:
        pngs: one gray PNG per slice, with the masks of the labels stacked vertically.
        shape: (slices, rows, columns).
        labels: number of labels, L.

    Returns:
        bool [L, D, H, W]; None if the number, the size or the type of the images is wrong.
    """
    depth, height, width = shape
    if len(pngs) != depth:
        return None
    masks = np.empty((labels, *shape), bool)
    for z, png in enumerate(pngs):
        # Check the header first, because decoding allocates memory for the size in it.
        plane = _decode(png) if png_size(png) == (labels * height, width) else None
        if plane is None or plane.dtype != np.uint8 or plane.shape != (labels * height, width):
            return None
        np.not_equal(plane.reshape(labels, height, width), 0, out=masks[:, z])
    return masks


def _decode(png: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    except cv2.error:  # larger than OpenCV supports
        return None


def _open(address: Address, timeout: float) -> Transport:
    opened: Callable[[Address, float], Transport]
    try:
        if address.scheme in GRPC_SCHEMES:
            from gitseg_tf.client.grpc import GrpcTransport

            opened = GrpcTransport
        else:
            from gitseg_tf.client.rest import RestTransport

            opened = RestTransport
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise DependencyError(
            f"{address.url}: the package {package} is missing; pip install 'gitseg-tf[serving]'"
        ) from None
    return opened(address, timeout)


def _check_signatures(address: Address, transport: Transport, signatures: dict[str, tuple[set[str], set[str]]]) -> None:
    for name, (needed, output) in transport.required.items():
        if name not in signatures:
            others = {other for other in signatures if not other.startswith("__")}
            raise ServerError(
                f"{address.url}: {address.model} has no signature {name} (it has {_names(others) or 'none'}); {_UPDATE}"
            )
        inputs, outputs = signatures[name]
        if inputs != needed or outputs != {output}:
            raise ServerError(
                f"{address.url}: the signature {name} of {address.model} maps {_names(inputs)} to {_names(outputs)}, "
                f"not {_names(needed)} to {output}; {_UPDATE}"
            )


def _names(names: set[str]) -> str:
    return ", ".join(sorted(map(one_line, names))[:20])
