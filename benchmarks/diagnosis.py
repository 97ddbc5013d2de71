"""Is the cause that a hand-eye calibration's diagnosis names the one that was put there?

``python -m benchmarks.diagnosis [--quick] [--json FILE] [--trials N]``. Trials as in ``benchmarks.hand_eye`` (SO-101, a
640x480 camera, 15 poses, corner noise 0.3 px, encoder noise 0.1 degrees), each with one cause put in:

- board size: the squares are 1 to 5 % larger or smaller than told;
- intrinsics: the focal length told is 1 to 5 % off, or the image centre 10 to 30 px, or both;
- camera slipped, board slipped: 5 to 20 mm and 1 to 4 degrees, after one of views 4 to 11;
- joint zeros: one of shoulder lift, elbow and wrist flex is 1 to 4 degrees off, and must be named, alone. (The pan's
  zero is one with where the camera stands, the roll's with how the board is held: no picture tells them apart);
- poor poses: the gripper turns about little more than one axis, or little at all, or there are six such views, above
  what the solve refuses;
- loose arm: encoder noise of 0.3 to 0.5 degrees; detection noise: corner noise of 1 to 2 px;
- nothing: what is named then is a false alarm.

"On a crooked arm" is the same with all zeros of the arm up to 2 degrees off besides, as such arms are: what was put in
must still be named first. The seeds are others than those that thresholds were set with (those of SEEDS_OF_TUNING).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.hand_eye import (
    BOARD,
    CAMERA,
    CORNER_PX,
    ENCODER_RAD,
    EYE_M,
    JOINTS,
    MODEL,
    POOL,
    POSES,
    START_RAD,
    TARGET_M,
    ZERO_RAD,
    look_at,
    moved,
    see,
    shaken,
)
from benchmarks.machine import machine
from calib.adjust import adjust
from calib.board import Board, Detection, T_gripper_board_nominal
from calib.diagnosis import diagnose
from calib.hand_eye import MIN_SPREAD_RAD, rotation_spread_rad
from calib.kinematics import GripperKinematics
from calib.poses import choose_poses
from calib.rigid import apply, invert
from calib.workspace import workspace_poses
from drivers.errors import UserError
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

TRIALS, QUICK_TRIALS = 100, 20
SEED = 20261127
SEEDS_OF_TUNING = (5, 77)

NOTHING, CANNOT_TELL = "nothing", "cannot tell"
CAUSES = (
    NOTHING,
    "board size",
    "intrinsics",
    "camera slipped",
    "board slipped",
    "joint zeros",
    "poor poses",
    "loose arm",
    "detection noise",
)
NAMES = (*CAUSES, "bad samples", CANNOT_TELL)
CROOKED = ("board size", "intrinsics", "camera slipped", "board slipped")

SLIP_MM, SLIP_DEG, SLIP_VIEWS = (5.0, 20.0), (1.0, 4.0), (4, 11)
POOR_SPREAD_RAD = (
    1.05 * MIN_SPREAD_RAD,
    float(np.radians(10.0)),
)  # about the second axis; well spread poses have 17 up
POOR_VIEWS = 6


@dataclass(frozen=True, eq=False)
class Trial:
    """What a calibration is given: ``joints_rad`` (n, 6) measured, one detection each, and what it is told.

    ``view`` is the first after a slip, ``joint`` the one whose zero is off.
    """

    joints_rad: Array
    detections: list[Detection]
    board: Board
    intrinsics: Intrinsics
    view: int | None = None
    joint: int | None = None


@dataclass(frozen=True)
class Outcome:
    """``named``: a cause, NOTHING or CANNOT_TELL; ``exact``: it is the right one, and so are the joint or the view;
    ``seconds`` of a processor.
    """

    named: str
    exact: bool
    bad: bool
    refused: bool
    seconds: float


def draw(rng: np.random.Generator, cause: str, crooked: bool, fk: GripperKinematics, pool_rad: Array) -> Trial:
    """One calibration's observations, with a cause put in."""
    T_base_camera = look_at(EYE_M, TARGET_M) @ shaken(rng, 0.015, 0.01)
    held = T_gripper_board_nominal(BOARD) @ shaken(rng, 0.02, 0.002)
    zeros = np.zeros(len(JOINTS))
    if crooked:
        zeros[:-1] = rng.uniform(-ZERO_RAD, ZERO_RAD, len(JOINTS) - 1)
    board, intrinsics, view, joint = BOARD, CAMERA, None, None
    encoder_rad, corner_px = ENCODER_RAD, CORNER_PX
    slip = np.eye(4)
    poses, count = pool_rad[rng.permutation(len(pool_rad))], POSES
    match cause:
        case "board size":
            share = 1 + rng.choice([-1, 1]) * rng.uniform(0.01, 0.05)
            board = replace(BOARD, square_m=share * BOARD.square_m, marker_m=share * BOARD.marker_m)
        case "intrinsics":
            kind = rng.integers(3)  # focal length, image centre, both
            share = 1.0 if kind == 1 else 1 + rng.choice([-1, 1]) * rng.uniform(0.01, 0.05)
            angle = rng.uniform(0, 2 * np.pi)
            x, y = (0.0 if kind == 0 else rng.uniform(10, 30)) * np.array([np.cos(angle), np.sin(angle)])
            intrinsics = replace(CAMERA, fx=share * CAMERA.fx, fy=share * CAMERA.fy, cx=CAMERA.cx + x, cy=CAMERA.cy + y)
        case "camera slipped" | "board slipped":
            view = int(rng.integers(SLIP_VIEWS[0], SLIP_VIEWS[1] + 1))
            turn_rad = (float(np.radians(SLIP_DEG[0])), float(np.radians(SLIP_DEG[1])))
            slip = moved(rng, turn_rad, (1e-3 * SLIP_MM[0], 1e-3 * SLIP_MM[1]))
        case "joint zeros":
            joint = int(rng.integers(1, 4))
            zeros[joint] += rng.choice([-1, 1]) * np.radians(rng.uniform(1, 4))
        case "poor poses":
            poses = alike(rng, fk, pool_rad, invert(T_base_camera), held)
            count = len(poses)
        case "loose arm":
            encoder_rad = ENCODER_RAD * rng.uniform(3, 5)
        case "detection noise":
            corner_px = rng.uniform(1, 2)
    joints: list[Array] = []
    detections: list[Detection] = []
    for q in poses:
        after = view is not None and len(joints) >= view
        camera = T_base_camera @ slip if after and cause == "camera slipped" else T_base_camera
        on_gripper = held @ slip if after and cause == "board slipped" else held
        true = q + zeros + rng.normal(0, encoder_rad, len(q))
        seen = see(rng, invert(camera) @ fk(true) @ on_gripper)
        if seen is None:
            continue
        extra_px = np.sqrt(corner_px**2 - CORNER_PX**2)
        joints.append(q)
        detections.append(Detection(seen.ids, seen.corners_px + rng.normal(0, extra_px, seen.corners_px.shape)))
        if len(joints) == count:
            break
    return Trial(np.array(joints), detections, board, intrinsics, view, joint)


