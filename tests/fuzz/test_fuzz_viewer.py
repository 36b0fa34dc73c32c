"""Damaged requests to the viewer."""

import socket

import pytest
from helpers.damage import Tally, damaged_bytes, generator

from gitseg_tf.errors import GitsegError
from gitseg_tf.viewer.catalog import open_library

pytestmark = [pytest.mark.slow, pytest.mark.process]

ADDRESSES = [
    "/",
    "/view.css",
    "/scan.js",
    "/api/scans",
    "/api/scans/0",
    "/api/scans/1/prediction",
    "/api/scans/0/truth/labels",
    "/api/scans/0/prediction/labels",
    "/api/scans/0/image/axial/2",
    "/api/scans/0/image/coronal/3?channel=0",
    "/api/scans/0/truth/sagittal/5",
]
PIECES = (
    "..", "%2e%2e", "%00", "-1", "1e3", "9" * 30, "9" * 5000, "nan", "0x1", "٣", "%d9%a3", "truth", "true", "", ".",
    "~", "%", "%zz", "'", "<script>", "\\", "a" * 9000, "1.0", " 1", "+1", "null",
)  # fmt: skip


class Refused(GitsegError):
    """A status from 400 to 499, which is how a server refuses a request."""


def answer(port, request):
    """Send the bytes of a request; return the status of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        content = b""
        try:
            connection.sendall(request)
            lower = request.lower()
            incomplete = b"content-length" in lower or b"transfer-encoding" in lower or not lower.endswith(b"\r\n\r\n")
            connection.settimeout(0.05 if incomplete else 5)
            while block := connection.recv(1 << 16):
                content += block
        except ConnectionError:
            pass
        except TimeoutError:
            if not incomplete and not content:
                raise
    if not content:
        raise Refused("the connection is closed")
    status = int(content.split(b" ", 2)[1])
    assert b"Traceback" not in content
    assert status < 500, f"{status}: {content[-200:]!r}"
    if status >= 400:
        raise Refused(str(status))
    return status


HEADERS = ("Host", "Content-Length", "Transfer-Encoding", "Accept-Encoding", "Range", "Upgrade", "Expect", "X" * 300)
METHODS = ("POST", "PUT", "HEAD", "OPTIONS", "TRACE", "get", "", "G" * 70000, "PRI")
ELSEWHERE = ("*", "http://example.org/", "//api//scans", "/api/scans/", "/../../etc/passwd", "/%2e%2e/x")
PARAMETERS = ("channel", "x", "channel[]", "")


def request(rng, n):
    """A request for one of the addresses, of which something is damaged."""

    def one_of(things):
        return things[rng.integers(len(things))]

    method, address, body = "GET", ADDRESSES[n % len(ADDRESSES)], b""
    headers = [("Host", "localhost"), ("Connection", "close")]
    kind = rng.integers(8)
    if kind <= 2:
        parts = address.split("/")
        parts[rng.integers(1, len(parts))] = one_of(PIECES)
        address = "/".join(parts)
    elif kind == 3:
        address += f"?{one_of(PARAMETERS)}={one_of(PIECES)}&channel={one_of(PIECES)}"
    elif kind == 4:
        headers.insert(int(rng.integers(3)), (one_of(HEADERS), one_of(PIECES)))
    elif kind == 5:
        method, body = one_of(METHODS), b"{" * 1000
    elif kind == 6:
        address = one_of(ELSEWHERE)
    lines = [f"{method} {address} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    whole = "\r\n".join(lines).encode() + body
    return damaged_bytes(rng, whole) if kind == 7 else whole


def test_requests(tiny_cohort, serve):
    rng, tally = generator(60), Tally()
    with serve(open_library(tiny_cohort.root)) as client:
        for n in range(800):
            whole = request(rng, n)
            tally(whole[:200], answer, client.port, whole)
        assert client.get("/api/scans/0").status == 200  # it still serves
    tally.check(800, accepted=50, refused=300)
