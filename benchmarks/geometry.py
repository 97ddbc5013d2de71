"""How far off is a grasp's place, and does it know: with depth, without, and with a calibration that is off?

``python -m benchmarks.geometry [--quick] [--json FILE]``. Drawn scenes of the simulated table at 320x240 px, every
thing on them that can be grasped, a model's box about each (each side off by 5 % of the box, sigma). Depth has the
noise that ``edge.uncertainty`` states, so those rows show that the arithmetic holds, not that a camera behaves so;
the calibration is off by 1 mm (sigma, each axis) and says so.

- ``place``: of the grasp's middle from the object's, in the plane of the table; ``width`` and ``top`` likewise.
- ``normalized``: the place's error squared over what the covariance says, 2 in the mean where it is honest;
  ``inside``: the share of objects that lie in its 95 % ellipse.
- ``accepted``: known well enough for the jaws; ``clear``: the share of those whose sides both jaws pass on the way
  down.
- ``picked``: of those accepted, by physics (MuJoCo, the arm following the plan): the object ends up 5 cm above the
  table.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from drivers.errors import UserError
from drivers.protocols import Frame
from drivers.robot import load_robot
from drivers.sim.judge import judge
from drivers.sim.render import CAMERA, camera_pose, scaled, visible_corners
from drivers.sim.scene import Item, Scene, Task, draw_scene
from drivers.sim.world import build_model, item_of_geom, set_arm
from edge.contract import Affordance
from edge.geometry import Grasp, GraspError, lift_affordance
from edge.grasp import require_known
from edge.kinematics import Kinematics
from edge.motion import plan_pick
from edge.object_grasp import grasp_of_box, grasp_of_thing, things_meant
from edge.uncertainty import DEPTH_BIAS, DEPTH_NOISE_PER_M
from edge.view import View

Array = NDArray[np.float64]

SCENES, QUICK_SCENES = 120, 12
PICKED_SCENES, QUICK_PICKED_SCENES = 50, 4
K = scaled(CAMERA, 320, 240)
BOX = 0.05
CALIBRATION_M = 0.001
LEAST_PX = 100  # smaller ones are hidden by others
IN_95 = 5.99  # chi-square of two
SETTINGS = {"depth": (True, 0.0), "depth, calibration": (True, CALIBRATION_M), "no depth": (False, 0.0)}
ROBOT = load_robot()
SETTLE_STEPS, LIFTED_STEPS, SETPOINT_S = 200, 300, 0.01


class Shot:
    """One scene seen by its camera; exact depth."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.model = build_model(scene)
        self.data = mujoco.MjData(self.model)
        set_arm(self.model, self.data, ROBOT.ready_rad)
        for _ in range(SETTLE_STEPS):
            mujoco.mj_step(self.model, self.data)
        self.T_base_camera = camera_pose(scene.look)
        u, v = np.meshgrid(np.arange(K.width, dtype=float), np.arange(K.height, dtype=float))
        rays = np.stack([(u - K.cx) / K.fx, (v - K.cy) / K.fy, np.ones_like(u)], -1).reshape(-1, 3)
        rays = np.ascontiguousarray(rays @ self.T_base_camera[:3, :3].T)
        geom, distance = np.empty(len(rays), np.int32), np.empty(len(rays))
        eye = self.T_base_camera[:3, 3].copy()
        mujoco.mj_multiRay(
            self.model, self.data, eye, rays.ravel(), None, True, -1, geom, distance, None, len(rays), 1e9
        )
        self.depth_m = np.where(geom >= 0, distance, 0.0).reshape(u.shape).astype(np.float32)
        self.item = item_of_geom(self.model)[geom].reshape(u.shape)

    def frame(self, rng: np.random.Generator, deep: bool) -> Frame:
        """As a camera gives it: depth with a bias of its own and noise that neighbours share, or none."""
        rgb = np.zeros((K.height, K.width, 3), np.uint8)
        if not deep:
            return Frame(rgb, None, 0.0, K)
        noise = np.asarray(cv2.GaussianBlur(rng.standard_normal((K.height, K.width)), (0, 0), 1.4))
        depth = self.depth_m * (1 + DEPTH_BIAS * rng.standard_normal())
        depth = depth + DEPTH_NOISE_PER_M * self.depth_m**2 * noise / noise.std()
        return Frame(rgb, depth.astype(np.float32), 0.0, K)

    def box(self, rng: np.random.Generator, i: int) -> Affordance | None:
        """What a model would answer for item i; None where it is hidden or not to be grasped."""
        seen = self.item == i
        corners = visible_corners(seen)
        if self.scene.items[i].is_container or corners is None or seen.sum() < LEAST_PX:
            return None
        x0, y0, x1, y1 = corners
        w, h = x1 - x0, y1 - y0
        left, right, top, bottom = BOX * rng.standard_normal(4)
        return Affordance(
            (x0 + x1) / 2 + w * (left + right) / 2,
            (y0 + y1) / 2 + h * (top + bottom) / 2,
            w * (1 + right - left),
            h * (1 + bottom - top),
        )


