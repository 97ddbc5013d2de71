"""An arm of bus servos, as the Arm protocol sees it: radians in, radians out, torque handled with care."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from drivers.arm.bus import Bus, ServoBus
from drivers.arm.dynamixel import DynamixelBus
from drivers.arm.dynamixel_tables import DYNAMIXEL_X
from drivers.arm.feetech import FeetechBus
from drivers.arm.tables import FEETECH_STS, RAD_PER_COUNT, Register, ServoTable
from drivers.errors import DeviceError
from drivers.protocols import JointState
from drivers.robot import Robot

OUTSIDE_RAD = 0.15
"""A joint may be found so far beyond its limits, resting on a mechanical stop; further off, its zero is wrong."""


TABLES = {"feetech": FEETECH_STS, "dynamixel": DYNAMIXEL_X}
"""`ArmSpec.type` -> the table of its servos."""


def open_arm(robot: Robot, port: str | None = None) -> ServoArm:
    """Open the arm that ``robot`` describes, on ``port`` or the port of the robot file.

    Every servo is pinged; nothing is written. Raises DeviceError when the port cannot be opened or a servo is silent.
    """
    bus = open_bus(robot, port)
    try:
        return ServoArm(bus, robot, TABLES[robot.arm.type])
    except BaseException:
        bus.close()
        raise


def open_bus(robot: Robot, port: str | None = None) -> ServoBus:
    """Open the bus of ``robot.arm``'s type, on ``port`` or the port of the robot file."""
    kind = DynamixelBus if robot.arm.type == "dynamixel" else FeetechBus
    return kind(port or robot.arm.port, robot.arm.baudrate)


