"""Who watches a run, as the command line says: the terminal, the operator's page, the Rerun viewer."""

from __future__ import annotations

import argparse
import ipaddress
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console as Terminal

from calib.calibration import Calibration
from drivers.errors import UserError
from drivers.protocols import Camera
from edge.control import Controller
from edge.rerun_view import destination
from edge.serve.listen import address_of, bound
from edge.trace import Tracer
from edge.watch import Watchers
from edge.watched_camera import WatchedCamera

if TYPE_CHECKING:
    from edge.console.console import Console

_THIS_MACHINE = "127.0.0.1"


class Watching(Watchers):
    """The watchers of a run; a context manager. What cannot be had is said on entry, before anything moves.

    Args:
        args: with ``console`` and ``rerun`` (`edge.run_command.add_watchers`).
        terminal: is told where the page is, and what fails.

    Attributes:
        console: the operator's page once the run has begun, where one was asked for.

    Raises:
        UserError: the address cannot be listened at, or there is nothing to stream to.
    """

    def __init__(self, args: argparse.Namespace, terminal: Terminal) -> None:
        super().__init__([], lambda line: terminal.print(line, style="yellow", markup=False))
        self._args, self._terminal = args, terminal
        self._held = ExitStack()
        self.console: Console | None = None

    def __enter__(self) -> Watching:
        if self._args.console is not None:
            option = f"--console {self._args.console}"
            host, port = _host_and_port(self._args.console)
            address = address_of(host, option)
            self._remote = not ipaddress.ip_address(address).is_loopback
            self._listener = self._held.enter_context(bound(address, port, option))
        if self._args.rerun is not None:
            destination.check(self._args.rerun or None)
        return self

    def camera(self, camera: Camera) -> Camera:
        """The camera as the run is to use it: where anybody will watch, also read for the watchers' sake."""
        wanted = self._args.console is not None or self._args.rerun is not None
        return WatchedCamera(camera, self.frame) if wanted else camera

    def begin(
        self, controller: Controller, calibration: Calibration, tracer: Tracer, bundle: str, instruction: str = ""
    ) -> None:
        """From now on they watch this arm; ``instruction`` is what the page proposes."""
        if self._args.console is not None:
            from edge.console.console import Console

            about = {"robot": controller.robot.name, "bundle": bundle, "camera": calibration.camera.serial}
            if instruction:
                about["instruction"] = instruction
            carried = calibration.mount == "gripper"
            self.console = Console(self._listener, controller, tracer, about, remote=self._remote, carried=carried)
            self._held.callback(self.console.close)
            self.add(self.console)
            self._terminal.print(f"the operator's page: {self.console.url}", markup=False)
        if self._args.rerun is not None:
            from edge.rerun_view.view import RerunView

            where = self._args.rerun or None
            view = RerunView(where, controller.robot, calibration, controller.loop, tracer)
            self._held.callback(view.close)
            self.add(view)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.console is not None:
            self.console.phase("ended", " ".join(str(error).split()) if isinstance(error, UserError) else "")
        self._held.close()


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (port.isdecimal() and int(port) <= 65535):
        raise UserError(
            f"--console {text}: expected PORT or HOST:PORT, for example 8080; an instruction goes before the options"
        )
    return host.strip("[]") or _THIS_MACHINE, int(port)
