"""Feetech STS servos without the servos: their memory, their protocol, and a pseudo-terminal they answer on.

The pseudo-terminal takes servos of any protocol; `drivers.sim.dynamixel_bank` has others.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import pty
import random
import select
import struct
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.arm import packets, tables
from drivers.arm.packets import BROADCAST, Packet, Wire, decode, encode
from drivers.arm.tables import EPROM_END, Register

_MEMORY_BYTES = 128
_PARTIAL_PACKET_S = 0.01
_TCGETS2 = 0x802C542A  # Linux: termios with speeds as numbers
_FACTORY = {
    tables.FIRMWARE_MAJOR: 3,
    tables.FIRMWARE_MINOR: 10,
    tables.MODEL_NUMBER: tables.MODEL_STS3215,
    tables.RESPONSE_LEVEL: 1,
    tables.MAX_POSITION_LIMIT: 4095,
    tables.MAX_TEMPERATURE: 70,
    tables.MAX_VOLTAGE: 80,
    tables.MIN_VOLTAGE: 40,
    tables.MAX_TORQUE: 1000,
    tables.PHASE: 12,
    tables.UNLOAD_CONDITION: 44,
    tables.LED_ALARM: 47,
    tables.P_GAIN: 32,
    tables.D_GAIN: 32,
    tables.MIN_STARTUP_FORCE: 16,
    tables.CW_DEAD_ZONE: 1,
    tables.CCW_DEAD_ZONE: 1,
    tables.PROTECTION_CURRENT: 500,
    tables.ANGULAR_RESOLUTION: 1,
    tables.PROTECTIVE_TORQUE: 20,
    tables.PROTECTION_TIME: 200,
    tables.OVERLOAD_TORQUE: 80,
    tables.VELOCITY_P_GAIN: 10,
    tables.OVERCURRENT_TIME: 200,
    tables.VELOCITY_I_GAIN: 10,
    tables.TORQUE_LIMIT: 1000,
    tables.LOCK: 1,
    tables.PRESENT_POSITION: 2048,
    tables.PRESENT_VOLTAGE: 74,
    tables.PRESENT_TEMPERATURE: 30,
}
_WRITABLE = frozenset(
    address
    for register in tables.REGISTERS
    if register.writable
    for address in range(register.address, register.address + register.size)
)


class _Servo:
    """One servo's memory. Not thread-safe; the bank holds the lock."""

    def __init__(self, id: int) -> None:
        self._saved = bytearray(_MEMORY_BYTES)
        self.memory = self._saved
        for register, value in {**_FACTORY, tables.ID: id}.items():
            self.set(register, value)
        self.encoder_counts = 2048
        self.power_on()

    def power_on(self) -> None:
        self.memory = bytearray(self._saved)
        self.goal_written = False
        self.set_encoder(self.encoder_counts)

    def get(self, register: Register) -> int:
        return decode(register, bytes(self.memory[register.address : register.address + register.size]))

    def set(self, register: Register, value: int) -> None:
        self.memory[register.address : register.address + register.size] = encode(register, value)

    def set_encoder(self, counts: int) -> None:
        self.encoder_counts = counts
        present = counts - self.get(tables.HOMING_OFFSET)
        self.set(tables.PRESENT_POSITION, present)
        if not self.goal_written:
            self.set(tables.GOAL_POSITION, present)

    def goal_encoder(self) -> int:
        goal = self.get(tables.GOAL_POSITION)
        low, high = self.get(tables.MIN_POSITION_LIMIT), self.get(tables.MAX_POSITION_LIMIT)
        if self.goal_written and low < high:
            goal = min(max(goal, low), high)
        return goal + self.get(tables.HOMING_OFFSET)

    def store(self, address: int, data: bytes) -> None:
        """Write as the bus does: read-only bytes keep their value, and Lock decides what outlives the power."""
        saves = not self.get(tables.LOCK)
        for at, byte in enumerate(data, start=address):
            if at in _WRITABLE:
                self.memory[at] = byte
                if saves and at < EPROM_END:
                    self._saved[at] = byte
                self.goal_written |= at == tables.GOAL_POSITION.address
        self.set_encoder(self.encoder_counts)

    def error(self) -> int:
        """The error byte: what is out of the bounds that the servo's own registers set."""
        voltage = self.get(tables.PRESENT_VOLTAGE)
        bad_voltage = not self.get(tables.MIN_VOLTAGE) <= voltage <= self.get(tables.MAX_VOLTAGE)
        too_hot = self.get(tables.PRESENT_TEMPERATURE) > self.get(tables.MAX_TEMPERATURE)
        return bad_voltage << 0 | too_hot << 2


