"""How evenly does the servo loop run while inference takes every core, and what would a Python thread do there?

``python -m benchmarks.servo_jitter [--quick] [--realtime] [--threads N] [--json FILE]``. Two arms, each emulated on
a pseudo-terminal by a process of its own, are sent setpoints and read at 200 Hz: one by `edge.control.ServoLoop`, one
by a Python thread with an absolute schedule over the drivers' `FeetechBus`. Both run at the same time, through the same
seconds of the same load: in turns, a neighbour's burst or a moved core would meet one of them alone. The load is what
shares a process with a control thread on a robot: the shipped model decides without a pause, one stream of one ONNX
Runtime thread for each core, in the process that commands the servo loop and holds the Python thread.

Neither arm is favoured. The Python thread has its setpoints ready as counts, where the loop follows a plan within
limits; both begin anew when a cycle starts more than a tenth of a period late, and both give the servos until 0.6 of a
period to answer. A period is the time from one begin of a cycle to the next; missed are the cycles that would have fit
into a longer one. Real servos need no core of the robot's: where the system allows it (to root), the emulators come
before whatever else wants one, or inference would hold up their answers; the share of what was answered in time is told
of both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from drivers.arm import tables
from drivers.arm.feetech import FeetechBus
from drivers.arm.packets import FEETECH
from drivers.arm.tables import RAD_PER_COUNT
from drivers.errors import DeviceError, UserError
from drivers.robot import Robot, load_robot
from drivers.sim.following_arm import FollowingBank, WireTap
from drivers.sim.process import deaf_to_interrupts
from drivers.sim.servo_bus import ServoBus
from edge.control import RATE_HZ, ServoLoop, State

Array = NDArray[np.float64]

PERIOD_S = 1.0 / RATE_HZ
REALIGN, ANSWER_SHARE = 0.1, 0.6  # of a period; as in edge/native/servo_loop.cpp
SECONDS, QUICK_SECONDS = 60.0, 2.0
SPARE_S = 30.0  # of motion, for a start that takes its time
SWING_RAD, SWING_S = 0.4, 4.0
HEARD_EVERY_S, DRAIN_EVERY_S = 0.02, 1.0
CALL_TIMEOUT_S = 60.0
EMULATOR_NICE = -10
TASKS = (("affordance", "pick up the red cube"), ("trajectory", "move the red cube to the blue bowl"))
TIMES = ("p50_ms", "p99_ms", "p999_ms", "max_ms", "p999_abs_error_ms", "busy_p99_ms")


class InOwnProcess:
    """``make(*args)`` in a process of its own, by `call`; a context manager that ends it. Safe from several threads."""

    def __init__(self, make: Callable[..., object], *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        with deaf_to_interrupts():
            self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def call(self, name: str, *args: object) -> Any:
        """A method of what was made. Raises what it raises."""
        with self._lock:
            self._pipe.send((name, args))
            return self._answer()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(3.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> InOwnProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> Any:
        if not self._pipe.poll(CALL_TIMEOUT_S):
            raise DeviceError(f"process {self._process.pid}: no answer for {CALL_TIMEOUT_S:g} s")
        try:
            answer, error = self._pipe.recv()
        except EOFError:
            raise DeviceError(f"process {self._process.pid}: has ended; see what it printed above") from None
        if error is not None:
            raise error
        return answer


def _serve(pipe: Connection, make: Callable[..., object], args: Sequence[object]) -> None:
    """Until the other end is closed."""
    made: object = None
    name = ""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            answer = error = None
            try:
                if made is None:
                    made = make(*args)
                else:
                    answer = getattr(made, name)(*args)
            except Exception as failure:
                error = failure
            pipe.send((answer, error))
            name, args = pipe.recv()
    close = getattr(made, "close", None)
    if close:
        close()


def come_first() -> bool:
    """Ask that this process waits for no core: servos need none. Whether that was granted (to root, as a rule)."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, EMULATOR_NICE)
    except PermissionError:
        return False
    return True


class SteadyBank(FollowingBank):
    """Moves once a cycle instead of at every packet: half the work beside what is measured."""

    def _advance(self) -> None:
        if time.monotonic() - self._at_s > 0.8 * PERIOD_S:
            super()._advance()


