"""How far does the gripper miss what the camera saw, after a hand-eye calibration of a low-cost arm?

``python -m benchmarks.hand_eye [--quick] [--json FILE] [--trials N] [--opencv4 FOLDER]``. A Monte-Carlo on the shipped
SO-101 model and a 640x480 camera before it, without rendering: corners are projected with the true model. In each trial
camera and board are somewhere else near their nominal place, the arm shows the board in 15 poses drawn from a pool that
``choose_poses`` finds, corners have noise of 0.3 px and joint readings of 0.1 degrees. In every other trial ("bad
zeros") the joints' zeros are up to 2 degrees off and two of the samples are corrupted: the reading is that of another
pose, or one joint's is 2 to 10 degrees off, or the board has slipped by 5 to 20 mm and 2 to 8 degrees.

A calibration's error is told where it matters: the camera sees a point of the workspace, the arm is sent there by the
calibration under test (and its joint zeros, where it has some), and the distance of the true tip from the true point is
taken, rms over 40 points. The same observations go to OpenCV's seven closed-form methods, the board's pose in each view
by its own solvePnP.

The solve also says what error to expect, and the share of trials in which the true one is between half and twice that
is told. One calibration's error lies mostly along three or four directions, so even its exact distribution would not
get all trials: about 88 % with good zeros, 92 % with fitted ones. "With encoder noise" is the same for an arm whose
joints are 0.1 degrees off at every point that it reaches for, as they are in life.

OpenCV 5.0.0's Python package lacks them: they run in a second process with OpenCV 4 from FOLDER,
which is filled by pip where it is empty.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from calib.adjust import adjust
from calib.board import MIN_CORNERS, Board, Detection, T_gripper_board_nominal
from calib.kinematics import GripperKinematics
from calib.poses import choose_poses
from calib.rigid import invert, rigid
from calib.workspace import TIP_GRIPPER_M, workspace_poses
from drivers.errors import UserError
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "drivers" / "arm" / "so101.xml"
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
START_RAD = np.array([0.0, -1.2, 0.6, 0.6, 0.0, 0.05])
CAMERA = Intrinsics(width=640, height=480, fx=560.0, fy=560.0, cx=319.5, cy=239.5)
EYE_M, TARGET_M = (0.52, 0.0, 0.42), (0.21, 0.0, 0.02)
BOARD = Board()

TRIALS, QUICK_TRIALS = 400, 200
POSES, POOL = 15, 45
CORNER_PX = 0.3
ENCODER_RAD = float(np.radians(0.1))
ZERO_RAD = float(np.radians(2.0))
CORRUPTED = 2

OPENCV4 = "opencv-python-headless==4.14.0.94"
HAND_EYE = ("TSAI", "PARK", "HORAUD", "ANDREFF", "DANIILIDIS")
ROBOT_WORLD = ("SHAH", "LI")
KINDS = ("good_zeros", "bad_zeros")


@dataclass(frozen=True, eq=False)
class Trial:
    """What a calibration is given, and the truth it is judged by.

    ``joints_rad`` (15, 6) measured, ``detections`` one each; ``zeros_rad`` (6,) true joint minus its reading in the
    mean, ``corrupted`` the samples that were tampered with.
    """

    joints_rad: Array
    detections: list[Detection]
    T_base_camera: Array
    zeros_rad: Array
    corrupted: tuple[int, ...]


def look_at(eye_m: tuple[float, ...], target_m: tuple[float, ...]) -> Array:
    """T_base_camera of a camera that looks at a point, the image upright."""
    z = np.subtract(target_m, eye_m) / np.linalg.norm(np.subtract(target_m, eye_m))
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = np.column_stack([x, np.cross(z, x), z]), eye_m
    return T


def shaken(rng: np.random.Generator, turn_rad: float, shift_m: float) -> Array:
    """(4, 4) small random transform: rotation vector and translation normal with these deviations."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = cv2.Rodrigues(rng.normal(0, turn_rad, 3))[0], rng.normal(0, shift_m, 3)
    return T


def moved(rng: np.random.Generator, turn_rad: tuple[float, float], shift_m: tuple[float, float]) -> Array:
    """(4, 4) rotation and translation in random directions, by amounts drawn from these ranges."""
    turn, shift = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = cv2.Rodrigues(turn * rng.uniform(*turn_rad))[0], shift * rng.uniform(*shift_m)
    return T


