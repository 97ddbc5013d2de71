"""Does ``vlar1 calibrate check`` notice a camera that has moved, and leave one alone that has not?

``python -m benchmarks.camera_check [--quick] [--json FILE]``. Two rendered pictures (640 x 480, noise of sensor and
depth as the simulated camera has) of the simulated table, the camera moved between them by 0, 5, 15 or 30 mm and
turned by 0, 0.5, 1.5 or 3 degrees in a random direction, and besides:

- ``same``: nothing; ``light``: other light; ``pose``: the arm stands elsewhere;
- ``objects``: other things on the table in other light; ``away``: nothing on the table any more, in other light.

On each kind of table, with depth and without. "Right": still valid where nothing moved, moved where it has; "cannot
tell" asks for a better look; a false alarm and a miss are the opposite of right. Error: of the motion found, rms over
the workspace, where the check says that it knows it to 1.5 mm.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from calib.board import Board
from calib.calibration import Calibration, CameraCalibration, Reference
from calib.rigid import apply, invert, retract
from drivers.protocols import Frame
from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render
from drivers.sim.scene import TABLES, Scene, draw_look, draw_scene
from drivers.sim.world import build_model, set_arm
from edge.still_valid import checked, compare, workspace_points

Array = NDArray[np.float64]

SCENES, QUICK_SCENES = 3, 1
MOVED_MM = (0, 5, 15, 30)
QUICK_MOVED_MM = (0, 15)
CHANGES = ("same", "light", "pose", "objects", "away")
ELSEWHERE_RAD = np.array([0.3, -0.5, 0.8, 0.8, 0.2, 0.4])
ENCODER_RAD = float(np.radians(0.1))
COUNT_RAD = 2 * np.pi / 4096
DEPTH_NOISE, DEPTH_REACH_M = 0.0015, 2.0
KNOWN_MM = 1.5
ROBOT = load_robot()


@dataclass(frozen=True)
class Row:
    """One comparison: what was done, what was said ("valid", "moved" or "unsure"), and how far the motion is off."""

    table: str
    deep: bool
    moved_mm: int
    said: str
    error_mm: float
    sigma_mm: float
    took_s: float

    @property
    def right(self) -> bool:
        return self.said == ("moved" if self.moved_mm else "valid")


def shot(scene: Scene, joints_rad: Array, T_base_camera: Array, rng: np.random.Generator) -> Frame:
    """What the camera sees there."""
    model = build_model(scene)
    data = mujoco.MjData(model)
    set_arm(model, data, joints_rad)
    mujoco.mj_kinematics(model, data)
    picture = render(model, data, scene.look, T_base_camera, CAMERA, rng)
    noise = 1.0 + DEPTH_NOISE * rng.standard_normal(picture.depth_m.shape, np.float32)
    depth_m = np.where(picture.depth_m < DEPTH_REACH_M, picture.depth_m * noise, 0.0).astype(np.float32)
    return Frame(picture.rgb, depth_m, 0.0, CAMERA, "camera")


def pair(table: str, seed: int, moved_mm: int, change: str) -> tuple[Frame, Frame, Array, Array, Array]:
    """Frames then and now, T_base_camera then and now, and the joints now."""
    rng = np.random.default_rng([0xCC, TABLES.index(table), seed, moved_mm, CHANGES.index(change)])
    look = replace(draw_look(rng), table=table)
    scene = draw_scene(rng, look=look)
    T = camera_pose(look)
    twist = rng.standard_normal(6)
    twist[:3] *= np.radians(moved_mm / 10) / np.linalg.norm(twist[:3])
    twist[3:] *= 1e-3 * moved_mm / np.linalg.norm(twist[3:])
    T_now, later, joints = T @ retract(twist), scene, ROBOT.ready_rad + rng.normal(0, ENCODER_RAD, 6)
    if change in ("light", "objects", "away"):
        other = draw_look(rng)
        lit = replace(
            look,
            light_m=other.light_m,
            ambient=other.ambient,
            diffuse=other.diffuse,
            gain=other.gain,
            noise=other.noise,
        )
        items = {"light": scene.items, "away": ()}.get(change)
        later = Scene(draw_scene(rng, look=look).items if items is None else items, lit)
    if change == "pose":
        joints = ELSEWHERE_RAD
    return shot(scene, ROBOT.ready_rad, T, rng), shot(later, joints, T_now, rng), T, T_now, joints


def rows(scenes: int, moved: tuple[int, ...]) -> Iterator[Row]:
    """Every comparison."""
    points = workspace_points()
    jobs = [(t, s, m, c) for t in TABLES for s in range(scenes) for m in moved for c in CHANGES]
    for table, seed, moved_mm, change in track(jobs, description="comparing", transient=True):
        then, now, T, T_now, joints = pair(table, seed, moved_mm, change)
        read_rad = np.round(joints / COUNT_RAD) * COUNT_RAD
        for deep in (True, False):
            reference = Reference(ROBOT.ready_rad, then.rgb, then.depth_m if deep else None)
            calibration = Calibration(
                *("", ROBOT.name, CameraCalibration("", "camera", CAMERA), Board(), "base", T, np.eye(4), 0.0, 0.0),
                reference=reference,
            )
            start_s = time.perf_counter()
            motion = compare(checked(calibration, ROBOT), now if deep else replace(now, depth_m=None), read_rad)
            took_s = time.perf_counter() - start_s
            said = "valid" if motion.is_valid else "moved" if motion.has_moved else "unsure"
            found = apply(T @ invert(T @ motion.T_then_now), points) - apply(T @ invert(T_now), points)
            error_mm = 1e3 * float(np.sqrt(np.mean(np.sum(found**2, axis=1))))
            yield Row(table, deep, moved_mm, said, error_mm, motion.sigma_mm, took_s)


def figures(all_: list[Row]) -> dict[str, Any]:
    """Of one table, with or without depth."""
    still, gone = ([row for row in all_ if bool(row.moved_mm) == moved] for moved in (False, True))
    known = np.array([row.error_mm for row in all_ if row.sigma_mm < KNOWN_MM])
    return {
        "still": len(still),
        "still_right": sum(row.right for row in still),
        "moved": len(gone),
        "moved_right": sum(row.right for row in gone),
        "unsure": sum(row.said == "unsure" for row in all_),
        "false_alarms": sum(row.said == "moved" for row in still),
        "missed": sum(row.said == "valid" for row in gone),
        "error_mm": {"median": float(np.median(known)), "p90": float(np.percentile(known, 90))} if len(known) else None,
    }


def main() -> None:
    """Print the table; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one scene a table, two motions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    all_ = list(rows(QUICK_SCENES, QUICK_MOVED_MM) if args.quick else rows(SCENES, MOVED_MM))
    found = {
        f"{'depth' if deep else 'colour alone'}, {table}": figures(
            [row for row in all_ if row.deep == deep and row.table == table]
        )
        for deep in (True, False)
        for table in TABLES
    }
    shown = Table(title="has the camera moved?")
    for name in ("", "still: right", "moved: right", "cannot tell", "false alarm", "missed", "error, mm, median (p90)"):
        shown.add_column(name, justify="right" if name else "left")
    for name, f in found.items():
        error = f"{f['error_mm']['median']:.2f} ({f['error_mm']['p90']:.2f})" if f["error_mm"] else "-"
        shown.add_row(
            name,
            f"{f['still_right']} of {f['still']}",
            f"{f['moved_right']} of {f['moved']}",
            str(f["unsure"]),
            str(f["false_alarms"]),
            str(f["missed"]),
            error,
        )
    took_s = float(np.median([row.took_s for row in all_]))
    shown.caption = f"{took_s:.1f} s a comparison"
    console().print(shown)
    if args.json:
        content = {"machine": machine(), "took_s": took_s, "figures": found}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