class WireArm:
    """An arm with torque on a wire, and a record of what it was sent."""

    def __init__(self, robot: Robot, position_rad: ArrayLike) -> None:
        self._first = come_first()
        self._ids = [joint.id for joint in robot.arm.joints]
        self._bank = SteadyBank(robot, position_rad)
        for id in self._ids:
            self._bank.handle(FEETECH.write(id, tables.TORQUE_ENABLE, 1))
        self._tap = WireTap(FEETECH, tables.GOAL_POSITION)
        self._bus = ServoBus(self._bank, tap=self._tap)

    def port(self) -> str:
        return self._bus.port

    def comes_first(self) -> bool:
        """Whether it waits for no core."""
        return self._first

    def forget(self) -> None:
        self._tap.t_s, self._tap.goals = [], []

    def goals(self) -> tuple[Array, Array]:
        """(m,) when each setpoint since `forget` was heard, and (m, n) its counts, NaN for servos left out."""
        t_s, goals = self._tap.t_s, self._tap.goals
        m = min(len(t_s), len(goals))
        counts = np.array([[goal.get(id, np.nan) for id in self._ids] for goal in goals[:m]], dtype=float)
        return np.array(t_s[:m]), counts.reshape(m, len(self._ids))

    def close(self) -> None:
        self._bus.close()


class Inference:
    """The shipped model deciding without a pause, in threads of this process; a context manager.

    It is entered once every stream has answered. One stream of one thread a core keeps all cores busy, where two
    threads of one small model wait for each other half of the time.
    """

    def __init__(self, streams: int, threads: int = 1) -> None:
        from benchmarks.preprocess import frame
        from edge.ask import SHIPPED_BUNDLE
        from edge.engine.bundle import load_bundle
        from edge.engine.onnx import OnnxEngine

        self._frame = frame()
        self._engines = [OnnxEngine(load_bundle(SHIPPED_BUNDLE), threads) for _ in range(streams)]
        self._answered = [0] * streams
        self._end = threading.Event()
        self._errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._decide, args=(i,), daemon=True) for i in range(streams)]

    def answers(self) -> int:
        """So far. Raises what ended a stream."""
        if self._errors:
            raise self._errors[0]
        return sum(self._answered)

    def __enter__(self) -> Inference:
        for thread in self._threads:
            thread.start()
        while not all(self._answered):
            self.answers()
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _decide(self, stream: int) -> None:
        from edge.decode import decide

        try:
            while not self._end.is_set():
                task, instruction = TASKS[self._answered[stream] % len(TASKS)]
                decide(self._engines[stream], self._frame, task, instruction)  # type: ignore[arg-type]
                self._answered[stream] += 1
        except Exception as error:
            self._errors.append(error)


def swing(seconds: float, step_s: float) -> tuple[Array, Array]:
    """(m,) times and (m,) angles away from the start: to one side and back, again and again, from rest."""
    times_s = np.arange(0.0, seconds, step_s)
    return times_s, SWING_RAD * (1.0 - np.cos(2 * np.pi * times_s / SWING_S))


class NativeLoop(threading.Thread):
    """Commands a servo loop as a controller does and keeps its cycles.

    Attributes:
        began_s, busy_s: when each began, and how long it took to the last answer.
        interrupted: times it ended a motion, and was told to go on.
    """

    def __init__(self, loop: ServoLoop, seconds: float) -> None:
        super().__init__(name="commander")
        self._loop, self._times_s = loop, np.zeros(0)
        self._seconds = seconds
        self._end = threading.Event()
        self.began_s: list[float] = []
        self.busy_s: list[float] = []
        self.interrupted = 0
        self._move()

    def run(self) -> None:
        since, drained_s = self._loop.state().cycle, time.monotonic()
        while not self._end.is_set():
            self._loop.heard()
            if time.monotonic() - drained_s > DRAIN_EVERY_S:
                drained_s = time.monotonic()
                since = self._drain(since)
                if self._loop.state().state != State.MOVING:
                    self.interrupted += 1
                    with suppress(DeviceError):
                        self._loop.restart(self._loop.state().setpoint_rad)
                        self._move()
            time.sleep(HEARD_EVERY_S)
        self._drain(since)

    def finish(self) -> None:
        self._end.set()
        self.join()

    def _move(self) -> None:
        times_s, away_rad = swing(self._seconds, 10 * PERIOD_S)
        here = self._loop.state().setpoint_rad
        way = np.repeat(here[None], len(times_s), axis=0)
        way[:, 0] += away_rad
        self._loop.move(times_s, way)

    def _drain(self, since: int) -> int:
        since, cycles = self._loop.cycles(since)
        self.began_s += cycles.t_s.tolist()
        self.busy_s += cycles.busy_s.tolist()
        return since


