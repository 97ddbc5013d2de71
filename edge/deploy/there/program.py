"""Programs on the board that end when whoever asked for them goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

GRACE_S = 5.0


def run(argv: list[str], folder: str, aloud: bool) -> dict[str, Any]:
    """Run a program in ``folder`` until it ends, or stdin does: then it is ended, with all that it started.

    Args:
        argv: program and arguments; no shell sees them.
        aloud: whether what it prints goes to stdout as it comes; otherwise it is returned.

    Returns:
        ``code`` (128 + the signal that ended it), and what it printed to ``stdout`` and ``stderr``.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    out = {"stderr": subprocess.STDOUT} if aloud else pipes
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # A session of its own: its process group is what is ended.
    process = subprocess.Popen(
        argv, cwd=folder, stdin=subprocess.DEVNULL, env=environment, start_new_session=True, **out
    )

    def end(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                return
            began_s = time.monotonic()
            while process.poll() is None and time.monotonic() < began_s + GRACE_S:
                time.sleep(0.05)

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        end()

    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, end)
    threading.Thread(target=watch, daemon=True).start()
    printed = [(text or b"").decode(errors="replace") for text in process.communicate()]
    code = process.returncode
    return {"code": code if code >= 0 else 128 - code, "stdout": printed[0], "stderr": printed[1]}
