"""The run's side of the Rerun view: takes down what goes on, samples the servos, hands both on every 50 ms."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calib.calibration import Calibration
from drivers.errors import DeviceError
from drivers.protocols import Frame
from drivers.robot import Robot
from edge.contract import Affordance, Task
from edge.control.servo_loop import Cause, Cycles, ServoState
from edge.decode import Decision, Event, OutputEvent, TextEvent, WaypointEvent
from edge.geometry import Grasp
from edge.loop import Order, Outcome
from edge.rerun_view import destination
from edge.rerun_view.messages import Batch, Begin, Picture, Servos, Told
from edge.trace import STAGES, Tracer
from edge.watch import Watcher

_PERIOD_S = 0.05
_PICTURE_S, _DEPTH_S = 0.1, 0.5
_DEPTH_STEP = 2
_CURVES_S = 0.25  # what comes hundreds of times a second is handed on in pieces of this length
_STUCK_S = 20.0  # longer than the process needs to say itself that nobody takes what it sends
_LIVE_CLOSE_S, _FILE_CLOSE_S = 1.5, 30.0


class SeenServos(Protocol):
    """What shows the servo loop's cycles: `ServoLoop`, or `ServoWatch` from another process."""

    def state(self) -> ServoState: ...

    def cycles(self, since: int = 0) -> tuple[int, Cycles]: ...


