"""One ssh connection to a board, by the user's own ``ssh``: keys, agents, jump hosts and known hosts are as configured.

The connection is made once (OpenSSH's ControlMaster) and every request is a session on it, so a password is asked once.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from drivers.errors import UserError

# Sent as source, in this order: each imports only those before it.
MODULES = (
    *("edge.engine.hashes", "edge.doctor.findings", "edge.doctor.machine", "edge.deploy.there"),
    *(f"edge.deploy.there.{name}" for name in ("look", "folder", "program", "answer")),
)
OLDEST_PYTHON = (3, 10)
SSH_FAILED, NOT_FOUND = 255, 127  # exit codes: of ssh itself (ssh(1)), and of a shell that lacks the program
_HOST = re.compile(r"(ssh://)?[A-Za-z0-9_\[][A-Za-z0-9_.@:%\[\]/-]*")
# The user's configuration says how the host is reached; these say what for.
OPTIONS = {
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ClearAllForwardings": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "10",  # a cable that is pulled out is noticed within 30 s
    "ServerAliveCountMax": "3",
}
_LINGER_S = 60  # how long the connection outlives us, should we be killed
_BOOT = b"""
import json, sys, types
request = json.loads(sys.stdin.buffer.readline())
for name, source in request["modules"].items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
module.main(request)
"""
# No word of it is the user's, and no shell reads it in another way: the request itself comes over stdin.
COMMAND = (
    f"exec python3 -I -c 'import sys; v = sys.version_info; "
    f'exec(sys.stdin.buffer.read({len(_BOOT)})) if v >= {OLDEST_PYTHON} else sys.exit("python3 is %d.%d" % v[:2])\''
)


class Connection:
    """A connection to a board; a context manager that makes and ends it.

    Args:
        host: what `ssh` takes: a name of its configuration, user@host, ssh://user@host:port.

    Raises:
        UserError: from `with` on: why ssh does not reach it, by ssh's own last line, and what to type.
    """

    def __init__(self, host: str) -> None:
        if not _HOST.fullmatch(host):
            raise UserError(f"{host!r}: is no host; expected what ssh takes, for example user@jetson.local")
        self.host = host

    def __enter__(self) -> Connection:
        self._folder = tempfile.TemporaryDirectory(prefix="vlar1-")  # private to this user
        self._socket, self._log = Path(self._folder.name, "s"), Path(self._folder.name, "log")
        options = {**OPTIONS, "ControlPath": str(self._socket), "ControlMaster": "no"}
        master = {**options, "ControlMaster": "yes", "ControlPersist": str(_LINGER_S)}
        self._ssh = ["ssh", *(f"-o{name}={value}" for name, value in options.items())]
        try:
            with self._log.open("wb") as log:
                argv = ["ssh", "-fN", *(f"-o{name}={value}" for name, value in master.items()), "--", self.host]
                code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode
            if code:
                raise self._unreachable()
        except FileNotFoundError:
            self._folder.cleanup()
            raise UserError("ssh: is not installed on this machine; sudo apt install openssh-client") from None
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.TimeoutExpired):
            argv = [*self._ssh, "-O", "exit", "--", self.host]
            subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10.0)
        self._folder.cleanup()

    def ask(
        self,
        call: str,
        *,
        contents: Iterable[bytes] = (),
        on_line: Callable[[str], None] | None = None,
        **arguments: Any,
    ) -> Any:
        """What a function of `edge.deploy.there.answer` returns, on the board.

        Args:
            call: its name.
            contents: sent after the request.
            on_line: gets each line that is printed before the reply.
            arguments: of the function; they pass through JSON.

        Raises:
            UserError: it refused, or the connection was lost.
        """
        request = {"modules": _sources(), "call": call, "arguments": arguments}
        with self._log.open("wb") as log:
            argv = [*self._ssh, "--", self.host, COMMAND]
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert process.stdin is not None and process.stdout is not None
        last = b""
        try:
            with suppress(BrokenPipeError):  # it ended before all was read: the reply, or ssh, says why
                process.stdin.write(_BOOT + json.dumps(request).encode() + b"\n")
                for block in contents:
                    process.stdin.write(block)
                process.stdin.flush()
            for line in process.stdout:
                if not line.strip():
                    continue
                if on_line is not None and last:
                    on_line(last.decode(errors="replace").rstrip())
                last = line
            code = process.wait()
        finally:
            # Stdin ends with it, and by that the board's side knows that nobody waits any more.
            process.kill()
            process.wait()
            process.stdout.close()
            with suppress(BrokenPipeError):
                process.stdin.close()
        return self._answer(last, code)

    def _answer(self, last: bytes, code: int) -> Any:
        try:
            reply = json.loads(last)
            return reply["answer"] if "answer" in reply else self._refuse(reply["refused"])
        except (ValueError, KeyError, TypeError):
            pass
        said = _last_line(self._log)
        if code == SSH_FAILED or code < 0:
            why = f" ({said})" if said else ""
            raise UserError(
                f"{self.host}: the connection was lost{why}; what was copied is kept: the same command goes on"
            )
        if code == NOT_FOUND:
            raise UserError(f"{self.host}: has no python3; type there: sudo apt install python3")
        if said.startswith("python3 is "):
            oldest = ".".join(map(str, OLDEST_PYTHON))
            raise UserError(f"{self.host}: its {said}, expected {oldest} or newer; a Jetson gets it with JetPack 6")
        raise UserError(f"{self.host}: python3 there ended with code {code}: {said or 'it said nothing'}")

    def _refuse(self, why: str) -> None:
        raise UserError(f"{self.host}: {why}")

    def _unreachable(self) -> UserError:
        text, said = self._log.read_text(encoding="utf-8", errors="replace"), _last_line(self._log)
        changed = re.search(r"Host key for (\S+) has changed", text)
        if changed:
            return UserError(
                f"{self.host}: shows another host key than before; if the board was set up anew: "
                f"ssh-keygen -R '{changed[1]}', then ssh {self.host}; if not, it may be another machine"
            )
        if "Host key verification failed" in said:
            return UserError(f"{self.host}: its host key is not known here ({said}); look at it once: ssh {self.host}")
        if "Permission denied" in said:
            return UserError(f"{self.host}: lets you not in ({said}); give it your key: ssh-copy-id {self.host}")
        return UserError(
            f"{self.host}: cannot be reached ({said or 'no reason given'}); make `ssh {self.host}` work first"
        )


def _sources() -> dict[str, str]:
    return {name: Path(str(import_module(name).__file__)).read_text(encoding="utf-8") for name in MODULES}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
