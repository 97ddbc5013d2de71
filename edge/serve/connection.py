"""A connection that cannot be held for nothing: slow request heads, unread answers and too many at once end it."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
IDLE_LIMIT_S = 30.0  # for the whole head of a request, and between an answer and the next request
UNREAD_LIMIT_S = 30.0  # for reading an answer that the socket's buffers do not hold


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, which waits without end for a head that never ends and for a client that does not read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        _stop(self._idle)
        _stop(self._unread)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """From here on it is a WebSocket's, which times itself."""
        _stop(self._idle)
        super().handle_websocket_upgrade(event)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; once its head is complete, the application times the rest."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            _stop(self._idle)

    def on_response_complete(self) -> None:
        """An answer is written; what may remain of its request is thrown away meanwhile."""
        self._await_head()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        _stop(self._unread)
        self._unread = self.loop.call_later(UNREAD_LIMIT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        _stop(self._unread)
        super().resume_writing()

    def _await_head(self) -> None:
        _stop(self._idle)
        self._idle = self.loop.call_later(IDLE_LIMIT_S, self.transport.abort)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
