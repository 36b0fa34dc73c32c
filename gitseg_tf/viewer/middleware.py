"""Restrict requests to GET requests to one of the server's own names."""

import ipaddress
import re
import socket
from collections.abc import Callable

_HEADERS = [
    # Load nothing from elsewhere, do not let other pages embed or read this one, and keep scans out of the disk cache.
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
]


def own_names(host: str) -> Callable[[str], bool]:
    """Build a function that checks whether a Host header names a server on this address.

    Another page can point its own domain to this server's address (DNS rebinding), so that the browser would allow it
    to read from the server; but its requests have that domain in their Host header, which is not one of these names.

    Args:
        host: the address on which the server listens.

    Returns:
        Function from a Host header, including the port, to bool: on a loopback address, true for localhost and loopback
        addresses; on others also for any IP address, the machine's name and `host`.
    """
    named = {"localhost"} if is_loopback(host) else {"localhost", host.lower(), socket.gethostname().lower()}

    def serves(header: str) -> bool:
        match = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::\d*)?", header)
        if not match:
            return False
        name = match[1].strip("[]").lower()
        return name in named or (_is_address(name) and (is_loopback(name) or not is_loopback(host)))

    return serves


def is_loopback(host: str) -> bool:
    """Check whether an address or name can be reached from this machine only."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """ASGI middleware that rejects other methods with 405 and other hosts with 421, and adds headers to all responses.

    Args:
        app: the application to protect.
        serves_host: from `own_names`.
    """

    def __init__(self, app, serves_host: Callable[[str], bool]):
        self._app, self._serves_host = app, serves_host

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._serves_host(hosts[0]):
            await _refuse(with_headers, 421, b"the Host header is not a name of this server")
        elif scope["method"] != "GET":
            await _refuse(with_headers, 405, b"only GET is allowed", [(b"allow", b"GET")])
        else:
            await self._app(scope, receive, with_headers)


async def _refuse(send, status: int, reason: bytes, headers=()):
    plain = [(b"content-type", b"text/plain; charset=utf-8"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": plain})
    await send({"type": "http.response.body", "body": reason + b"\n"})
