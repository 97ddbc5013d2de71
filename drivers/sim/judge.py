"""Success by physics alone: what lies where, and what the gripper touches."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from drivers.sim.scene import Scene, Task
from drivers.sim.world import item_of_geom

LIFT_M = 0.05
STILL_M_S = 0.05
FINGERS = ("fixed_jaw", "moving_jaw")


@dataclass(frozen=True)
class Verdict:
    """``success`` and, in words, what was found."""

    success: bool
    reason: str


def judge(model: mujoco.MjModel, data: mujoco.MjData, scene: Scene, task: Task) -> Verdict:
    """A pick: the target is held (both fingers touch it) with its lowest point 5 cm above the table. A place: it rests
    inside the container, and no finger touches it."""
    target = scene.items[task.target]
    touching = _fingers_touching(model, data, task.target)
    position = data.body(f"item{task.target}").xpos
    speed = float(np.linalg.norm(data.joint(f"item{task.target}").qvel[:3]))
    if task.kind == "pick":
        low = _lowest_point(model, data, task.target)
        if low < LIFT_M:
            return Verdict(False, f"the {target.name} is {max(low, 0) * 1000:.0f} mm above the table, not 50")
        if len(touching) < len(FINGERS):
            return Verdict(False, f"the {target.name} is not held")
        return Verdict(True, f"holds the {target.name} {low * 1000:.0f} mm above the table")
    assert task.container is not None
    container = scene.items[task.container]
    body = data.body(f"item{task.container}")
    inner, height = container.size_m
    local = body.xmat.reshape(3, 3).T @ (position - body.xpos)
    if container.shape == "bowl":
        inside = np.hypot(local[0], local[1]) < inner
    else:
        inside = bool(np.max(np.abs(local[:2])) < inner)
    if body.xmat[8] < 0.9:
        return Verdict(False, f"the {container.name} was knocked over")
    if not inside or not 0.0 < local[2] < height + 0.015:
        away = float(np.linalg.norm((position - body.xpos)[:2]))
        return Verdict(False, f"the {target.name} is {away * 1000:.0f} mm from the middle of the {container.name}")
    if touching:
        return Verdict(False, f"the gripper still touches the {target.name}")
    if speed > STILL_M_S:
        return Verdict(False, f"the {target.name} has not come to rest")
    return Verdict(True, f"the {target.name} rests in the {container.name}")


def _fingers_touching(model: mujoco.MjModel, data: mujoco.MjData, item: int) -> set[int]:
    owner = item_of_geom(model)
    fingers = {model.geom(name).id for name in FINGERS}
    found = set()
    for pair in data.contact.geom:
        for a, b in (pair, pair[::-1]):
            if int(a) in fingers and owner[int(b)] == item:
                found.add(int(a))
    return found


def _lowest_point(model: mujoco.MjModel, data: mujoco.MjData, item: int) -> float:
    geom = model.geom(f"item{item}_0")
    R = data.geom_xmat[geom.id].reshape(3, 3)
    z = float(data.geom_xpos[geom.id][2])
    if geom.type[0] == mujoco.mjtGeom.mjGEOM_SPHERE:
        return z - float(geom.size[0])
    if geom.type[0] == mujoco.mjtGeom.mjGEOM_CYLINDER:
        return z - float(geom.size[0] * np.hypot(R[2, 0], R[2, 1]) + geom.size[1] * abs(R[2, 2]))
    return z - float(np.abs(R[2]) @ geom.size)