def alike(rng: np.random.Generator, fk: GripperKinematics, pool_rad: Array, T_camera_base: Array, held: Array) -> Array:
    """(n, 6) poses near one of the pool that show the board and say little."""
    while True:
        kind = rng.integers(3)  # about one axis, hardly any turn, few views
        count = POOR_VIEWS if kind == 2 else POSES
        around = pool_rad[rng.integers(len(pool_rad))]
        widths = np.full(len(JOINTS), rng.uniform(0.05, 0.12) if kind == 0 else rng.uniform(0.1, 0.25))
        if kind == 0:
            widths[rng.integers(len(JOINTS) - 1)] = 0.5
        widths[-1] = 0.0
        found = []
        for _ in range(300):
            q = around + rng.uniform(-widths, widths)
            T = T_camera_base @ fk(q) @ held
            centre = apply(T, BOARD.centre_m)
            facing = centre[2] > 0.15 and T[:3, 2] @ centre > 0.65 * np.linalg.norm(centre)
            inside = (q > fk.limits_rad[:, 0]).all() and (q < fk.limits_rad[:, 1]).all()
            if facing and inside and see(rng, T) is not None:
                found.append(q)
            if len(found) == count:
                break
        if len(found) < count:
            continue
        if POOR_SPREAD_RAD[0] < rotation_spread_rad([fk(q) for q in found])[1] < POOR_SPREAD_RAD[1]:
            return np.array(found)


@cache
def arm() -> tuple[GripperKinematics, Array, Array]:
    """Kinematics, the pool of poses and where the error is told."""
    fk = GripperKinematics(MODEL, JOINTS)
    pool = choose_poses(MODEL, JOINTS, BOARD, CAMERA, look_at(EYE_M, TARGET_M), START_RAD, count=POOL)
    return fk, pool, workspace_poses(fk, len(JOINTS))


