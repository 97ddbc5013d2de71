"""Is the target still known where it is, after what can happen during a decision, and what does following it cost?

``python -m benchmarks.tracking [--quick] [--json FILE]``. Rendered scenes of the simulated table (640 x 480, sensor and
depth noise as its camera has), a model's box (each side off by up to 5 % of the box), 1.5 s:

- ``moved``: the target slides by 3 to 8 cm, at rest at both ends; seen at 30 Hz and, as the simulator's own camera
  does on a small machine, at 2 Hz;
- ``still``: nothing moves but the light, by up to 10 %;
- ``gone``: the target is taken away; ``swapped``: another thing stands in its place; ``covered``: a hand is before it.

With depth and by colour alone. Error: where a point at the target's middle was carried to, from where it truly is seen
in the last image. Wrong: "lost" said of a target that is in full sight at the end, or not said of one that is not.
Times: of one update, its image's shrinking included; processor time is of all threads. ``catch_up_ms``: of all frames
since the first, 1.5 s at 30 Hz where the target moved.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from drivers.protocols import Frame
from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render, visible_corners
from drivers.sim.scene import Scene, draw_scene
from drivers.sim.slide import clear_slide, smooth
from drivers.sim.world import build_model, item_of_geom, set_arm
from edge.appearance import thumbnail_of
from edge.contract import Affordance, box_from_corners
from edge.tracking import Tracker

SCENES = 60
QUICK_SCENES = 8
DECISION_S = 1.5
RATES_HZ = (30.0, 2.0)
DEPTH_NOISE = 0.0015
HAND_RGB, HAND_ABOVE_M = (198, 146, 118), 0.08
READY_RAD = load_robot().ready_rad
KINDS = ("moved", "still", "gone", "swapped", "covered")


class Stage:
    """Renders one scene with items where they are put."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene, self.rng = scene, rng
        self.model = build_model(scene)
        self.data = mujoco.MjData(self.model)
        set_arm(self.model, self.data, READY_RAD)
        self.T = camera_pose(scene.look)

    def put(self, index: int, x_m: float, y_m: float) -> None:
        self.data.joint(f"item{index}").qpos[:2] = x_m, y_m

    def frame(self, t_s: float) -> Frame:
        mujoco.mj_kinematics(self.model, self.data)
        picture = render(self.model, self.data, self.scene.look, self.T, CAMERA, self.rng)
        self.geom = picture.geom
        noise = 1.0 + DEPTH_NOISE * self.rng.standard_normal(picture.depth_m.shape, np.float32)
        return Frame(picture.rgb, (picture.depth_m * noise).astype(np.float32), t_s, CAMERA, "BENCH")

    def box(self, index: int) -> Affordance | None:
        """What a model would say: the visible target, each side a little off."""
        corners = visible_corners(item_of_geom(self.model)[self.geom] == index)
        if corners is None:
            return None
        left, top, right, bottom = corners
        off = self.rng.uniform(-0.05, 0.05, 4) * [right - left, bottom - top, right - left, bottom - top]
        return box_from_corners(np.clip(np.array(corners) + off, 0.0, 1.0).tolist())

    def middle_px(self, index: int) -> NDArray[np.float64]:
        """Where the item's middle is seen, (2,)."""
        eye = np.linalg.inv(self.T) @ [*self.data.body(f"item{index}").xpos, 1.0]
        return np.array([CAMERA.fx * eye[0] / eye[2] + CAMERA.cx, CAMERA.fy * eye[1] / eye[2] + CAMERA.cy])


def sequence(
    kind: str, seed: int, rate_hz: float
) -> tuple[list[Frame], Affordance, int, NDArray[np.float64], NDArray[np.float64]]:
    """Frames, the box in the first, the target, and where its middle is at the start and at the end, pixels."""
    rng = np.random.default_rng([seed, 0x7AC])
    while True:
        scene = draw_scene(rng)
        target = int(rng.choice([i for i, item in enumerate(scene.items) if not item.is_container]))
        item = scene.items[target]
        way = clear_slide(scene, target, float(rng.uniform(0.03, 0.08)), rng)
        if way is not None:
            break
    stage = Stage(scene, rng)
    first = stage.frame(0.0)
    box = stage.box(target)
    if box is None or (item_of_geom(stage.model)[stage.geom] == target).sum() < 300:
        return sequence(kind, seed + 1000, rate_hz)
    start_px = stage.middle_px(target)
    frames = [first]
    times_s = np.arange(1, round(DECISION_S * rate_hz) + 1) / rate_hz
    if kind != "moved":
        times_s = times_s[-min(len(times_s), 6) :]
    other = next(i for i in range(len(scene.items)) if i != target and not scene.items[i].is_container)
    for k, t_s in enumerate(times_s):
        if kind == "moved":
            share = smooth(t_s / DECISION_S)
            stage.put(target, item.x_m + share * way[0], item.y_m + share * way[1])
        elif kind in ("gone", "swapped") and k == len(times_s) // 2:
            stage.put(target, 1.0, 1.0)
            if kind == "swapped":
                stage.put(other, item.x_m, item.y_m)
        frame = stage.frame(float(t_s))
        if kind == "still":
            gain = 1.0 + rng.uniform(-0.1, 0.1)
            frame = replace(frame, rgb=np.clip(frame.rgb * gain, 0, 255).astype(np.uint8))
        elif kind == "covered" and k >= len(times_s) // 2:
            frame = covered(frame, box, rng)
        frames.append(frame)
    return frames, box, target, start_px, stage.middle_px(target)


