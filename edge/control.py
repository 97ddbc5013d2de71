"""The servo loop: joint setpoints to the arm at a fixed rate, and what keeps it safe when something goes wrong.

An arm that does not follow, does not answer, or is told to stop holds where it is; it never goes limp in the air:
torque goes off only after parking.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.errors import DeviceError
from drivers.protocols import Arm
from edge.motion import RATE_HZ, VELOCITY_RAD_S, JointTrajectory, plan_move
from edge.trace import Tracer

Array = NDArray[np.float64]

_START_TOLERANCE_RAD = 0.12  # a plan starts where the arm is; further off, it was made for another moment
_TRACKING_LIMIT_RAD = 0.30  # lag of a healthy servo at full speed is about a third of this
_TRACKING_TIME_S = 0.4
_CHECK_EVERY = 5  # cycles between reads: a read costs as much bus time as a write
_PARK_ATTEMPTS = 3
_NEAR_REST_RAD = 0.3  # the arm lies where it is switched off
_SETTLE_TIME_S = 1.0


class MotionError(DeviceError):
    """The arm did not do what it was told, or a plan does not fit it; the arm holds."""


class Stopped(Exception):
    """The caller's stop event was set; the arm holds."""


class _Terminated(SystemExit):
    """SIGTERM or SIGHUP as an exception, so that the arm parks on the way out; the exit code is 128 + signal."""


