"""``vlar1 arm calibrate``: zero and range of every joint, recorded while a person moves the arm, as LeRobot does it.

The pose that the arm is held in first becomes half a turn on every servo (Homing_Offset); then the least and greatest
counts that each joint is moved through are taken down, and become the servos' own limits. Left in any other way than by
Enter, the servos get back what they had; what was recorded until then is kept in ``FILE.partial.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import degrees
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from drivers.arm import dynamixel_tables
from drivers.arm.bus import ServoBus
from drivers.arm.lerobot import LeRobotMotor, load_lerobot, robot_with_lerobot
from drivers.arm.servo_arm import TABLES, open_bus
from drivers.arm.tables import COUNTS_PER_TURN, RAD_PER_COUNT
from drivers.errors import DeviceError, UserError
from drivers.robot import Joint, Robot, load_robot
from edge.arm_calibration import (
    REVERSED,
    Changes,
    check_held,
    check_out,
    ended_in_order,
    with_torque,
    write_file,
)
from edge.arm_keys import CLOSED, Keys
from edge.arm_robot_file import check_robot_out, write_robot_file

HALF_TURN = 2047  # where LeRobot puts the middle: half of 4095, rounded down
_FEETECH_OFFSET = 2047  # the greatest that Homing_Offset holds
_LEAST_COUNTS = 100  # a joint that moved less was forgotten: 9 degrees
_FULL_TURN_RAD = 4.7  # joints with a greater range may be turned round and round, as wrist_roll
_HELD_COUNTS = 60  # a hand is not steady
_SAMPLE_S, _SHOW_S = 0.02, 0.1
_BAR = 28


def run(args: argparse.Namespace) -> int:
    """Record a calibration (``--out``) or put one into the servos (``--from``), and make a robot file with it; 0."""
    robot = load_robot(args.robot)
    console = Console(highlight=False)
    calibration: Path = args.source or args.out
    robot_out: Path | None = args.robot_out
    if robot_out is not None:
        if robot_out.resolve() == calibration.resolve():
            raise UserError(f"--robot-out {robot_out}: is the calibration's file too; name another")
        check_robot_out(robot_out, robot, args.force)
    with ended_in_order():
        (_restore if args.source else _record)(args, robot, console)
        if robot_out is not None:
            write_robot_file(robot_out, robot, calibration, args.port or robot.arm.port)
            text = f"{robot_out}: written; look through its `safety` before anything moves"
            console.print(text, markup=False, soft_wrap=True)
    return 0


# From a file


def _restore(args: argparse.Namespace, robot: Robot, console: Console) -> None:
    path: Path = args.source
    robot = robot_with_lerobot(robot, path)
    motors = load_lerobot(path)
    bus = open_bus(robot, args.port)
    try:
        if with_torque(robot, bus) and args.torque_off:
            with Keys("arm calibrate --torque-off") as keys:
                _release(robot, bus, keys, console)
        _require_limp(robot, bus)
        with Changes(robot, bus) as changes:
            for joint in robot.arm.joints:
                changes.motor(joint, motors[joint.name])
            check_held(robot, path, bus)
        console.print(f"{path}: its offsets and limits are in the servos", markup=False, soft_wrap=True)
    finally:
        bus.close()


# By hand


def _record(args: argparse.Namespace, robot: Robot, console: Console) -> None:
    out: Path = args.out
    check_out(out, args.force)
    bus = open_bus(robot, args.port)
    try:
        with Keys("arm calibrate") as keys:
            if args.torque_off:
                _release(robot, bus, keys, console)
            _require_limp(robot, bus)
            with Changes(robot, bus) as changes:
                console.print(
                    "hold every joint in the middle of its range, then press Enter (Ctrl-C: leave all as it was)"
                )
                keys.wait("enter")
                offsets, modes = _home(robot, bus, changes)
                ranges = [Range(joint, _may_turn(robot, i)) for i, joint in enumerate(robot.arm.joints)]
                try:
                    _move_about(robot, bus, keys, console, ranges, offsets, modes)
                except BaseException:
                    _keep_partial(out, ranges, offsets, modes, console)
                    raise
                motors = _motors(ranges, offsets, modes)
                write_file(out, motors, args.force)  # first: whatever happens to the servos, it is not lost
                try:
                    for joint in robot.arm.joints:
                        changes.limits(joint, motors[joint.name]["range_min"], motors[joint.name]["range_max"])
                except DeviceError as error:
                    raise DeviceError(f"{error}; {out} has the recording: `vlar1 arm calibrate --from {out}`") from None
    finally:
        bus.close()
    console.print(f"{out}: written, and its offsets and limits are in the servos", markup=False, soft_wrap=True)
    console.print(f"see it at work: `vlar1 arm monitor --calibration {out}`", markup=False, soft_wrap=True)


def _release(robot: Robot, bus: ServoBus, keys: Keys, console: Console) -> None:
    """Switch torque off where it is on, once the arm is held."""
    joints = with_torque(robot, bus)
    if not joints:
        return
    console.print("hold the arm: it drops when torque goes off; then press Enter")
    keys.wait("enter")
    for joint in joints:
        bus.write(joint.id, TABLES[robot.arm.type].torque_enable, 0)


def _require_limp(robot: Robot, bus: ServoBus) -> None:
    names = ", ".join(joint.name for joint in with_torque(robot, bus))
    if names:
        raise UserError(
            f"arm port {bus.port}: torque is on at {names}; `vlar1 arm park` brings it to rest, or hold "
            "the arm and add --torque-off"
        )


def _home(robot: Robot, bus: ServoBus, changes: Changes) -> tuple[dict[str, int], dict[str, int]]:
    """Make the present pose half a turn; (offsets, drive modes) by joint, as the file has them."""
    table = TABLES[robot.arm.type]
    offsets, modes = {}, {}
    for joint in robot.arm.joints:
        present, held = bus.read(joint.id, table.present_position), bus.read(joint.id, table.homing_offset)
        if robot.arm.type == "feetech":
            offset = (present + held) % COUNTS_PER_TURN - HALF_TURN
            offset = min(offset, _FEETECH_OFFSET)  # at the very end of the turn: a count off
            modes[joint.name] = int(joint.direction < 0)
        else:
            offset = HALF_TURN - (present - held)
            modes[joint.name] = bus.read(joint.id, dynamixel_tables.DRIVE_MODE) & REVERSED
        changes.offset(joint, offset, modes[joint.name])
        offsets[joint.name] = offset
        now = bus.read(joint.id, table.present_position)
        if abs(now - HALF_TURN) > _HELD_COUNTS:
            raise DeviceError(
                f"arm port {bus.port}: servo {joint.id} ({joint.name}) reads {now} after Homing_Offset {offset}, not "
                f"about {HALF_TURN}; hold the arm still, or cycle its power, and begin again"
            )
    return offsets, modes


@dataclass
class Range:
    """Counts that a joint was moved through.

    Attributes:
        may_turn: whether it may go beyond one turn of its servo; its range is the whole turn then.
        left: whether it did.
    """

    joint: Joint
    may_turn: bool
    now: int | None = None
    low: int = HALF_TURN
    high: int = HALF_TURN
    left: bool = False

    def take(self, count: int) -> None:
        jumped = self.now is not None and abs(count - self.now) > COUNTS_PER_TURN // 2
        self.left |= jumped or not 0 <= count < COUNTS_PER_TURN
        self.now = count
        self.low, self.high = (0, COUNTS_PER_TURN - 1) if self.left else (min(self.low, count), max(self.high, count))

    @property
    def wrong(self) -> bool:
        return self.left and not self.may_turn

    @property
    def moved(self) -> bool:
        return self.high - self.low >= _LEAST_COUNTS


def _may_turn(robot: Robot, index: int) -> bool:
    return bool(robot.upper_rad[index] - robot.lower_rad[index] > _FULL_TURN_RAD)


def _move_about(
    robot: Robot,
    bus: ServoBus,
    keys: Keys,
    console: Console,
    ranges: Sequence[Range],
    offsets: Mapping[str, int],
    modes: Mapping[str, int],
) -> None:
    """Take down where the joints go, until Enter ends it. An end that looks wrong is doubted once."""
    ids = [joint.id for joint in robot.arm.joints]
    register = TABLES[robot.arm.type].present_position
    doubt, shown_s = "", 0.0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            counts = bus.sync_read(ids, register)
            for one in ranges:
                if one.joint.id in counts:
                    one.take(counts[one.joint.id])
            key = keys.key(_SAMPLE_S)
            if key == CLOSED:
                raise UserError("arm calibrate: the terminal was closed")
            if key == "enter":
                again = _doubt(robot, ranges, offsets, modes)
                if not again or (again == doubt and all(one.moved for one in ranges)):
                    live.update(show(robot, ranges, ""), refresh=True)
                    return
                doubt, shown_s = again, 0.0
            if time.monotonic() - shown_s >= _SHOW_S:
                live.update(show(robot, ranges, doubt), refresh=True)
                shown_s = time.monotonic()


def _doubt(robot: Robot, ranges: Sequence[Range], offsets: Mapping[str, int], modes: Mapping[str, int]) -> str:
    """What speaks against this recording, or "". Raises UserError for what more moving about cannot mend."""
    wrong = ", ".join(one.joint.name for one in ranges if one.wrong)
    if wrong:
        raise UserError(
            f"arm calibrate: {wrong} left the servo's turn, so the pose held first was not its middle; begin again"
        )
    still = ", ".join(one.joint.name for one in ranges if not one.moved)
    if still:
        return f"not moved yet: {still}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        write_file(path, _motors(ranges, offsets, modes), False)
        try:
            robot_with_lerobot(robot, path)
        except UserError as error:
            return f"{str(error).replace(f'LeRobot calibration {path}: ', '')} (Enter again: take it as it is)"
    return ""


def _motors(ranges: Sequence[Range], offsets: Mapping[str, int], modes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    return {
        name: asdict(LeRobotMotor(one.joint.id, modes[name], offsets[name], one.low, one.high))
        for one in ranges
        if (name := one.joint.name)
    }


def _keep_partial(
    out: Path, ranges: Sequence[Range], offsets: Mapping[str, int], modes: Mapping[str, int], console: Console
) -> None:
    motors = _motors([one for one in ranges if one.moved and not one.wrong], offsets, modes)
    if motors:
        path = out.with_name(f"{out.stem}.partial.json")
        write_file(path, motors, True)
        console.print(f"{path}: what was recorded of {', '.join(motors)}", markup=False, soft_wrap=True)


def show(robot: Robot, ranges: Sequence[Range], doubt: str) -> RenderableType:
    """The ranges so far, over one turn of each servo."""
    title = "move every joint from stop to stop; Enter ends it, Ctrl-C leaves all as it was"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("joint", no_wrap=True)
    for name in ("min", "now", "max"):
        table.add_column(name, justify="right", no_wrap=True, min_width=4)
    table.add_column("one turn", no_wrap=True)
    table.add_column("deg / model", justify="right", overflow="fold")
    for i, one in enumerate(ranges):
        moved_deg = degrees((one.high - one.low) * RAD_PER_COUNT)
        model_deg = degrees(float(robot.upper_rad[i] - robot.lower_rad[i]))
        note = "[red]left its turn[/red]" if one.wrong else f"{moved_deg:.0f} / {model_deg:.0f}"
        now = "-" if one.now is None else str(one.now)
        table.add_row(one.joint.name, str(one.low), now, str(one.high), _bar(one), note)
    return Group(table, Text(doubt, style="yellow")) if doubt else table


def _bar(one: Range) -> Text:
    def at(count: int) -> int:
        return min(max(count * _BAR // COUNTS_PER_TURN, 0), _BAR - 1)

    low, high = at(one.low), at(one.high)
    bar = "".join("━" if low <= i <= high else "·" for i in range(_BAR))
    if one.now is not None:
        bar = bar[: at(one.now)] + "●" + bar[at(one.now) + 1 :]
    return Text(bar, style="green" if one.moved and not one.wrong else "yellow")
