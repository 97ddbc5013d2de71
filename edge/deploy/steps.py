"""The steps of ``vlar1 deploy``, each printed with its outcome as it ends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.filesize import decimal

from edge.deploy.connection import Connection
from edge.deploy.install import install
from edge.deploy.measure import Failed, build, doctor, profile
from edge.deploy.send import send
from edge.deploy.shipment import bundle_shipment, package_shipment, robot_shipment
from edge.engine.bundle import load_bundle

_WIDTH = 8
Found = TypeVar("Found")


def deploy(host: str, bundle_path: Path, robot_path: Path | None, to: str, reports: Path) -> int:
    """Everything, in order; 0, or 1 where the board lacks something, or building or measuring failed there.

    Args:
        host: as ssh takes it.
        bundle_path: the bundle here.
        robot_path: the robot file here, if there is one.
        to: folder on the board.
        reports: what doctor and profile found is kept in a folder of the host's here.

    Raises:
        UserError: what is wrong here, or what stopped it there.
    """
    bundle = load_bundle(bundle_path)
    shipments = [bundle_shipment(bundle)]
    robot = robot_shipment(robot_path) if robot_path is not None else None
    if robot is not None:
        shipments.append(robot[0])
    kept = reports / re.sub(r"[^\w.@-]+", "-", host)
    steps = _Steps(Console(soft_wrap=True, highlight=False), Console(stderr=True))
    with Connection(host) as connection:
        board = connection.ask("look", to=to)
        folder, free = board["folder"], decimal(board["free_bytes"])
        steps.done("board", f"{board['board']}; {board['arch']}, Python {board['python']}, {free} free at {folder}")
        ours = f"vlar1 {version('vlar1-edge')}"
        steps.done(
            "install", install(connection, board, package_shipment(), ours, kept / "install.log", steps.progress)
        )
        for shipment in shipments:
            copied = send(connection, folder, shipment, steps.progress)
            told = f"copied {decimal(copied)} of {decimal(shipment.bytes)}" if copied else "is there, nothing to copy"
            steps.done(shipment.kind, f"{folder}/{shipment.place}: {told}")
        there = f"{folder}/{shipments[0].place}"
        robot_there = f"{folder}/{robot[0].place}/{robot[1]}" if robot is not None else None
        from edge.deploy import show  # with all that draws; a board that cannot be reached is told of before

        built = steps.tried("build", lambda: build(connection, folder, bundle, there))
        if built is not None:
            steps.done("build", built)
        examined = steps.tried("doctor", lambda: doctor(connection, folder, there, robot_there))
        if examined is not None:
            show.show_doctor(host, examined, steps.console)
            steps.done("doctor", show.keep(kept / "doctor.json", examined))
        measured = steps.tried("profile", lambda: profile(connection, folder, there))
        if measured is not None:
            show.show_profile(measured, steps.console)
            steps.done("profile", show.keep(kept / "profile.json", measured))
    steps.console.print(f"on {host}: {folder}/bin/vlar1 serve --bundle {there}", markup=False)
    works = examined is not None and examined["works"]
    return 0 if built is not None and works and measured is not None else 1


class _Steps:
    """Prints each step with what came of it and how long it took.

    Attributes:
        console: stdout, for what is found.
        progress: stderr, for what is being done.
    """

    def __init__(self, console: Console, progress: Console) -> None:
        self.console, self.progress = console, progress
        self._began_s = time.monotonic()

    def done(self, name: str, told: str) -> None:
        now_s = time.monotonic()
        self.console.print(f"{name:{_WIDTH}} {told} [{now_s - self._began_s:.1f} s]", markup=False)
        self._began_s = now_s

    def tried(self, name: str, call: Callable[[], Found]) -> Found | None:
        """What ``call`` returns; None, and said so, where it failed on the board."""
        try:
            with self.progress.status(f"{name}, on the board"):
                return call()
        except Failed as error:
            self.done(name, f"failed: {error}")
            return None