def draw(rng: np.random.Generator, fk: GripperKinematics, pool_rad: Array, bad: bool) -> Trial:
    """One calibration's observations."""
    T_base_camera = look_at(EYE_M, TARGET_M) @ shaken(rng, 0.015, 0.01)
    held = T_gripper_board_nominal(BOARD) @ shaken(rng, 0.02, 0.002)
    zeros = rng.uniform(-ZERO_RAD, ZERO_RAD, len(JOINTS)) if bad else np.zeros(len(JOINTS))
    zeros[-1] = 0.0  # the jaw's does not matter here
    joints: list[Array] = []
    detections: list[Detection] = []
    tampered = set(rng.choice(POSES, CORRUPTED, replace=False).tolist()) if bad else set()
    for q in pool_rad[rng.permutation(len(pool_rad))]:
        i = len(joints)
        T_gripper_board, reading = held, q.copy()
        if i in tampered:
            kind = rng.integers(3)
            if kind == 0:
                reading = pool_rad[rng.choice(np.flatnonzero((pool_rad != q).any(axis=1)))].copy()
            elif kind == 1:
                reading[rng.integers(5)] += rng.choice([-1, 1]) * rng.uniform(np.radians(2), np.radians(10))
            else:
                T_gripper_board = held @ moved(rng, (np.radians(2), np.radians(8)), (0.005, 0.02))
        true = q + zeros + rng.normal(0, ENCODER_RAD, len(q))
        seen = see(rng, invert(T_base_camera) @ fk(true) @ T_gripper_board)
        if seen is None:
            continue
        joints.append(reading)
        detections.append(seen)
        if len(joints) == POSES:
            break
    return Trial(np.array(joints), detections, T_base_camera, zeros, tuple(sorted(tampered)))


def see(rng: np.random.Generator, T_camera_board: Array) -> Detection | None:
    """The board's corners inside the image, with noise; None where they are too few."""
    rvec = cv2.Rodrigues(T_camera_board[:3, :3])[0]
    px = cv2.projectPoints(BOARD.corners_m(), rvec, T_camera_board[:3, 3], CAMERA.matrix, np.zeros(5))[0]
    px = np.asarray(px, dtype=float).reshape(-1, 2)
    px = px + rng.normal(0, CORNER_PX, px.shape)
    inside = (px > 2).all(axis=1) & (px < [CAMERA.width - 3, CAMERA.height - 3]).all(axis=1)
    if inside.sum() < MIN_CORNERS + 2:
        return None
    return Detection(np.flatnonzero(inside), px[inside])


def tip_error_mm(
    trial: Trial, fk: GripperKinematics, reach_rad: Array, T_base_camera: Array, zeros_rad: Array, noise_rad: Array
) -> float:
    """Rms distance, mm, of the true tip from the true point, for points that the calibration places at ``reach_rad``.

    ``reach_rad`` (m, 6) are true joints in the calibration's eyes; ``noise_rad`` (m, 6) is what the arm is off there.
    A calibration that is no finite rigid transform is infinitely far off.
    """
    if not np.isfinite(T_base_camera).all():
        return float("inf")
    T = trial.T_base_camera @ invert(T_base_camera)
    squares = []
    for q, noise in zip(reach_rad, noise_rad, strict=True):
        believed, true = (fk(joints) @ [*TIP_GRIPPER_M, 1.0] for joints in (q, q - zeros_rad + trial.zeros_rad + noise))
        squares.append(float(np.sum((true - T @ believed)[:3] ** 2)))
    return 1e3 * float(np.sqrt(np.mean(squares)))


def board_pose(detection: Detection) -> Array:
    """(4, 4) T_camera_board as OpenCV finds it: IPPE's better pose, refined."""
    points = BOARD.corners_m(detection.ids)
    K, lens = CAMERA.matrix, np.zeros(5)
    _, rvecs, tvecs, errors = cv2.solvePnPGeneric(points, detection.corners_px, K, lens, flags=cv2.SOLVEPNP_IPPE)
    best = int(np.argmin(np.ravel(errors)))
    rvec, tvec = cv2.solvePnPRefineLM(points, detection.corners_px, K, lens, rvecs[best], tvecs[best])
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = cv2.Rodrigues(rvec)[0], np.ravel(tvec)
    return T


# --- OpenCV's methods, in a process of their own ----------------------------------------------------------------------