class Controller:
    """Runs trajectories on an arm.

    As a context manager it enables the arm on entry and, on any way out (an error, Ctrl-C, SIGTERM, a closed
    terminal), parks at ``rest_rad`` before torque goes off. One motion runs at a time; parking stops one that runs in
    another thread.

    Args:
        arm: an open arm, torque off. The gripper is its last joint.
        tracer: gets one ``actuate`` duration for each cycle.
        rest_rad: (n,) folded and supported: torque may go off there.
        ready_rad: (n,) clear of the table: parking from far away goes there first, so as not to sweep over it.
        rate_hz: of setpoints. At each cycle no setpoint moves further than twice the planner's velocity limit allows.
    """

    def __init__(
        self,
        arm: Arm,
        tracer: Tracer,
        rest_rad: ArrayLike | None = None,
        rate_hz: float = RATE_HZ,
        ready_rad: ArrayLike | None = None,
    ) -> None:
        self.arm = arm
        self.tracer = tracer
        self.rest_rad: Array | None = None if rest_rad is None else np.asarray(rest_rad, dtype=float)
        self.ready_rad: Array | None = None if ready_rad is None else np.asarray(ready_rad, dtype=float)
        self.period_s = 1.0 / rate_hz
        self.max_step_rad = 2.0 * VELOCITY_RAD_S * self.period_s
        self._setpoint_rad: Array | None = None
        self._motion = threading.Lock()
        self._abort = threading.Event()
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Controller:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    self._previous_handlers[number] = signal.signal(number, _raise_terminated)
        try:
            self.startup()
        except BaseException:
            # An aborted start must not leave the arm energized; it has not moved, so it is where it lay. Where enabling
            # itself failed, the arm has put torque back as it was: cutting it could drop an arm found in the air.
            try:
                if self.arm.torque_on:
                    self.arm.disable()
            finally:
                self._restore_handler()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            _unless_interrupted(self.park)
        finally:
            self._restore_handler()

    @property
    def setpoint_rad(self) -> Array:
        """(n,) the last setpoint sent: what to plan the next motion from, since the arm sags a little below it.

        Raises:
            MotionError: the arm was not started.
        """
        if self._setpoint_rad is None:
            raise MotionError("arm: not started, so it has no setpoint; call startup() first")
        return self._setpoint_rad.copy()

    def startup(self) -> Array:
        """Torque on without a movement; the measured joints (n,), which the arm now holds."""
        state = self.arm.enable()
        self._setpoint_rad = np.array(state.position_rad, dtype=float)
        return self._setpoint_rad.copy()

    def hold(self) -> None:
        """Make the measured joints the setpoint. Raises DeviceError if they cannot be read; the last setpoint stays."""
        measured = np.array(self.arm.read().position_rad, dtype=float)
        if self._setpoint_rad is not None:
            measured[-1] = self._setpoint_rad[-1]  # the gripper keeps its grip: opening it would drop what it holds
        self._setpoint_rad = measured
        self.arm.write(measured)

    def execute(self, trajectory: JointTrajectory, *, stop: threading.Event | None = None) -> None:
        """Stream a trajectory in real time, from its first to its last setpoint.

        Every cycle sends the setpoint of the present moment, at most ``max_step_rad`` from the one before; cycles that
        come late are not made up for by a jump. The gripper may lag: it closes on things.

        Raises:
            MotionError: the arm is not where the trajectory starts (nothing moves), or does not follow (it holds).
            Stopped: ``stop`` was set (it holds).
            DeviceError: the bus failed (the last setpoint holds).
        """
        with self._motion:
            self._execute(trajectory, stop)

    def _execute(self, trajectory: JointTrajectory, stop: threading.Event | None) -> None:
        measured = np.array(self.arm.read().position_rad, dtype=float)
        start = trajectory.position_rad[0]
        if start.shape != measured.shape:
            raise MotionError(f"trajectory: has {start.size} joints, the arm has {measured.size}")
        away = np.abs(start - measured)[:-1]
        if away.max() > _START_TOLERANCE_RAD:
            worst = int(away.argmax())
            raise MotionError(
                f"arm: {self.arm.joint_names[worst]} is at {measured[worst]:.2f} rad but the plan starts at "
                f"{start[worst]:.2f} rad; nothing moved; plan again from where the arm is"
            )
        previous = measured if self._setpoint_rad is None else self._setpoint_rad
        try:
            self._stream(trajectory, previous.copy(), stop)
        except BaseException:
            _quietly(self.hold)
            raise

    def park(self) -> None:
        """Go to the rest pose, then torque off. Torque stays on if the arm cannot be brought there.

        Raises:
            MotionError: the rest pose was not reached: the arm holds, with torque on.
        """
        if not self.arm.torque_on:
            return
        if self.rest_rad is None:
            raise MotionError("arm: no rest pose is known, so torque stays on; support the arm, then switch it off")
        self._abort.set()
        with self._motion:
            self._abort.clear()
            self._park(self.rest_rad)

    def _park(self, rest_rad: Array) -> None:
        error: DeviceError | None = None
        for _ in range(_PARK_ATTEMPTS):
            try:
                self.hold()
                if self.ready_rad is not None and np.abs(self.setpoint_rad - rest_rad)[:-1].max() > _NEAR_REST_RAD:
                    self._execute(plan_move(self.setpoint_rad, self._gripped(self.ready_rad)), None)
                self._execute(plan_move(self.setpoint_rad, rest_rad), None)
                self._settle(rest_rad)
                self.arm.disable()
                return
            except DeviceError as failure:
                error = failure
        raise MotionError(
            f"arm: could not be parked, so torque stays on; support it, then switch its power off ({error})"
        ) from error

    def _gripped(self, position_rad: Array) -> Array:
        """A pose with the gripper as it is told now: what is held is not dropped on the way."""
        kept = position_rad.copy()
        kept[-1] = self.setpoint_rad[-1]
        return kept

    def _stream(self, trajectory: JointTrajectory, previous: Array, stop: threading.Event | None) -> None:
        start_s = time.perf_counter()
        late_since_s = np.full(previous.size, np.inf)
        elapsed_s, cycle = 0.0, 0
        while True:
            if self._abort.is_set() or (stop is not None and stop.is_set()):
                raise Stopped("stopped on request; the arm holds")
            with self.tracer.stage("actuate"):
                goal = _sample(trajectory, elapsed_s)
                setpoint = previous + np.clip(goal - previous, -self.max_step_rad, self.max_step_rad)
                self.arm.write(setpoint)
                self._setpoint_rad = previous = setpoint
                if cycle % _CHECK_EVERY == 0:
                    self._check_tracking(setpoint, late_since_s)
            if elapsed_s >= trajectory.duration_s and np.abs(goal - setpoint).max() < 1e-9:
                return
            cycle += 1
            # Late cycles move the schedule, so that time lost on the bus does not turn into speed.
            due_s = start_s + elapsed_s + self.period_s
            now_s = time.perf_counter()
            if now_s < due_s:
                time.sleep(due_s - now_s)
            else:
                start_s += now_s - due_s
            elapsed_s += self.period_s

    def _check_tracking(self, setpoint: Array, late_since_s: Array) -> None:
        """Raises when an arm joint has been off its setpoint for too long; ``late_since_s`` (n,) is kept up to date."""
        measured = self.arm.read().position_rad
        off = np.abs(setpoint - measured) > _TRACKING_LIMIT_RAD
        off[-1] = False
        now_s = time.perf_counter()
        late_since_s[~off] = np.inf
        late_since_s[off] = np.minimum(late_since_s[off], now_s)
        too_long = now_s - late_since_s > _TRACKING_TIME_S
        if too_long.any():
            joint = int(np.flatnonzero(too_long)[0])
            raise MotionError(
                f"arm: {self.arm.joint_names[joint]} does not follow: told {setpoint[joint]:.2f} rad, is at "
                f"{measured[joint]:.2f} rad; it holds; look for something in its way, or a servo in overload"
            )

    def _settle(self, goal_rad: Array) -> None:
        """Wait until the arm joints have come near ``goal_rad``. Raises MotionError when they do not."""
        end_s = time.perf_counter() + _SETTLE_TIME_S
        while True:
            away = np.abs(self.arm.read().position_rad - goal_rad)[:-1]
            if away.max() < _START_TOLERANCE_RAD:
                return
            if time.perf_counter() > end_s:
                joint = int(away.argmax())
                raise MotionError(
                    f"arm: {self.arm.joint_names[joint]} stays {away[joint]:.2f} rad from the rest pose; clear its way"
                )
            time.sleep(0.02)

    def _restore_handler(self) -> None:
        while self._previous_handlers:
            number, handler = self._previous_handlers.popitem()
            signal.signal(number, handler)


