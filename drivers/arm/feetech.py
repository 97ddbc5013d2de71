"""The Feetech STS bus over a serial port: ask servos, check what they answer, ask again, count what went wrong."""

from __future__ import annotations

import errno
import os
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import serial

from drivers.arm import packets
from drivers.arm.packets import Packet, PacketParser
from drivers.arm.tables import FAULT_BITS, Register
from drivers.errors import DeviceError

_PORT_ERRORS = (OSError, termios.error)  # serial.SerialException is an OSError
_QUIET_S = 0.005
_REOPEN_S = 1.0


@dataclass
class ErrorCounts:
    """What went wrong on the bus since it was opened; all but ``faults`` were made good by asking again.

    Attributes:
        timeouts: requests that not every servo answered in time.
        damaged: answers with a wrong checksum.
        stale: answers of a servo that was not asked, or had answered already.
        faults: answers in which a servo reported a fault of its own.
        reopened: times the port was lost and found again.
    """

    timeouts: int = 0
    damaged: int = 0
    stale: int = 0
    faults: int = 0
    reopened: int = 0


class FeetechBus:
    """A half-duplex chain of STS servos on a serial port. The adapter must not echo what is sent.

    Safe to use from several threads: each request and its answers are one piece.

    Args:
        port: serial device, for example ``/dev/ttyACM0``.
        baudrate: bits per second.
        timeout_s: how long a servo may be silent before it is asked again.
        attempts: how often a request is sent before the servo counts as silent.

    Attributes:
        counts: what went wrong so far.
        faults: servo id -> error byte of its latest answer, where that was not zero.

    Raises:
        DeviceError: the port does not exist, is not a serial port, is in use, or may not be opened.
    """

    def __init__(self, port: str, baudrate: int = 1_000_000, *, timeout_s: float = 0.05, attempts: int = 3) -> None:
        self.port = port
        self.counts = ErrorCounts()
        self.faults: dict[int, int] = {}
        self._baudrate = baudrate
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._lock = threading.RLock()
        self._closed = False
        self._serial = _open_port(port, baudrate)

    def ping(self, id: int) -> bool:
        """Whether servo ``id`` answers."""
        return id in self._ask(lambda ids: Packet(ids[0], packets.PING), (id,), 0)

    def read(self, id: int, register: Register) -> int:
        """Value of one register. Raises DeviceError when the servo is silent."""
        return self._decoded(lambda ids: packets.read_packet(ids[0], register), (id,), register)[id]

    def write(self, id: int, register: Register, value: int) -> None:
        """Write one register and wait until the servo confirms. Raises DeviceError when it does not."""
        if id not in self._ask(lambda ids: packets.write_packet(ids[0], register, value), (id,), 0):
            raise self._silent(id)

    def sync_read(self, ids: Sequence[int], register: Register) -> dict[int, int]:
        """One register of many servos with one request; holds only the servos that answered."""
        request = lambda missing: packets.sync_read_packet(missing, register)  # noqa: E731
        return self._decoded(request, ids, register, all_must_answer=False)

    def sync_write(self, values: Mapping[int, int], register: Register) -> None:
        """Write one register of many servos with one packet. No servo confirms it."""
        data = packets.build_packet(packets.sync_write_packet(values.items(), register))
        with self._lock:
            for _ in range(self._attempts):
                try:
                    self._port().write(data)
                    return
                except _PORT_ERRORS:
                    self._reopen()
            raise self._lost()

    def close(self) -> None:
        """Close the port; servos keep doing what they do. May be called twice."""
        with self._lock:
            self._closed = True
            self._serial.close()

    def _decoded(
        self,
        request: Callable[[Sequence[int]], Packet],
        ids: Sequence[int],
        register: Register,
        all_must_answer: bool = True,
    ) -> dict[int, int]:
        answers = self._ask(request, ids, register.size)
        for id in ids:
            if all_must_answer and id not in answers:
                raise self._silent(id)
        return {id: packets.decode(register, answer.params) for id, answer in answers.items()}

    def _ask(self, request: Callable[[Sequence[int]], Packet], ids: Sequence[int], params: int) -> dict[int, Packet]:
        """Send ``request(ids)``, and again for those that did not answer with ``params`` parameter bytes."""
        answers: dict[int, Packet] = {}
        with self._lock:
            for _ in range(self._attempts):
                missing = [id for id in ids if id not in answers]
                if not missing:
                    break
                try:
                    answers |= self._exchange(packets.build_packet(request(missing)), missing, params)
                except _PORT_ERRORS:
                    self._reopen()
        return answers

    def _exchange(self, data: bytes, ids: Sequence[int], params: int) -> dict[int, Packet]:
        """Send once, and gather answers until each of ``ids`` has answered, well or damaged, or time is up."""
        port = self._port()
        parser = PacketParser(params)
        answers: dict[int, Packet] = {}
        port.reset_input_buffer()
        port.write(data)
        deadline_s = time.monotonic() + self._timeout_s
        while len(answers) + parser.damaged < len(ids):
            received = port.read(max(1, port.in_waiting))
            for packet in parser.feed(received):
                if packet.id in ids and packet.id not in answers:
                    answers[packet.id] = packet
                    self._note_fault(packet)
                else:
                    self.counts.stale += 1
            late_s = time.monotonic() - deadline_s
            # Bytes that waited while this thread did not run are still heard; a line that never falls quiet is not.
            if late_s > (self._timeout_s if received else 0.0):
                self.counts.timeouts += 1
                break
        self.counts.damaged += parser.damaged
        if len(answers) < len(ids):
            self._wait_for_quiet(port)
        return answers

    def _wait_for_quiet(self, port: serial.Serial) -> None:
        """Let a late answer pass by: it would be taken for the answer to the next request."""
        deadline_s = time.monotonic() + self._timeout_s
        while port.read(64) and time.monotonic() < deadline_s:
            pass

    def _note_fault(self, packet: Packet) -> None:
        self.faults.pop(packet.id, None)
        if packet.code:
            self.faults[packet.id] = packet.code
            self.counts.faults += 1

    def _port(self) -> serial.Serial:
        if self._closed:
            raise DeviceError(f"arm port {self.port} was closed")
        return self._serial

    def _reopen(self) -> None:
        """A USB adapter that drops out comes back within a moment; wait that long before giving up."""
        self._serial.close()
        deadline_s = time.monotonic() + _REOPEN_S
        while True:
            try:
                self._serial = _open_port(self.port, self._baudrate)
                self.counts.reopened += 1
                return
            except DeviceError:
                if time.monotonic() > deadline_s:
                    raise self._lost() from None
                time.sleep(0.02)

    def _lost(self) -> DeviceError:
        return DeviceError(f"arm port {self.port} was lost; check the USB cable and the adapter")

    def _silent(self, id: int) -> DeviceError:
        return DeviceError(
            f"arm port {self.port}: servo {id} does not answer; check the arm's power, the servo's cable and its id"
        )


def fault_names(error: int) -> list[str]:
    """The faults that a status packet's error byte reports."""
    return [FAULT_BITS.get(bit, f"bit {bit}") for bit in range(8) if error >> bit & 1]


def _open_port(port: str, baudrate: int) -> serial.Serial:
    try:
        return serial.Serial(port, baudrate, timeout=_QUIET_S, write_timeout=1.0, exclusive=True)
    except (*_PORT_ERRORS, ValueError) as error:
        number = getattr(error, "errno", None)
        if number == errno.ENOENT or not os.path.exists(port):
            reason = "there is no such device; plug in the arm's USB cable, and see `ls /dev/ttyACM* /dev/ttyUSB*`"
        elif number in (errno.EACCES, errno.EPERM):
            reason = "no permission; add yourself to the group that owns it (often `dialout`) and log in again"
        elif number in (errno.EAGAIN, errno.EBUSY) or "lock" in str(error):
            reason = "another program is using it; close that program"
        else:
            reason = f"it cannot be opened as a serial port at {baudrate} baud ({error})"
        raise DeviceError(f"arm port {port}: {reason}") from None
