"""Asking TensorFlow Serving over REST."""

import base64
import json

import cv2
import numpy as np
import requests
from urllib3.exceptions import ReadTimeoutError

from gitseg_tf.errors import InputError, ScanError, first_line
from gitseg_tf.serving.address import Address
from gitseg_tf.serving.client import CONNECT_SECONDS, Unavailable, no_answer, too_slow

_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


class RestTransport:
    """The REST interface of TensorFlow Serving, slices as PNG in base64."""

    signature = "segment_png_to_png"
    image_input = "png_bytes"

    def __init__(self, address: Address, timeout: float):
        self._address, self._timeout = address, timeout
        self._session = requests.Session()

    def signatures(self) -> dict[str, tuple[set[str], set[str]]]:
        timeout = min(self._timeout, CONNECT_SECONDS)
        answer = self._call("GET", "/metadata", None, timeout, Unavailable(no_answer(timeout)))
        try:
            found = json.loads(answer)["metadata"]["signature_def"]["signature_def"]
            return {name: (set(one.get("inputs", ())), set(one.get("outputs", ()))) for name, one in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{self._address.url}: is no TensorFlow Serving (its metadata has no signatures)"
            ) from None

    def segment(self, image: np.ndarray, spacing: np.ndarray, numbers: np.ndarray) -> list[bytes]:
        pngs = [{"b64": _png_base64(plane)} for plane in image]
        inputs = {self.image_input: pngs, "spacing": spacing.tolist(), "numbers": numbers.tolist()}
        body = json.dumps({"signature_name": self.signature, "inputs": inputs}).encode()
        answer = self._call("POST", ":predict", body, self._timeout, too_slow(self._address, self._timeout))
        try:
            return [base64.b64decode(one["b64"], validate=True) for one in json.loads(answer)["outputs"]]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f'{self._address.url}: the answer is not {{"outputs": [{{"b64": ...}}, ...]}}; '
                "serve what this version of gitseg export writes"
            ) from None

    def _call(self, method: str, resource: str, body: bytes | None, timeout: float, late: Exception) -> bytes:
        headers = {"Content-Type": "application/json"} if body else {}
        how = {"timeout": (CONNECT_SECONDS, timeout), "allow_redirects": False}
        try:
            url = self._address.rest_url + resource
            answer = self._session.request(method, url, data=body, headers=headers, **how)
        except requests.exceptions.ReadTimeout:
            raise late from None
        except requests.exceptions.SSLError as error:
            raise InputError(f"{self._address.url}: {_innermost(error)}") from None
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            if isinstance(next(iter(error.args), None), ReadTimeoutError):  # in the middle of an answer
                raise late from None
            raise Unavailable(_innermost(error)) from None
        except requests.exceptions.RequestException as error:
            raise InputError(f"{self._address.url}: {_innermost(error)}") from None
        if answer.status_code != 200:
            raise self._in_words(answer)
        return answer.content

    def _in_words(self, answer: requests.Response) -> Exception:
        address, said = self._address, _said(answer)
        if answer.is_redirect:
            return InputError(f"{address.url}: has moved to {answer.headers['location']}; correct --server")
        match answer.status_code:
            case 502 | 503:
                return Unavailable(said)
            case 404:
                return InputError(f"{address.url}: the server has no {address.model} ({said})")
            case 504:
                return ScanError(
                    f"{address.url}: the server gave up ({said}); give it more with its --rest_api_timeout_in_ms"
                )
            case 400:
                return ScanError(f"{address.url}: the model refuses the scan ({said})")
            case status:
                return ScanError(f"{address.url}: HTTP {status}: {said}")


def _png_base64(plane: np.ndarray) -> str:
    _, png = cv2.imencode(".png", plane, _FAST)
    return base64.b64encode(png).decode()


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
