"""Asking TensorFlow Serving over REST."""

import base64
import json

import cv2
import numpy as np
import requests

from gitseg_tf.errors import InputError, ScanError, first_line
from gitseg_tf.serving.address import Address
from gitseg_tf.serving.client import WITH_NUMBERS, Unavailable

_CONNECT_SECONDS = 20.0
_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


class RestTransport:
    """The REST interface of TensorFlow Serving, slices as PNG in base64."""

    signature = "segment_png"
    image_input = "png_bytes"

    def __init__(self, address: Address, timeout: float):
        self._address, self._timeout = address, timeout
        self._session = requests.Session()

    def signatures(self) -> dict[str, tuple[set[str], set[str]]]:
        answer = self._call("GET", "/metadata", None, min(self._timeout, _CONNECT_SECONDS))
        try:
            found = json.loads(answer)["metadata"]["signature_def"]["signature_def"]
            return {name: (set(one.get("inputs", ())), set(one.get("outputs", ()))) for name, one in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{self._address.url}: is no TensorFlow Serving (its metadata has no signatures)"
            ) from None

    def segment(self, image: np.ndarray, spacing: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
        signature, pngs = self.signature, [{"b64": _png_base64(plane)} for plane in image]
        inputs = {"png_bytes": pngs, "spacing": spacing.tolist()}
        if numbers is not None:
            inputs["numbers"], signature = numbers.tolist(), signature + WITH_NUMBERS
        body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
        answer = self._call("POST", ":predict", body, self._timeout)
        masks = read_masks(answer, (*image.shape, 3))
        if masks is None:
            raise InputError(
                f'{self._address.url}: the answer is not {{"outputs": masks}} of the scan\'s size; '
                "serve a model of gitseg export"
            )
        return masks

    def _call(self, method: str, resource: str, body: bytes | None, timeout: float) -> bytes:
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            url, limits = self._address.rest_url + resource, (_CONNECT_SECONDS, timeout)
            answer = self._session.request(method, url, data=body, headers=headers, timeout=limits)
        except requests.exceptions.ReadTimeout:
            raise self._too_slow(timeout) from None
        except requests.exceptions.SSLError as error:
            raise InputError(f"{self._address.url}: {_innermost(error)}") from None
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise Unavailable(_innermost(error)) from None
        except requests.exceptions.RequestException as error:
            raise InputError(f"{self._address.url}: {_innermost(error)}") from None
        if answer.status_code == 200:
            return answer.content
        raise self._in_words(answer.status_code, _said(answer), timeout)

    def _in_words(self, status: int, said: str, timeout: float) -> Exception:
        address = self._address
        match status:
            case 502 | 503:
                return Unavailable(said)
            case 404:
                return InputError(f"{address.url}: the server has no {address.model} ({said})")
            case 504:
                return self._too_slow(timeout, f" ({said}); so does the server's --rest_api_timeout_in_ms")
            case 400:
                return ScanError(f"{address.url}: the model refuses the scan ({said})")
            case _:
                return ScanError(f"{address.url}: HTTP {status}: {said}")

    def _too_slow(self, timeout: float, why: str = "") -> ScanError:
        return ScanError(f"{self._address.url}: no answer within {timeout:g} s; give it more with --timeout{why}")


def _png_base64(plane: np.ndarray) -> str:
    _, png = cv2.imencode(".png", plane, _FAST)
    return base64.b64encode(png).decode()


def read_masks(answer: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """The masks in a REST answer, without a Python object a voxel: those of a scan would take gigabytes.

    Args:
        answer: {"outputs": nested lists of 0 and 1}, any whitespace.
        shape: of the masks.

    Returns:
        uint8 of that shape; None where the answer has another form or another number of values.
    """
    begin, end = answer.find(b"["), answer.rfind(b"]") + 1
    if b"".join(answer[: max(begin, 0)].split()) != b'{"outputs":' or answer[end:].strip() != b"}":
        return None
    lists = np.frombuffer(answer, np.uint8, end - begin, begin)
    if not _IN_LISTS[lists].all():
        return None
    values = lists[lists >= ord("0")]
    values = values[values <= ord("1")] - ord("0")
    return values.reshape(shape) if values.size == np.prod(shape) else None


_IN_LISTS = np.isin(np.arange(256), np.frombuffer(b"[]01, \n\r\t", np.uint8))


def _said(answer: requests.Response) -> str:
    """What an answer says is wrong: TensorFlow Serving's own words, or the first line of what stands before it."""
    try:
        text = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = answer.text
    return next(iter(text.strip().splitlines()), answer.reason or "no reason given")[:300]


def _innermost(error: Exception) -> str:
    """ "Connection refused" out of the exceptions that requests and urllib3 wrap around it."""
    while True:
        inner = [value for value in (getattr(error, "reason", None), *error.args[::-1]) if isinstance(value, Exception)]
        if not inner:
            return getattr(error, "strerror", None) or first_line(error)
        error = inner[0]
