"""``vlar1 arm scan``: which servos there are, on which port, at which baud rate.

A ping to all says within a moment whether anybody hears at a rate. Dynamixel servos answer it one after the other;
Feetech servos answer all at once, which many servos turn into noise, so where anything is heard each id is asked for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from serial.tools import list_ports

from drivers.arm import dynamixel_tables, tables
from drivers.arm.bus import ServoBus
from drivers.arm.dynamixel_packets import DYNAMIXEL
from drivers.arm.packets import BROADCAST, FEETECH, Wire
from drivers.arm.servo_arm import TABLES
from drivers.arm.tables import Register, ServoTable
from drivers.errors import DeviceError
from drivers.robot import Robot, load_robot

WIRES: Mapping[str, Wire] = {"feetech": FEETECH, "dynamixel": DYNAMIXEL}
MODEL_REGISTERS: Mapping[str, Register] = {
    "feetech": tables.MODEL_NUMBER,
    "dynamixel": dynamixel_tables.MODEL_NUMBER,
}
MODELS = {
    "feetech": {tables.MODEL_STS3215: "STS3215", 2825: "STS3250"},
    "dynamixel": {
        1020: "XM430-W350",
        1030: "XM430-W210",
        1060: "XL430-W250",
        1070: "XC430-W150",
        1080: "XC430-W240",
        1120: "XM540-W270",
        1130: "XM540-W150",
        1190: "XL330-M077",
        dynamixel_tables.MODEL_XL330_M288: "XL330-M288",
    },
}

_USB_S = 0.02  # there and back through an adapter that gathers bytes for 16 ms
_FEETECH_LISTEN_S, _FEETECH_PINGS = 0.05, 2
_DYNAMIXEL_SLOT_S = 0.003  # each id waits so much longer than the one before it
_PING_BYTES = 24  # a ping and its answer, of either protocol

Told = Callable[[str], None]


@dataclass(frozen=True)
class Rate:
    """One thing to try on a port."""

    protocol: str
    baudrate: int

    @property
    def table(self) -> ServoTable:
        return TABLES[self.protocol]

    @property
    def answer_s(self) -> float:
        """How long one servo may take to answer a ping."""
        return _USB_S + _PING_BYTES * 10 / self.baudrate

    @property
    def listen_s(self) -> float:
        """How long an answer to a ping to all may take to begin."""
        if self.protocol == "feetech":
            return _FEETECH_LISTEN_S + self.answer_s
        return _DYNAMIXEL_SLOT_S * (self.table.max_id + 1) + self.answer_s

    @property
    def silence_s(self) -> float:
        """How long it takes to learn that nobody hears at this rate."""
        return self.listen_s * (_FEETECH_PINGS if self.protocol == "feetech" else 1)


@dataclass(frozen=True)
class FoundServo:
    """A servo that answers. ``model`` is its number in the make's list, ``voltage_v`` and ``temperature_c`` its own."""

    port: str
    rate: Rate
    id: int
    model: int
    voltage_v: float
    temperature_c: float

    @property
    def model_name(self) -> str:
        return MODELS[self.rate.protocol].get(self.model, f"model {self.model}")


def rates(protocols: Sequence[str] = tuple(WIRES)) -> list[Rate]:
    """Every protocol at every baud rate of its table, the usual 1 Mbit/s first."""
    every = [Rate(protocol, baud) for protocol in protocols for baud in TABLES[protocol].baud_rates.values()]
    return sorted(every, key=lambda rate: rate.baudrate != 1_000_000)


def adapters() -> list[tuple[str, str]]:
    """(port, USB serial number or "") of every serial port that is a USB adapter."""
    return sorted((port.device, port.serial_number or "") for port in list_ports.comports() if port.vid is not None)


def find_servos(
    port: str, tried: Sequence[Rate], *, every_id: bool = False, told: Told = lambda text: None
) -> Iterator[FoundServo]:
    """The servos on ``port`` that answer at one of the rates. Nothing is written.

    Args:
        every_id: ask for each id at every rate, also where nobody answers a ping to all.
        told: is called with what is tried, as often as that changes.

    Raises:
        DeviceError: the port cannot be opened, or is lost.
    """
    for rate in tried:
        bus = ServoBus(port, rate.baudrate, WIRES[rate.protocol], timeout_s=rate.answer_s, attempts=1)
        try:
            told(f"{port}: {rate.protocol} at {rate.baudrate}")
            for id in _ids(bus, rate, every_id, told):
                found = _ask(bus, rate, id)
                if found is not None:
                    yield found
        finally:
            bus.close()