def shifted(T: Array, rng: np.random.Generator, sigma_m: float) -> Array:
    T = T.copy()
    T[:3, 3] += sigma_m * rng.standard_normal(3)
    return T


def estimate(box: Affordance, frame: Frame, T: Array, reach_m2: Array) -> Grasp | None:
    """The grasp, refused or not; None where nothing is seen in the box."""
    view = View(frame, T, 0.0, reach_m2)
    if frame.depth_m is None:
        try:
            return grasp_of_box(box, view)
        except GraspError:
            return None
    thing = next(things_meant(box, view), None)
    return None if thing is None else grasp_of_thing(thing, view)


def height_m(item: Item) -> float:
    return 2 * (item.size_m[0] if item.shape == "ball" else item.size_m[-1])


def wide_m(item: Item, yaw_rad: float) -> float:
    """What the jaws truly find between them."""
    if item.shape not in ("cube", "bar"):
        return 2 * item.size_m[0]
    turn = yaw_rad - item.yaw_rad
    return 2 * (item.size_m[0] * abs(math.cos(turn)) + item.size_m[1] * abs(math.sin(turn)))


def judged(grasp: Grasp, item: Item) -> dict[str, float]:
    top_m, wide = height_m(item), wide_m(item, grasp.yaw_rad)
    error = grasp.position_base_m - (item.x_m, item.y_m, top_m / 2)
    try:
        require_known(grasp)
        accepted = 1.0
    except GraspError:
        accepted = 0.0
    across = error[:2]
    return {
        "place_mm": 1e3 * float(np.hypot(*across)),
        "normalized": float(across @ np.linalg.solve(grasp.covariance_m2[:2, :2], across)),
        "width_mm": 1e3 * abs(grasp.width_m - wide),
        "top_mm": 1e3 * abs(grasp.height_m - top_m),
        "accepted": accepted,
        "clear": float(abs(error @ grasp.jaw_axis) + wide / 2 < grasp.opening_m / 2),
    }


def picked(shot: Shot, i: int, box: Affordance, frame: Frame, T: Array, kin: Kinematics) -> bool | None:
    """Whether physics has the object lifted; None where the grasp is refused before any motion."""
    try:
        grasp = lift_affordance(box, frame, T, reach_covariance_m2=CALIBRATION_M**2 * np.eye(3))
        plan = plan_pick(kin, ROBOT.ready_rad, grasp, ROBOT.ready_rad)
    except UserError:
        return None
    data = mujoco.MjData(shot.model)
    set_arm(shot.model, data, ROBOT.ready_rad)
    for _ in range(SETTLE_STEPS):
        mujoco.mj_step(shot.model, data)
    for q in plan.position_rad:
        data.ctrl[:6] = q
        for _ in range(round(SETPOINT_S / shot.model.opt.timestep)):
            mujoco.mj_step(shot.model, data)
    for _ in range(LIFTED_STEPS):
        mujoco.mj_step(shot.model, data)
    return judge(shot.model, data, shot.scene, Task("pick", i, None, "")).success


