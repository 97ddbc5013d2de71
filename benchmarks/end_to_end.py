"""Does the arm come to the object, and what is that worth: calibration, and following what moves?

``python -m benchmarks.end_to_end [--quick] [--cases A,B] [--json FILE]``. The simulated table, arm, bus and camera, the
shipped bundle, the whole path from frame to motion; the same scenes and orders for all. Physics judges.

Calibration, nothing moves on the table:

- ``ideal``: the camera's true place and the arm's true zeros are given;
- ``calibrated``: as `vlar1 demo` does it;
- ``bad_zeros_calibrated``: the same on an arm whose joint zeros are 2 degrees off, each to a random side;
- ``bad_zeros_uncalibrated``: the same arm and the same views, solved as if its zeros were right.

Following, calibrated: the target is pushed 3 to 8 cm over the table, clear of all else, in the `SLIDE_S` after the
decision begins:

- ``moved_tracked``: the decision is carried to where the target is then;
- ``moved_asked_again``: without tracking, a target that moved is noticed and decided on again (then it lies still);
- ``moved_blind``: without tracking and without noticing.

The shipped bundle decides in a fraction of a second. So that the target moves under a decision as long as a model of 3B
parameters takes on a robot, each is drawn out to `DECISION_S` in all by waiting. The simulated camera gives about two
frames a second on two cores: the slide is seen in two or three steps, harder than the 30 Hz of a real one.

An episode in which the machine was too busy to keep the servo loop alive is begun again, and counted (`stalls`).

Position error: horizontally, from where the point between the jaws truly gets to at the grasp to the object's true
middle; of the last attempt that got as far as a motion.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from calib.calibration import Calibration
from calib.kinematics import GripperKinematics
from calib.routine import solve_again
from drivers.camera.sim import SimCamera
from drivers.errors import DeviceError, UserError
from drivers.protocols import Frame
from drivers.robot import Robot, load_robot, robot_with_zeros
from drivers.sim.process import SimulatedTable
from drivers.sim.render import camera_pose
from drivers.sim.scene import Scene
from drivers.sim.slide import clear_slide
from edge import demo
from edge.contract import Task as Question
from edge.control import Controller, MotionError
from edge.decode import Decision, compile_grammars
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.freshness import SIMULATED
from edge.loop import Order, Planned, Runtime
from edge.motion import JointTrajectory
from edge.shipped import SHIPPED_BUNDLE
from edge.trace import Tracer
from edge.watch import Watcher

EPISODES, QUICK_EPISODES = 15, 6
SEED = 11
DECISION_S, SLIDE_S = 1.5, 1.2
MOVED_M = (0.03, 0.08)
BAD_ZERO_RAD = np.radians(2.0)
SETTLE_S = 0.5
STALLS = 12
BLIND = replace(SIMULATED, max_changed=float("inf"))
CASES = (
    "ideal",
    "calibrated",
    "bad_zeros_calibrated",
    "bad_zeros_uncalibrated",
    "moved_tracked",
    "moved_asked_again",
    "moved_blind",
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """One scene and order; ``way_m``: how the target moves, where it does."""

    plan: demo.Plan
    way_m: tuple[float, float]


@dataclass(frozen=True)
class Result:
    """How one went. ``error_mm``: None where nothing moved; ``again``: why it looked again, or what it followed."""

    instruction: str
    success: bool
    reason: str
    verdict: str
    attempts: int
    error_mm: float | None
    order_s: float
    again: tuple[str, ...]


class Watched(Runtime):
    """A runtime whose decisions begin with a push and take their time, and whose grasps are compared with the truth."""

    where: Callable[[], tuple[float, float, float]]  # the target truly is
    off_rad: Array  # true joint angles less those the runtime believes in
    push: Callable[[], None] | None = None
    drawn_out = False
    error_mm: float | None = None

    def _decide(self, frame: Frame, order: Order, task: Question) -> Decision:
        began_s = time.monotonic()
        if self.push is not None:
            self.push()
            self.push = None
        decision = super()._decide(frame, order, task)
        if self.drawn_out:
            share_s = DECISION_S / (2 if order.place else 1)
            time.sleep(max(0.0, began_s + share_s - time.monotonic()))
        return decision

    def _move(self, plan: Planned) -> str:
        q = self._lowest(plan.pick)
        slip = self.kinematics.fk(q + self.off_rad)[:3, 3] - self.kinematics.fk(q)[:3, 3]
        reached = plan.grasp.position_base_m + slip
        self.error_mm = 1e3 * float(np.linalg.norm((reached - np.array(self.where()))[:2]))
        return super()._move(plan)

    def _lowest(self, pick: JointTrajectory) -> Array:
        heights = [self.kinematics.fk(q)[2, 3] for q in pick.position_rad[::4]]
        return np.asarray(pick.position_rad[4 * int(np.argmin(heights))])


class Heard(Watcher):
    """Keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def said(self, text: str) -> None:
        self._said.append(text)