def _ids(bus: ServoBus, rate: Rate, every_id: bool, told: Told) -> Iterator[int]:
    """Ids that may have a servo; those of Feetech servos are pinged one by one."""
    heard = every_id
    for _ in range(_FEETECH_PINGS if rate.protocol == "feetech" else 1):
        ids, some = bus.ping_all(rate.listen_s)
        if BROADCAST in ids:
            raise DeviceError(f"arm port {bus.port}: the adapter echoes what is sent; switch its echo off")
        heard |= some
        if ids and rate.protocol == "dynamixel" and not every_id:
            yield from ids
            return
        if heard:
            break
    if heard:
        for id in range(rate.table.max_id + 1):
            told(f"{bus.port}: {rate.protocol} at {rate.baudrate}, id {id}")
            if bus.ping(id):
                yield id


def _ask(bus: ServoBus, rate: Rate, id: int) -> FoundServo | None:
    """What servo ``id`` says of itself; None if it is gone again."""
    registers = (MODEL_REGISTERS[rate.protocol], rate.table.present_voltage, rate.table.present_temperature)
    values = []
    for register in registers:
        for left in (2, 1, 0):  # the answer may have been damaged
            try:
                values.append(bus.read(id, register))
                break
            except DeviceError:
                if not left:
                    return None
    model, voltage, temperature = values
    return FoundServo(bus.port, rate, id, model, voltage * rate.table.voltage_unit_v, float(temperature))


def run(args: argparse.Namespace) -> int:
    """Print a table of the servos found; 0, also when there are none."""
    console = Console(soft_wrap=True, highlight=False)
    robot = load_robot(args.robot)
    known = dict(adapters())
    ports = [args.port] if args.port else list(known)
    if not ports:
        console.print("no serial adapter found; plug in the arm's USB cable, or name a port with --port")
        return 0
    tried = rates()
    silence_s = sum(rate.silence_s for rate in tried)
    if args.every_id:
        silence_s += sum(rate.answer_s * (rate.table.max_id + 1) for rate in tried)
    console.print(f"{len(ports)} port(s); one without servos takes {silence_s:.0f} s")
    found: list[FoundServo] = []
    began_s = time.monotonic()
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), transient=True) as progress:
        task = progress.add_task("", total=len(ports) * len(tried))
        for port in ports:
            try:
                for rate in tried:
                    told: Told = lambda text: progress.update(task, description=text)  # noqa: E731
                    found += find_servos(port, [rate], every_id=args.every_id, told=told)
                    progress.advance(task)
            except DeviceError as error:
                if args.port:
                    raise
                progress.console.print(escape(str(error)), style="yellow", soft_wrap=True)
    _show(console, robot, found, known, time.monotonic() - began_s)
    return 0


def _show(console: Console, robot: Robot, found: Sequence[FoundServo], known: Mapping[str, str], took_s: float) -> None:
    if not found:
        console.print(f"no servo answers ({took_s:.1f} s); check the arm's power and its cables")
        return
    table = Table(
        title=f"{len(found)} servo(s), found in {took_s:.1f} s",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for name in ("port", "USB serial", "protocol", "baud"):
        table.add_column(name, no_wrap=True)
    for name in ("id", "model", "V", "°C"):
        table.add_column(name, justify="right", no_wrap=True)
    for servo in found:
        table.add_row(
            servo.port,
            known.get(servo.port) or "-",
            servo.rate.protocol,
            str(servo.rate.baudrate),
            str(servo.id),
            servo.model_name,
            f"{servo.voltage_v:.1f}",
            f"{servo.temperature_c:.0f}",
        )
    console.print(table)
    for servos in _by_line(found).values():
        console.print(_fit(robot, servos), markup=False)


def _by_line(found: Sequence[FoundServo]) -> dict[tuple[str, Rate], list[FoundServo]]:
    lines: dict[tuple[str, Rate], list[FoundServo]] = {}
    for servo in found:
        lines.setdefault((servo.port, servo.rate), []).append(servo)
    return lines


def _fit(robot: Robot, servos: Sequence[FoundServo]) -> str:
    """Whether the servos of one line are the robot file's."""
    port, rate = servos[0].port, servos[0].rate
    where = f"{port} at {rate.baudrate}"
    if (rate.protocol, rate.baudrate) != (robot.arm.type, robot.arm.baudrate):
        return f"{where}: {robot.name} speaks {robot.arm.type} at {robot.arm.baudrate}"
    ids = {servo.id for servo in servos}
    missing = [f"{joint.id} ({joint.name})" for joint in robot.arm.joints if joint.id not in ids]
    return f"{where}: " + (f"{robot.name} lacks id {', '.join(missing)}" if missing else f"all of {robot.name}")
