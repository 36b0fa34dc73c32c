"""Addresses of served models: grpc://host:8500/NAME, http://host:8501/NAME, with /versions/N or ?version=N.

With TLS the schemes are grpcs and https.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from gitseg_tf.core.text import one_line
from gitseg_tf.errors import ServerError

GRPC_PORT = 8500
GRPC_SCHEMES = ("grpc", "grpcs")
_FORMS = "grpc://HOST:8500/NAME or http://HOST:8501/NAME, with /versions/N for one version"


@dataclass(frozen=True)
class Address:
    """A model on a server.

    Attributes:
        url: the address as given by the user, with any password masked, for messages.
        scheme: "grpc", "grpcs", "http" or "https".
        host: host with the port if one is given, and always for gRPC; "[::1]:8500" for IPv6.
        name: name of the model.
        version: None is the latest version that the server has loaded.
    """

    url: str
    scheme: str
    host: str
    name: str
    version: int | None = None

    @property
    def model(self) -> str:
        """A description of the model: "model NAME" or "version N of model NAME"."""
        return f"model {self.name}" if self.version is None else f"version {self.version} of model {self.name}"

    @property
    def rest_url(self) -> str:
        """The URL of the model in TensorFlow Serving's REST interface."""
        version = "" if self.version is None else f"/versions/{self.version}"
        return f"{self.scheme}://{self.host}/v1/models/{self.name}{version}"


def parse_address(url: str) -> Address:
    """Parse an address.

    Args:
        url: SCHEME://HOST[:PORT]/NAME[/versions/N] or SCHEME://HOST[:PORT]/NAME?version=N; SCHEME is grpc, grpcs, http
            or https. The default port of gRPC is 8500; http and https have their usual default ports.

    Returns:
        The address.

    Raises:
        ServerError: an invalid address.
    """
    shown = one_line(re.sub(r"(?<=//)([^/@:]*):[^/@]*@", r"\1:***@", url))
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ServerError(f"{shown}: invalid address ({one_line(str(error))}); use {_FORMS}") from None
    path = re.fullmatch(r"/([^/:?]+)(?:/versions/(\d+))?/?", parts.path)
    query = parse_qs(parts.query, keep_blank_values=True)
    versions = [*filter(None, [path and path[2]]), *query.pop("version", [])]
    known = parts.scheme in (*GRPC_SCHEMES, "http", "https")
    if not known or not parts.hostname or path is None or query or parts.fragment:
        raise ServerError(f"{shown}: is not the address of a model; use {_FORMS}")
    if len(versions) > 1 or not all(re.fullmatch(r"\d{1,18}", version) for version in versions):
        raise ServerError(f"{shown}: the version must be a single integer; use {_FORMS}")
    host = f"{parts.netloc}:{GRPC_PORT}" if parts.scheme in GRPC_SCHEMES and port is None else parts.netloc
    return Address(shown, parts.scheme, host, path[1], int(versions[0]) if versions else None)
