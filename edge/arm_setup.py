"""``vlar1 arm setup``: ids for new servos, one servo on the bus at a time; all of them have the same id when new."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from rich.console import Console

from drivers.arm import dynamixel_tables, tables
from drivers.arm.bus import ServoBus
from drivers.arm.servo_arm import TABLES
from drivers.arm.tables import Register
from drivers.errors import DeviceError, UserError
from drivers.robot import Joint, Robot, load_robot
from edge.arm_keys import Keys
from edge.arm_scan import WIRES, FoundServo, Rate, find_servos, rates

_PROBES = 5
_TIMEOUT_S = 0.05

# What every servo gets beside id and baud rate, in this order: first of all, it answers what it is told.
SETTINGS: dict[str, tuple[tuple[Register, int], ...]] = {
    "feetech": ((tables.RESPONSE_LEVEL, 1), (tables.RETURN_DELAY, 0)),
    "dynamixel": ((dynamixel_tables.STATUS_RETURN_LEVEL, 2), (dynamixel_tables.RETURN_DELAY, 0)),
}


def run(args: argparse.Namespace) -> int:
    """Set up the servos of the joints asked for; 0. The last joint comes first, as the chain is taken together."""
    robot = load_robot(args.robot)
    joints = _chosen(robot, args.joint)
    port = args.port or robot.arm.port
    console = Console(soft_wrap=True, highlight=False)
    with Keys("arm setup") as keys:
        for joint in reversed(joints):
            _set_up_one(robot, joint, port, keys, console)
    console.print("done; connect all of them, then see `vlar1 arm scan`")
    return 0


def _chosen(robot: Robot, names: Sequence[str] | None) -> list[Joint]:
    for name in names or ():
        if name not in robot.joint_names:
            raise UserError(f"--joint {name}: {robot.path} has the joints {', '.join(robot.joint_names)}")
    return [joint for joint in robot.arm.joints if not names or joint.name in names]


def _set_up_one(robot: Robot, joint: Joint, port: str, keys: Keys, console: Console) -> None:
    """Ask for the servo of ``joint`` until it is the only one there, and set it up."""
    while True:
        console.print(f"connect only the servo of {joint.name} (it gets id {joint.id}), then press Enter", markup=False)
        keys.wait("enter")
        try:
            with console.status("looking for it") as status:
                servo = find_the_one(robot, port, status.update)
                changed = set_up(robot, joint, servo)
        except DeviceError as error:
            console.print(f"{error}", style="yellow", markup=False)
            continue
        what = ", ".join(changed) or "all was so already"
        console.print(
            f"{joint.name}: {servo.model_name}, was id {servo.id} at {servo.rate.baudrate}: {what}", markup=False
        )
        return


def find_the_one(robot: Robot, port: str, told: Callable[[str], None] = lambda text: None) -> FoundServo:
    """The only servo on ``port``, at whatever baud rate. Raises DeviceError when there is none, or more than one."""
    tried = sorted(rates([robot.arm.type]), key=lambda rate: rate.baudrate != robot.arm.baudrate)
    found = list(find_servos(port, tried, told=told))
    if not found:
        raise DeviceError(
            f"arm port {port}: no {robot.arm.type} servo answers at any baud rate; check its power and cable"
        )
    if len(found) > 1:
        each = ", ".join(f"id {servo.id} at {servo.rate.baudrate}" for servo in found)
        raise DeviceError(
            f"arm port {port}: {len(found)} servos answer ({each}); connect one only; nothing was written"
        )
    return found[0]


def set_up(robot: Robot, joint: Joint, servo: FoundServo) -> list[str]:
    """Give ``servo`` the id of ``joint``, the robot's baud rate and answers without delay; what was changed, in words.

    Raises DeviceError when its torque is on, more than one servo answers to its id (nothing was written), or something
    does not read back as it was written.
    """
    table = TABLES[robot.arm.type]
    baud = next((number for number, rate in table.baud_rates.items() if rate == robot.arm.baudrate), None)
    if baud is None:
        offered = ", ".join(map(str, table.baud_rates.values()))
        raise UserError(
            f"robot file {robot.path}: field arm.baudrate must be one of {offered} for {robot.arm.type} servos, got "
            f"{robot.arm.baudrate}"
        )
    changed: list[str] = []
    with_lock = robot.arm.type == "feetech"
    bus = _bus(servo.port, servo.rate)
    try:
        _check_alone(bus, servo)
        if bus.read(servo.id, table.torque_enable):
            raise DeviceError(
                f"arm port {bus.port}: servo {servo.id} has torque on; cycle its power; nothing was written"
            )
        if with_lock:
            _put(bus, servo.id, tables.LOCK, 0)
        for register, value in SETTINGS[robot.arm.type]:
            if bus.read(servo.id, register) != value:
                _put(bus, servo.id, register, value)
                changed.append(f"{register.name} {value}")
        if servo.rate.baudrate != robot.arm.baudrate:
            _send(bus, servo.id, table.baud_rate, baud)  # confirmed at the old rate, or the new one
            bus.close()
            bus = _bus(servo.port, Rate(robot.arm.type, robot.arm.baudrate))
            _check(bus, servo.id, table.baud_rate, baud)
            changed.append(f"{robot.arm.baudrate} baud")
        if servo.id != joint.id:
            _send(bus, servo.id, table.id, joint.id)  # confirmed by the old id, or the new one
            _check(bus, joint.id, table.id, joint.id)
            changed.append(f"id {joint.id}")
        if with_lock:
            _put(bus, joint.id, tables.LOCK, 1)
        for register, value in (*SETTINGS[robot.arm.type], (table.baud_rate, baud), (table.id, joint.id)):
            _check(bus, joint.id, register, value)
    finally:
        bus.close()
    return changed


def _bus(port: str, rate: Rate) -> ServoBus:
    return ServoBus(port, rate.baudrate, WIRES[rate.protocol], timeout_s=_TIMEOUT_S)


def _check_alone(bus: ServoBus, servo: FoundServo) -> None:
    """Two servos with the same id answer at the same time: now and then that shows."""
    table = servo.rate.table
    for _ in range(_PROBES):
        for register in (table.present_position, table.present_voltage, table.present_temperature):
            bus.read(servo.id, register)
        bus.sync_read([servo.id], table.present_position)
    if bus.counts.damaged or bus.counts.stale:
        raise DeviceError(
            f"arm port {bus.port}: answers of id {servo.id} come twice or damaged: two servos may have this id; "
            "connect one only, and check its cable; nothing was written"
        )


def _put(bus: ServoBus, id: int, register: Register, value: int) -> None:
    _send(bus, id, register, value)
    _check(bus, id, register, value)


def _send(bus: ServoBus, id: int, register: Register, value: int) -> None:
    """Write, whether or not it is confirmed: a new servo may be set to confirm nothing."""
    try:
        bus.write(id, register, value)
    except DeviceError:
        pass  # what reads back counts


def _check(bus: ServoBus, id: int, register: Register, value: int) -> None:
    held = bus.read(id, register)
    if held != value:
        raise DeviceError(
            f"arm port {bus.port}: servo {id} holds {held} in {register.name}, not {value}; cycle its power, "
            "then try again"
        )
