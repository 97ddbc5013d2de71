"""``vlar1 arm monitor``: what every servo measures and reports, live. Nothing is written."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import degrees

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from drivers.arm import tables
from drivers.arm.bus import ServoBus
from drivers.arm.servo_arm import TABLES, open_bus
from drivers.arm.tables import RAD_PER_COUNT, Register
from drivers.robot import Joint, Robot
from edge.arm_calibration import robot_of

PERIOD_S = 0.2
FAULT = 2
_AMPERE_PER_COUNT = 0.0065  # Feetech's Present_Current


@dataclass(frozen=True)
class Reading:
    """One servo; None where it did not answer.

    Attributes:
        load: share of the greatest torque, -1..1, where the servo says so.
        faults: as the servo names them.
    """

    joint: Joint
    count: int | None = None
    load: float | None = None
    current_a: float | None = None
    voltage_v: float | None = None
    temperature_c: int | None = None
    torque: bool | None = None
    faults: Sequence[str] = ()

    @property
    def angle_rad(self) -> float | None:
        if self.count is None:
            return None
        return self.joint.direction * (self.count - self.joint.zero_count) * RAD_PER_COUNT

    @property
    def well(self) -> bool:
        return self.count is not None and not self.faults


def read_all(robot: Robot, bus: ServoBus) -> list[Reading]:
    """A reading of every servo, silent ones included. Raises DeviceError when the port is lost."""
    table = TABLES[robot.arm.type]
    feetech = robot.arm.type == "feetech"
    ids = [joint.id for joint in robot.arm.joints]

    def each(register: Register) -> Mapping[int, int]:
        return bus.sync_read(ids, register)

    position, effort, torque = each(table.present_position), each(table.present_load), each(table.torque_enable)
    voltage, temperature = each(table.present_voltage), each(table.present_temperature)
    current = each(tables.PRESENT_CURRENT) if feetech else effort
    ampere = _AMPERE_PER_COUNT if feetech else table.load_unit
    errors = dict(bus.faults)
    if table.hardware_error is not None:
        errors = dict(each(table.hardware_error)) if any(id in errors for id in ids) else {}

    def scaled(values: Mapping[int, int], id: int, unit: float) -> float | None:
        return values[id] * unit if id in values else None

    return [
        Reading(
            joint=joint,
            count=position.get(joint.id),
            load=scaled(effort, joint.id, joint.direction * table.load_unit) if feetech else None,
            current_a=scaled(current, joint.id, joint.direction * ampere),
            voltage_v=scaled(voltage, joint.id, table.voltage_unit_v),
            temperature_c=temperature.get(joint.id),
            torque=bool(torque[joint.id]) if joint.id in torque else None,
            faults=[table.fault_bits.get(bit, f"bit {bit}") for bit in range(8) if errors.get(joint.id, 0) >> bit & 1],
        )
        for joint in robot.arm.joints
    ]


def run(args: argparse.Namespace) -> int:
    """Show the servos until Ctrl-C (0); with --once show them once: 2 when one is silent or reports a fault, else 0."""
    console = Console(highlight=False)
    robot = robot_of(args)
    bus = open_bus(robot, args.port)
    try:
        if args.once:
            readings = read_all(robot, bus)
            console.print(show(readings, bus))
            return 0 if all(reading.well for reading in readings) else FAULT
        with Live(console=console, auto_refresh=False) as live:
            while True:
                began_s = time.monotonic()
                live.update(show(read_all(robot, bus), bus), refresh=True)
                time.sleep(max(PERIOD_S - (time.monotonic() - began_s), 0.0))
    except KeyboardInterrupt:
        return 0  # that is how it ends
    finally:
        bus.close()


def show(readings: Sequence[Reading], bus: ServoBus) -> RenderableType:
    """A table of ``readings``, faults in words, and what went wrong on the bus so far."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("joint", no_wrap=True)
    for name in ("id", "deg", "rad", "count", "load %", "A", "V", "°C", "torque"):
        table.add_column(name, justify="right", no_wrap=True)
    for reading in readings:
        angle = reading.angle_rad
        table.add_row(
            reading.joint.name,
            str(reading.joint.id),
            _number(None if angle is None else degrees(angle), "+.1f"),
            _number(angle, "+.3f"),
            _number(reading.count, "d"),
            _number(None if reading.load is None else 100 * reading.load, "+.0f"),
            _number(reading.current_a, "+.3f"),
            _number(reading.voltage_v, ".1f"),
            _number(reading.temperature_c, "d"),
            "-" if reading.torque is None else "on" if reading.torque else "off",
            style=None if reading.well else "red",
        )
    faults = [
        Text(f"{reading.joint.name}: {', '.join(reading.faults) or 'no answer'}", style="red")
        for reading in readings
        if not reading.well
    ]
    c = bus.counts
    errors = f"{c.timeouts} timeouts, {c.damaged} damaged, {c.stale} stale, {c.reopened} times the port was lost"
    return Group(
        table, *faults, Text(f"{bus.port}: {errors}", style="yellow" if c.timeouts + c.damaged + c.reopened else "dim")
    )


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)
