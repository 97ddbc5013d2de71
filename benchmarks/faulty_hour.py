"""An hour of motion on a bad line: does anything but the counters show it?

``python -m benchmarks.faulty_hour [--quick] [--arms N] [--minutes M] [--json FILE]``. A second on the wire takes
a second, but several arms can move at once: three emulated arms for twenty minutes are the hour (two cores keep up with
three; of six, every third request was answered too late). Each has a process of its own for its servos, a servo loop of
its own, and a commander (a thread here) that sends random plans within the joint limits, most of them while another
runs; now and then one that is far too fast, begins elsewhere, leads out of the limits, ends in full motion or holds
numbers that are none; and holds, stops, restarts, or falls silent. One packet in a hundred has a bit flipped, in either
direction, one in a thousand is lost, and ten times in all an adapter is pulled out and put back. A whole hour of the
same plans then goes through the motion code alone, as fast as it runs.

What is checked:

- the wire: every setpoint that the emulator hears lies within the joint limits, and over 1, 4 and 20 cycles none moves
  further than the velocity limit allows, nor has second differences beyond the acceleration limit; a count has to be
  allowed for at the first and two at the second. Where the adapter was out in between, or a servo was silent so long
  that its goal was taken anew, no step is looked at across it;
- the motion code: position, velocity, acceleration and jerk from step to step, to rounding;
- the counters: what the emulator did, beside what the loop told. A flipped bit of an answer shows as damaged, except in
  its header or length, where what is left is no packet. A request, or an answer, that was flipped or lost shows as
  a request that not all have answered in time; so does an answer that a busy machine let come too late. A lost
  setpoint shows nowhere, since servos do not confirm those: the next one follows;
- nothing is raised but refusals, and every arm moves again within ten seconds of whatever ended its motion.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from benchmarks.servo_jitter import PERIOD_S, InOwnProcess, SteadyBank, come_first
from drivers.arm import packets, tables
from drivers.arm.packets import FEETECH
from drivers.arm.tables import RAD_PER_COUNT
from drivers.errors import DeviceError, UserError
from drivers.robot import Robot, load_robot
from drivers.sim.following_arm import WireTap
from drivers.sim.servo_bus import ServoBus
from edge.control import RefusedError, ServoLoop, State
from edge.control.loop_arm import LoopArm
from edge.native import _native

Array = NDArray[np.float64]

ARMS, MINUTES, UNPLUGS = 3, 20.0, 10
QUICK_ARMS, QUICK_MINUTES, QUICK_UNPLUGS = 2, 20 / 60, 2
MOTION_CYCLES, QUICK_MOTION_CYCLES = 720_000, 12_000
CORRUPT, DROP = 0.01, 0.001
AWAY_S = (0.02, 1.0)  # how long an adapter is out
ACT_EVERY_S = (0.1, 1.2)
HEARD_EVERY_S = 0.02
BACK_S = 10.0
WINDOWS = (1, 4, 20)  # cycles
UNSEEN_BYTES = (0, 1, 3)  # of an answer: header and length; without them it is no packet
NONSENSE = ("too fast", "jump", "outside", "ends in motion", "not numbers")


class FaultyArm:
    """The emulator's side: an arm on a bad line, a count of what was done to its packets, and the judge of the wire."""

    def __init__(self, robot: Robot, link: Path, seed: int, corrupt: float, drop: float) -> None:
        come_first()
        self._robot = robot
        self._rng = random.Random(seed)
        self._corrupt, self._drop = corrupt, drop
        self._tap = WireTap(FEETECH, tables.GOAL_POSITION)
        self._requests = FEETECH.hear_instructions()
        self._breaks: list[int] = []
        self._asked: list[int] = []  # answers to come, of each request that is being answered
        self._whole = 0  # of these, how many went out as they should
        self._from_host = False
        self.done: Counter[str] = Counter()
        bank = SteadyBank(robot, robot.ready_rad)
        self._bus = ServoBus(bank, self._damage, link=link, tap=self._hear)

    def port(self) -> str:
        return self._bus.port

    def unplug(self) -> None:
        self._bus.unplug()
        self.done["unplugged"] += 1
        self._asked = []

    def plug(self) -> None:
        self.anew()
        self._requests.clear()
        self._bus.plug()

    def anew(self) -> None:
        """The next setpoint need not follow from the last."""
        self._breaks.append(len(self._tap.goals))

    def mend(self) -> None:
        """From now on the line is a good one."""
        self._corrupt = self._drop = 0.0

    def close(self) -> None:
        self._bus.close()

    def verdict(self) -> dict[str, Any]:
        """What was sent against the limits, and what was done to the packets."""
        self._settle()
        angles = self._tap.angles(self._robot)
        ends = [0, *self._breaks, len(angles)]
        runs = [angles[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True) if b > a]
        return {"setpoints": len(angles), "limits": on_the_wire(runs, self._robot), "done": dict(self.done)}

    def _hear(self, data: bytes) -> None:
        self._settle()
        self._tap(data)
        self._from_host = True
        for packet in self._requests.feed(data):
            if packet.code == packets.SYNC_READ:
                self._asked.append(len(packet.params) - 2)
            elif packet.code in (packets.PING, packets.READ, packets.WRITE):
                self._asked.append(1)

    def _settle(self) -> None:
        """The requests before this one have had their time."""
        missing = sum(self._asked) - self._whole
        if missing > 0:
            self.done["requests not answered in full"] += len(self._asked) if not self._whole else 1
        self.done["requests"] += len(self._asked)
        self._asked, self._whole = [], 0

    def _damage(self, data: bytes) -> bytes:
        what = "from host" if self._from_host else "answers"
        self._from_host = False
        if self._rng.random() < self._drop:
            self.done[f"{what}, lost"] += 1
            return b""
        if self._rng.random() >= self._corrupt:
            self._whole += what == "answers"
            return data
        at = self._rng.randrange(len(data))
        if what == "answers":
            what = "answers, header or length" if at in UNSEEN_BYTES else "answers, to be seen"
        self.done[f"{what}, flipped"] += 1
        return data[:at] + bytes([data[at] ^ 1 << self._rng.randrange(8)]) + data[at + 1 :]