class ServoBank:
    """The servos of an arm. The physics sets what they measure and takes their goals; the bus serves packets.

    Arrays are in the order of ``ids``. Positions are encoder counts (4096 a turn), before the homing offset.

    Attributes:
        wire: the protocol they speak.
        silent: ids that do not answer, as if unplugged.
        line_baudrate: what the line is set to: servos whose Baud_Rate says otherwise are deaf; None: all hear.
        writes: the latest (id, address, data) that servos were told to write, oldest first.
    """

    wire = packets.FEETECH
    line_baudrate: int | None = None

    def __init__(self, ids: Sequence[int]) -> None:
        self._servos = [_Servo(id) for id in ids]
        self._lock = threading.Lock()
        self.silent: set[int] = set()
        self.writes: deque[tuple[int, int, bytes]] = deque(maxlen=4096)

    def set_present(
        self,
        position_counts: ArrayLike,
        velocity_counts_s: ArrayLike = 0.0,
        load: ArrayLike = 0.0,
        temperature_c: ArrayLike = 30.0,
        voltage_v: ArrayLike = 7.4,
    ) -> None:
        """What the servos measure now; each value is a scalar or one a servo. ``load`` is -1..1 of greatest torque."""
        shape = (len(self._servos),)
        rows = zip(
            self._servos,
            scaled_whole(position_counts, 1, 0x7000, shape),
            scaled_whole(velocity_counts_s, 1, 0x7FFF, shape),
            scaled_whole(load, 1000, 1000, shape),
            scaled_whole(temperature_c, 1, 255, shape),
            scaled_whole(voltage_v, 10, 255, shape),
            strict=True,
        )
        with self._lock:
            for servo, position, velocity, effort, temperature, voltage in rows:
                servo.set_encoder(position)
                servo.set(tables.PRESENT_VELOCITY, velocity)
                servo.set(tables.MOVING, int(velocity != 0))
                servo.set(tables.PRESENT_LOAD, effort)
                servo.set(tables.PRESENT_TEMPERATURE, temperature)
                servo.set(tables.PRESENT_VOLTAGE, voltage)
                servo.set(tables.STATUS, servo.error())

    def goal_counts(self) -> NDArray[np.int64]:
        """Where each servo is told to be; its present position as long as nobody wrote a goal."""
        with self._lock:
            return np.array([servo.goal_encoder() for servo in self._servos], dtype=np.int64)

    def torque_enabled(self) -> NDArray[np.bool_]:
        return np.equal(self.values(tables.TORQUE_ENABLE), 1)

    def acceleration_counts_s2(self) -> NDArray[np.int64]:
        """Greatest acceleration of the move to the goal; 0 for no bound."""
        return self.values(tables.ACCELERATION) * 100

    def values(self, register: Register) -> NDArray[np.int64]:
        """One register of every servo."""
        with self._lock:
            return np.array([servo.get(register) for servo in self._servos], dtype=np.int64)

    def power_cycle(self) -> None:
        """Switch the supply off and on: torque off, goals forgotten, EPROM back to what was saved."""
        with self._lock:
            for servo in self._servos:
                servo.power_on()

    def handle(self, packet: Packet) -> list[Packet]:
        """Carry out an instruction; the status packets it is answered with, in order."""
        with self._lock:
            match packet.code, bytes(packet.params):
                case packets.PING, b"":
                    return [self._status(servo) for servo in self._addressed(packet.id)]
                case packets.READ, params if len(params) == 2:
                    return self._read([packet.id], *params)
                case packets.WRITE, params if len(params) >= 2:
                    return self._write(packet.id, params[0], params[1:])
                case packets.SYNC_READ, params if len(params) >= 3:
                    return self._read(params[2:], *params[:2])
                case packets.SYNC_WRITE, params if len(params) >= 2 and (len(params) - 2) % (params[1] + 1) == 0:
                    for start in range(2, len(params), params[1] + 1):
                        self._write(params[start], params[0], params[start + 1 : start + 1 + params[1]])
            return []

    def _addressed(self, id: int) -> list[_Servo]:
        rates = tables.FEETECH_STS.baud_rates
        awake = [
            servo
            for servo in self._servos
            if servo.get(tables.ID) not in self.silent
            and self.line_baudrate in (None, rates.get(servo.get(tables.BAUD_RATE)))
        ]
        return [servo for servo in awake if id in (BROADCAST, servo.get(tables.ID))]

    def _status(self, servo: _Servo, params: bytes = b"") -> Packet:
        return Packet(servo.get(tables.ID), servo.error(), params)

    def _read(self, ids: Sequence[int], address: int, size: int) -> list[Packet]:
        if not 0 < size <= _MEMORY_BYTES - address or BROADCAST in ids:
            return []
        asked = [servo for id in ids for servo in self._addressed(id)]
        return [self._status(servo, bytes(servo.memory[address : address + size])) for servo in asked]

    def _write(self, id: int, address: int, data: bytes) -> list[Packet]:
        answers = []
        for servo in self._addressed(id):
            own_id = servo.get(tables.ID)
            self.writes.append((own_id, address, data))
            servo.store(address, data)
            if id != BROADCAST and servo.get(tables.RESPONSE_LEVEL):
                answers.append(Packet(own_id, servo.error()))
        return answers