def run(cause: str, crooked: bool, k: int, seed: int = SEED) -> Outcome:
    """One trial."""
    fk, pool_rad, reach_rad = arm()
    trial = draw(np.random.default_rng([seed, CAUSES.index(cause), int(crooked), k]), cause, crooked, fk, pool_rad)
    given = trial.joints_rad, trial.detections, fk, trial.board, trial.intrinsics
    try:
        adjustment = adjust(*given, reach_rad=reach_rad)
    except UserError:
        adjustment = None
    start_s = time.process_time()
    found = diagnose(*given, adjustment, reach_rad=reach_rad, joint_names=JOINTS)
    seconds = time.process_time() - start_s
    named = CANNOT_TELL if found.suspects else found.cause or NOTHING
    exact = named == cause
    if exact and cause != NOTHING:
        first = found.findings[0]
        exact = first.view == trial.view and (trial.joint is None or first.joints == (trial.joint,))
    return Outcome(named, exact, found.bad, adjustment is None, seconds)


def figures(cause: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """What came of one cause's trials."""
    seconds = np.sort([o.seconds for o in outcomes])
    right = [o.exact if cause == "joint zeros" else o.named == cause for o in outcomes]
    return {
        "trials": len(outcomes),
        "right_share": float(np.mean(right)),
        "exact_share": float(np.mean([o.exact for o in outcomes])),
        "named": {
            name: n for name in (*CAUSES, "bad samples", CANNOT_TELL) if (n := sum(o.named == name for o in outcomes))
        },
        "bad_share": float(np.mean([o.bad for o in outcomes])),
        "solve_refused": sum(o.refused for o in outcomes),
        "diagnose_p50_cpu_s": float(np.median(seconds)),
        "diagnose_p95_cpu_s": float(seconds[int(np.ceil(0.95 * len(seconds))) - 1]),
    }


def main() -> int | None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TRIALS} trials of each cause, not {TRIALS}")
    parser.add_argument("--trials", type=int, metavar="N", help="this many of each cause")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    count = args.trials or (QUICK_TRIALS if args.quick else TRIALS)
    if count < 1:
        print(f"--trials {count}: at least 1", file=sys.stderr)
        return 2
    console = Console()
    rows = [("straight_arm", cause, False) for cause in CAUSES] + [("crooked_arm", cause, True) for cause in CROOKED]
    report: dict[str, Any] = {"benchmark": "diagnosis", "machine": machine(), "seed": SEED, "trials_each": count}
    start_s = time.perf_counter()
    with ProcessPoolExecutor() as workers:
        jobs = [[workers.submit(run, cause, crooked, k) for k in range(count)] for _, cause, crooked in rows]
        for (kind, cause, _), futures in zip(rows, jobs, strict=True):
            report.setdefault(kind, {})[cause] = figures(cause, [future.result() for future in futures])
    report["seconds"] = time.perf_counter() - start_s
    for kind in ("straight_arm", "crooked_arm"):
        _show(console, kind, report[kind])
    slowest = max(
        row["diagnose_p95_cpu_s"] for kind in ("straight_arm", "crooked_arm") for row in report[kind].values()
    )
    console.print(
        f"{count} trials each in {report['seconds']:.0f} s; a diagnosis takes a core up to {slowest:.1f} s (p95)"
    )
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return None


def _show(console: Console, kind: str, rows: dict[str, dict[str, Any]]) -> None:
    names = [name for name in NAMES if name in rows or any(name in row["named"] for row in rows.values())]
    table = Table(
        title=f"{kind.replace('_', ' ')}: put in (rows), named (columns)", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    letters = dict(zip(names, "abcdefghijkl", strict=False))
    for heading in ("", *letters.values(), "right", "exact", "unfit", "s"):
        table.add_column(heading, justify="right" if heading else "left")
    for cause, row in rows.items():
        counts = (str(row["named"].get(name, "")) for name in names)
        shares = (f"{row[key]:.0%}" for key in ("right_share", "exact_share", "bad_share"))
        table.add_row(f"{letters[cause]} {cause}", *counts, *shares, f"{row['diagnose_p50_cpu_s']:.2f}")
    others = [f"{letter} {name}" for name, letter in letters.items() if name not in rows]
    if others:
        table.caption = "; ".join(others)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
