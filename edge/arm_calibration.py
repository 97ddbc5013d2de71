"""A LeRobot calibration and the servos it is of: put it into them, take it back, see that they have it.

Homing_Offset, Min_Position_Limit and Max_Position_Limit go into the servos, where they outlive the power; a Dynamixel's
Drive_Mode says which way it counts, so that goes with them.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from drivers.arm import dynamixel_tables, packets, tables
from drivers.arm.bus import ServoBus
from drivers.arm.lerobot import LeRobotMotor, load_lerobot, robot_with_lerobot
from drivers.arm.servo_arm import TABLES, open_bus
from drivers.arm.tables import Register
from drivers.errors import DeviceError, UserError
from drivers.robot import Joint, Robot, load_robot

LIMITS: Mapping[str, tuple[Register, Register]] = {
    "feetech": (tables.MIN_POSITION_LIMIT, tables.MAX_POSITION_LIMIT),
    "dynamixel": (dynamixel_tables.MIN_POSITION_LIMIT, dynamixel_tables.MAX_POSITION_LIMIT),
}
REVERSED = 1
"""Bit of a Dynamixel's Drive_Mode."""
_POSITION, _EXTENDED = 3, 4  # Operating_Mode of Dynamixels
_POSITION_OFFSET = 1024  # a greater Homing_Offset counts in extended position mode only


def robot_of(args: argparse.Namespace) -> Robot:
    """The robot of ``--robot``, as ``--calibration`` has it if that is given.

    Raises UserError when the file does not fit the robot, or the servos do not hold its offsets.
    """
    robot = load_robot(args.robot)
    if args.calibration is None:
        return robot
    calibrated = robot_with_lerobot(robot, args.calibration)
    bus = open_bus(calibrated, args.port)
    try:
        check_held(calibrated, args.calibration, bus)
    finally:
        bus.close()
    return calibrated


def check_held(robot: Robot, path: Path, bus: ServoBus) -> None:
    """Raises DeviceError naming the first joint whose servo counts from elsewhere than the calibration at ``path``."""
    motors = load_lerobot(path)
    for joint in robot.arm.joints:
        motor = motors[joint.name]
        register = TABLES[robot.arm.type].homing_offset
        held, expected = bus.read(joint.id, register), motor.homing_offset
        if held == expected and robot.arm.type == "dynamixel":
            register = dynamixel_tables.DRIVE_MODE
            held, expected = bus.read(joint.id, register) & REVERSED, motor.drive_mode & REVERSED
        if held != expected:
            raise DeviceError(
                f"arm port {bus.port}: servo {joint.id} ({joint.name}) holds {register.name} {held}, but {path} was "
                f"made with {expected}; write it with `vlar1 arm calibrate --from {path}`, or calibrate again"
            )


class Changes:
    """Writes to the lasting memory of servos, all undone unless the block is left well. Torque must be off.

    A context manager. Every write is read back. Feetech servos are unlocked for it and locked at the end.

    Attributes:
        undone: whether something was written and put back.
    """

    def __init__(self, robot: Robot, bus: ServoBus) -> None:
        self._robot, self._bus = robot, bus
        self._before: dict[tuple[Joint, Register], int] = {}
        self._locks: dict[Joint, int] = {}
        self.undone = False

    def write(self, joint: Joint, register: Register, value: int) -> None:
        """Write what is not there already. Raises DeviceError when it does not read back, or does not fit."""
        before = self._bus.read(joint.id, register)
        if before == value:
            return
        try:
            packets.encode(register, value)
        except ValueError:
            raise DeviceError(f"servo {joint.id} ({joint.name}): {register.name} cannot hold {value}") from None
        if self._robot.arm.type == "feetech" and joint not in self._locks:
            self._locks[joint] = self._bus.read(joint.id, tables.LOCK)
            self._put(joint, tables.LOCK, 0)
        self._before.setdefault((joint, register), before)
        self._put(joint, register, value)

    def motor(self, joint: Joint, motor: LeRobotMotor) -> None:
        """Offset, limits and, for a Dynamixel, the sense of rotation of a calibration."""
        self.offset(joint, motor.homing_offset, motor.drive_mode)
        self.limits(joint, motor.range_min, motor.range_max)

    def offset(self, joint: Joint, homing_offset: int, drive_mode: int) -> None:
        if self._robot.arm.type == "dynamixel":
            mode = self._bus.read(joint.id, dynamixel_tables.DRIVE_MODE)
            self.write(joint, dynamixel_tables.DRIVE_MODE, mode & ~REVERSED | drive_mode & REVERSED)
            operating = self._bus.read(joint.id, dynamixel_tables.OPERATING_MODE)
            if operating == _POSITION and abs(homing_offset) > _POSITION_OFFSET:
                self.write(joint, dynamixel_tables.OPERATING_MODE, _EXTENDED)
        self.write(joint, TABLES[self._robot.arm.type].homing_offset, homing_offset)

    def limits(self, joint: Joint, low: int, high: int) -> None:
        for register, value in zip(LIMITS[self._robot.arm.type], (low, high), strict=True):
            self.write(joint, register, value)

    def undo(self) -> list[str]:
        """Put back what was there before; what could not be, in words."""
        failed = []
        for (joint, register), value in reversed(self._before.items()):
            try:
                self._put(joint, register, value)
            except DeviceError:
                failed.append(f"{joint.name} {register.name} {value}")
        for joint, value in self._locks.items():
            try:
                self._put(joint, tables.LOCK, value)
            except DeviceError:
                failed.append(f"{joint.name} {tables.LOCK.name} {value}")
        self.undone = bool(self._before)
        return failed

    def __enter__(self) -> Changes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            for joint in self._locks:
                self._put(joint, tables.LOCK, 1)
            return
        try:
            failed = self.undo()
        except (KeyboardInterrupt, SystemExit):  # a second one, while the first is cleaned up after
            failed = self.undo()
        if failed:
            what = f"{error or type(error).__name__}; the servos could not be given back what they had: "
            raise DeviceError(f"{what}{', '.join(failed)}") from error

    def _put(self, joint: Joint, register: Register, value: int) -> None:
        self._bus.write(joint.id, register, value)
        held = self._bus.read(joint.id, register)
        if held != value:
            raise DeviceError(
                f"arm port {self._bus.port}: servo {joint.id} ({joint.name}) was given {value} for {register.name} and "
                f"holds {held}; cycle its power and try again"
            )


def with_torque(robot: Robot, bus: ServoBus) -> list[Joint]:
    """The joints whose torque is on. Raises DeviceError when a servo is silent."""
    table = TABLES[robot.arm.type]
    return [joint for joint in robot.arm.joints if bus.read(joint.id, table.torque_enable)]


def write_file(path: Path, motors: Mapping[str, Mapping[str, int]], force: bool) -> None:
    """Write a calibration as LeRobot does, whole or not at all. Raises UserError if it may not replace another."""
    check_out(path, force)
    whole = path.with_name(f".{path.name}.tmp")
    whole.write_text(json.dumps(motors, indent=4), encoding="utf-8")
    whole.replace(path)


def check_out(path: Path, force: bool) -> None:
    """Raises UserError when there can be no such file, or there is one that may not be replaced."""
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}; create it first")
    if path.is_dir() or path.exists() and not force:
        raise UserError(f"--out {path}: exists already; name a new file, or add --force to replace it")


@contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP as SystemExit, so that what is to be undone is undone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, _exit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
