"""A board for the real ``ssh``: a server in this process that runs real commands, in a home of its own."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncssh
import pytest

NAME = "board"
"""The host of the configuration that `Board.ssh` reads."""
PASSWORD = "correct horse"
PATIENCE_S = 30.0
_SYSTEM_SSH = "/usr/bin/ssh"


class Board:
    """The server and its files.

    Attributes:
        home: of the user there; the deploy's folder is in it.
        programs: first in the PATH there.
        ssh: what is first in the PATH here: an ``ssh`` that reads a configuration of its own.
        received: bytes that programs there were sent.
        cut_at: once so many were, the connection is cut.
    """

    def __init__(self, folder: Path) -> None:
        self.home, self.programs, self.ssh = (folder / name for name in ("home", "programs", "ssh"))
        for path in (self.home, self.programs, self.ssh):
            path.mkdir(parents=True)
        self.received, self.cut_at = 0, sys.maxsize
        self.port = 0
        self._keys = {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("host", "user", "other")}
        for name, key in self._keys.items():
            key.write_private_key(self.ssh / name)
            (self.ssh / name).chmod(0o600)
        self.program(self.programs / "python3", f'exec {shlex.quote(os.path.realpath(sys.executable))} "$@"')

    @property
    def folder(self) -> Path:
        """What `vlar1 deploy` fills."""
        return self.home / ".local" / "share" / "vlar1"

    def program(self, path: Path, script: str) -> None:
        """A shell script that can be run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def configure(self, *, key: str = "user", known: str = "host", port: int | None = None, ask: bool = False) -> None:
        """Write the client's configuration; ``known``: whose key is known as the host's, "" for none; ``ask``: for the
        password, instead of offering a key."""
        port = port or self.port
        public = self._keys[known].export_public_key().decode().split()[:2] if known else []
        (self.ssh / "known").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n" if known else "")
        (self.ssh / "config").write_text(
            f"Host {NAME}\n HostName 127.0.0.1\n Port {port}\n User somebody\n IdentitiesOnly yes\n"
            f" IdentityFile {self.ssh / key}\n UserKnownHostsFile {self.ssh / 'known'}\n GlobalKnownHostsFile none\n"
            f" {'PreferredAuthentications password' if ask else 'BatchMode yes'}\n"
        )
        self.program(self.ssh / "ssh", f'exec {_SYSTEM_SSH} -F {shlex.quote(str(self.ssh / "config"))} "$@"')

    async def run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run a command of the client's as sshd does: without a terminal, stdin ends when the client goes."""
        child = await asyncio.create_subprocess_exec(
            *("sh", "-c", process.command or "true"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": f"{self.programs}:{os.environ['PATH']}", "LANG": "C.UTF-8"},
        )
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        stdin = child.stdin

        async def feed() -> None:
            with suppress(OSError, asyncssh.Error):
                while block := await process.stdin.read(1 << 16):
                    stdin.write(block)
                    await stdin.drain()
                    self.received += len(block)
                    if self.received >= self.cut_at:
                        self.cut_at = sys.maxsize
                        process.channel.get_connection().abort()
                        break
            stdin.close()

        async def pump(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
            with suppress(OSError, asyncssh.Error):
                while block := await source.read(1 << 16):
                    target.write(block)

        feeding = asyncio.create_task(feed())
        await asyncio.gather(pump(child.stdout, process.stdout), pump(child.stderr, process.stderr))
        code = await child.wait()
        feeding.cancel()
        process.exit(code)

    async def listen(self) -> asyncssh.SSHAcceptor:
        keys = asyncssh.import_authorized_keys(self._keys["user"].export_public_key().decode())

        class Doorman(asyncssh.SSHServer):
            password_auth_supported = staticmethod(lambda: True)
            validate_password = staticmethod(lambda user, password: password == PASSWORD)

        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Doorman,
            server_host_keys=[self._keys["host"]],
            authorized_client_keys=keys,
            process_factory=self.run,
            encoding=None,
        )


@contextmanager
def running_board(folder: Path) -> Iterator[Board]:
    """A board in ``folder``, and this process's ``ssh NAME`` reaches it."""
    if not Path(_SYSTEM_SSH).exists():
        pytest.skip("OpenSSH's client is not installed")
    board = Board(folder)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(board.listen(), loop).result(PATIENCE_S)
        board.port = server.get_port()
        board.configure()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{board.ssh}:{os.environ['PATH']}")
            yield board

        async def end() -> None:
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