def on_the_wire(runs: list[Array], robot: Robot) -> dict[str, dict[str, float]]:
    """Of unbroken runs of setpoints, each (m, n): {limit: share of it that the worst took, and how many went over}."""
    limits = robot.limits
    found = {name: {"worst": 0.0, "over": 0} for name in ("position", "velocity", "acceleration")}

    def note(name: str, used: Array, allowed: Array, slack: float) -> None:
        used = used[np.isfinite(used).all(axis=1)] if len(used) else used
        if len(used):
            found[name]["worst"] = max(found[name]["worst"], float(((used - slack) / allowed).max()))
            found[name]["over"] += int((used > allowed + slack).any(axis=1).sum())

    middle, half = (robot.lower_rad + robot.upper_rad) / 2, (robot.upper_rad - robot.lower_rad) / 2
    for run in runs:
        note("position", np.abs(run - middle), half, 1e-9)
        for m in WINDOWS:
            away = run[m:] - run[:-m]
            note("velocity", np.abs(away), limits.velocity_rad_s * m * PERIOD_S, RAD_PER_COUNT + 1e-9)
            turn = away[m:] - away[:-m]
            slack = 2 * RAD_PER_COUNT + 1e-9
            note("acceleration", np.abs(turn), limits.acceleration_rad_s2 * (m * PERIOD_S) ** 2, slack)
    return found


