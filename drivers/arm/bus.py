"""A chain of servos on a serial port: ask them, check what they answer, ask again, count what went wrong."""

from __future__ import annotations

import errno
import os
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import serial

from drivers.arm import packets
from drivers.arm.packets import Packet, Wire
from drivers.arm.tables import Register
from drivers.errors import DeviceError

_PORT_ERRORS = (OSError, termios.error)  # serial.SerialException is an OSError
_QUIET_S = 0.005
_REOPEN_S = 1.0
_BABBLE_S = 5.0  # a line that never falls quiet


@dataclass
class ErrorCounts:
    """What went wrong on the bus since it was opened; all but ``faults`` were made good by asking again.

    Attributes:
        timeouts: requests that not every servo answered in time.
        damaged: answers with a wrong checksum, or that say the request had one.
        stale: answers of a servo that was not asked, or had answered already.
        faults: answers in which a servo reported a fault of its own.
        reopened: times the port was lost and found again.
    """

    timeouts: int = 0
    damaged: int = 0
    stale: int = 0
    faults: int = 0
    reopened: int = 0


class Bus(Protocol):
    """What an arm asks of the bus its servos are on; `ServoBus` says what the members mean."""

    @property
    def port(self) -> str: ...

    @property
    def faults(self) -> Mapping[int, int]: ...

    def ping(self, id: int) -> bool: ...

    def read(self, id: int, register: Register) -> int: ...

    def write(self, id: int, register: Register, value: int) -> None: ...

    def sync_read(self, ids: Sequence[int], register: Register) -> dict[int, int]: ...

    def sync_write(self, values: Mapping[int, int], register: Register) -> None: ...

    def close(self) -> None: ...