def _sample(trajectory: JointTrajectory, elapsed_s: float) -> Array:
    """The setpoint (n,) at a time, linear between samples, clamped to the ends."""
    times = trajectory.times_s
    after = int(np.clip(np.searchsorted(times, elapsed_s), 1, len(times) - 1)) if len(times) > 1 else 0
    if after == 0:
        return np.array(trajectory.position_rad[0])
    before = after - 1
    share = float(np.clip((elapsed_s - times[before]) / (times[after] - times[before]), 0.0, 1.0))
    q: Array = trajectory.position_rad[before] * (1.0 - share) + trajectory.position_rad[after] * share
    return q


def _quietly(action: Callable[[], None]) -> None:
    """Run ``action`` on the way out of another error, which must not be hidden by a second one of the device."""
    with contextlib.suppress(DeviceError):
        action()


def _unless_interrupted(action: Callable[[], None]) -> None:
    """Run ``action`` again if Ctrl-C or SIGTERM comes while it runs: an impatient user still wants the arm parked.

    Raises MotionError when it is interrupted once more: whoever insists wants the arm to stand still.
    """
    try:
        try:
            action()
        except (KeyboardInterrupt, _Terminated):
            action()
    except (KeyboardInterrupt, _Terminated):
        raise MotionError(
            "arm: parking was interrupted twice, so torque stays on; support it, then switch its power off"
        ) from None


def _raise_terminated(signum: int, frame: FrameType | None) -> None:
    raise _Terminated(128 + signum)