def way(rng: np.random.Generator, robot: Robot, here: Array) -> tuple[Array, Array]:
    """(m,) times and (m, n) waypoints within the joint limits, from ``here``."""
    m = int(rng.integers(1, 6))
    goals = rng.uniform(robot.lower_rad, robot.upper_rad, (m, len(here)))
    goals = here + (goals - here) * rng.uniform(0.1, 1.0, (m, 1))
    way_rad = np.vstack([here, goals])
    speed_rad_s = rng.uniform(0.4, 1.2) * robot.limits.velocity_rad_s.max()
    gaps_s = np.abs(np.diff(way_rad, axis=0)).max(axis=1) / speed_rad_s + 0.02
    return np.concatenate([[0.0], np.cumsum(gaps_s)]), way_rad


def nonsense(rng: np.random.Generator, robot: Robot, here: Array, kind: str) -> tuple[Array, Array, Array | None]:
    """A plan that asks for what must not be; velocities None for those between the waypoints."""
    times_s, way_rad = way(rng, robot, here)
    velocities: Array | None = None
    match kind:
        case "too fast":
            times_s = times_s * rng.uniform(0.001, 0.3)
        case "jump":
            way_rad[0] += rng.uniform(-2, 2, way_rad.shape[1])
        case "outside":
            way_rad[1:] += rng.uniform(-9, 9, way_rad[1:].shape)
        case "ends in motion":
            velocities = rng.uniform(-20, 20, way_rad.shape)
        case "not numbers":
            way_rad[-1, int(rng.integers(way_rad.shape[1]))] = rng.choice([np.nan, np.inf])
    return times_s, way_rad, velocities


class Commander(threading.Thread):
    """Sends one arm about at random until told to finish.

    Attributes:
        told: what it told the loop, and how often; ``refused``: in words without the numbers.
        error: what was raised and should not have been.
        moving_cycles: of the loop, in motion.
    """

    def __init__(self, robot: Robot, loop: ServoLoop, arm: InOwnProcess, seed: int) -> None:
        super().__init__(name=f"commander-{seed}")
        self._robot, self._loop, self._arm = robot, loop, arm
        self._rng = np.random.default_rng(seed)
        self._servos: LoopArm | None = None
        self._end = threading.Event()
        self.told: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.error: BaseException | None = None
        self.cycles = self.moving_cycles = 0
        self._since = 0

    def run(self) -> None:
        try:
            while not self._end.is_set():
                if self._ready():
                    self._act()
                self._wait(float(self._rng.uniform(*ACT_EVERY_S)))
            self._come_to_rest()
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        self._end.set()
        self.join()

    def _wait(self, seconds: float, heard: bool = True) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and not self._end.is_set():
            if heard:
                self._loop.heard()
            time.sleep(HEARD_EVERY_S)
        self._since, cycles = self._loop.cycles(self._since)
        self.cycles += len(cycles.t_s)
        self.moving_cycles += int((cycles.state == State.MOVING).sum())

    def _ready(self) -> bool:
        """Whether the loop takes plans; out of a hold or a stop it is led first. Raises when that takes too long."""
        deadline_s = time.monotonic() + BACK_S
        while not self._end.is_set():
            state = self._loop.state()
            if state.state in (State.ARMED, State.MOVING):
                return True
            try:
                if state.state == State.DISARMED or state.released.any() or (state.torque == 0).any():
                    self._take_anew(state.state)
                else:
                    self._loop.restart(state.setpoint_rad)
                self.told["restart"] += 1
            except DeviceError as error:
                self._note(error)
                if time.monotonic() > deadline_s:
                    raise
                self._wait(0.05)
        return False

    def _take_anew(self, state: State) -> None:
        """The servos' goals are where they are now; as `Controller.restart` does after one has lost its torque."""
        if state != State.DISARMED:
            self._loop.disarm()
        if self._servos is None:
            self._servos = LoopArm(self._loop)
        position_rad = self._servos.enable().position_rad
        self._arm.call("anew")
        self._loop.arm(position_rad)
        self.told["taken anew"] += 1

    def _act(self) -> None:
        rng, loop = self._rng, self._loop
        state = loop.state()
        here = state.setpoint_rad
        act = str(rng.choice(["plan", "nonsense", "hold", "stop", "silence"], p=[0.74, 0.14, 0.05, 0.05, 0.02]))
        try:
            match act:
                case "plan":
                    act = "plan in motion" if state.state == State.MOVING else "plan"
                    late_s = float(rng.choice([0.0, rng.uniform(-0.1, 0.3)]))
                    loop.move(*way(rng, self._robot, here), start_s=time.monotonic() - late_s)
                case "nonsense":
                    act = str(rng.choice(NONSENSE))
                    if act == "not numbers":
                        self._expect_refusal(lambda: loop.move(*nonsense(rng, self._robot, here, act)))
                    else:
                        loop.move(*nonsense(rng, self._robot, here, act))
                case "hold":
                    loop.hold()
                case "stop":
                    loop.stop()
                case "silence":
                    self._wait(2 * self._robot.safety.command_timeout_s, heard=False)
            self.told[act] += 1
        except DeviceError as error:
            self._note(error)

    @staticmethod
    def _expect_refusal(move: Callable[[], int]) -> None:
        with suppress(ValueError):
            move()
            raise RuntimeError("a plan with numbers that are none was taken")

    def _note(self, error: DeviceError) -> None:
        kind = "refused" if isinstance(error, RefusedError) else "told"
        self.refused[f"{kind}: {str(error).rpartition(': ')[2].partition(';')[0]}"] += 1

    def _come_to_rest(self) -> None:
        self._loop.stop()
        deadline_s = time.monotonic() + BACK_S
        while not self._loop.state().settled:
            if time.monotonic() > deadline_s:
                raise DeviceError("arm: does not come to rest")
            time.sleep(HEARD_EVERY_S)


