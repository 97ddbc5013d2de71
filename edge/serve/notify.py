"""What systemd is told of the server: that it answers, that it is alive, that it ends (sd_notify(3))."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

import uvicorn

from drivers.errors import UserError
from edge.serve.line import Line

READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"
_TAKEN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True)
class Manager:
    """The service manager that started this process.

    Attributes:
        address: of its datagram socket, as the module socket has it.
        watchdog_s: how long it waits for a sign of life before it ends this process; None if it wants none.
    """

    address: str
    watchdog_s: float | None

    def tell(self, state: str, within_s: float = 1.0) -> None:
        """Send one state. A manager that is gone, or does not read, misses nothing: that is no error."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(within_s)
            try:
                sender.sendto(state.encode(), self.address)
            except OSError:
                pass


def take_manager(environment: MutableMapping[str, str] = os.environ) -> Manager | None:
    """Who is to be told, by the variables of sd_notify(3) and sd_watchdog_enabled(3); None for nobody.

    The variables are removed, so that no child speaks for this process. Raises UserError for one that cannot be used.
    """
    address, period_us, pid = (environment.pop(name, "") for name in _TAKEN)
    if not address:
        return None
    if address[0] not in "/@":
        raise UserError(f"NOTIFY_SOCKET {address}: expected a path, or @ and an abstract name; unset it")
    watched = bool(period_us) and pid in ("", str(os.getpid()))
    if watched and not (period_us.isdecimal() and int(period_us)):
        raise UserError(f"WATCHDOG_USEC {period_us}: expected microseconds, a whole number above 0; unset it")
    if address[0] == "@":
        address = f"\0{address[1:]}"
    return Manager(address, int(period_us) / 1e6 if watched else None)


class NotifyingServer(uvicorn.Server):
    """A server whose manager hears READY once it answers, STOPPING once it takes nothing new, and signs of life at half
    of the time that it waits for one. They come from the event loop: none while that hangs, or the model is stuck."""

    def __init__(self, config: uvicorn.Config, manager: Manager, line: Line) -> None:
        super().__init__(config)
        self._manager, self._line = manager, line
        self._signs: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._manager.tell(READY)
        if self._manager.watchdog_s is not None:
            self._signs = asyncio.create_task(self._live(self._manager.watchdog_s / 2))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._manager.tell(STOPPING)
        await super().shutdown(sockets)  # signs of life go on while the last answers are written
        if self._signs is not None:
            self._signs.cancel()

    async def _live(self, period_s: float) -> None:
        while True:
            if not self._line.stuck:
                self._manager.tell(ALIVE, within_s=0.0)
            await asyncio.sleep(period_s)
