"""The servo loop's process, seen from the one that commands it: start it, give it plans, read what it does.

The loop itself (``edge/native/servo_loop.cpp``) owns the bus, sends setpoints at a fixed rate and keeps the arm safe
whether or not this process is alive; the two share memory and no lock. ``docs/control.md`` draws its states.
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from drivers.arm.servo_arm import TABLES
from drivers.arm.tables import RAD_PER_COUNT, Register, ServoTable
from drivers.errors import DeviceError
from drivers.robot import Robot
from edge.native import _native

Array = NDArray[np.float64]

RATE_HZ = 200.0
SERVO_PROCESS = Path(_native.__file__).with_name("vlar1-servo")
BUS_TIMEOUT_S = 0.04
SERVO_TIMEOUT_S = 0.2
TRACKING_RAD, TRACKING_TIME_S = 0.30, 0.4  # lag of a healthy servo at full speed is about a third of the angle
_START_TIMEOUT_S = 10.0
_COMMAND_TIMEOUT_S = 2.0
_PROTOCOLS = {"feetech": 0, "dynamixel": 1}


class State(IntEnum):
    """Of the loop; numbers as in ``edge/native/shared.hpp``."""

    DISARMED = 0
    """Reads, and sends no setpoints."""
    ARMED = 1
    """Sends setpoints that stand still."""
    MOVING = 2
    """Follows a plan."""
    HOLDING = 3
    """Something ended a motion: decelerated, and stands still. A new plan goes on from here."""
    STOPPED = 4
    """Stopped by a call: decelerated, and stands still until `ServoLoop.restart`."""


class Cause(IntEnum):
    """Why the arm holds or is stopped; numbers as in ``edge/native/shared.hpp``."""

    NONE = 0
    REQUESTED = 1
    STOP_CALLED = 2
    WATCHDOG = 3
    BUS_LOST = 4
    SERVO_SILENT = 5
    SERVO_RESET = 6
    CONTACT = 7
    NOT_FOLLOWING = 8
    TEMPERATURE = 9
    VOLTAGE = 10


class _Command(IntEnum):
    ARM, MOVE, HOLD, RESTART, DISARM, TRANSACT, QUIT, RESUME = range(8)


class _Result(IntEnum):
    OK, WRONG_STATE, NOT_FRESH, MOVING, NO_ANSWER = range(5)


class _Operation(IntEnum):
    PING, READ, WRITE, SYNC_WRITE = range(4)


class RefusedError(DeviceError):
    """The loop did not take a command in the state it is in; nothing changed."""


@dataclass(frozen=True, eq=False)
class ServoState:
    """One cycle of the loop, whole. Arrays are (n,) in the order of the robot's joints, the gripper last.

    Attributes:
        cycle: its number; ``t_s``: when it began, ``time.monotonic()``.
        cause, cause_joint: why it holds or is stopped; which joint, or -1.
        settled: nothing moves, and the plan is through.
        plan: number of the plan followed last, as `ServoLoop.move` gave it.
        setpoint_rad: as sent; ``ahead_rad``: where they will be a moment later, without any more motion;
            ``position_rad``: as read last, at ``position_s`` (0: never).
        load: in the unit of the servos' table; ``voltage_v``, ``temperature_c`` likewise read every tenth cycle.
        torque: 0 off, 1 on, 2 not read yet; ``fault``: error byte of the latest answer.
        released: servos that get no setpoints until `ServoLoop.restart`, since they fell silent or lost their torque.
        errors: counters by kind since the start; ``histogram`` (101,): cycle times in steps of 2 % of the period.
        port: the device, as it is called now.
    """

    cycle: int
    t_s: float
    state: State
    cause: Cause
    cause_joint: int
    settled: bool
    plan: int
    plan_elapsed_s: float
    connected: bool
    setpoint_rad: Array
    ahead_rad: Array
    position_rad: Array
    position_s: Array
    velocity_rad_s: Array
    load: Array
    voltage_v: Array
    temperature_c: Array
    torque: NDArray[np.uint32]
    fault: NDArray[np.uint32]
    released: NDArray[np.bool_]
    errors: Mapping[str, int]
    histogram: NDArray[np.uint64]
    hold_began_s: float
    port: str


@dataclass(frozen=True, eq=False)
class Cycles:
    """Cycles of the loop one by one: (m,) and (m, n) arrays.

    Attributes:
        t_s: when each began, ``time.monotonic()``; ``busy_s``: from there to its last answer.
        setpoint_rad, position_rad: as sent, and as read last, single precision.
        state: of the loop; ``written``: whether setpoints went out.
    """

    t_s: Array
    busy_s: Array
    setpoint_rad: NDArray[np.float32]
    position_rad: NDArray[np.float32]
    state: NDArray[np.uint32]
    written: NDArray[np.bool_]


_ERRORS = (
    *("missed", "write_failures", "timeouts", "damaged", "stale", "echoed", "implausible", "faults"),
    *("lost", "reopened"),
)


class ServoLoop:
    """A running servo loop; a context manager that ends it. Safe to use from several threads.

    Ending it, or this process's death in whatever way, leaves torque as it is: the servos hold their last setpoint.

    Args:
        robot: joints, limits and safety come from its file.
        port: instead of the robot file's.
        rate_hz: of setpoints.
        realtime: ask for SCHED_FIFO and locked memory; what is refused is told in ``messages`` and does without.
        cpu: to be bound to.
        sys_root, dev_root: where the system shows its serial devices.

    Attributes:
        messages: what the loop does without, in plain words.

    Raises:
        DeviceError: the port cannot be opened.
    """

    def __init__(
        self,
        robot: Robot,
        port: str | None = None,
        *,
        rate_hz: float = RATE_HZ,
        realtime: bool = True,
        cpu: int | None = None,
        sys_root: str = "/sys/class/tty",
        dev_root: str = "/dev",
    ) -> None:
        self.robot = robot
        self.period_s = 1.0 / rate_hz
        self._lock = threading.Lock()
        self._plan = 0
        table = TABLES[robot.arm.type]
        self._link = _native.Link(
            {
                "port": port or robot.arm.port,
                "usb_serial": robot.arm.usb_serial,
                "sys_root": sys_root,
                "dev_root": dev_root,
                "baudrate": robot.arm.baudrate,
                "period_s": self.period_s,
                "realtime": realtime,
                "cpu": -1 if cpu is None else cpu,
                "bus_timeout_s": BUS_TIMEOUT_S,
                "servo_timeout_s": SERVO_TIMEOUT_S,
                "tracking_rad": TRACKING_RAD,
                "tracking_time_s": TRACKING_TIME_S,
                **_layout(table),
                **_safety(robot),
                "joints": _joints(robot),
            }
        )
        fd = self._link.fd
        # A session of its own: the terminal's Ctrl-C is for the commander, which then brings the arm to rest.
        self._process = subprocess.Popen(
            [str(SERVO_PROCESS), str(fd)], stdin=subprocess.PIPE, pass_fds=(fd,), start_new_session=True
        )
        try:
            self._await_start(port or robot.arm.port)
        except BaseException:
            self._end()
            raise
        self.messages = self._privileges()

    # Commands

    def heard(self) -> None:
        """A sign of life: a motion goes on only while these come within ``command_timeout_s``."""
        self._link.heard()

    def stop(self) -> None:
        """Decelerate within the limits and hold, latched: nothing moves again before `restart`. Never waits."""
        self._link.stop()

    @property
    def stop_calls(self) -> int:
        """How often a stop was said, by whatever process, also while there was nothing to stop."""
        return self._link.stop_calls()

    def arm(self, position_rad: ArrayLike) -> None:
        """Begin to send setpoints, from ``position_rad`` (n,): the goals that the servos hold already.

        Raises RefusedError when it is armed, or a servo was not heard within a tenth of a second.
        """
        self._command(_Command.ARM, "arm", position_rad=_list(position_rad))

    def move(
        self,
        times_s: ArrayLike,
        position_rad: ArrayLike,
        velocity_rad_s: ArrayLike | None = None,
        *,
        start_s: float | None = None,
        parking: bool = False,
    ) -> int:
        """Follow a plan from now on, in place of the one that runs; the number by which `state` tells it.

        Args:
            times_s: (m,) increasing; position_rad: (m, n) waypoints. Between them the way is cubic.
            velocity_rad_s: (m, n) at the waypoints; left out, those of the shape-preserving cubic (PCHIP), at rest at
                both ends.
            start_s: the moment, ``time.monotonic()``, of time 0; now if left out. A plan made for a moment that has
                passed is joined where it would be.
            parking: go on also with a servo that is hot or short of voltage.

        Raises:
            RefusedError: disarmed, stopped, or a servo was not heard.
            ValueError: shapes that do not fit, numbers that are not finite, times that do not increase.
        """
        times = np.ascontiguousarray(times_s, dtype=float)
        positions = np.ascontiguousarray(position_rad, dtype=float)
        velocities = _slopes(times, positions) if velocity_rad_s is None else velocity_rad_s
        with self._lock:
            self._link.heard()
            self._link.write_plan(times, positions, np.ascontiguousarray(velocities, dtype=float))
            self._plan += 1
            elapsed_s = 0.0 if start_s is None else time.monotonic() - start_s
            self._send(_Command.MOVE, "move", plan=self._plan, parking=parking, elapsed_s=elapsed_s)
            return self._plan

    def hold(self) -> None:
        """Decelerate within the limits and stand still; a new plan goes on from there."""
        self._command(_Command.HOLD, "hold")

    def restart(self, position_rad: ArrayLike) -> None:
        """Out of a stop or a hold: send setpoints again, from the goals (n,) that the servos hold.

        Raises RefusedError while the arm still decelerates, or a servo was not heard.
        """
        self._command(_Command.RESTART, "restart", position_rad=_list(position_rad))

    def resume(self, position_rad: ArrayLike) -> None:
        """As `restart`, out of a hold alone: refused where the arm was stopped, which takes a person's word."""
        self._command(_Command.RESUME, "resume", position_rad=_list(position_rad))

    def disarm(self) -> None:
        """Send no more setpoints; torque stays as it is. Raises RefusedError while something moves."""
        self._command(_Command.DISARM, "disarm")

    def transact(
        self, operation: str, ids: Sequence[int], register: Register | None, data: Sequence[bytes] = ()
    ) -> dict[int, tuple[int, bytes]]:
        """One request on the bus between two cycles: "ping", "read", "write" or "sync_write" of one register.

        Returns {id: (error byte, data)} of the servos that answered. Raises RefusedError while the arm moves.
        """
        kind = _Operation[operation.upper()]
        address, size = (register.address, register.size) if register else (0, 0)
        with self._lock:
            number = self._link.post_transaction(kind, list(ids), address, size, list(data))
            result = self._await(number)
            if result == _Result.MOVING:
                raise RefusedError(self._refusal("talk to single servos", result))
            answers: dict[int, tuple[int, bytes]] = self._link.answers() if kind != _Operation.SYNC_WRITE else {}
            return answers

    def close(self) -> None:
        """End the loop; what moves comes to rest before. May be called twice."""
        if self._process.poll() is None:
            try:
                deadline_s = time.monotonic() + _COMMAND_TIMEOUT_S
                self._link.stop()
                while self.state().state != State.DISARMED and not self.state().settled:
                    if time.monotonic() > deadline_s:
                        break
                    time.sleep(self.period_s)
                self._command(_Command.QUIT, "quit")
            except DeviceError:
                pass  # it ends when its standard input does
        self._end()

    def __enter__(self) -> ServoLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What it does

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def memory_fd(self) -> int:
        """Descriptor of the shared memory, for a process that watches with `ServoWatch`."""
        return self._link.fd

    def state(self) -> ServoState:
        """The latest cycle. Raises DeviceError when the loop's process has ended."""
        self._require_alive()
        return _state_of(self._link)

    def cycles(self, since: int = 0) -> tuple[int, Cycles]:
        """The cycles from number ``since`` on (as far back as 40 s), and the number to ask for next time."""
        return _cycles_of(self._link, since)

    # Inside

    def _command(self, kind: _Command, what: str, **values: Any) -> None:
        with self._lock:
            self._send(kind, what, **values)

    def _send(self, kind: _Command, what: str, **values: Any) -> None:
        result = self._await(self._link.post(kind, **values))
        if result != _Result.OK:
            raise RefusedError(self._refusal(what, result))

    def _await(self, number: int) -> _Result:
        deadline_s = time.monotonic() + _COMMAND_TIMEOUT_S
        while not self._link.done(number):
            self._require_alive()
            if time.monotonic() > deadline_s:
                raise DeviceError("servo loop: its process does not respond; the servos hold their last setpoint")
            time.sleep(0.0005)
        return _Result(self._link.result())

    def _refusal(self, what: str, result: _Result) -> str:
        state = self.state()
        if result == _Result.NOT_FRESH:
            names = self.robot.joint_names
            now_s = time.monotonic()
            silent = [n for n, t in zip(names, state.position_s, strict=True) if now_s - t > 0.1]
            why = f"{', '.join(silent) or 'a servo'} was not heard for 0.1 s; check the arm's power and cables"
        elif result == _Result.MOVING:
            why = "the arm still moves; wait until it stands, or hold it"
        else:
            why = f"it is {state.state.name.lower()}" + (f" ({state.cause.name.lower()})" if state.cause else "")
        return f"servo loop: cannot {what}: {why}"

    def _require_alive(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise DeviceError(f"servo loop: its process has ended (code {code}); the servos hold their last setpoint")

    def _await_start(self, port: str) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while True:
            started = self._link.start_report()[0]
            if started == 1:
                return
            if started < 0:
                raise DeviceError(f"arm port {port}: {_port_trouble(-started, port)}")
            self._require_alive()
            if time.monotonic() > deadline_s:
                raise DeviceError(f"servo loop: its process did not start within {_START_TIMEOUT_S:g} s")
            time.sleep(0.001)

    def _privileges(self) -> list[str]:
        """What was asked for and refused."""
        _, priority, memory, cpu = self._link.start_report()
        found = []
        if priority:
            why = "see `ulimit -r`, or give the user rtprio in /etc/security/limits.d"
            found.append(f"servo loop: no real-time priority ({os.strerror(priority)}); {why}")
        if memory:
            found.append(f"servo loop: its memory is not locked ({os.strerror(memory)}); see `ulimit -l`")
        if cpu:
            found.append(f"servo loop: not bound to its processor ({os.strerror(cpu)})")
        return found

    def _end(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(_COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ServoWatch:
    """The loop seen from a third process: it may look, and say stop, whatever the commanding one does.

    Args:
        memory_fd: `ServoLoop.memory_fd`, inherited; closed with this object.

    Raises:
        ValueError: it is no servo loop's memory, or one of another version.
    """

    def __init__(self, memory_fd: int) -> None:
        self._watch = _native.Watch(memory_fd)

    def stop(self) -> None:
        """As `ServoLoop.stop`."""
        self._watch.stop()

    def state(self) -> ServoState:
        """The latest cycle; ``t_s`` says how old it is, and grows no more once the loop has ended."""
        return _state_of(self._watch)

    def cycles(self, since: int = 0) -> tuple[int, Cycles]:
        """As `ServoLoop.cycles`."""
        return _cycles_of(self._watch, since)


def _state_of(view: _native.View) -> ServoState:
    s: dict[str, Any] = view.snapshot()
    return ServoState(
        cycle=s["cycle"],
        t_s=s["t_ns"] * 1e-9,
        state=State(s["state"]),
        cause=Cause(s["cause"]),
        cause_joint=s["cause_joint"],
        settled=s["settled"],
        plan=s["plan"],
        plan_elapsed_s=s["plan_elapsed_s"],
        connected=s["connected"],
        setpoint_rad=s["setpoint_rad"],
        ahead_rad=s["ahead_rad"],
        position_rad=s["position_rad"],
        position_s=s["position_ns"] * 1e-9,
        velocity_rad_s=s["velocity_rad_s"],
        load=s["load"],
        voltage_v=s["voltage_v"],
        temperature_c=s["temperature_c"],
        torque=s["torque"],
        fault=s["fault"],
        released=s["released"] != 0,
        errors={name: s[name] for name in _ERRORS},
        histogram=s["histogram"],
        hold_began_s=s["hold_began_ns"] * 1e-9,
        port=s["port"],
    )


def _cycles_of(view: _native.View, since: int) -> tuple[int, Cycles]:
    following, t_ns, busy_ns, setpoint, position, state, written = view.ring(since)
    return following, Cycles(t_ns * 1e-9, busy_ns * 1e-9, setpoint, position, state, written != 0)


def _list(position_rad: ArrayLike) -> list[float]:
    values: list[float] = np.asarray(position_rad, dtype=float).tolist()
    return values


def _slopes(times_s: Array, position_rad: Array) -> Array:
    """(m, n) velocities of the shape-preserving cubic, 0 at both ends: no value lies beyond its two neighbours."""
    if times_s.ndim != 1 or position_rad.ndim != 2 or len(times_s) != len(position_rad):
        raise ValueError(f"a plan is times (m,) and positions (m, n), got {times_s.shape} and {position_rad.shape}")
    slopes = np.zeros_like(position_rad)
    if len(times_s) > 2 and (np.diff(times_s) > 0).all() and np.isfinite(position_rad).all():
        slopes[1:-1] = PchipInterpolator(times_s, position_rad).derivative()(times_s[1:-1])
    return slopes


def _layout(table: ServoTable) -> dict[str, Any]:
    """Protocol, registers and units; the block is the shortest piece of memory with all that is measured in it."""
    measured = {
        "position": table.present_position,
        "velocity": table.present_velocity,
        "load": table.present_load,
        "voltage": table.present_voltage,
        "temperature": table.present_temperature,
    }
    first = min(r.address for r in measured.values())
    end = max(r.address + r.size for r in measured.values())
    registers = {name: _register(r) for name, r in measured.items()}
    registers |= {"goal": _register(table.goal_position), "torque": _register(table.torque_enable)}
    return {
        "protocol": _PROTOCOLS[table.protocol],
        "registers": {**registers, "block": (first, end - first, -1, 0)},
        "velocity_unit_rad_s": table.velocity_unit_rad_s,
        "load_unit": table.load_unit,
        "voltage_unit_v": table.voltage_unit_v,
    }


def _register(register: Register) -> tuple[int, int, int, int]:
    sign_bit = -1 if register.sign_bit is None else register.sign_bit
    return register.address, register.size, sign_bit, int(register.signed)


def _safety(robot: Robot) -> dict[str, float]:
    names = ("command_timeout_s", "contact_load", "contact_time_s", "max_temperature_c", "min_voltage_v")
    return {name: float(getattr(robot.safety, name)) for name in names}


def _joints(robot: Robot) -> list[dict[str, Any]]:
    limits = robot.limits
    return [
        {
            "id": joint.id,
            "direction": joint.direction,
            "may_squeeze": i == len(robot.arm.joints) - 1,
            "zero_count": float(joint.zero_count),
            "rad_per_count": RAD_PER_COUNT,
            "lower_rad": float(robot.lower_rad[i]),
            "upper_rad": float(robot.upper_rad[i]),
            "velocity_rad_s": float(limits.velocity_rad_s[i]),
            "acceleration_rad_s2": float(limits.acceleration_rad_s2[i]),
            "jerk_rad_s3": float(limits.jerk_rad_s3[i]),
        }
        for i, joint in enumerate(robot.arm.joints)
    ]


def _port_trouble(number: int, port: str) -> str:
    if number == errno.ENOENT:
        return "there is no such device; plug in the arm's USB cable, and see `ls /dev/ttyACM* /dev/ttyUSB*`"
    if number in (errno.EACCES, errno.EPERM):
        return "no permission; add yourself to the group that owns it (often `dialout`) and log in again"
    if number == errno.EBUSY:
        return "another program is using it; close that program"
    return f"it cannot be opened as a serial port ({os.strerror(number)})"
