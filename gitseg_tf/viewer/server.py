"""Serving the page until Ctrl-C."""

import errno
import socket
import sys
import webbrowser
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from gitseg_tf.errors import InputError
from gitseg_tf.files import AnyPath


def view(
    path: str | AnyPath,
    data: str | AnyPath | None = None,
    allowed: Sequence[str | AnyPath] = (),
    host: str = "127.0.0.1",
    port: int = 8750,
    open_browser: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a page to look through scans, until Ctrl-C.

    Args:
        path, data, allowed: see `library.open_library`.
        host: the address to listen on.
        port: to listen on; 0 takes a free one.
        open_browser: open the page, too.
        say: takes lines for the user; the first is the page's address.

    Raises:
        InputError: FastAPI or uvicorn is not installed, nothing to look through, or the port cannot be had.
    """
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise InputError(f"gitseg view needs {' and '.join(missing)}; pip install 'gitseg-tf[view]'")
    import uvicorn

    from gitseg_tf.viewer.app import make_app
    from gitseg_tf.viewer.guard import is_loopback, own_names
    from gitseg_tf.viewer.library import open_library

    listening = _listen(host, port)
    with listening:
        library = open_library(path, data, tuple(allowed))
        for note in library.notes:
            say(note)
        broken = sum(1 for entry in library.entries if entry.broken)
        if broken:
            say(f"{broken} of {len(library.entries)} scans cannot be read; the list says why")
        if not is_loopback(host):
            say(f"warning    {host} is not this machine alone: whoever reaches it sees these scans, without a password")
        address = f"http://{_in_url(host)}:{listening.getsockname()[1]}/"
        say(f"viewing    {library.name} at {address} (Ctrl-C ends)")
        app = make_app(library, own_names(host))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
        if open_browser:
            webbrowser.open(address)
        try:
            server.run([listening])
        except KeyboardInterrupt:
            pass  # how it is meant to end
        finally:
            app.state.predictions.close()
            sys.stdout.flush()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_ = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OverflowError:
        raise InputError(f"--port {port}: ports are 0 to 65535") from None
    except socket.gaierror:
        raise InputError(
            f"--host {host}: no such address; 127.0.0.1 is this machine alone, 0.0.0.0 all its networks"
        ) from None
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        cure = "is taken; choose another with --port" if taken else f"cannot be had ({error.strerror})"
        raise InputError(f"port {port} of {host} {cure}") from None


def _in_url(host: str) -> str:
    """As it stands in an address; that of all networks is reached from here as localhost."""
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host