def covered(frame: Frame, box: Affordance, rng: np.random.Generator) -> Frame:
    """A hand before at least three quarters of the box, reaching in from a side."""
    assert frame.depth_m is not None
    size = np.array([CAMERA.width, CAMERA.height])
    centre = np.array([box.x, box.y]) * size
    radius = 0.65 * float((np.array([box.width, box.height]) * size).max())
    hand = np.zeros(frame.rgb.shape[:2], np.uint8)
    a = rng.uniform(0, 2 * np.pi)
    wrist = centre + 600.0 * np.array([np.cos(a), np.sin(a)])
    cv2.line(hand, tuple(int(v) for v in centre), tuple(int(v) for v in wrist), 1, int(2 * radius))
    cv2.circle(hand, tuple(int(v) for v in centre), int(radius), 1, -1)
    rgb, depth = frame.rgb.copy(), frame.depth_m.copy()
    shade = rng.normal(0.0, 4.0, (*hand.shape, 3))
    rgb[hand > 0] = np.clip(np.array(HAND_RGB) + shade[hand > 0], 0, 255)
    depth[hand > 0] = np.maximum(depth[hand > 0] - HAND_ABOVE_M, 0.1)
    return replace(frame, rgb=rgb, depth_m=depth)


def follow(
    frames: list[Frame], box: Affordance, start_px: NDArray[np.float64], end_px: NDArray[np.float64], depth: bool
) -> dict[str, object]:
    """One sequence played through."""
    size = np.array([CAMERA.width, CAMERA.height])
    if not depth:
        frames = [replace(frame, depth_m=None) for frame in frames]
    start = (start_px + 0.5) / size
    began_s = time.perf_counter()
    tracker = Tracker(thumbnail_of(frames[0]), box, ((float(start[0]), float(start[1])),))
    first_ms = 1e3 * (time.perf_counter() - began_s)
    update_ms, cpu_ms = [], []
    for frame in frames[1:]:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        tracked = tracker.update(thumbnail_of(frame))
        update_ms.append(1e3 * (time.perf_counter() - began_s))
        cpu_ms.append(1e3 * (time.process_time() - began_cpu_s))
    error_px = float(np.linalg.norm(np.array(tracked.points[0]) * size - 0.5 - end_px))
    return {
        "first_ms": first_ms,
        "update_ms": update_ms,
        "cpu_ms": cpu_ms,
        "lost": tracked.lost is not None,
        "quality": tracked.quality,
        "error_px": error_px,
    }


def measure(scenes: int) -> dict[str, dict[str, float]]:
    """Figures for each kind of event, rate and with or without depth."""
    out: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        for rate_hz in RATES_HZ if kind == "moved" else RATES_HZ[:1]:
            runs: dict[bool, list[dict]] = {True: [], False: []}
            for seed in range(scenes):
                frames, box, _, start_px, end_px = sequence(kind, seed, rate_hz)
                for depth in runs:
                    runs[depth].append(follow(frames, box, start_px, end_px, depth))
            for depth, found in runs.items():
                name = f"{kind}_{rate_hz:g}_hz_{'depth' if depth else 'colour'}"
                out[name] = summary(found, kind in ("moved", "still"))
    return out


def summary(runs: list[dict], visible: bool) -> dict[str, float]:
    update_ms = np.concatenate([run["update_ms"] for run in runs])
    lost = np.array([run["lost"] for run in runs])
    kept_px = np.array([run["error_px"] for run in runs])[~lost]
    figures = {
        "runs": float(len(runs)),
        "false_losses" if visible else "missed_losses": float(lost.sum() if visible else (~lost).sum()),
        "update_median_ms": float(np.median(update_ms)),
        "update_p95_ms": float(np.percentile(update_ms, 95)),
        "update_median_cpu_ms": float(np.median(np.concatenate([run["cpu_ms"] for run in runs]))),
        "catch_up_ms": float(np.median([sum(run["update_ms"]) for run in runs])),
        "first_median_ms": float(np.median([run["first_ms"] for run in runs])),
        "quality_median": float(np.median([run["quality"] for run in runs])),
    }
    if visible and len(kept_px):
        figures |= {
            "error_median_px": float(np.median(kept_px)),
            "error_p95_px": float(np.percentile(kept_px, 95)),
            "error_worst_px": float(kept_px.max()),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SCENES} scenes instead of {SCENES}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    figures = measure(QUICK_SCENES if args.quick else SCENES)
    table = Table("event", "runs", "wrong", "error px: median", "p95", "worst", "update ms", "p95", "of CPU", "quality")
    for name, f in figures.items():
        wrong = f.get("false_losses", f.get("missed_losses", 0.0))
        errors = [f"{f[k]:.1f}" if k in f else "" for k in ("error_median_px", "error_p95_px", "error_worst_px")]
        table.add_row(
            name,
            f"{f['runs']:.0f}",
            f"{wrong:.0f}",
            *errors,
            f"{f['update_median_ms']:.1f}",
            f"{f['update_p95_ms']:.1f}",
            f"{f['update_median_cpu_ms']:.1f}",
            f"{f['quality_median']:.2f}",
        )
    console().print(table)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