class Bank(Protocol):
    """Servos that answer packets of one protocol."""

    line_baudrate: int | None

    @property
    def wire(self) -> Wire: ...

    def handle(self, packet: Packet) -> list[Packet]: ...


@dataclass(frozen=True)
class LineFaults:
    """What goes wrong on a line, as data: the share of packets that it happens to.

    Attributes:
        corrupt: one bit is flipped, in either direction.
        drop: the packet is lost, in either direction.
        duplicate: a servo's answer arrives twice.
        delay: a servo's answer arrives ``delay_s`` late; others may overtake it.
        echo: what the host sends comes back to it first, from the adapter.
        seed: of the dice.
    """

    corrupt: float = 0.0
    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    delay_s: float = 0.03
    echo: float = 0.0
    seed: int = 0


class ServoBus:
    """A pseudo-terminal on which ``bank`` answers, from a thread of its own. Open ``port`` as any serial port.

    Args:
        bank: the servos.
        damage: what goes wrong; or what the line does to each packet, in both directions: its bytes in, the bytes that
            arrive out.
        link: where to keep a symbolic link to the pseudo-terminal while it is plugged in; it is the port then.
        tap: hears what the host sends, before anything goes wrong with it.
        heed_baudrate: whether servos hear only at the rate of their Baud_Rate, as on a wire; otherwise at any.

    Attributes:
        port: the serial port; another one after ``plug``, unless it is a link.
    """

    def __init__(
        self,
        bank: Bank,
        damage: Callable[[bytes], bytes] | LineFaults | None = None,
        link: Path | None = None,
        tap: Callable[[bytes], None] | None = None,
        heed_baudrate: bool = False,
    ) -> None:
        self._bank = bank
        self._tap = tap
        self._heed_baudrate = heed_baudrate
        self._faults = damage if isinstance(damage, LineFaults) else LineFaults()
        self._rng = random.Random(self._faults.seed)
        self._damage = damage if callable(damage) else self._break
        self._link = link
        self._thread: threading.Thread | None = None
        self.port = ""
        self.plug()

    def plug(self) -> None:
        """Plug the adapter in again after ``unplug``: it gets a name that it did not have before."""
        if self._thread is not None:
            return
        # The far end stays open here too, or the line would hang up whenever the driver closes its port.
        self._line, self._far_end = self._open_elsewhere()
        tty.setraw(self._line)
        tty.setraw(self._far_end)
        os.set_blocking(self._line, False)
        self._name = os.ttyname(self._far_end)
        self.port = self._name
        if self._link is not None:
            self._link.unlink(missing_ok=True)
            self._link.symlink_to(self._name)
            self.port = str(self._link)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="servo-bus", daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """Pull the adapter out: the port hangs up and disappears. The servos keep their power."""
        if self._thread is None:
            return
        os.close(self._stopped)
        self._thread.join()
        self._thread = None
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        for descriptor in (self._line, self._far_end, self._stop):
            os.close(descriptor)

    def close(self) -> None:
        """Hang up. May be called twice."""
        self.unplug()

    def __enter__(self) -> ServoBus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_elsewhere(self) -> tuple[int, int]:
        """A new pseudo-terminal, under another name than the last one."""
        line, far_end = pty.openpty()
        if os.ttyname(far_end) != getattr(self, "_name", ""):
            return line, far_end
        other = pty.openpty()
        os.close(line)
        os.close(far_end)
        return other

    def _serve(self) -> None:
        wire = self._bank.wire
        parser = wire.hear_instructions()
        late: list[tuple[float, bytes]] = []  # a heap, by when they are due
        while True:
            wait_s = min(_PARTIAL_PACKET_S, late[0][0] - time.monotonic()) if late else _PARTIAL_PACKET_S
            ready, _, _ = select.select([self._line, self._stop], [], [], max(wait_s, 0.0))
            if self._stop in ready:
                return
            while late and late[0][0] <= time.monotonic():
                self._send(heapq.heappop(late)[1])
            if not ready:
                if wait_s == _PARTIAL_PACKET_S:
                    parser.clear()  # a servo, too, gives up on a packet whose rest does not come
                continue
            asked = os.read(self._line, 4096)
            if self._tap is not None:
                self._tap(asked)
            if self._happens(self._faults.echo):
                self._send(asked)
            if self._heed_baudrate:
                self._bank.line_baudrate = _baudrate(self._line)
            for packet in parser.feed(self._damage(asked)):
                for answer in self._bank.handle(packet):
                    data = self._damage(wire.build_status(answer)) * (1 + self._happens(self._faults.duplicate))
                    if self._happens(self._faults.delay):
                        heapq.heappush(late, (time.monotonic() + self._faults.delay_s, data))
                    else:
                        self._send(data)

    def _break(self, data: bytes) -> bytes:
        if self._happens(self._faults.drop):
            return b""
        return _flip_a_bit(data, self._rng) if self._happens(self._faults.corrupt) else data

    def _happens(self, share: float) -> bool:
        return share > 0.0 and self._rng.random() < share

    def _send(self, data: bytes) -> None:
        try:
            os.write(self._line, data)
        except BlockingIOError:
            pass  # nobody reads: a wire would lose the bytes as well


def _baudrate(line: int) -> int:
    """Bits per second that the program at the other end of a pseudo-terminal has set, whatever the number."""
    speed: int = struct.unpack_from("I", fcntl.ioctl(line, _TCGETS2, bytes(44)), 40)[0]
    return speed


def line_noise(corrupt: float, drop: float, seed: int) -> Callable[[bytes], bytes]:
    """A ``damage`` for ServoBus: flips one bit of a packet, or loses it, with these probabilities."""
    rng = random.Random(seed)

    def damage(data: bytes) -> bytes:
        if rng.random() < drop:
            return b""
        return _flip_a_bit(data, rng) if data and rng.random() < corrupt else data

    return damage


def _flip_a_bit(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def scaled_whole(values: ArrayLike, scale: float, bound: int, shape: tuple[int, ...]) -> list[int]:
    """``values`` in units of 1/scale as whole numbers within +-bound, one a servo."""
    scaled = np.clip(np.rint(np.asarray(values, dtype=np.float64) * scale), -bound, bound)
    whole: list[int] = np.broadcast_to(scaled, shape).astype(int).tolist()
    return whole