class ServoBus:
    """A half-duplex chain of servos on a serial port, whatever protocol they speak.

    Safe to use from several threads: each request and its answers are one piece.

    Args:
        port: serial device, for example ``/dev/ttyACM0``.
        baudrate: bits per second.
        wire: the servos' protocol.
        timeout_s: how long a servo may be silent before it is asked again.
        attempts: how often a request is sent before the servo counts as silent.
        fast: try FAST_SYNC_READ before SYNC_READ, where the protocol has it.

    Attributes:
        counts: what went wrong so far.
        faults: servo id -> what its latest answer's error byte says of the servo's health, where that was not zero.

    Raises:
        DeviceError: the port does not exist, is not a serial port, is in use, or may not be opened.
    """

    def __init__(
        self,
        port: str,
        baudrate: int,
        wire: Wire,
        *,
        timeout_s: float = 0.05,
        attempts: int = 3,
        fast: bool = False,
    ) -> None:
        self.port = port
        self.counts = ErrorCounts()
        self.faults: dict[int, int] = {}
        self._baudrate = baudrate
        self._wire = wire
        self._fast = wire.fast_sync_read if fast else None
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._lock = threading.RLock()
        self._closed = False
        self._serial = _open_port(port, baudrate)

    def ping(self, id: int) -> bool:
        """Whether servo ``id`` answers."""
        return id in self._ask(lambda ids: Packet(ids[0], packets.PING), (id,), self._wire.ping_params)

    def ping_all(self, listen_s: float) -> tuple[list[int], bool]:
        """The ids that answer a ping to all within ``listen_s`` of the last byte, and whether there was any byte.

        Feetech servos answer at the same time: many of them are heard as noise.
        """
        parser = self._wire.hear_statuses(self._wire.ping_params)
        found: set[int] = set()
        heard = False
        with self._lock:
            try:
                port = self._port()
                port.reset_input_buffer()
                port.write(self._wire.build_instruction(Packet(packets.BROADCAST, packets.PING)))
                deadline_s = time.monotonic() + listen_s
                give_up_s = deadline_s + _BABBLE_S
                while time.monotonic() < min(deadline_s, give_up_s):
                    if data := port.read(max(1, port.in_waiting)):
                        heard = True
                        deadline_s = time.monotonic() + listen_s
                        found.update(packet.id for packet in parser.feed(data))
            except _PORT_ERRORS:
                raise self._lost() from None
        return sorted(found), heard

    def read(self, id: int, register: Register) -> int:
        """Value of one register. Raises DeviceError when the servo is silent or has no such register."""
        answers = self._ask(lambda ids: self._wire.read(ids[0], register), (id,), register.size)
        return packets.decode(register, self._done(answers, id, f"a read of {register.name}").params)

    def write(self, id: int, register: Register, value: int) -> None:
        """Write one register and wait until the servo confirms. Raises DeviceError when it does not, or refuses."""
        answers = self._ask(lambda ids: self._wire.write(ids[0], register, value), (id,), 0)
        self._done(answers, id, f"{value} for {register.name}")

    def sync_read(self, ids: Sequence[int], register: Register) -> dict[int, int]:
        """One register of many servos with one request; holds only the servos that answered."""
        answers: dict[int, Packet] = {}
        if self._fast:
            fast = self._fast
            answers = self._ask(lambda missing: fast(missing, register), ids, register.size, attempts=1)
        missing = [id for id in ids if id not in answers]
        answers |= self._ask(lambda missing: self._wire.sync_read(missing, register), missing, register.size)
        done = {id: answer for id, answer in answers.items() if not answer.code & self._wire.error_mask}
        return {id: packets.decode(register, done[id].params) for id in ids if id in done}

    def sync_write(self, values: Mapping[int, int], register: Register) -> None:
        """Write one register of many servos with one packet. No servo confirms it."""
        data = self._wire.build_instruction(self._wire.sync_write(values.items(), register))
        with self._lock:
            for _ in range(self._attempts):
                try:
                    self._port().write(data)
                    return
                except _PORT_ERRORS:
                    self._reopen()
            raise self._lost()

    def reboot(self, id: int) -> None:
        """Restart a servo: torque goes off, and its latched faults are cleared. It is deaf for about half a second.

        Raises DeviceError when it does not confirm, or the protocol has no such instruction.
        """
        code = self._wire.reboot
        if code is None:
            raise DeviceError(
                f"arm port {self.port}: {self._wire.name} servos cannot be rebooted over the bus; cycle the power"
            )
        self._done(self._ask(lambda ids: Packet(ids[0], code), (id,), 0), id, "a reboot")
        self.faults.pop(id, None)

    def close(self) -> None:
        """Close the port; servos keep doing what they do. May be called twice."""
        with self._lock:
            self._closed = True
            self._serial.close()

    def _done(self, answers: Mapping[int, Packet], id: int, what: str) -> Packet:
        """The answer of servo ``id``. Raises DeviceError if there is none, or if it says that ``what`` is refused."""
        if id not in answers:
            raise self._silent(id)
        error = answers[id].code & self._wire.error_mask
        if error:
            reason = self._wire.errors[error] if error < len(self._wire.errors) else f"error {error}"
            raise DeviceError(f"arm port {self.port}: servo {id} refuses {what}: {reason}")
        return answers[id]

    def _ask(
        self,
        request: Callable[[Sequence[int]], Packet],
        ids: Sequence[int],
        params: int,
        attempts: int | None = None,
    ) -> dict[int, Packet]:
        """Send ``request(ids)``, and again for those that did not answer with ``params`` parameter bytes."""
        answers: dict[int, Packet] = {}
        with self._lock:
            timeouts = self.counts.timeouts
            for _ in range(attempts or self._attempts):
                missing = [id for id in ids if id not in answers]
                if not missing:
                    break
                try:
                    answers |= self._exchange(self._wire.build_instruction(request(missing)), missing, params)
                except _PORT_ERRORS:
                    self._reopen()
            if answers and self.counts.timeouts > timeouts:
                self._let_pass()
        return answers

    def _let_pass(self) -> None:
        """Drop what still comes: the answer to a request that was given up would be taken for one to the next."""
        deadline_s = time.monotonic() + self._timeout_s
        try:
            while time.monotonic() < deadline_s:
                self._port().read(64)
        except _PORT_ERRORS:
            pass  # found by the next request, too

    def _exchange(self, data: bytes, ids: Sequence[int], params: int) -> dict[int, Packet]:
        """Send once, and gather answers until each of ``ids`` has answered, well or damaged, or time is up."""
        port = self._port()
        parser = self._wire.hear_statuses(params)
        answers: dict[int, Packet] = {}
        unheard = 0
        port.reset_input_buffer()
        port.write(data)
        deadline_s = time.monotonic() + self._timeout_s
        while len(answers) + parser.damaged + unheard < len(ids):
            received = port.read(max(1, port.in_waiting))
            for packet in parser.feed(received):
                if self._wire.error_mask and packet.code & self._wire.error_mask == self._wire.heard_damaged:
                    unheard += 1
                elif packet.id in ids and packet.id not in answers:
                    answers[packet.id] = packet
                    self._note_fault(packet)
                else:
                    self.counts.stale += 1
            late_s = time.monotonic() - deadline_s
            # Bytes that waited while this thread did not run are still heard; a line that never falls quiet is not.
            if late_s > (self._timeout_s if received else 0.0):
                self.counts.timeouts += 1
                break
        self.counts.damaged += parser.damaged + unheard
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
        if fault := packet.code & self._wire.fault_mask:
            self.faults[packet.id] = fault
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
