"""Serve the page until Ctrl-C."""

import errno
import logging
import socket
import sys
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec

from gitseg_tf.core.paths import AnyPath
from gitseg_tf.core.text import plural
from gitseg_tf.errors import ConfigError, DependencyError

logger = logging.getLogger(__name__)


def view(
    path: str | AnyPath,
    data: str | AnyPath | None = None,
    *,
    allowed: Sequence[str | AnyPath] = (),
    host: str = "127.0.0.1",
    port: int = 8750,
    open_browser: bool = False,
    **reading,
) -> None:
    """Serve a page for browsing scans until Ctrl-C; the page's address is logged.

    Args:
        path, data, allowed: see `catalog.open_library`.
        host: the address to listen on.
        port: the port to listen on; 0 chooses a free one.
        open_browser: also open the page in a browser.
        **reading: how to read a cohort, see `read_cohort`: labels, missing and structure_set.

    Raises:
        DependencyError: FastAPI or uvicorn is not installed.
        DataError: no scans to browse.
        ConfigError: the address or the port is not available.
    """
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise DependencyError(f"gitseg view needs {' and '.join(missing)}; pip install 'gitseg-tf[view]'")
    import uvicorn

    from gitseg_tf.viewer.app import make_app
    from gitseg_tf.viewer.catalog import open_library
    from gitseg_tf.viewer.middleware import is_loopback, own_names

    listening = _listen(host, port)
    with listening:
        library = open_library(path, data, tuple(allowed), **reading)
        for note in library.notes:
            logger.info(note)
        broken = sum(1 for entry in library.entries if entry.broken)
        if broken:
            logger.info("%d of %s cannot be read; see the list", broken, plural(len(library.entries), "scan"))
        if not is_loopback(host):
            logger.warning(
                "the page can be reached from other machines at %s; anyone who opens it sees the scans (no password)",
                host,
            )
        address = f"http://{_in_url(host)}:{listening.getsockname()[1]}/"
        logger.info("viewing    %s at %s (press Ctrl-C to stop)", library.name, address)
        app = make_app(library, own_names(host))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
        if open_browser:
            webbrowser.open(address)
        try:
            server.run([listening])
        except KeyboardInterrupt:
            pass  # the normal way to stop
        finally:
            app.state.predictions.close()
            sys.stdout.flush()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_ = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OverflowError:
        raise ConfigError(f"port must be 0 to 65535, got {port}") from None
    except socket.gaierror:
        raise ConfigError(
            f"host {host}: no such address; use 127.0.0.1 for this machine only, 0.0.0.0 for all networks"
        ) from None
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        problem = "is in use; choose another port" if taken else f"is not available ({error.strerror})"
        raise ConfigError(f"port {port} of {host} {problem}") from None


def _in_url(host: str) -> str:
    """Format the host for a URL; a wildcard address becomes localhost."""
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host
