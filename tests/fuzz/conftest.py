"""The viewer's server, for requests that are damaged."""

from viewer.conftest import serve, untrained  # noqa: F401
