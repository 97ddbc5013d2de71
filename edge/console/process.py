"""The page's process: ``python -m edge.console.process PIPE SERVO_MEMORY LISTENER``, three inherited descriptors."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from edge.console.app import build_app, make_server
from edge.console.stage import Stage
from edge.control import ServoWatch


def main(pipe_fd: int, servo_fd: int, listener_fd: int) -> None:
    """Serve until the run's end of the pipe is closed."""
    pipe = Connection(pipe_fd)
    hello = json.loads(pipe.recv_bytes().partition(b"\n")[0])
    token = hello.pop("token")
    with socket.socket(fileno=listener_fd) as listener:
        asyncio.run(_serve(pipe, Stage(ServoWatch(servo_fd), hello, _sender(pipe)), token, listener))


async def _serve(pipe: Connection, stage: Stage, token: str, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    server = make_server(build_app(stage, token))

    def end() -> None:
        stage.close()
        server.should_exit = True

    def read() -> None:
        try:
            while True:
                head, _, body = pipe.recv_bytes().partition(b"\n")
                loop.call_soon_threadsafe(stage.told, json.loads(head), body)
        except (EOFError, OSError):  # the run has ended, in whatever way
            loop.call_soon_threadsafe(end)

    threading.Thread(target=read, name="run", daemon=True).start()
    watching = asyncio.create_task(stage.watch())
    await server.serve(sockets=[listener])
    watching.cancel()


def _sender(pipe: Connection) -> Callable[[dict[str, Any]], None]:
    def send(request: dict[str, Any]) -> None:
        try:
            pipe.send_bytes(json.dumps(request).encode())
        except OSError:
            pass  # nobody is there to be asked

    return send


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