class PythonLoop(threading.Thread):
    """The same loop as one writes it in Python.

    Attributes:
        began_s, busy_s: when each cycle began, and how long it took to the last answer.
        answered: how many servos did.
    """

    def __init__(self, robot: Robot, port: str, seconds: float) -> None:
        super().__init__(name="python-loop")
        self._ids = [joint.id for joint in robot.arm.joints]
        zero = np.array([joint.zero_count for joint in robot.arm.joints])
        direction = np.array([joint.direction for joint in robot.arm.joints])
        _, away_rad = swing(seconds, PERIOD_S)
        way = np.repeat(robot.ready_rad[None], len(away_rad), axis=0)
        way[:, 0] += away_rad
        counts = np.rint(zero + direction * way / RAD_PER_COUNT).astype(int).tolist()
        self._goals = [dict(zip(self._ids, row, strict=True)) for row in counts]
        self._bus = FeetechBus(port, robot.arm.baudrate, timeout_s=ANSWER_SHARE * PERIOD_S, attempts=1)
        self._end = threading.Event()
        self.began_s: list[float] = []
        self.busy_s: list[float] = []
        self.answered: list[int] = []

    def run(self) -> None:
        due_s = time.monotonic()
        while not self._end.is_set():
            time.sleep(max(due_s - time.monotonic(), 0.0))
            begin_s = time.monotonic()
            goal = self._goals[min(len(self.began_s), len(self._goals) - 1)]
            self._bus.sync_write(goal, tables.GOAL_POSITION)
            positions = self._bus.sync_read(self._ids, tables.PRESENT_POSITION)
            self.began_s.append(begin_s)
            self.busy_s.append(time.monotonic() - begin_s)
            self.answered.append(len(positions))
            due_s = (begin_s if begin_s - due_s > REALIGN * PERIOD_S else due_s) + PERIOD_S

    def finish(self) -> None:
        self._end.set()
        self.join()
        self._bus.close()

    def __enter__(self) -> PythonLoop:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()


def period_figures(began_s: ArrayLike, busy_s: ArrayLike, start_s: float, end_s: float) -> dict[str, float]:
    """Of the cycles that began between the two moments."""
    t_s, took_s = np.asarray(began_s, dtype=float), np.asarray(busy_s, dtype=float)
    within = (t_s >= start_s) & (t_s < end_s)
    periods_s, took_s = np.diff(t_s[within]), took_s[within]
    if not len(periods_s):
        periods_s = took_s = np.array([end_s - start_s])  # it stood still
    error_s = np.abs(periods_s - PERIOD_S)
    p50, p99, p999 = (float(np.percentile(periods_s, q)) * 1e3 for q in (50, 99, 99.9))
    whole = np.floor(periods_s / PERIOD_S)
    return {
        "p50_ms": p50,
        "p99_ms": p99,
        "p999_ms": p999,
        "max_ms": float(periods_s.max()) * 1e3,
        "p99_abs_error_ms": float(np.percentile(error_s, 99)) * 1e3,
        "p999_abs_error_ms": float(np.percentile(error_s, 99.9)) * 1e3,
        "max_abs_error_ms": float(error_s.max()) * 1e3,
        "busy_p50_ms": float(np.median(took_s)) * 1e3,
        "busy_p99_ms": float(np.percentile(took_s, 99)) * 1e3,
        "busy_max_ms": float(took_s.max()) * 1e3,
        "missed": int(np.maximum(whole - 1, 0).sum()),
        "cycles": len(periods_s),
    }


