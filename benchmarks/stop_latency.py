"""How long from a stop, or from the commander's death, until the wire carries a decelerating setpoint?

``python -m benchmarks.stop_latency [--quick] [--stops N] [--json FILE]``. A commander in a process of its own sends an
emulated arm (again a process of its own) across its range, two joints at 2.45 rad/s, and at a random moment

- ``stop``: calls `ServoLoop.stop`, which is all that `Controller.stop` does; time runs from before the call;
- ``killed``: gets SIGKILL; time runs from before the signal is sent;
- ``hung``: gets SIGSTOP; time runs from its last sign of life, and the arm's ``command_timeout_s`` is part of it.

All three idle, and while the commander's process also decides without a pause on every core (`servo_jitter.Inference`):
a killed process closes what told the servo loop that it lives only after its memory is gone, so the model has to be in
that memory. The setpoints' moments are those at which the emulator heard them, so they include its own wait for a core.

What decelerates first is smaller than a count: the mean that bounds the jerk spreads the first braking step out to
0.016 counts. It is seen all the same. The joints travel exactly 8 counts a cycle, from a start 0.492 counts below
a whole one, so that each setpoint is rounded up by a hair: one that falls back by a 120th of a count or more is rounded
down, and its step is 7. Until the stop every step has to be 8, or the run is left out and counted as unclear.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from benchmarks.servo_jitter import PERIOD_S, Inference, InOwnProcess, WireArm
from drivers.arm.tables import RAD_PER_COUNT
from drivers.errors import DeviceError, UserError
from drivers.robot import Robot, load_robot
from edge.control import ServoLoop, State
from edge.control.loop_arm import LoopArm

Array = NDArray[np.float64]

STOPS = 25
KINDS = ("hung", "stop", "killed")  # the last needs a new commander each time
STEP_COUNTS = 8  # a cycle
RAMP_CYCLES, STEADY_CYCLES = 82, 200
FRACTION = -0.492  # of a count
DASHING = (0, 4)  # joints that dash
START_RAD = (-1.76, -1.76)
HEARD_EVERY_S = 0.01  # as `Controller` does while it waits
SETTLE_S = 0.1  # until the wire shows the steady part
REACT_S = 0.35  # of the steady part are kept for what follows
STILL_CYCLES = 40
TIMEOUT_S, BACK_S = 5.0, 20.0
FIGURES = ("to_decelerating_ms", "to_standstill_ms", "hold_began_ms")


def start_pose(robot: Robot) -> Array:
    pose = robot.ready_rad.copy()
    for joint, about_rad in zip(DASHING, START_RAD, strict=True):
        spec = robot.arm.joints[joint]
        whole = round(spec.zero_count + spec.direction * about_rad / RAD_PER_COUNT)
        pose[joint] = (whole + FRACTION * spec.direction - spec.zero_count) * spec.direction * RAD_PER_COUNT
    return pose


def dash_plan(robot: Robot) -> tuple[Array, Array, Array]:
    """(4,) times, (4, n) positions and velocities: up to speed, steady, down again."""
    ramp_s, steady_s = RAMP_CYCLES * PERIOD_S, STEADY_CYCLES * PERIOD_S
    times_s = np.cumsum([0.0, ramp_s, steady_s, ramp_s])
    ramp, steady = STEP_COUNTS * RAMP_CYCLES / 2, STEP_COUNTS * STEADY_CYCLES
    away = np.cumsum([0.0, ramp, steady, ramp]) * RAD_PER_COUNT
    positions = np.repeat(start_pose(robot)[None], 4, axis=0)
    velocities = np.zeros_like(positions)
    for joint in DASHING:
        positions[:, joint] += away
        velocities[1:3, joint] = STEP_COUNTS * RAD_PER_COUNT / PERIOD_S
    return times_s, positions, velocities


class Commander:
    """The commanding process: brings the arm up, sends it across, gives signs of life.

    Args:
        heard_s: where the moment of the last sign of life is left.
        streams: of inference beside.
    """

    def __init__(self, robot: Robot, port: str, heard_s: Any, streams: int) -> None:
        self._robot, self._heard_s = robot, heard_s
        self._running = ExitStack()
        if streams:
            self._running.enter_context(Inference(streams))
        self._loop = self._running.enter_context(ServoLoop(robot, port, realtime=False))
        self._until(lambda: bool((self._loop.state().position_s > 0).all()))
        self._arm = LoopArm(self._loop)
        self._loop.arm(self._arm.enable().position_rad)
        threading.Thread(target=self._live, daemon=True).start()

    def servo_pid(self) -> int:
        return self._loop.pid

    def to_start(self) -> None:
        """Back to where a dash begins, out of whatever ended the last one; on a busy machine at the second attempt."""
        deadline_s = time.monotonic() + BACK_S
        while True:
            try:
                self._go_to_start()
                return
            except DeviceError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(10 * PERIOD_S)

    def dash(self) -> float:
        """Set off; when, by ``time.monotonic()``."""
        times_s, positions, velocities = dash_plan(self._robot)
        self._loop.move(times_s, positions, velocities)
        state = self._loop.state()
        return state.t_s - state.plan_elapsed_s

    def stop_at(self, at_s: float) -> float:
        """Call the loop's stop at that moment; when it was called."""
        time.sleep(max(at_s - time.monotonic(), 0.0))
        called_s = time.monotonic()
        self._loop.stop()
        return called_s

    def hold_began_s(self) -> float:
        return self._loop.state().hold_began_s

    def close(self) -> None:
        self._running.close()

    def _go_to_start(self) -> None:
        self._until(lambda: self._loop.state().settled)
        if self._loop.state().released.any():
            self._loop.disarm()
        if self._loop.state().state == State.DISARMED:
            self._loop.arm(self._arm.enable().position_rad)
        elif self._loop.state().state in (State.STOPPED, State.HOLDING):
            self._loop.restart(self._loop.state().setpoint_rad)
        here, start = self._loop.state().setpoint_rad, start_pose(self._robot)
        way_s = max(float(np.abs(start - here).max()) / 1.6, 10 * PERIOD_S)
        self._loop.move(np.array([0.0, way_s]), np.array([here, start]))
        self._until(lambda: self._loop.state().state != State.MOVING)
        if self._loop.state().state != State.ARMED:
            raise DeviceError(f"arm: holds ({self._loop.state().cause.name}) on its way to the start")

    def _live(self) -> None:
        with suppress(DeviceError):
            while self._loop.alive:
                now_s = time.monotonic()
                self._loop.heard()
                self._heard_s.value = now_s
                time.sleep(HEARD_EVERY_S)

    def _until(self, condition: Any) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline_s:
                state = self._loop.state()
                raise DeviceError(f"arm: is {state.state.name} ({state.cause.name}) after {TIMEOUT_S:g} s")
            time.sleep(PERIOD_S)


