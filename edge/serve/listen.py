"""Where a server of ours listens, and the packages that one needs; imports none of them."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from drivers.errors import UserError


def require_packages(command: str, *names: str) -> None:
    """Raise UserError where a package that serving needs is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"`{command}` needs the package {name}, which is not installed: pip install 'vlar1-edge[serve]'"
            )


def address_of(host: str, option: str) -> str:
    """The IP address of a host name, the first of several. Raises UserError, naming the option that it came from."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"{option}: no such address; give one of this machine, for example 127.0.0.1") from None
    return str(found[0][4][0]).partition("%")[0]


@contextmanager
def bound(address: str, port: int, option: str) -> Iterator[socket.socket]:
    """A socket with that address, which does not listen yet. Raises UserError, naming the option that it came from."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
        except OSError as error:
            raise UserError(f"{option}: cannot listen there: {error.strerror}; give another port, or 0") from None
        yield listener


def url_of(listener: socket.socket) -> str:
    """What a browser on this machine calls it."""
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