def draw_trials(count: int) -> list[Trial]:
    """The demo's scenes and orders, those in which the target has room to move."""
    rng = np.random.default_rng([SEED, 0x51])
    trials = []
    for plan in demo.draw_plans(SEED, 3 * count):
        distance_m = float(rng.uniform(*MOVED_M))
        way_m = clear_slide(plan.scene, plan.task.target, distance_m, rng)
        if way_m is not None:
            trials.append(Trial(plan, way_m))
    return trials[:count]


def bad_zeros(robot: Robot) -> Array:
    """(n,) what the arm's true angles are ahead of its measured ones; the gripper's is right."""
    signs = np.random.default_rng([SEED, 0xBAD]).choice((-1.0, 1.0), len(robot.arm.joints))
    return np.append(signs[:-1] * BAD_ZERO_RAD, 0.0)


def run_arm(
    zeros_rad: Array, cases: list[str], trials: list[Trial], done: Callable[[str, list[Result]], None]
) -> dict[str, Any]:
    """All cases of one arm, on one simulated table, from one calibration; its figures."""
    nominal = load_robot()
    real = robot_with_zeros(nominal, zeros_rad.tolist()) if zeros_rad.any() else nominal
    look = trials[0].plan.scene.look
    engine = OnnxEngine(load_bundle(SHIPPED_BUNDLE))
    compile_grammars(engine.bundle)
    with (
        tempfile.TemporaryDirectory() as folder,
        SimulatedTable(real, Scene((), look), SEED) as table,
        closing(SimCamera(table.camera_address)) as camera,
    ):
        stalls: list[str] = []
        found: Calibration | None = None
        while found is None:
            with _stalling(stalls), Controller(nominal, table.port) as controller:
                where = argparse.Namespace(seed=SEED, out=Path(folder))
                found = demo.calibrate_table(table, camera, controller, nominal, look, where, lambda *_: None)
        for case in cases:
            calibration = _calibration(case, found, nominal, camera_pose(look))
            robot = nominal
            if calibration.joint_zeros_rad:
                robot = robot_with_zeros(nominal, calibration.joint_zeros_rad)
            off_rad = zeros_rad - np.array(calibration.joint_zeros_rad or np.zeros(len(zeros_rad)))
            results: list[Result] = []
            while len(results) < len(trials):
                with _stalling(stalls), Controller(robot, table.port) as controller:
                    runtime = Watched(
                        robot,
                        camera,
                        controller,
                        engine,
                        calibration,
                        Tracer(),
                        freshness=BLIND if case == "moved_blind" else SIMULATED,
                        track=case not in ("moved_asked_again", "moved_blind"),
                    )
                    runtime.off_rad = off_rad
                    runtime.go_ready()
                    for trial in trials[len(results) :]:
                        results.append(episode(table, runtime, trial, case.startswith("moved")))
                        print(f"{case} {len(results)}/{len(trials)}: {_said(results[-1])}", flush=True)
            done(case, results)
        return {"leave_one_out_mm": found.leave_one_out_mm, "late_s": table.late_s(), "stalls": stalls}


@contextmanager
def _stalling(stalls: list[str]) -> Iterator[None]:
    """Notes that the machine was too busy for the servo loop, which ends what runs in here; `STALLS` times at most."""
    try:
        yield
    except DeviceError as error:
        stalls.append(str(error))
        print(f"begun again: {error}", flush=True)
        if len(stalls) > STALLS:
            raise


def _calibration(case: str, found: Calibration, nominal: Robot, T_base_camera: Array) -> Calibration:
    if case == "ideal":
        return replace(found, T_mount_camera=T_base_camera, joint_zeros_rad=())
    if case == "bad_zeros_uncalibrated":
        return solve_again(found, GripperKinematics(nominal.model, nominal.joint_names), fit_zeros=False)
    return found


