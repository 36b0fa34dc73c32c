"""Use TensorFlow Serving over REST."""

import base64
import json
from typing import Any

import cv2
import numpy as np
import requests
from urllib3.exceptions import ReadTimeoutError

from gitseg_tf.client.address import Address
from gitseg_tf.client.transport import (
    CONNECT_SECONDS,
    DESCRIBE,
    KEYS,
    Busy,
    Unavailable,
    no_answer,
    required_signatures,
    too_slow,
)
from gitseg_tf.core.text import one_line
from gitseg_tf.core.trees import parse_json
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import ScanError, ServerError, first_line

_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


class RestTransport:
    """A client of TensorFlow Serving's REST interface.

    Slices are sent as PNG in base64; voxels that PNG cannot represent (negative or not integer) are sent as JSON
    numbers, which are larger.
    """

    required = required_signatures(("segment_png_to_png", "png_bytes"), ("segment_volume_to_png", "image"))

    def __init__(self, address: Address, timeout: float):
        self._address, self._timeout = address, timeout
        self._session = requests.Session()

    def signatures(self) -> dict[str, tuple[set[str], set[str]]]:
        timeout = min(self._timeout, CONNECT_SECONDS)
        answer = self._call("GET", "/metadata", None, timeout, Unavailable(no_answer(timeout)))
        try:
            signatures = parse_json(answer)["metadata"]["signature_def"]["signature_def"]
            sides = ("inputs", "outputs")
            names = {name: [set(map(str, one.get(side, ()))) for side in sides] for name, one in signatures.items()}
            return {name: (inputs, outputs) for name, (inputs, outputs) in names.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServerError(
                f"{self._address.url}: is not a TensorFlow Serving server (no signatures); correct the address"
            ) from None

    def describe(self, keys: list[str]) -> list[bytes]:
        timeout = min(self._timeout, CONNECT_SECONDS)
        return self._predict(DESCRIBE, {KEYS: keys}, timeout, Unavailable(no_answer(timeout)))

    def segment(self, volume: Volume) -> list[bytes]:
        inputs = {"spacing": list(volume.spacing), "numbers": list(volume.numbers)}
        late = too_slow(self._address, self._timeout)
        if not _fits_png(volume.voxels):
            image = volume.with_channels.astype(np.float32, copy=False).tolist()
            return self._predict("segment_volume_to_png", inputs | {"image": image}, self._timeout, late)
        pngs: list = [
            [{"b64": _png_base64(plane[..., c])} for c in range(volume.channels)] for plane in volume.with_channels
        ]
        if volume.channels == 1:
            pngs = [png for (png,) in pngs]
        return self._predict("segment_png_to_png", inputs | {"png_bytes": pngs}, self._timeout, late)

    def _predict(self, signature: str, inputs: dict, timeout: float, late: Exception) -> list[bytes]:
        body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
        answer = self._call("POST", ":predict", body, timeout, late)
        try:
            return [base64.b64decode(one["b64"], validate=True) for one in parse_json(answer)["outputs"]]
        except (ValueError, KeyError, TypeError):
            raise ServerError(
                f'{self._address.url}: the response is not {{"outputs": [{{"b64": ...}}, ...]}}; '
                "serve a model exported by this version of gitseg-tf"
            ) from None

    def _call(self, method: str, resource: str, body: bytes | None, timeout: float, late: Exception) -> bytes:
        headers = {"Content-Type": "application/json"} if body else {}
        how: dict[str, Any] = {"timeout": (CONNECT_SECONDS, timeout), "allow_redirects": False}
        try:
            url = self._address.rest_url + resource
            answer = self._session.request(method, url, data=body, headers=headers, **how)
        except requests.exceptions.ReadTimeout:
            raise late from None
        except requests.exceptions.SSLError as error:
            raise ServerError(f"{self._address.url}: {_innermost(error)}") from None
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            if isinstance(next(iter(error.args), None), ReadTimeoutError):  # in the middle of an answer
                raise late from None
            raise Unavailable(_innermost(error)) from None
        except requests.exceptions.RequestException as error:
            raise ServerError(f"{self._address.url}: {_innermost(error)}") from None
        if answer.status_code != 200:
            raise self._error_of(answer)
        return answer.content

    def _error_of(self, answer: requests.Response) -> Exception:
        address, reason = self._address, _reason(answer)
        if answer.is_redirect:
            return ServerError(f"{address.url}: redirects to {one_line(answer.headers['location'])}; use that address")
        match answer.status_code:
            case 502 | 503:
                return Unavailable(reason)
            case 429:
                return Busy(reason)
            case 404:
                return ServerError(f"{address.url}: the server has no {address.model} ({reason}); correct the address")
            case 504:
                return ScanError(f"{address.url}: the server timed out ({reason}); increase its rest_api_timeout_in_ms")
            case 400:
                return ScanError(f"{address.url}: the model rejected the scan ({reason})")
            case status:
                return ScanError(f"{address.url}: HTTP {status}: {reason}")


def _fits_png(voxels: np.ndarray) -> bool:
    """Check that all voxels are integers from 0 to 65535."""
    if voxels.dtype in (np.uint8, np.uint16):
        return True
    whole = voxels.dtype.kind in "iu" or bool((voxels == np.floor(voxels)).all())
    return whole and voxels.min() >= 0 and voxels.max() < 1 << 16


def _png_base64(plane: np.ndarray) -> str:
    _, png = cv2.imencode(".png", np.ascontiguousarray(plane, np.uint16), _FAST)
    return base64.b64encode(png.tobytes()).decode()


def _reason(answer: requests.Response) -> str:
    """Return why a request failed: TensorFlow Serving's error, or the first line of a proxy's response."""
    try:
        text = str(parse_json(answer.content)["error"])
    except (ValueError, KeyError, TypeError):
        text = answer.text
    return next(iter(text.strip().splitlines()), answer.reason or "no reason given")[:300]


def _innermost(error: Exception) -> str:
    """Return the message of the innermost exception, such as "Connection refused", wrapped by requests and urllib3."""
    while True:
        inner = [value for value in (getattr(error, "reason", None), *error.args[::-1]) if isinstance(value, Exception)]
        if not inner:
            return getattr(error, "strerror", None) or first_line(error)
        error = inner[0]