def opencv_methods(T_base_gripper: Array, T_camera_board: Array) -> dict[str, Array]:
    """T_base_camera (4, 4) by each of OpenCV's methods, NaN where one fails; this process's cv2 must have them.

    T_base_gripper, T_camera_board: (n, 4, 4).
    """
    cv: Any = cv2  # of OpenCV 5's stubs, too, these are missing

    def split(Ts: Array) -> tuple[list[Array], list[Array]]:
        return [T[:3, :3] for T in Ts], [T[:3, 3] for T in Ts]

    T_gripper_base = np.array([invert(T) for T in T_base_gripper])
    found: dict[str, Array] = {}
    for name in HAND_EYE:  # eye-to-hand: as eye-in-hand with the arm's poses inverted
        T = np.full((4, 4), np.nan)
        try:
            method = getattr(cv2, f"CALIB_HAND_EYE_{name}")
            R, t = cv.calibrateHandEye(*split(T_gripper_base), *split(T_camera_board), method=method)
            T = rigid(R, t)
        except cv2.error:
            pass
        found[f"HandEye {name}"] = T
    for name in ROBOT_WORLD:  # T_camera_board @ T_board_gripper = T_camera_base @ T_base_gripper
        T = np.full((4, 4), np.nan)
        try:
            method = getattr(cv2, f"CALIB_ROBOT_WORLD_HAND_EYE_{name}")
            _, _, R, t = cv.calibrateRobotWorldHandEye(*split(T_camera_board), *split(T_base_gripper), method=method)
            T = invert(rigid(R, t))
        except cv2.error:
            pass
        found[f"RobotWorldHandEye {name}"] = T
    return found


def opencv(trials: list[Trial], fk: GripperKinematics, folder: Path) -> list[dict[str, Array]]:
    """What each method makes of each trial, in this process where cv2 has them, else with the OpenCV 4 in ``folder``.

    Raises:
        UserError: there is none and pip cannot get it, or the other process fails.
    """
    arms = np.array([[fk(q) for q in trial.joints_rad] for trial in trials])
    boards = np.array([[board_pose(d) for d in trial.detections] for trial in trials])
    if hasattr(cv2, "calibrateHandEye"):
        return [opencv_methods(arm, board) for arm, board in zip(arms, boards, strict=True)]
    if not (folder / "cv2").is_dir():
        print(f"getting {OPENCV4} into {folder}", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), OPENCV4]
        if subprocess.run(pip).returncode:
            raise UserError(f"--opencv4 {folder}: pip cannot get {OPENCV4}; install it there with pip's --target")
    with tempfile.TemporaryDirectory() as scratch:
        given, got = Path(scratch) / "given.npz", Path(scratch) / "got.npz"
        np.savez(given, arms=arms, boards=boards)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder.resolve()), str(ROOT)])}
        child = [sys.executable, "-m", "benchmarks.hand_eye", "--solve", str(given), str(got)]
        ended = subprocess.run(child, env=environment, cwd=ROOT, capture_output=True, text=True)
        if ended.returncode:
            why = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"--opencv4 {folder}: OpenCV's methods did not run ({why})")
        with np.load(got) as file:
            names = list(file)
            return [dict(zip(names, Ts, strict=True)) for Ts in zip(*(file[name] for name in names), strict=True)]


def solve_file(given: Path, got: Path) -> None:
    """The second process: (trials, views, 4, 4) in, one (trials, 4, 4) by each method out."""
    with np.load(given) as file:
        found = [opencv_methods(arm, board) for arm, board in zip(file["arms"], file["boards"], strict=True)]
    np.savez(got, **{name: np.array([one[name] for one in found]) for name in found[0]})  # type: ignore[arg-type]


# --- the figures ------------------------------------------------------------------------------------------------------


def spread(errors_mm: Iterable[float]) -> dict[str, float | None]:
    """Median and 95th percentile; None where they are infinite."""
    errors = np.sort(np.asarray(list(errors_mm), dtype=float))
    values = {"median_mm": np.median(errors), "p95_mm": errors[int(np.ceil(0.95 * len(errors))) - 1]}
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}


def within_two(reported_mm: Array, true_mm: Array) -> float:
    """Share of trials whose reported error is between half of and twice the true one."""
    return float(np.mean((reported_mm >= true_mm / 2) & (reported_mm <= true_mm * 2)))


