"""Requests that come from this machine, and from no page of another site that is open on it."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException


def require_local(headers: Headers) -> None:
    """Raise HTTPException for a request that names another host, or that a page of another site makes."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if host and not _is_loopback(f"//{host}"):
        raise HTTPException(403, "this server answers to localhost and 127.0.0.1 alone, without a token")
    if origin is not None and not _is_loopback(origin):
        raise HTTPException(403, "this server answers no pages of other sites without a token")


def _is_loopback(url: str) -> bool:
    """Whether the host of a URL means the machine itself, whatever a name server says."""
    try:
        host = urlsplit(url).hostname
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