def busy_ticks() -> tuple[int, int]:
    """Of all cores since the start: those at work, and all."""
    ticks = [int(number) for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def measure(seconds: float, realtime: bool, streams: int, threads: int = 1) -> dict[str, object]:
    robot = load_robot()
    with ExitStack() as stack:
        arms = [stack.enter_context(InOwnProcess(WireArm, robot, robot.ready_rad)) for _ in range(2)]
        first = all(arm.call("comes_first") for arm in arms)
        inference = stack.enter_context(Inference(streams, threads))
        loop = stack.enter_context(ServoLoop(robot, arms[0].call("port"), realtime=realtime))
        while not (loop.state().position_s > 0).all():
            time.sleep(PERIOD_S)
        loop.arm(loop.state().position_rad)
        native = NativeLoop(loop, seconds + SPARE_S)
        native.start()
        stack.callback(native.finish)
        python = stack.enter_context(PythonLoop(robot, arms[1].call("port"), seconds + SPARE_S))
        time.sleep(0.2)

        before, start_s, cpu_s, answers = loop.state(), time.monotonic(), time.process_time(), inference.answers()
        ticks = busy_ticks()
        time.sleep(seconds)
        busy, every = (now - then for now, then in zip(busy_ticks(), ticks, strict=True))
        after, end_s, cpu_s = loop.state(), time.monotonic(), time.process_time() - cpu_s
        answers = inference.answers() - answers
        native.finish()
        python.finish()
        messages = loop.messages
    elapsed_s = end_s - start_s
    cycles = after.cycle - before.cycle
    asked = cycles + cycles / 10  # every tenth cycle also reads the torque
    unanswered = after.errors["timeouts"] - before.errors["timeouts"]
    began_s = np.array(python.began_s)
    within = (began_s >= start_s) & (began_s < end_s)
    whole = np.array(python.answered)[within] == len(robot.arm.joints)
    load = {
        "streams": streams,
        "threads": threads,
        "answers_per_s": answers / elapsed_s,
        "process_cores": cpu_s / elapsed_s,
    }
    return {
        "seconds": elapsed_s,
        "rate_hz": RATE_HZ,
        "emulators_first": first,
        "load": {**load, "machine_busy": busy / max(every, 1)},
        "native": {
            **period_figures(native.began_s, native.busy_s, start_s, end_s),
            "answered_share": max(1.0 - unanswered / asked, 0.0),
            "interrupted": native.interrupted,
            "realtime_asked": realtime,
            "realtime_granted": realtime and not any("priority" in message for message in messages),
            "messages": messages,
        },
        "python": {
            **period_figures(began_s, python.busy_s, start_s, end_s),
            "answered_share": float(whole.mean()) if len(whole) else 0.0,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servo_jitter", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:g} s instead of {SECONDS:g} s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each stream of inference (default: 1)")
    parser.add_argument("--realtime", action="store_true", help="let the servo loop ask for real-time priority")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    if args.threads < 1:
        raise UserError(f"--threads {args.threads}: expected one or more")
    screen, streams = console(), os.cpu_count() or 1
    load = os.getloadavg()[0]
    found = measure(QUICK_SECONDS if args.quick else SECONDS, args.realtime, streams, args.threads)
    native, python, under = (dict[str, Any](found[name]) for name in ("native", "python", "load"))  # type: ignore[call-overload]
    screen.print(
        f"{os.cpu_count()} cores, load {load:.1f} before; {streams} streams of inference gave "
        f"{under['answers_per_s']:.1f} answers/s, this process took {under['process_cores']:.2f} cores; the machine "
        f"was {under['machine_busy']:.0%} busy"
    )
    table = Table(title=f"period at {RATE_HZ:g} Hz for {found['seconds']:.0f} s under load")
    heads = (
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "|error| p99.9 ms",
        "busy p99 ms",
        "missed",
        "cycles",
        "answered",
    )
    for heading in ("", *heads):
        table.add_column(heading, justify="right" if heading else "left")
    rows = {f"servo loop{', real-time' if native['realtime_granted'] else ''}": native, "Python thread": python}
    for name, row in rows.items():
        times = [f"{row[key]:.3f}" for key in TIMES]
        table.add_row(name, *times, f"{row['missed']}", f"{row['cycles']}", f"{row['answered_share']:.1%}")
    screen.print(table)
    times = python["p999_abs_error_ms"] / max(native["p999_abs_error_ms"], 1e-6)
    screen.print(f"at p99.9 the Python thread is off by {times:.1f} times as much")
    for message in native["messages"]:
        screen.print(message)
    if args.json:
        report = {"benchmark": "servo_jitter", "machine": machine(), **found, "times": times}
        args.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    sys.exit(exit_code(main))
