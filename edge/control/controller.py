"""The commanding side of the servo loop: bring the arm up, run motions, hold, park; leave it as safe as it was found.

An arm that does not follow, does not answer, or is told to stop holds where it is; it never goes limp in the air:
torque goes off only after parking.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from types import FrameType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.errors import DeviceError
from drivers.protocols import JointState
from drivers.recording import Recorder
from drivers.robot import Robot
from edge.control.causes import why
from edge.control.loop_arm import LoopArm
from edge.control.servo_loop import RATE_HZ, Cause, RefusedError, ServoLoop, ServoState, State
from edge.motion import JointTrajectory, plan_move, plan_rest
from edge.plan_check import PlanChecker
from edge.stop_input import StopInput, StopWatch, open_stop_inputs
from edge.trace import Tracer

Array = NDArray[np.float64]

_START_TOLERANCE_RAD = 0.12  # a plan starts where the arm is; further off, it was made for another moment
_POLL_S = 0.01
_FIRST_READING_S = 1.0
_REST_TIMEOUT_S = 5.0  # for a braking arm to stand still
_BACK_S = 10.0  # for a bus that was lost to come back
_RESUMES = 5  # of one motion, after the bus was lost
_PARK_ATTEMPTS = 3
_NEAR_REST_RAD = 0.3  # the arm lies where it is switched off
_SETTLE_TIME_S = 1.0
_RECORD_EVERY = 4  # cycles: 50 a second are kept
_JOG_REACH_S = 0.25  # how far ahead a jog plans; it decelerates when no other comes


class MotionError(DeviceError):
    """The arm did not do what it was told, or a plan does not fit it; the arm holds."""


class Stopped(Exception):
    """The caller's stop event was set; the arm holds."""


class _Terminated(SystemExit):
    """SIGTERM or SIGHUP as an exception, so that the arm parks on the way out; the exit code is 128 + signal."""