def figures(
    trials: list[Trial], fk: GripperKinematics, reach_rad: Array, theirs: list[dict[str, Array]], seed: int
) -> dict[str, Any]:
    """What came of one kind of trials."""
    rng = np.random.default_rng([seed, 1])
    still = np.zeros_like(reach_rad)
    rows: list[tuple[float, float, float, float]] = []  # true, true with noisy encoders, and both as reported
    seconds: list[float] = []
    fitted = refused = found = tampered = accused = 0
    by_method: dict[str, list[float]] = {name: [] for name in (theirs[0] if theirs else ())}
    for k, trial in enumerate(trials):
        for name, T in (theirs[k] if theirs else {}).items():
            by_method[name].append(tip_error_mm(trial, fk, reach_rad, T, np.zeros(len(JOINTS)), still))
        start_s = time.perf_counter()
        tampered += len(trial.corrupted)
        try:
            result = adjust(trial.joints_rad, trial.detections, fk, BOARD, CAMERA, reach_rad=reach_rad)
        except UserError:
            refused += 1
            rows.append((float("inf"), float("inf"), 0.0, 0.0))
            continue
        seconds.append(time.perf_counter() - start_s)
        noise = rng.normal(0, ENCODER_RAD, reach_rad.shape)
        true_mm, true_reach_mm = (
            tip_error_mm(trial, fk, reach_rad, result.T_base_camera, result.joint_zeros_rad, n) for n in (still, noise)
        )
        rows.append((true_mm, true_reach_mm, result.expected_mm, result.expected_reach_mm))
        fitted += result.zeros_fitted
        found += len(set(result.outliers) & set(trial.corrupted))
        accused += len(set(result.outliers) - set(trial.corrupted))
    errors = np.array(rows)
    ours, with_noise = spread(errors[:, 0]), spread(errors[:, 1])
    methods = {name: spread(values) for name, values in by_method.items()}
    finite = {name: row["median_mm"] for name, row in methods.items() if row["median_mm"] is not None}
    best = min(finite, key=lambda name: finite[name], default=None)
    return {
        "trials": len(trials),
        "ours_median_mm": ours["median_mm"],
        "ours_p95_mm": ours["p95_mm"],
        "best_opencv": best,
        "best_opencv_median_mm": None if best is None else finite[best],
        "opencv": methods,
        "reported_median_mm": float(np.median(errors[:, 2])),
        "reported_within_two_share": within_two(errors[:, 2], errors[:, 0]),
        "with_encoder_noise": {
            **{f"ours_{name}": value for name, value in with_noise.items()},
            "reported_within_two_share": within_two(errors[:, 3], errors[:, 1]),
        },
        "zeros_fitted_share": fitted / len(trials),
        "corrupted_found_share": found / tampered if tampered else None,
        "good_samples_accused_share": accused / (POSES * len(trials) - tampered),
        "refused": refused,
        "solve_p50_s": float(np.median(seconds)) if seconds else None,
    }


def main() -> int | None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hand_eye", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TRIALS} trials instead of {TRIALS}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    folder = ROOT / "build" / "opencv4"
    parser.add_argument("--opencv4", type=Path, default=folder, metavar="FOLDER", help=f"default: {folder}")
    parser.add_argument("--solve", nargs=2, type=Path, help=argparse.SUPPRESS)  # the second process
    args = parser.parse_args()
    if args.solve:
        solve_file(*args.solve)
        return None
    if args.opencv4.exists() and not args.opencv4.is_dir():
        print(f"--opencv4 {args.opencv4}: is no folder", file=sys.stderr)
        return 2
    console = Console()
    fk = GripperKinematics(MODEL, JOINTS)
    reach_rad = workspace_poses(fk, len(JOINTS))
    pool = choose_poses(MODEL, JOINTS, BOARD, CAMERA, look_at(EYE_M, TARGET_M), START_RAD, count=POOL)
    count = max((QUICK_TRIALS if args.quick else TRIALS) // 2, 1)
    report: dict[str, Any] = {"benchmark": "hand_eye", "machine": machine(), "trials": 2 * count}
    start_s = time.perf_counter()
    for seed, kind in enumerate(KINDS):
        trials = [draw(np.random.default_rng([seed, k]), fk, pool, kind == "bad_zeros") for k in range(count)]
        try:
            theirs = opencv(trials, fk, args.opencv4)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        report[kind] = figures(trials, fk, reach_rad, theirs, seed)
        _show(console, kind, report[kind])
    report["seconds"] = time.perf_counter() - start_s
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return None


def _show(console: Console, kind: str, found: dict[str, Any]) -> None:
    table = Table(title=f"{kind.replace('_', ' ')}: tip error over the workspace, {found['trials']} trials")
    for heading in ("", "median mm", "p95 mm"):
        table.add_column(heading, justify="right" if heading else "left")
    ours = {"median_mm": found["ours_median_mm"], "p95_mm": found["ours_p95_mm"]}
    for name, row in {"calib.adjust": ours, **found["opencv"]}.items():
        table.add_row(name, *("-" if value is None else f"{value:.2f}" for value in row.values()))
    console.print(table)
    noisy = found["with_encoder_noise"]
    console.print(
        f"reported within a factor of two: {found['reported_within_two_share']:.0%}; with encoder noise in the reach "
        f"{noisy['ours_median_mm']:.2f} mm and {noisy['reported_within_two_share']:.0%}"
    )
    caught = "-" if found["corrupted_found_share"] is None else f"{found['corrupted_found_share']:.1%}"
    console.print(
        f"zeros fitted in {found['zeros_fitted_share']:.0%}; corrupted samples found {caught}, good ones accused "
        f"{found['good_samples_accused_share']:.2%}; refused {found['refused']}; {found['solve_p50_s'] or 0:.2f} s each"
    )


if __name__ == "__main__":
    sys.exit(main())
