"""Has the board build a bundle's engines, examine itself and measure the bundle."""

from __future__ import annotations

import json
from typing import Any

from edge.deploy.connection import Connection
from edge.engine.bundle import Bundle
from edge.profile.command import RUNS
from edge.profile.run import Report

MISSING = 1  # vlar1 doctor's exit code


class Failed(Exception):
    """A program on the board failed; the message is the last line it printed."""


def build(connection: Connection, folder: str, bundle: Bundle, there: str) -> str:
    """Build TensorRT engines where the bundle has graphs and the board has TensorRT; what was done, in words.

    Args:
        folder: the deploy's, on the board.
        bundle: as it is here.
        there: its folder on the board.

    Raises:
        Failed: building did.
    """
    if "tensorrt" not in bundle.manifest["engines"]:
        return "no engines: the bundle has no graphs for TensorRT; it runs on ONNX Runtime"
    asked = [f"{folder}/bin/python", "-m", "edge.doctor.apart", "edge.doctor.decide:tensorrt_modules", "[]"]
    reply = json.loads(_printed(connection, folder, asked, codes=(0,)))
    if "refused" in reply:
        return f"no engines: {reply['refused']}"
    return _last(_printed(connection, folder, [f"{folder}/bin/vlar1", "build", there], codes=(0,)))


def doctor(connection: Connection, folder: str, there: str, robot: str | None) -> dict[str, Any]:
    """What ``vlar1 doctor --json`` says on the board of the bundle at ``there``, and of a robot file there.

    Raises:
        Failed: it did not come to its end.
    """
    argv = [f"{folder}/bin/vlar1", "doctor", "--bundle", there, *(["--robot", robot] if robot else []), "--json"]
    found: dict[str, Any] = json.loads(_printed(connection, folder, argv, codes=(0, MISSING)))
    return found


def profile(connection: Connection, folder: str, there: str) -> Report:
    """What ``vlar1 profile`` measures on the board of the bundle at ``there``. It is given no robot: no arm moves.

    Raises:
        Failed: it did not come to its end.
    """
    path = f"{folder}/profile.json"
    argv = [f"{folder}/bin/vlar1", "profile", "--bundle", there, "--runs", str(RUNS), "--json", path]
    _printed(connection, folder, argv, codes=(0,))
    report: Report = json.loads(connection.ask("read", path=path))
    return report


def _printed(connection: Connection, folder: str, argv: list[str], codes: tuple[int, ...]) -> str:
    """What a program printed to stdout, if it ended with one of these codes."""
    done = connection.ask("run", argv=argv, folder=folder, aloud=False)
    if done["code"] not in codes:
        raise Failed(_last(done["stdout"] + done["stderr"]))
    return str(done["stdout"])


def _last(printed: str) -> str:
    return next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "it said nothing")