def pull_plugs(arms: list[InOwnProcess], loops: list[ServoLoop], count: int, seconds: float) -> None:
    """Spread over the time, at random; each adapter is missed before it is put back, and found before the next."""
    rng = np.random.default_rng(count)
    began_s = time.monotonic()
    for moment in np.sort(rng.uniform(0.1, 0.85, count)) * seconds:
        time.sleep(max(began_s + float(moment) - time.monotonic(), 0.0))
        i = int(rng.integers(len(arms)))
        lost = loops[i].state().errors["lost"]
        arms[i].call("unplug")
        time.sleep(float(rng.uniform(*AWAY_S)))
        await_that(lambda i=i, lost=lost: loops[i].state().errors["lost"] > lost)  # type: ignore[misc]
        arms[i].call("plug")
        await_that(lambda i=i: loops[i].state().connected)  # type: ignore[misc]


def await_that(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + BACK_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise DeviceError(f"servo loop: its port was not missed, or not found again, within {BACK_S:g} s")
        time.sleep(PERIOD_S)


def on_the_line(count: int, seconds: float, unplugs: int) -> dict[str, Any]:
    """So many arms at once for that long."""
    robot = load_robot()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vlar1-line-")))
        made = [(robot, folder / f"arm{i}", i, CORRUPT, DROP) for i in range(count)]
        arms = [stack.enter_context(InOwnProcess(FaultyArm, *args)) for args in made]
        loops = [stack.enter_context(ServoLoop(robot, arm.call("port"), realtime=False)) for arm in arms]
        commanders = [Commander(robot, loop, arm, i) for i, (loop, arm) in enumerate(zip(loops, arms, strict=True))]
        for commander in commanders:
            commander.start()
            stack.callback(commander.finish)
        began_s = time.monotonic()
        pull_plugs(arms, loops, unplugs, seconds)
        time.sleep(max(began_s + seconds - time.monotonic(), 0.0))
        for commander in commanders:
            commander.finish()
        seconds = time.monotonic() - began_s
        for arm in arms:
            arm.call("mend")  # or the counters went on while they are read
        time.sleep(10 * PERIOD_S)
        ended = sum(not loop.alive for loop in loops)
        errors: Counter[str] = Counter()
        for loop in loops:
            if loop.alive:
                errors.update(loop.state().errors)
        verdicts = [arm.call("verdict") for arm in arms]
    done: Counter[str] = Counter()
    for verdict in verdicts:
        done.update(verdict["done"])
    limits = {
        name: {
            "worst": max(verdict["limits"][name]["worst"] for verdict in verdicts),
            "over": sum(verdict["limits"][name]["over"] for verdict in verdicts),
        }
        for name in ("position", "velocity", "acceleration")
    }
    return {
        "arms": count,
        "seconds": seconds,
        "arm_hours": count * seconds / 3600,
        "moving_share": sum(c.moving_cycles for c in commanders) / max(sum(c.cycles for c in commanders), 1),
        "setpoints": sum(verdict["setpoints"] for verdict in verdicts),
        "limits": limits,
        "done": dict(sorted(done.items())),
        "counted": dict(errors),
        "told": dict(sum((c.told for c in commanders), Counter())),
        "refused": dict(sum((c.refused for c in commanders), Counter())),
        "exceptions": [repr(c.error) for c in commanders if c.error is not None],
        "loops_ended": ended,
    }


def in_memory(cycles: int, seed: int = 0) -> dict[str, Any]:
    """That many cycles of the motion code alone, under the same plans."""
    robot = load_robot()
    limits = robot.limits
    rows = (robot.lower_rad, robot.upper_rad, limits.velocity_rad_s, limits.acceleration_rad_s2, limits.jerk_rad_s3)
    motion = _native.Motion(np.ascontiguousarray(np.column_stack(rows)), PERIOD_S)
    motion.reset(robot.ready_rad)
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in NONSENSE if kind != "not numbers"]
    found = {name: {"worst": 0.0, "over": 0} for name in ("position", "velocity", "acceleration", "jerk")}
    sent = np.repeat(robot.ready_rad[None], 3, axis=0)
    middle, half = (robot.lower_rad + robot.upper_rad) / 2, (robot.upper_rad - robot.lower_rad) / 2
    done = 0
    while done < cycles:
        here = sent[-1]
        act = rng.choice(["plan", "nonsense", "brake", "hold"], p=[0.7, 0.2, 0.05, 0.05])
        if act == "brake":
            motion.brake()
        elif act == "hold":
            motion.hold_at(rng.uniform(robot.lower_rad - 1, robot.upper_rad + 1))
        else:
            velocities: ArrayLike | None = None
            if act == "plan":
                times_s, way_rad = way(rng, robot, here)
            else:
                times_s, way_rad, velocities = nonsense(rng, robot, here, str(rng.choice(kinds)))
            if velocities is None:
                velocities = np.gradient(way_rad, times_s, axis=0)
            rates = np.ascontiguousarray(velocities, dtype=float)
            motion.follow(times_s, way_rad, rates, float(rng.uniform(-0.1, 0.3)))
        path = np.vstack([sent, motion.step(int(rng.integers(20, 240)))])
        done += len(path) - 3
        checks: list[tuple[str, Array, Array]] = [("position", np.abs(path - middle), half)]
        for order, (name, limit) in enumerate(zip(list(found)[1:], rows[2:], strict=True), start=1):
            checks.append((name, np.abs(np.diff(path, order, axis=0)), limit * PERIOD_S**order))
        for order, (name, used, allowed) in enumerate(checks):
            rounding = 2.0 ** (order + 2) * np.finfo(float).eps * max(1.0, float(np.abs(path).max()))
            found[name]["worst"] = max(found[name]["worst"], float((used / allowed).max()))
            found[name]["over"] += int((used > allowed * (1 + 1e-9) + rounding).any(axis=1).sum())
        sent = path[-3:]
    return {"cycles": done, "hours": done * PERIOD_S / 3600, "limits": found}