class ServoArm:
    """The Arm protocol over servos that ``table`` describes, on a bus that it closes.

    Raises DeviceError on construction, naming every servo of ``robot`` that does not answer.
    """

    def __init__(self, bus: Bus, robot: Robot, table: ServoTable) -> None:
        joints = robot.arm.joints
        self.bus = bus
        self.table = table
        self._names = tuple(joint.name for joint in joints)
        self._ids = tuple(joint.id for joint in joints)
        self._zero = np.array([joint.zero_count for joint in joints], dtype=np.float64)
        self._direction = np.array([joint.direction for joint in joints], dtype=np.float64)
        self._lower_rad, self._upper_rad = robot.lower_rad, robot.upper_rad
        self._torque_on = False
        self._found_off: tuple[int, ...] = ()
        silent = [id for id in self._ids if not bus.ping(id)]
        if silent:
            what = "no servo answers" if len(silent) == len(self._ids) else f"no answer from {self._named(silent)}"
            raise self._error(f"{what}; check the arm's power, the cables and the servo ids")

    @property
    def joint_names(self) -> tuple[str, ...]:
        return self._names

    @property
    def torque_on(self) -> bool:
        """Whether ``enable`` switched torque on and ``disable`` did not yet switch it off."""
        return self._torque_on

    def read(self) -> JointState:
        """Measured positions. Raises DeviceError when a servo stays silent."""
        counts = self._read_all(self.table.present_position)
        return JointState((counts - self._zero) * self._direction * RAD_PER_COUNT, time.monotonic())

    def read_load(self) -> NDArray[np.float64]:
        """Motor effort of each joint, (n,), in the table's ``load_unit``: for Feetech a share of the servo's greatest
        torque, -1..1; for Dynamixels ampere where the servo measures it."""
        return self._read_all(self.table.present_load) * self._direction * self.table.load_unit

    def faults(self) -> dict[str, list[str]]:
        """Joint name -> faults its servo reported in its latest answer; empty when all is well."""
        names = dict(zip(self._ids, self._names, strict=True))
        return {names[id]: self._fault_names(id, error) for id, error in list(self.bus.faults.items()) if id in names}

    def enable(self) -> JointState:
        """Write the present positions as goals, see that they arrived, then switch torque on. The arm does not move.

        Raises DeviceError when a servo does not do its part, or a joint is found far outside its limits; torque is then
        off again wherever it was off before.
        """
        self._check_position_mode()
        self._check_limits()
        found_off = [id for id in self._ids if not self.bus.read(id, self.table.torque_enable)]
        touched: list[int] = []
        try:
            present = self._read_all(self.table.present_position)
            for id, count in zip(self._ids, present.astype(int).tolist(), strict=True):
                touched.append(id)  # already now: firmware may take a goal as leave to switch torque on
                self._write_goal(id, count)
            for id in found_off:
                self.bus.write(id, self.table.torque_enable, 1)
            limp = [id for id in self._ids if not self.bus.read(id, self.table.torque_enable)]
            if limp:
                raise self._error(f"torque stays off on {self._named(limp)}; let hot servos cool, cycle the power")
        except BaseException as error:
            release = [id for id in touched if id in found_off]
            try:
                still_on = self._switch_off(release)
            except KeyboardInterrupt:  # a second one, while the first is cleaned up after
                still_on = self._switch_off(release)
            if still_on:
                what = f"{self._named(still_on)} may be left with torque: hold the arm and cut its power"
                raise DeviceError(f"{error or type(error).__name__}; {what}") from error
            raise
        self._torque_on = True
        self._found_off = tuple(found_off)
        return JointState((present - self._zero) * self._direction * RAD_PER_COUNT, time.monotonic())

    def undo_enable(self) -> None:
        """Switch torque off where `enable` found it off, since an aborted start leaves the arm as it was.

        Raises DeviceError naming the servos that do not confirm.
        """
        still_on = self._switch_off(self._found_off)
        if still_on:
            raise self._error(f"torque stays on at {self._named(still_on)}; hold the arm and cut its power")
        self._torque_on = False

    def disable(self) -> None:
        """Switch torque off on every servo, also when one of them fails. Raises DeviceError naming those that do."""
        still_on = self._switch_off(self._ids)
        if still_on:
            raise self._error(f"torque stays on at {self._named(still_on)}; hold the arm and cut its power")
        self._torque_on = False

    def close(self) -> None:
        """Close the port; torque stays as it is. May be called twice."""
        self.bus.close()

    def _read_all(self, register: Register) -> NDArray[np.float64]:
        """(n,) values of one register; servos that miss the common request are asked one by one."""
        values = self.bus.sync_read(self._ids, register)
        counts = [values[id] if id in values else self.bus.read(id, register) for id in self._ids]
        return np.array(counts, dtype=np.float64)

    def _check_position_mode(self) -> None:
        for id in self._ids:
            mode = self.bus.read(id, self.table.operating_mode)
            if mode not in self.table.position_modes:
                good, address = self.table.position_modes, self.table.operating_mode.address
                expected = f"expected {' or '.join(map(str, good))} (position)"
                what = f"{self._named([id])} has Operating_Mode {mode}, {expected}"
                raise self._error(f"{what}; write {good[0]} to register {address} while torque is off")

    def _check_limits(self) -> None:
        """Far outside its limits a joint's zero is wrong, and every angle with it."""
        q_rad = self.read().position_rad
        for name, q, lower, upper in zip(self._names, q_rad, self._lower_rad, self._upper_rad, strict=True):
            if not lower - OUTSIDE_RAD <= q <= upper + OUTSIDE_RAD:
                raise self._error(
                    f"{name} reads {q:.2f} rad, outside its limits {lower:.2f}..{upper:.2f}; correct its zero_count or "
                    "direction in the robot file"
                )

    def _write_goal(self, id: int, count: int) -> None:
        self.bus.write(id, self.table.goal_position, count)
        taken = self.bus.read(id, self.table.goal_position)
        if taken != count:
            what = f"{self._named([id])} was given goal {count} and holds {taken}"
            raise self._error(f"{what}; is another program using the arm?")

    def _switch_off(self, ids: Iterable[int]) -> list[int]:
        """Cut torque on ``ids``; the ids of those that did not confirm."""
        failed = []
        for id in ids:
            try:
                self.bus.write(id, self.table.torque_enable, 0)
            except DeviceError:
                failed.append(id)
        return failed

    def _fault_names(self, id: int, error: int) -> list[str]:
        if self.table.hardware_error is not None:
            try:
                error = self.bus.read(id, self.table.hardware_error)
            except DeviceError:
                return ["hardware alert"]
        return [self.table.fault_bits.get(bit, f"bit {bit}") for bit in range(8) if error >> bit & 1]

    def _error(self, what: str) -> DeviceError:
        return DeviceError(f"arm port {self.bus.port}: {what}")

    def _named(self, ids: Iterable[int]) -> str:
        names = dict(zip(self._ids, self._names, strict=True))
        return ", ".join(f"servo {id} ({names[id]})" for id in ids)
