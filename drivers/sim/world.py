"""The physical tabletop: an SO-101 and the items of a scene as one MuJoCo model."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.sim.scene import COLOURS, WALL_M, Item, Scene

SO101_XML = Path(__file__).parents[1] / "arm" / "so101.xml"
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
BOWL_SIDES = 12
DENSITY_KG_M3 = 350.0  # hollow plastic toys

# contype/conaffinity: arm links are 2, so that they touch items and table but not the jaws beside them.
_TOUCH = {"contype": 1, "conaffinity": 3}
_FRICTION = [1.2, 0.02, 0.001]


def build_model(scene: Scene, board: NDArray[np.float64] | None = None) -> mujoco.MjModel:
    """The arm, the table and the scene's items.

    Args:
        scene: items are laid with their lowest point on the table plane z = 0 of the base frame.
        board: (half x, half y, half thickness, then the 4x4 ``T_gripper_board`` row by row), 19 numbers: a calibration
            board held by the gripper; none when None.

    Returns:
        A model whose geoms are named: ``table``, ``board`` and ``item{i}_{part}``; body ``item{i}`` is item i.
    """
    spec = mujoco.MjSpec.from_file(str(SO101_XML))
    spec.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[0.1, 0, -0.02],
        size=[1.2, 1.2, 0.02],
        friction=_FRICTION,
        **_TOUCH,
    )
    for i, item in enumerate(scene.items):
        _add_item(spec, i, item)
    if board is not None:
        T = np.asarray(board[3:], dtype=float).reshape(4, 4)
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, np.ascontiguousarray(T[:3, :3]).ravel())
        spec.body("gripper").add_geom(
            name="board",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=T[:3, 3],
            quat=quat,
            size=board[:3],
            mass=0.02,
            contype=4,  # nothing has this affinity, so nothing touches it; at 0, mj_multiRay would miss parts of it
            conaffinity=0,
        )
    return spec.compile()


def _add_item(spec: mujoco.MjSpec, index: int, item: Item) -> None:
    rgba = [*COLOURS[item.colour], 1.0]
    quat = [np.cos(item.yaw_rad / 2), 0, 0, np.sin(item.yaw_rad / 2)]
    s = item.size_m
    G = mujoco.mjtGeom
    bottom = {"ball": s[0], "cylinder": s[-1], "cube": s[-1], "bar": s[-1]}.get(item.shape, 0.0)
    body = spec.worldbody.add_body(name=f"item{index}", pos=[item.x_m, item.y_m, bottom + 0.0005], quat=quat)
    body.add_freejoint(name=f"item{index}")
    common = {
        "rgba": rgba,
        "friction": _FRICTION,
        "condim": 4,
        "density": DENSITY_KG_M3,
        "solref": [0.006, 1.0],
        "solimp": [0.95, 0.99, 0.001, 0.5, 2.0],
        **_TOUCH,
    }
    if item.shape in ("cube", "bar"):
        body.add_geom(name=f"item{index}_0", type=G.mjGEOM_BOX, size=list(s), **common)
    elif item.shape == "cylinder":
        body.add_geom(name=f"item{index}_0", type=G.mjGEOM_CYLINDER, size=[s[0], s[1], 0], **common)
    elif item.shape == "ball":
        common |= {"condim": 6, "friction": [1.2, 0.02, 0.002]}  # a rubber ball that comes to rest
        body.add_geom(name=f"item{index}_0", type=G.mjGEOM_SPHERE, size=[s[0], 0, 0], **common)
    else:
        common |= {"density": 3.0 * DENSITY_KG_M3}  # crockery stays where it is when touched
        _add_container(body, index, item, common)


def _add_container(body: mujoco.MjsBody, index: int, item: Item, common: dict) -> None:
    G = mujoco.mjtGeom
    inner, height = item.size_m
    if item.shape == "bowl":
        floor = {"type": G.mjGEOM_CYLINDER, "size": [inner + WALL_M, WALL_M / 2, 0]}
        walls = BOWL_SIDES
        half_length = (inner + WALL_M) * np.tan(np.pi / walls)
    else:
        floor = {"type": G.mjGEOM_BOX, "size": [inner, inner, WALL_M / 2]}
        walls, half_length = 4, inner + WALL_M
    body.add_geom(name=f"item{index}_0", pos=[0, 0, WALL_M / 2], **floor, **common)
    for k in range(walls):
        a = 2 * np.pi * k / walls
        body.add_geom(
            name=f"item{index}_{k + 1}",
            type=G.mjGEOM_BOX,
            size=[WALL_M / 2, half_length, height / 2],
            pos=[(inner + WALL_M / 2) * np.cos(a), (inner + WALL_M / 2) * np.sin(a), height / 2],
            quat=[np.cos(a / 2), 0, 0, np.sin(a / 2)],
            **common,
        )


def item_of_geom(model: mujoco.MjModel) -> NDArray[np.int64]:
    """(ngeom + 1,) index of the item each geom belongs to, -1 for everything else; the last entry serves geom -1."""
    out = np.full(model.ngeom + 1, -1)
    for g in range(model.ngeom):
        name = model.geom(g).name
        if name.startswith("item"):
            out[g] = int(name[4:].split("_")[0])
    return out


def set_arm(model: mujoco.MjModel, data: mujoco.MjData, q_rad: NDArray[np.float64]) -> None:
    """Put the arm's joints at ``q_rad`` (6,) and its servos' targets likewise."""
    for name, q in zip(JOINTS, q_rad, strict=True):
        data.joint(name).qpos[0] = q
        data.actuator(name).ctrl[0] = q