class Bench:
    """One arm on the wire, and a commander whenever one is needed; a context manager."""

    commanded_by: type[Commander] = Commander

    def __init__(self, streams: int) -> None:
        self._robot, self._streams = load_robot(), streams
        self._context = multiprocessing.get_context("spawn")
        self._arm = InOwnProcess(WireArm, self._robot, start_pose(self._robot))
        self._commander: InOwnProcess | None = None
        self._servo_pid = 0
        self.rng = np.random.default_rng(0)

    def run(self, kind: str) -> dict[str, float] | None:
        """Milliseconds of one stop; None where it could not be told when it began."""
        commander = self._with_commander()
        steady_s, at_s, last_s = self._set_off(commander)
        found: dict[str, float] = {}
        if kind == "stop":
            at_s = commander.call("stop_at", at_s)
        else:
            time.sleep(max(at_s - time.monotonic(), 0.0))
            at_s = time.monotonic()
            os.kill(commander.pid, signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
        if kind == "hung":
            time.sleep(2 * PERIOD_S)  # the signal is on its way
            at_s = self._heard_s.value
        t_s, counts = self._until_still()
        if kind == "stop":
            found["hold_began_ms"] = (commander.call("hold_began_s") - at_s) * 1e3
        elif kind == "killed":
            self._bury()
        else:
            os.kill(commander.pid, signal.SIGCONT)
        times_s = None
        if at_s <= last_s:
            times_s = decelerating_and_still(t_s, counts[:, DASHING], steady_s, at_s)
        if times_s is None:
            return None
        found["to_decelerating_ms"], found["to_standstill_ms"] = ((moment - at_s) * 1e3 for moment in times_s)
        return found

    def _set_off(self, commander: InOwnProcess) -> tuple[float, float, float]:
        """A dash begins: from when it is steady, a random moment to stop it, and the last such."""
        commander.call("to_start")
        self._arm.call("forget")
        began_s = commander.call("dash")
        steady_s = began_s + RAMP_CYCLES * PERIOD_S + SETTLE_S
        last_s = began_s + (RAMP_CYCLES + STEADY_CYCLES) * PERIOD_S - REACT_S
        return steady_s, float(self.rng.uniform(steady_s, last_s)), last_s

    def close(self) -> None:
        if self._commander:
            self._commander.close()
        self._arm.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _with_commander(self) -> InOwnProcess:
        if self._commander is None:
            self._heard_s = self._context.RawValue("d", 0.0)
            port = self._arm.call("port")
            self._commander = InOwnProcess(self.commanded_by, self._robot, port, self._heard_s, self._streams)
            self._servo_pid = self._commander.call("servo_pid")
        return self._commander

    def _bury(self) -> None:
        """What was killed; its servo loop ends by itself, at rest, and frees the port."""
        assert self._commander
        self._commander.close()
        self._commander = None
        deadline_s = time.monotonic() + TIMEOUT_S
        while is_running(self._servo_pid):
            if time.monotonic() > deadline_s:
                raise DeviceError(f"servo loop {self._servo_pid}: goes on {TIMEOUT_S:g} s after its commander's death")
            time.sleep(0.02)

    def _until_still(self) -> tuple[Array, Array]:
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            time.sleep(0.2)
            t_s, counts = self._arm.call("goals")
            if len(counts) > STILL_CYCLES and (counts[-STILL_CYCLES:] == counts[-1]).all():
                return t_s, counts
            if time.monotonic() > deadline_s:
                raise DeviceError(f"arm: still moves {TIMEOUT_S:g} s after the stop")


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def decelerating_and_still(t_s: Array, counts: Array, steady_s: float, at_s: float) -> tuple[float, float] | None:
    """When the first setpoint was heard that falls back, and the last that moved; None where the first is unclear.

    Args:
        t_s: (m,) of setpoints; counts: (m, k) of the joints that dash.
        steady_s: from when on every step is ``STEP_COUNTS``; at_s: the stop.
    """
    steps = np.diff(counts, axis=0)
    at = t_s[1:]
    off = ((steps != STEP_COUNTS).any(axis=1)) & (at >= steady_s)
    if not off.any() or at[off.argmax()] < at_s or not ((at >= steady_s) & (at < at_s)).any():
        return None
    return float(at[off.argmax()]), float(at[np.nonzero(steps.any(axis=1))[0][-1]])


def measure(bench: Bench, kinds: Sequence[str], stops: int) -> dict[str, dict[str, object]]:
    """{kind: figures}: medians and worst of that many stops each; the bench is closed."""
    figures: dict[str, dict[str, object]] = {}
    with bench:
        for kind in kinds:
            runs: list[dict[str, float]] = []
            unclear = 0
            while len(runs) < stops:
                found = bench.run(kind)
                if found:
                    runs.append(found)
                else:
                    unclear += 1
                    if unclear > 2 * stops + 3:
                        raise DeviceError(f"{kind}: {unclear} stops of which it cannot be told when they began")
            figures[kind] = {"stops": stops, "unclear": unclear}
            for name in FIGURES:
                values = [run[name] for run in runs if name in run]
                if values:
                    figures[kind][name] = {"p50": float(np.median(values)), "worst": max(values)}
    return figures


def table_of(found: Mapping[str, Mapping[str, Mapping[str, object]]]) -> Table:
    """{mode: {kind: figures}} as a table."""
    table = Table(title="from the stop to ...")
    heads = ("", "", "decelerating p50", "worst", "standstill p50", "worst", "hold began p50", "worst", "unclear")
    for i, heading in enumerate(heads):
        table.add_column(heading, justify="right" if i > 1 else "left")
    for mode, kinds in found.items():
        for kind, row in kinds.items():
            cells = []
            for name in FIGURES:
                values: Any = row.get(name)
                cells += [f"{values['p50']:.1f}", f"{values['worst']:.1f}"] if values else ["-", "-"]
            table.add_row(mode, kind, *cells, str(row["unclear"]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stop_latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one stop of each kind, idle alone")
    parser.add_argument("--stops", type=int, default=STOPS, metavar="N", help=f"of each kind (default: {STOPS})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    if args.stops < 1:
        raise UserError(f"--stops {args.stops}: expected one or more")
    screen, cores = console(), os.cpu_count() or 1
    stops = 1 if args.quick else args.stops
    screen.print(f"{cores} cores, load {os.getloadavg()[0]:.1f} before; medians and worst of {stops} stops each, ms")
    found = {"idle": measure(Bench(0), KINDS, stops)}
    if not args.quick:
        found["load"] = measure(Bench(cores), KINDS, stops)
    screen.print(table_of(found))
    timeout_ms = load_robot().safety.command_timeout_s * 1e3
    screen.print(f"hung: {timeout_ms:.0f} ms of it are the time after which a commander counts as gone")
    if args.json:
        report = {"benchmark": "stop_latency", "machine": machine(), "command_timeout_ms": timeout_ms, **found}
        args.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    sys.exit(exit_code(main))
