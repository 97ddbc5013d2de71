"""Who may ask, how much a request may hold and how long it may take to arrive: around the whole application."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.serve.errors import told
from edge.serve.local import require_local
from edge.serve.metrics import Metrics

MAX_BODY_BYTES = 16_000_000
MAX_HELD_BYTES = 128_000_000  # of all requests together, from their first byte to their answer
BODY_LIMIT_S = 30.0
HEALTH = "/health"

_log = logging.getLogger("vlar1.serve")


class Guard:
    """Wraps an ASGI application; answers what is not let through, and what the application fails on, in one line.

    Without a token only this machine can reach the server, and a web page open on it must not: requests that name
    another host (DNS rebinding) or come from a page of another origin are refused.

    Args:
        token: what requests must bear (RFC 6750), but for ``/health``; None for a server on loopback alone.
    """

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._digest = None if token is None else _digest(token)
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        started = False

        async def counting(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._metrics.answered(scope["path"], message["status"])
            await send(message)

        body = _Body(receive, self)
        try:
            self._admit(Headers(scope=scope), scope["path"])
            await self._app(scope, body.receive, counting)
        except Exception as error:
            if not isinstance(error, HTTPException):
                _log.exception("%s %s", scope["method"], scope["path"])
            if not started:
                await told(error)(scope, receive, counting)
        finally:
            self._held_bytes -= body.n_bytes

    def hold(self, n_bytes: int) -> None:
        """Count bytes of a request; raises HTTPException where that is too many for all requests together."""
        self._held_bytes += n_bytes
        if self._held_bytes > MAX_HELD_BYTES:
            raise HTTPException(503, "too many images are on their way at once; ask again", {"Retry-After": "1"})

    def _admit(self, headers: Headers, path: str) -> None:
        if self._digest is not None:
            kind, _, token = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(_digest(token.strip()), self._digest) and kind.lower() == "bearer"
            if not right and path != HEALTH:
                raise HTTPException(401, "send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        else:
            require_local(headers)
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
            raise _too_large()


class _Body:
    """A request's body on its way in: in time, and not too large."""

    def __init__(self, receive: Receive, guard: Guard) -> None:
        self._receive, self._guard = receive, guard
        self._ends_s = time.monotonic() + BODY_LIMIT_S
        self._complete = False
        self.n_bytes = 0

    async def receive(self) -> Message:
        """ASGI. Raises HTTPException."""
        if self._complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._ends_s - time.monotonic())
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the request did not arrive within {BODY_LIMIT_S:g} s") from None
        n_bytes = len(message.get("body", b""))
        self.n_bytes += n_bytes
        self._guard.hold(n_bytes)
        if self.n_bytes > MAX_BODY_BYTES:
            raise _too_large()
        self._complete = not message.get("more_body", False)
        return message


def _too_large() -> HTTPException:
    return HTTPException(413, f"the request has more than {MAX_BODY_BYTES} bytes; send a smaller image")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()  # so that its length tells nothing
