"""What a rendered image shows, from the ray caster's geom ids: a name and a box an item, an index a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Intrinsics
from drivers.robot import Robot, load_robot
from drivers.sim.render import CAMERA, camera_pose, render, scaled, visible_corners
from drivers.sim.scene import CONTAINERS, Scene
from drivers.sim.world import build_model, item_of_geom, set_arm

WIDTH_PX, HEIGHT_PX = 224, 168  # what the small model sees
MIN_VISIBLE_PX = 30
NOTHING = 255

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Seen:
    """What an image shows of one item: its name and visible box, centre and size normalized to [0, 1]."""

    colour: str
    shape: str
    box: Box

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape

    @property
    def is_container(self) -> bool:
        return self.shape in CONTAINERS

    def to_json(self) -> dict[str, Any]:
        return {"colour": self.colour, "shape": self.shape, "box": list(self.box)}


@dataclass(frozen=True)
class LabelledScene:
    """``rgb`` (168, 224, 3) uint8; ``seen`` per item; ``mask`` (168, 224) uint8: index into ``seen``, 255 nothing."""

    rgb: NDArray[np.uint8]
    seen: tuple[Seen, ...]
    mask: NDArray[np.uint8]


@cache
def _robot() -> Robot:
    return load_robot()


def label_scene(scene: Scene, rng: np.random.Generator, camera: Intrinsics = CAMERA) -> LabelledScene | None:
    """Render one scene at the model's size; None where an item is (nearly) hidden or out of the picture."""
    model = build_model(scene)
    data = mujoco.MjData(model)
    set_arm(model, data, _robot().ready_rad + np.array(scene.ready_jitter_rad))
    mujoco.mj_kinematics(model, data)
    picture = render(model, data, scene.look, camera_pose(scene.look), scaled(camera, WIDTH_PX, HEIGHT_PX), rng)
    item = item_of_geom(model)[picture.geom]
    seen = []
    for i, it in enumerate(scene.items):
        corners = visible_corners(item == i)
        if corners is None or np.count_nonzero(item == i) < MIN_VISIBLE_PX:
            return None
        x0, y0, x1, y1 = corners
        box = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
        seen.append(Seen(it.colour, it.shape, _box(round(float(value), 4) for value in box)))
    mask = np.where((item >= 0) & (item < len(seen)), item, NOTHING).astype(np.uint8)
    return LabelledScene(picture.rgb, tuple(seen), mask)


def seen_from_json(values: Any) -> tuple[Seen, ...]:
    """What `Seen.to_json` wrote, for one image. Raises ValueError, KeyError or TypeError for anything else."""
    return tuple(Seen(str(v["colour"]), str(v["shape"]), _box(v["box"])) for v in values)


def _box(values: Any) -> Box:
    x, y, w, h = (float(v) for v in values)
    return x, y, w, h