def figures(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Of one setting."""

    def of(name: str) -> Array:
        return np.array([row[name] for row in rows])

    accepted = of("accepted") > 0
    return {
        "objects": len(rows),
        **{
            name: {"median": float(np.median(of(name))), "p95": float(np.percentile(of(name), 95))}
            for name in ("place_mm", "width_mm", "top_mm")
        },
        "normalized_mean": float(of("normalized").mean()),
        "inside_95": float((of("normalized") < IN_95).mean()),
        "accepted": float(accepted.mean()),
        "clear": float(of("clear")[accepted].mean()),
    }


def run(scenes: int, picked_scenes: int) -> dict[str, Any]:
    """Everything, by setting."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    unseen = dict.fromkeys(SETTINGS, 0)
    picks: dict[str, list[bool | None]] = {"depth": [], "no depth": []}
    kin = Kinematics(ROBOT)
    for seed in range(scenes):
        shot = Shot(draw_scene(np.random.default_rng([0x6E0, seed])))
        rng = np.random.default_rng([0x6E1, seed])
        boxes = {i: box for i in range(len(shot.scene.items)) if (box := shot.box(rng, i)) is not None}
        for name, (deep, sigma_m) in SETTINGS.items():
            frame = shot.frame(rng, deep)
            for i, box in boxes.items():
                grasp = estimate(box, frame, shifted(shot.T_base_camera, rng, sigma_m), sigma_m**2 * np.eye(3))
                if grasp is None:
                    unseen[name] += 1
                else:
                    rows[name].append(judged(grasp, shot.scene.items[i]))
        if seed < picked_scenes and boxes:
            i = int(rng.choice(list(boxes)))
            T = shifted(shot.T_base_camera, rng, CALIBRATION_M)
            for name, deep in (("depth", True), ("no depth", False)):
                picks[name].append(picked(shot, i, boxes[i], shot.frame(rng, deep), T, kin))
    return {
        "settings": {name: figures(rows[name]) | {"nothing_seen": unseen[name]} for name in SETTINGS},
        "picks": {
            name: {
                "tried": len(all_),
                "refused": sum(one is None for one in all_),
                "succeeded": sum(one is True for one in all_),
            }
            for name, all_ in picks.items()
        },
    }


def show(found: dict[str, Any]) -> None:
    table = Table(title="a grasp's place, and what it knows of it")
    table.add_column("")
    for name in found["settings"]:
        table.add_column(name, justify="right")
    all_ = list(found["settings"].values())
    for name, text in (("place_mm", "place"), ("width_mm", "width"), ("top_mm", "top")):
        table.add_row(f"{text}, mm, median (p95)", *(f"{s[name]['median']:.2f} ({s[name]['p95']:.1f})" for s in all_))
    table.add_row("normalized, mean (2 is honest)", *(f"{s['normalized_mean']:.2f}" for s in all_))
    table.add_row("inside its 95 %", *(f"{s['inside_95']:.1%}" for s in all_))
    table.add_row("accepted", *(f"{s['accepted']:.0%} of {s['objects']}" for s in all_))
    table.add_row("of those, jaws clear", *(f"{s['clear']:.1%}" for s in all_))
    picks = found["picks"].items()
    table.caption = "; ".join(
        f"{name}: {p['succeeded']} picked, {p['refused']} refused of {p['tried']}" for name, p in picks
    )
    console().print(table)


def main() -> None:
    """Print the table; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SCENES} scenes instead of {SCENES}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    found = run(*((QUICK_SCENES, QUICK_PICKED_SCENES) if args.quick else (SCENES, PICKED_SCENES)))
    show(found)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
