"""Asks a function in a process of its own: a library that crashes or hangs as it loads takes nothing else along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from typing import Any

from edge.doctor.findings import Finding

TIMEOUT_S = 9.0


class NoAnswer(Exception):
    """The function raised, its process crashed, or time was up; the message is one line."""


class Slow(NoAnswer):
    """Time was up. On a busy machine, or from a slow card, that need not mean that anything is wrong."""


def unanswered(name: str, error: NoAnswer, told: str, to_type: str) -> Finding:
    """What an answer that did not come means: what was asked for is missing, unless it was only slow."""
    if isinstance(error, Slow):
        return Finding(name, "warning", f"{error}: the machine is slow or busy; ask again when it is not")
    return Finding(name, "missing", told, to_type)


def ask_apart(function: str, *args: Any, timeout_s: float = TIMEOUT_S) -> Any:
    """What ``module:function`` returns for ``args``; both pass through JSON.

    Raises:
        NoAnswer: with a UserError's own words, the last line of another error, the signal, or the time that was up.
    """
    command = [sys.executable, "-m", __name__, function, json.dumps(args)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise Slow(f"no answer within {timeout_s:.2g} s") from None
    if done.returncode < 0:
        raise NoAnswer(f"crashed ({signal.Signals(-done.returncode).name})")
    try:
        reply = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.decode(errors="replace").split("\n")
        raise NoAnswer(next((line for line in reversed(lines) if line.strip()), "ended without an answer")) from None
    if "refused" in reply:
        raise NoAnswer(reply["refused"])
    return reply["answer"]


def main() -> None:
    """The other process: the answer alone goes to stdout, whatever libraries print to stderr."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    module, _, name = sys.argv[1].partition(":")
    try:
        reply = {"answer": getattr(import_module(module), name)(*json.loads(sys.argv[2]))}
    except BaseException as error:  # told by the process that asked
        from drivers.errors import UserError

        text = " ".join(str(error).split())
        reply = {"refused": text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"}
    os.write(answers, json.dumps(reply).encode())
    os._exit(0)  # some GPU libraries crash as they are unloaded


if __name__ == "__main__":
    main()