class Controller:
    """An arm that runs trajectories.

    A context manager: on entry it starts the servo loop and enables the arm, without a movement; an entry that fails
    leaves the arm as it was found. On any way out (an error, Ctrl-C, SIGTERM, a closed terminal) it parks at the
    robot's rest pose before torque goes off; only where `stop` was called it leaves the arm holding, since nobody but a
    person may say that it can move again. One motion runs at a time; parking ends one that runs in another thread.

    Args:
        robot: its rest pose is folded and supported, torque may go off there; its ready pose is clear of the table, and
            parking from far away goes there first.
        port: instead of the robot file's.
        tracer: gets a stage ``actuate`` for each cycle of a motion: from its begin to the servos' last answer; and a
            span ``bus`` for each request to single servos.
        stop_inputs: whatever else may stop the arm, closed with it; those of the robot file if left out.
        recorder: gets setpoints, joint states and events; not closed.
        rate_hz: of setpoints.
        realtime: ask for real-time priority; ``messages`` says what was refused.
    """

    def __init__(
        self,
        robot: Robot,
        port: str | None = None,
        tracer: Tracer | None = None,
        *,
        stop_inputs: Sequence[StopInput] | None = None,
        recorder: Recorder | None = None,
        rate_hz: float = RATE_HZ,
        realtime: bool = True,
    ) -> None:
        self.robot = robot
        self.tracer = tracer or Tracer()
        self.recorder = recorder
        self.messages: list[str] = []
        self._port, self._rate_hz, self._realtime = port, rate_hz, realtime
        self._stop_inputs: Sequence[StopInput] | None = stop_inputs
        self._checker = PlanChecker(robot)
        self._running = ExitStack()
        self._loop: ServoLoop | None = None
        self._arm: LoopArm | None = None
        self._motion = threading.Lock()
        self._abort = threading.Event()
        self._stop_reason = ""
        self._lifted = 0  # `ServoLoop.stop_calls` when a person lifted them
        self._seen_cycle = 0
        self._previous_handlers: dict[int, Any] = {}

    @property
    def loop(self) -> ServoLoop:
        """The running servo loop. Raises MotionError when the arm was not started."""
        if self._loop is None:
            raise MotionError("arm: not started; use the controller as a context manager")
        return self._loop

    @property
    def arm(self) -> LoopArm:
        """The arm that the loop moves, for whoever reads it. Raises MotionError when it was not started."""
        if self._arm is None:
            raise MotionError("arm: not started; use the controller as a context manager")
        return self._arm

    def __enter__(self) -> Controller:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    self._previous_handlers[number] = signal.signal(number, _raise_terminated)
        try:
            self._bring_up()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._stop_reason or self.stopped:
                reason = self._stop_reason or "stop was called"
                raise MotionError(
                    f"arm: stopped ({reason}), so it was not parked: it holds, with torque on; when its way "
                    "is free, `vlar1 arm park` brings it to rest"
                )
            _unless_interrupted(lambda: self._bring_to_rest(lift=False))
        finally:
            self._let_go()

    # Up and down

    def _bring_up(self) -> None:
        """Step by step, each undone when a later one fails."""
        self._loop = self._running.enter_context(
            ServoLoop(self.robot, self._port, rate_hz=self._rate_hz, realtime=self._realtime)
        )
        self.messages = self._loop.messages
        self._arm = LoopArm(self._loop, lambda: self.tracer)
        self._first_reading()
        if self._stop_inputs is None:
            self._stop_inputs = open_stop_inputs(self.robot.safety.stop_inputs)
        try:
            self._loop.arm(self._arm.enable().position_rad)
            if self._stop_inputs:
                self._running.enter_context(StopWatch(self._stop_inputs, self.stop))
        except BaseException:
            # It has not moved, so it is where it lay; an arm found in the air, with torque on, keeps it.
            if self._arm.torque_on:
                with suppress(DeviceError):
                    self._loop.disarm()
                self._arm.undo_enable()
            raise
        self._note("armed")

    def _first_reading(self) -> None:
        deadline_s = time.monotonic() + _FIRST_READING_S
        while not (self.loop.state().position_s > 0).all():
            if time.monotonic() > deadline_s:
                self.arm.read()  # says which are silent
                return
            time.sleep(self.loop.period_s)

    def _let_go(self) -> None:
        """End the loop's process and whatever watched; torque stays as it is."""
        try:
            if self._loop is not None and self._loop.alive:
                self._drain()
        except DeviceError:
            pass
        try:
            self._running.close()
        finally:
            for one in self._stop_inputs or ():
                one.close()
            while self._previous_handlers:
                number, handler = self._previous_handlers.popitem()
                signal.signal(number, handler)

    # State

    @property
    def setpoint_rad(self) -> Array:
        """(n,) the last setpoint sent: what to plan the next motion from, since the arm sags a little below it."""
        return self.loop.state().setpoint_rad

    @property
    def stopped(self) -> bool:
        """Whether a stop is in force: nothing moves before `restart`. Costs next to nothing while none was said."""
        with suppress(DeviceError):
            return self.loop.stop_calls != self._lifted and self.loop.state().state == State.STOPPED
        return False

    def state(self) -> ServoState:
        """The latest cycle of the loop."""
        return self.loop.state()

    def read(self) -> JointState:
        """Measured joints, read after the call. Raises DeviceError when a servo is not heard."""
        return self.arm.read()

    # Motions

    def check(self, trajectory: JointTrajectory) -> None:
        """Raises LimitError, naming the limit, for a trajectory that `execute` would refuse."""
        self._checker.check(trajectory.position_rad)

    def execute(self, trajectory: JointTrajectory, *, stop: threading.Event | None = None) -> None:
        """Run a trajectory from its first to its last setpoint. The gripper may lag: it closes on things. Where the bus
        is lost on the way and comes back, the arm goes on from where it stands.

        Raises:
            LimitError: it would break a limit (nothing moves).
            MotionError: the arm is not where it starts (nothing moves), or something ended it (the arm holds).
            Stopped: ``stop`` was set (the arm holds).
            DeviceError: the bus is lost and does not come back, a servo is too hot or short of voltage.
        """
        with self._motion:
            self._execute(trajectory, stop)

    def move_to(self, position_rad: ArrayLike) -> None:
        """Straight through joint space to (n,). Raises as `execute` does."""
        self.execute(plan_move(self.setpoint_rad, position_rad))

    def jog(self, joint: int, velocity_rad_s: float) -> None:
        """Move one joint, for a quarter of a second unless called again; it returns at once.

        Raises MotionError when the arm does not take it; it holds then.
        """
        with self._motion:
            position = self.loop.state().ahead_rad  # from where the last call's motion leads
            velocity = np.zeros_like(position)
            velocity[joint] = velocity_rad_s
            times = np.array([0.0, _JOG_REACH_S / 2, _JOG_REACH_S])
            way = position + np.outer([0.0, _JOG_REACH_S / 2, 0.75 * _JOG_REACH_S], velocity)
            way = np.clip(way, self.robot.lower_rad, self.robot.upper_rad)
            self._checker.check(np.vstack([position, way[1:]]))
            self._move(JointTrajectory(times, way), velocity_rad_s=np.array([velocity, velocity, 0.0 * velocity]))

    def hold(self) -> None:
        """Decelerate and stand still; returns once the arm does. A motion that runs elsewhere ends with MotionError."""
        self.loop.hold()
        self._await_rest()

    def stop(self, reason: str = "stop was called") -> None:
        """Decelerate and hold, latched: nothing moves before `restart`. From any thread; never waits."""
        self._stop_reason = self._stop_reason or reason
        if self._loop is not None:
            self._loop.stop()

    def restart(self) -> None:
        """Out of a stop or a hold, once the arm is heard: servos that lost their torque get it back where they are.

        Raises DeviceError when a servo is not heard or stays without torque; the arm holds.
        """
        with self._motion:
            if self.arm.torque_on:
                self._restart(lift=True)

    def park(self) -> None:
        """Go to the rest pose, also out of a stop, then torque off. Torque stays on if it cannot be brought there.

        Raises:
            MotionError: the rest pose was not reached: the arm holds, with torque on.
        """
        self._bring_to_rest(lift=True)

    def _bring_to_rest(self, lift: bool) -> None:
        if self._arm is None or not self._arm.torque_on:
            return
        self._abort.set()
        with self._motion:
            self._abort.clear()
            self._park(lift)

    def _execute(
        self,
        trajectory: JointTrajectory,
        stop: threading.Event | None,
        parking: bool = False,
        resumes: int = _RESUMES,
    ) -> None:
        if not parking:
            self.check(trajectory)
        self._check_start(trajectory)
        try:
            number = self._move(trajectory, parking=parking)
            state = self._follow(number, stop)
        except BaseException:
            # Of whatever kind: what was started must not go on without its commander.
            with suppress(DeviceError):
                if self.loop.state().state == State.MOVING:
                    self.loop.hold()
                    self._await_rest()
            raise
        if state.state in (State.ARMED, State.MOVING):
            return
        error = self._ended(state)
        if state.cause == Cause.BUS_LOST and not state.released.any() and resumes > 0:
            # The servos kept their torque and the arm stands on its way: nobody need decide anew.
            self._execute(plan_rest(trajectory, self.setpoint_rad), stop, parking, resumes - 1)
        else:
            raise error

    def _move(self, trajectory: JointTrajectory, *, parking: bool = False, velocity_rad_s: Array | None = None) -> int:
        state = self.loop.state()
        if state.state == State.STOPPED:
            raise MotionError(f"arm: stopped ({self._stop_reason or 'stop was called'}); restart it first")
        if state.state == State.HOLDING:
            if state.released.any():
                self._restart(lift=False)
            self._await_rest()
        return self.loop.move(trajectory.times_s, trajectory.position_rad, velocity_rad_s, parking=parking)

    def _follow(self, number: int, stop: threading.Event | None) -> ServoState:
        """Wait for the end of a plan, heard from all the while."""
        while True:
            self.loop.heard()
            state = self.loop.state()
            self._drain()
            if state.plan != number or state.state != State.MOVING:
                return state
            if self._abort.is_set() or (stop is not None and stop.is_set()):
                self.loop.hold()
                self._await_rest()
                raise Stopped("stopped on request; the arm holds")
            time.sleep(_POLL_S)

    def _check_start(self, trajectory: JointTrajectory) -> None:
        measured = self.read().position_rad
        start = trajectory.position_rad[0]
        if start.shape != measured.shape:
            raise MotionError(f"trajectory: has {start.size} joints, the arm has {measured.size}")
        away = np.abs(start - measured)[:-1]
        if away.max() > _START_TOLERANCE_RAD:
            worst = int(away.argmax())
            raise MotionError(
                f"arm: {self.robot.joint_names[worst]} is at {measured[worst]:.2f} rad but the plan starts at "
                f"{start[worst]:.2f} rad; nothing moved; plan again from where the arm is"
            )

    def _ended(self, state: ServoState) -> DeviceError:
        """Why a motion ended before its time. A bus that comes back, a servo that was reset are made good first."""
        self._note("motion ended", why(state, self.robot.joint_names))
        if state.state == State.STOPPED:
            self._await_rest()
            return self._is_stopped()
        reason = why(state, self.robot.joint_names)
        if state.cause in (Cause.BUS_LOST, Cause.SERVO_SILENT, Cause.SERVO_RESET):
            began_s = time.monotonic()
            self._await_bus(reason)
            self._restart(lift=False)
            return MotionError(f"arm: {reason}; it is back after {time.monotonic() - began_s:.1f} s and holds")
        self._await_rest()
        if state.cause in (Cause.TEMPERATURE, Cause.VOLTAGE):
            return DeviceError(f"arm: {reason}; it holds")
        return MotionError(f"arm: {reason}; it holds")

    def _await_bus(self, reason: str) -> None:
        deadline_s = time.monotonic() + _BACK_S
        while True:
            with suppress(DeviceError):
                self.read()
                return
            if time.monotonic() > deadline_s or not self.loop.alive:
                raise DeviceError(
                    f"arm: {reason}, and is not back after {_BACK_S:g} s; the servos hold as long as they have power"
                )
            time.sleep(0.05)

    def _await_rest(self) -> None:
        """Until nothing moves. Raises MotionError when that does not come."""
        deadline_s = time.monotonic() + _REST_TIMEOUT_S
        while not (state := self.loop.state()).settled or state.state == State.MOVING:
            if time.monotonic() > deadline_s:
                raise MotionError("arm: does not come to rest; cut its power if it still moves")
            time.sleep(self.loop.period_s)

    def _restart(self, lift: bool) -> None:
        """Send setpoints again, once the arm is heard; out of a stop only where ``lift`` is set, at a person's word. A
        stop that comes meanwhile counts.

        Raises MotionError where the arm is stopped and is to stay so.
        """
        if self.loop.state().state in (State.ARMED, State.MOVING):
            return
        stops = self.loop.stop_calls
        self._await_rest()
        self.read()  # never on from an old reading
        state = self.loop.state()
        if lift:
            self._stop_reason = ""
        elif state.state == State.STOPPED:
            raise self._is_stopped()
        if state.state == State.DISARMED or state.released.any() or (state.torque == 0).any():
            # Its goals would be overwritten by the loop's while they are set, so the loop is silent for a moment.
            self.loop.disarm()
            self.loop.arm(self.arm.enable().position_rad)
        elif lift:
            self.loop.restart(state.setpoint_rad)
        else:
            try:
                self.loop.resume(state.setpoint_rad)
            except RefusedError:
                if self.stopped:
                    raise self._is_stopped() from None
                raise
        if self.loop.stop_calls != stops:  # said just before, or while the loop had nothing to stop
            self.loop.stop()
        elif lift:
            self._lifted = stops
        self._note("restarted")

    def _is_stopped(self) -> MotionError:
        return MotionError(f"arm: stopped ({self._stop_reason or 'stop was called'}); it holds; restart it first")

    def _park(self, lift: bool) -> None:
        error: DeviceError | None = None
        resting = False
        for attempt in range(_PARK_ATTEMPTS):
            try:
                if attempt and self.loop.state().state == State.STOPPED:
                    break  # a stop while it parks is a stop
                if not resting:
                    self._go_to_rest(lift and not attempt)
                resting = True
                self.loop.disarm()
                self.arm.disable()
                self._note("parked")
                return
            except DeviceError as failure:
                error = failure
        raise MotionError(
            f"arm: could not be parked, so torque stays on; support it, then switch its power off ({error})"
        ) from error

    def _go_to_rest(self, lift: bool) -> None:
        rest_rad, ready_rad = self.robot.rest_rad, self.robot.ready_rad
        if self.loop.state().state == State.MOVING:
            self.hold()
        self._restart(lift)
        if np.abs(self.setpoint_rad - rest_rad)[:-1].max() > _NEAR_REST_RAD:
            self._execute(plan_move(self.setpoint_rad, self._gripped(ready_rad)), None, parking=True)
        self._execute(plan_move(self.setpoint_rad, rest_rad), None, parking=True)
        self._settle(rest_rad)

    def _gripped(self, position_rad: Array) -> Array:
        """A pose with the gripper as it is told now: what is held is not dropped on the way."""
        kept = position_rad.copy()
        kept[-1] = self.setpoint_rad[-1]
        return kept

    def _settle(self, goal_rad: Array) -> None:
        """Wait until the arm joints have come near ``goal_rad``. Raises MotionError when they do not."""
        end_s = time.monotonic() + _SETTLE_TIME_S
        while True:
            away = np.abs(self.read().position_rad - goal_rad)[:-1]
            if away.max() < _START_TOLERANCE_RAD:
                return
            if time.monotonic() > end_s:
                joint = int(away.argmax())
                name = self.robot.joint_names[joint]
                raise MotionError(f"arm: {name} stays {away[joint]:.2f} rad from the rest pose; clear its way")
            time.sleep(0.02)

    # Whoever watches

    def _drain(self) -> None:
        """What the loop did since the last call, to the tracer and the recorder."""
        self._seen_cycle, cycles = self.loop.cycles(self._seen_cycle)
        moving = cycles.state == State.MOVING
        for t_s, busy_s, written in zip(
            *(a[moving].tolist() for a in (cycles.t_s, cycles.busy_s, cycles.written)), strict=True
        ):
            self.tracer.add("actuate", busy_s, t_s, "servo loop", setpoints=int(written))
        if self.recorder is not None:
            for i in range(0, len(cycles.t_s), _RECORD_EVERY):
                t_s = float(cycles.t_s[i])
                if cycles.written[i]:
                    self.recorder.setpoint(t_s, cycles.setpoint_rad[i].astype(float))
                self.recorder.joints(t_s, cycles.position_rad[i].astype(float))

    def _note(self, name: str, text: str = "") -> None:
        if self.recorder is not None:
            self.recorder.event(time.monotonic(), name, text)


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