class RerunView(Watcher):
    """Shows a run in Rerun; subscribe it through `Watchers`, which drops it when the viewer is gone.

    Its methods only take note. A thread hands on what was noted to another process, ten images a second at most (the
    newest; and each that is decided on) and depth twice a second; where that process does not keep up, images are left
    out and nothing else is.

    Args:
        where: a file FILE.rrd that does not exist yet, the address rerun+http://HOST:PORT/proxy of a viewer, or None
            for one on this machine, which is started unless one runs.
        calibration: of the camera; images are shown with it applied.
        servos: the running loop.
        tracer: whose stages are shown.

    What ``where`` names must have been seen to be usable: `edge.rerun_view.destination.check`.
    """

    def __init__(
        self, where: str | None, robot: Robot, calibration: Calibration, servos: SeenServos, tracer: Tracer
    ) -> None:
        self._calibration, self._servos, self._tracer = calibration, servos, tracer
        self._names = robot.joint_names
        self._close_s = _FILE_CLOSE_S if destination.is_file(where) else _LIVE_CLOSE_S
        self._told: deque[Told] = deque()
        self._decided_on: deque[Frame] = deque()
        self._newest: Frame | None = None
        self._picture_s = self._depth_s = self._curves_s = float("-inf")
        self._seen_cycle = servos.cycles(0)[0]
        self._seen_span = tracer.written
        self._problem = ""
        self._sent_s = time.monotonic()
        self._closing = threading.Event()
        command = [sys.executable, "-m", "edge.rerun_view.process", *([where] if where else [])]
        # A session of its own: the terminal's Ctrl-C is for the run, whose end is shown as well.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        begin = Begin(robot, calibration.mount, calibration.T_mount_camera)
        self._thread = threading.Thread(target=self._run, args=(begin,), name="rerun view", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show what waits. A viewer that does not take it within seconds never gets it. May be called twice."""
        self._closing.set()
        end_s = time.monotonic() + self._close_s
        self._thread.join(self._close_s)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, end_s - time.monotonic()))
        self._process.kill()
        self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    # The watcher

    def frame(self, frame: Frame) -> None:
        self._newest = frame

    def ordered(self, order: Order) -> None:
        self._tell("ordered", order.instruction)

    def said(self, text: str) -> None:
        self._tell("said", text)

    def asked(self, task: Task, frame: Frame) -> None:
        self._decided_on.append(frame)
        self._tell("asked", task)

    def event(self, event: Event) -> None:
        match event:
            case TextEvent():
                self._tell("text", event.text)
            case WaypointEvent():
                self._tell("point", *event.point)
            case OutputEvent(Affordance() as box):
                self._tell("box", *box.corners)

    def decided(self, task: Task, decision: Decision) -> None:
        found = "nothing found" if decision.answer.output is None else f"sure to {decision.confidence:.0%}"
        text = f"{task}: {found}, {decision.n_tokens} tokens in {decision.took_s:.2f} s"
        self._tell("said", "; ".join(filter(None, (text, decision.unsure))))

    def planned(self, grasp: Grasp, waypoints_m: NDArray[np.float64] | None) -> None:
        self._tell("planned", grasp.position_base_m, grasp.jaw_axis, grasp.opening_m, grasp.covariance_m2, waypoints_m)

    def ended(self, outcome: Outcome) -> None:
        self._tell("said", outcome.reason, "INFO" if outcome.done else "WARN")

    def _tell(self, what: str, *args: Any) -> None:
        """Raises DeviceError when nobody takes it any more."""
        if not self._problem and time.monotonic() > self._sent_s + _STUCK_S:
            self._problem = f"nothing was taken for {_STUCK_S:g} s"
        if self._problem:
            raise DeviceError(f"--rerun: {self._problem}")
        self._told.append(Told(time.monotonic(), what, args))

    # The thread

    def _run(self, begin: Begin) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            with self._process.stdin as pipe:
                pickle.dump(begin, pipe)
                last = False
                while not last:
                    last = self._closing.wait(_PERIOD_S)
                    pickle.dump(self._batch(last), pipe)
                    pipe.flush()
                    self._sent_s = time.monotonic()
        except OSError:  # the process has ended, and says why
            line = self._process.stdout.read().decode(errors="replace").strip()
            self._problem = line or f"its process ended with code {self._process.wait()}"
        except Exception as error:  # no frame and no state that is not as expected may go unsaid
            self._problem = " ".join(f"{type(error).__name__}: {error}".split())

    def _batch(self, last: bool) -> Batch:
        """All that was noted since the one before."""
        told = [self._told.popleft() for _ in range(len(self._told))]
        # Those that are decided on come with the calibration applied, the others as the camera gave them.
        pictures = [self._picture(self._decided_on.popleft(), 1.0) for _ in range(len(self._decided_on))]
        newest, self._newest = self._newest, None
        if newest is not None and newest.t_s >= self._picture_s + _PICTURE_S:
            pictures.append(self._picture(newest, self._calibration.depth_scale))
        curves = last or time.monotonic() >= self._curves_s + _CURVES_S
        if curves:
            self._curves_s = time.monotonic()
        return Batch(told, pictures, self._sample(curves), self._passes() if curves else {})

    def _picture(self, frame: Frame, depth_scale: float) -> Picture:
        height, width = frame.rgb.shape[:2]
        intrinsics = self._calibration.camera.intrinsics_at(width, height)
        self._picture_s = frame.t_s
        if frame.depth_m is None or frame.t_s < self._depth_s + _DEPTH_S:
            return Picture(frame.t_s, frame.rgb, intrinsics)
        self._depth_s = frame.t_s
        depth_mm = 1e3 * depth_scale * frame.depth_m[::_DEPTH_STEP, ::_DEPTH_STEP]
        whole = np.clip(np.nan_to_num(depth_mm), 0, np.iinfo(np.uint16).max).astype(np.uint16)
        return Picture(frame.t_s, frame.rgb, intrinsics, whole, _DEPTH_STEP)

    def _sample(self, curves: bool) -> Servos | None:
        try:
            state = self._servos.state()
        except DeviceError:  # the loop has ended; whoever moves the arm says so
            return None
        cycles = None
        if curves:
            self._seen_cycle, cycles = self._servos.cycles(self._seen_cycle)
        return Servos(
            state.t_s,
            _words(state, self._names),
            state.position_rad,
            state.load,
            state.temperature_c,
            state.voltage_v,
            None if cycles is None else (cycles.t_s, cycles.setpoint_rad, cycles.position_rad),
        )

    def _passes(self) -> dict[str, list[tuple[float, float]]]:
        spans = self._tracer.spans(self._seen_span)
        self._seen_span = max(self._seen_span, self._tracer.dropped) + len(spans)
        passes: dict[str, list[tuple[float, float]]] = {}
        for span in spans:
            if span.name in STAGES:
                passes.setdefault(span.name, []).append((span.ended_ns * 1e-9, span.duration_s))
        return passes


def _words(state: ServoState, names: tuple[str, ...]) -> str:
    """The state of the safety machine, and why."""
    if state.cause == Cause.NONE:
        return state.state.name.lower()
    why = state.cause.name.lower().replace("_", " ")
    joint = f" ({names[state.cause_joint]})" if 0 <= state.cause_joint < len(names) else ""
    return f"{state.state.name.lower()}: {why}{joint}"