def counted(line: dict[str, Any]) -> dict[str, dict[str, int]]:
    """{fault: what was done, what the loops counted, how many of them may be missing, and how many too many}.

    A bus that is pulled out takes a request with it. What comes too late is thrown away unread, damaged or not, and
    makes a request that the emulator did answer one that was not answered in full.
    """
    done, told = Counter(line["done"]), line["counted"]
    out = done["unplugged"]
    seen, short = done["answers, to be seen, flipped"], done["requests not answered in full"]
    late = max(told["timeouts"] - short, 0)
    rows = {
        "adapter out": (out, told["lost"], 0, 0),
        "adapter back": (out, told["reopened"], 0, 0),
        "answer damaged": (seen, told["damaged"], out + late, 0),
        "request not answered in full": (short, told["timeouts"], out, late),
    }
    return {name: dict(zip(("done", "counted", "fewer", "more"), row, strict=True)) for name, row in rows.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faulty_hour", description=__doc__.partition("\n")[0])
    quick = f"{QUICK_ARMS} arms for {QUICK_MINUTES * 60:g} s, {QUICK_UNPLUGS} unplugged"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--arms", type=int, metavar="N", help=f"at once (default: {ARMS})")
    parser.add_argument("--minutes", type=float, metavar="M", help=f"on the line (default: {MINUTES:g})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    arms = (QUICK_ARMS if args.quick else ARMS) if args.arms is None else args.arms
    minutes = (QUICK_MINUTES if args.quick else MINUTES) if args.minutes is None else args.minutes
    if arms < 1:
        raise UserError(f"--arms {arms}: expected one or more")
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes {minutes:g}: expected more than 0")
    screen = console()
    load = os.getloadavg()[0]
    screen.print(
        f"{os.cpu_count()} cores, load {load:.1f} before; {arms} arms for {minutes * 60:g} s, then the motion code"
    )
    line = on_the_line(arms, minutes * 60, QUICK_UNPLUGS if args.quick else UNPLUGS)
    motion = in_memory(QUICK_MOTION_CYCLES if args.quick else MOTION_CYCLES)
    show_limits(screen, line, motion)
    table = Table(title="faults")
    for heading in ("", "done", "counted", "may be fewer by", "more by"):
        table.add_column(heading, justify="right" if heading else "left")
    faults = counted(line)
    for name, row in faults.items():
        table.add_row(name, *(str(row[key]) for key in ("done", "counted", "fewer", "more")))
    screen.print(table)
    for name in ("done", "counted", "told", "refused"):
        screen.print(f"{name}: " + ", ".join(f"{count} {what}" for what, count in line[name].items() if count))
    over = sum(row["over"] for part in (line, motion) for row in part["limits"].values())
    miscounted = [
        name for name, row in faults.items() if not -row["fewer"] <= row["counted"] - row["done"] <= row["more"]
    ]
    held = not (line["exceptions"] or line["loops_ended"] or over)
    for error in line["exceptions"]:
        screen.print(f"raised: {error}", markup=False)
    screen.print(
        f"{line['setpoints']} setpoints, {over} over a limit; {len(line['exceptions'])} exceptions, "
        f"{line['loops_ended']} loops ended; miscounted: {', '.join(miscounted) or 'nothing'}"
    )
    if args.json:
        report = {"benchmark": "faulty_hour", "machine": machine(), "line": line, "motion": motion, "faults": faults}
        args.json.write_text(json.dumps({**report, "miscounted": miscounted, "held": held}, indent=2))
    return 0 if held else 1


def show_limits(screen: Any, line: dict[str, Any], motion: dict[str, Any]) -> None:
    hours = f"{line['arm_hours']:.2f} h on the wire, {line['moving_share']:.0%} of it in motion"
    table = Table(title=f"{hours}; {motion['hours']:.2f} h of the motion code")
    for heading in ("of the limit", "wire: worst", "over", "motion code: worst", "over"):
        table.add_column(heading, justify="left" if heading == "of the limit" else "right")
    for name, row in motion["limits"].items():
        wire = line["limits"].get(name)
        cells = (f"{wire['worst']:.3f}", str(wire["over"])) if wire else ("-", "-")
        table.add_row(name, *cells, f"{row['worst']:.6f}", str(row["over"]))
    screen.print(table)


if __name__ == "__main__":
    sys.exit(exit_code(main))