def episode(table: SimulatedTable, runtime: Watched, trial: Trial, moves: bool) -> Result:
    """One order on one scene, back at the ready pose afterwards."""
    task = trial.plan.task
    table.lay_out(trial.plan.scene)
    time.sleep(SETTLE_S)
    runtime.where = lambda: table.position(task.target)
    runtime.push = partial(table.slide, task.target, *trial.way_m, SLIDE_S) if moves else None
    runtime.drawn_out, runtime.error_mm = moves, None
    said: list[str] = []
    runtime.watcher = Heard(said)
    began_s = time.monotonic()
    try:
        outcome = runtime.carry_out(Order(task.instruction, place=task.kind == "place"))
        reason, attempts = outcome.reason, outcome.attempts
    except MotionError as error:  # on the way back for another look
        reason, attempts = str(error), 1
    order_s = time.monotonic() - began_s
    if "not heard for" in reason:  # no outcome: the simulated bus did not get the processor in time
        raise DeviceError(reason)
    time.sleep(SETTLE_S)
    verdict = table.verdict(task)
    try:
        runtime.go_ready()
    except MotionError:  # it is jammed: that episode has failed already, and a hand clears the table
        table.lay_out(Scene((), trial.plan.scene.look))
        runtime.go_ready()
    again = tuple(text for text in said if "again" in text or "following" in text)
    return Result(task.instruction, verdict.success, reason, verdict.reason, attempts, runtime.error_mm, order_s, again)


def _said(result: Result) -> str:
    error = "nothing moved" if result.error_mm is None else f"{result.error_mm:.1f} mm off"
    how = "success" if result.success else f"failed ({result.verdict}; {result.reason})"
    noted = "".join(f" [{text}]" for text in result.again)
    return f"{result.instruction}: {how}, {error}, attempt {result.attempts}, {result.order_s:.1f} s{noted}"


def figures(results: list[Result]) -> dict[str, Any]:
    errors_mm = np.array([r.error_mm for r in results if r.error_mm is not None])
    return {
        "episodes": len(results),
        "success": sum(r.success for r in results) / len(results),
        "success_first_attempt": sum(r.success and r.attempts == 1 for r in results) / len(results),
        "error_median_mm": float(np.median(errors_mm)) if len(errors_mm) else None,
        "error_p95_mm": float(np.percentile(errors_mm, 95)) if len(errors_mm) else None,
        "order_median_s": float(np.median([r.order_s for r in results])),
        "each": [vars(r) for r in results],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EPISODES} episodes a case, not {EPISODES}")
    parser.add_argument("--cases", default=",".join(CASES), metavar="A,B", help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, after each case")
    args = parser.parse_args()
    cases = args.cases.split(",")
    if unknown := set(cases) - set(CASES):
        raise UserError(f"--cases {','.join(sorted(unknown))}: expected of {', '.join(CASES)}")
    trials = draw_trials(QUICK_EPISODES if args.quick else EPISODES)
    out: dict[str, Any] = {"machine": machine(), "decision_s": DECISION_S, "slide_s": SLIDE_S}

    def done(case: str, results: list[Result]) -> None:
        out[case] = figures(results)
        if args.json:
            args.json.write_text(json.dumps(out, indent=2) + "\n")

    nominal = load_robot()
    for name, zeros_rad in (("good_zeros", np.zeros(len(nominal.arm.joints))), ("bad_zeros", bad_zeros(nominal))):
        own = [case for case in cases if case.startswith("bad_zeros") == (name == "bad_zeros")]
        if own:
            out[f"{name}_arm"] = run_arm(zeros_rad, own, trials, done)
    if args.json:
        args.json.write_text(json.dumps(out, indent=2) + "\n")
    table = Table("case", "success", "at the first attempt", "error mm: median", "p95", "order s")
    for case in cases:
        f = out[case]
        table.add_row(
            case,
            f"{f['success']:.0%}",
            f"{f['success_first_attempt']:.0%}",
            *("" if f[key] is None else f"{f[key]:.1f}" for key in ("error_median_mm", "error_p95_mm")),
            f"{f['order_median_s']:.1f}",
        )
    console().print(table)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
