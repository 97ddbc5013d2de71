"""``vlar1 arm park`` and ``vlar1 arm jog``: to the rest pose, and one joint at a time from the keyboard."""

from __future__ import annotations

import argparse
import threading
import time
from math import degrees, radians
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from drivers.errors import UserError
from drivers.robot import Robot
from edge.arm_calibration import robot_of
from edge.arm_keys import CLOSED, Keys
from edge.stop_input import open_stop_inputs

if TYPE_CHECKING:
    from edge.control import Controller, ServoState

STEPS_DEG = (0.5, 1.0, 2.0, 5.0, 10.0)
HELP = "←/→ 1..9 joint  ↑/↓ move  +/- step  SPACE STOP  r restart  p park  q leave"
_STEP_S = 0.19  # one call of `Controller.jog` moves a joint for about so long at the speed it names
_TICK_S, _SHOW_S = 0.02, 0.1
_HEARD_S = 0.5  # a jog is over by then
_BAR = 28


def run_park(args: argparse.Namespace) -> int:
    """Bring the arm up where it is and go to rest, once the user agrees; 0."""
    from edge.control import Controller

    console = Console(highlight=False, soft_wrap=True)
    robot = robot_of(args)
    console.print(
        f"{robot.name}: torque on where it is, by the ready pose to rest, torque off. The arm moves: clear its way.",
        markup=False,
    )
    if not args.yes:
        try:
            keys = Keys("arm park")
        except UserError as error:
            raise UserError(f"{error}, or add --yes") from None
        with keys:
            console.print("y: go, any other key: leave it as it is")
            if keys.key(float(10**6)) not in ("y", "Y"):
                console.print("nothing was done")
                return 0
    with Controller(robot, args.port) as controller:
        for message in controller.messages:
            console.print(message, style="dim", markup=False)
        controller.park()
    console.print("parked; torque is off")
    return 0


def run_jog(args: argparse.Namespace) -> int:
    """Move joints by the keyboard until q, then park; 0."""
    from edge.control import Controller

    console = Console(highlight=False)
    with Keys("arm jog") as keys:
        robot = robot_of(args)
        # The keyboard is ours: its space bar stops, but its arrows do not.
        others = open_stop_inputs([name for name in robot.safety.stop_inputs if name != "keyboard"])
        with Controller(robot, args.port, stop_inputs=others) as controller:
            Jog(robot, controller, keys, console).run()
    console.print("parked; torque is off")
    return 0


class Jog:
    """Keys to motions, and a live view of the joints."""

    def __init__(self, robot: Robot, controller: Controller, keys: Keys, console: Console) -> None:
        self._robot, self._controller, self._keys, self._console = robot, controller, keys, console
        self._joint, self._step = 0, STEPS_DEG.index(2.0)
        self._said = ""
        self._jogged_s = -_HEARD_S
        self._parking: threading.Thread | None = None

    def run(self) -> None:
        """Until q, or the terminal is gone. Raises DeviceError when the servo loop ends."""
        shown_s = 0.0
        with Live(console=self._console, auto_refresh=False) as live:
            while True:
                key = self._keys.key(_TICK_S)
                if key in ("q", "Q", CLOSED):
                    return
                if key in ("up", "down"):
                    self._keys.drop_repeats(key)  # the arm stops when a held key is let go, not some keys later
                if key:
                    self._press(key)
                if time.monotonic() - self._jogged_s < _HEARD_S and self._parking is None:
                    self._controller.loop.heard()
                if self._parking is not None and not self._parking.is_alive():
                    self._parking = None
                if time.monotonic() - shown_s >= _SHOW_S:
                    shown_s = time.monotonic()
                    live.update(self.show(self._controller.state()), refresh=True)

    def _press(self, key: str) -> None:
        names = self._robot.joint_names
        if key == "space":
            self._controller.stop("the space bar was pressed")
            self._said = "stopped; r: restart, q: leave it holding, with torque on"
        elif key in ("left", "right"):
            self._joint = (self._joint + (1 if key == "right" else -1)) % len(names)
        elif key.isdecimal() and 1 <= int(key) <= len(names):
            self._joint = int(key) - 1
        elif key in ("+", "=", "-"):
            self._step = min(max(self._step + (-1 if key == "-" else 1), 0), len(STEPS_DEG) - 1)
        elif key in ("up", "down", "r", "p"):
            self._move(key)

    def _move(self, key: str) -> None:
        if self._parking is not None:
            self._said = "it is parking; space stops it"
            return
        self._said = ""
        try:
            if key == "r":
                self._controller.restart()
                self._said = "restarted"
            elif key == "p":
                self._parking = threading.Thread(target=self._park, name="parking", daemon=True)
                self._parking.start()
            else:
                velocity_rad_s = radians(STEPS_DEG[self._step]) / _STEP_S
                self._controller.jog(self._joint, velocity_rad_s if key == "up" else -velocity_rad_s)
                self._jogged_s = time.monotonic()
        except UserError as error:
            self._said = str(error)

    def _park(self) -> None:
        try:
            self._said = "parking"
            self._controller.park()
            self._said = "parked; torque is off; q leaves"
        except UserError as error:
            self._said = str(error)

    def show(self, state: ServoState) -> RenderableType:
        """Each joint between its limits, the chosen one marked."""
        robot = self._robot
        table = Table(title=HELP, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        table.add_column("joint", no_wrap=True)
        for name in ("deg", "from", "to"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("between its limits", no_wrap=True)
        for name in ("load", "°C"):
            table.add_column(name, justify="right", no_wrap=True)
        for i, name in enumerate(robot.joint_names):
            low, high, now = float(robot.lower_rad[i]), float(robot.upper_rad[i]), float(state.position_rad[i])
            table.add_row(
                f"{i + 1} {name}",
                f"{degrees(now):+.1f}",
                f"{degrees(low):+.0f}",
                f"{degrees(high):+.0f}",
                _bar(now, low, high),
                f"{float(state.load[i]):+.2f}",
                f"{float(state.temperature_c[i]):.0f}",
                style="bold reverse" if i == self._joint else None,
            )
        cause = f" ({state.cause.name.lower().replace('_', ' ')})" if state.cause else ""
        line = f"step {STEPS_DEG[self._step]:g} deg   {state.state.name.lower()}{cause}"
        return Group(table, Text(line), Text(self._said, style="yellow"))


def _bar(now: float, low: float, high: float) -> str:
    share = (now - low) / max(high - low, 1e-9)
    at = min(max(round(share * (_BAR - 1)), 0), _BAR - 1)
    return "─" * at + "●" + "─" * (_BAR - 1 - at)
