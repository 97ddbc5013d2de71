"""What each set of scenes holds: which things, how many, which camera, which words. Only ``train`` is trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from drivers.protocols import Intrinsics
from drivers.sim.render import CAMERA
from drivers.sim.scene import Layout, Look, Scene, draw_look, draw_scene

# One of each shape, each in another colour; every colour and every shape is trained on in other pairs.
HELD_OUT_PAIRS = frozenset({("red", "cylinder"), ("blue", "cube"), ("green", "ball"), ("yellow", "bar")})
PACKED = Layout(reach_m=(0.11, 0.26), sector_rad=0.85, gap_m=0.004)


@dataclass(frozen=True)
class Split:
    """One set. ``number`` seeds its scenes; ``absent`` is the share of questions about things that are not there, and
    ``unknown`` the share of those that no scene has."""

    name: str
    number: int
    absent: float = 0.0
    unknown: float = 0.0
    new_pairs: bool = False
    new_camera: bool = False
    clutter: bool = False
    new_words: bool = False


SPLITS: dict[str, Split] = {
    split.name: split
    for split in (
        Split("train", 1, absent=0.3, unknown=0.6),
        Split("in-domain", 2),
        Split("new-pairs", 3, new_pairs=True),
        Split("new-camera", 4, new_camera=True),
        Split("clutter", 5, clutter=True),
        Split("paraphrase", 6, new_words=True),
        Split("absent", 7, absent=1.0),
    )
}


def draw_view(rng: np.random.Generator, split: Split) -> tuple[Scene, Intrinsics]:
    """A scene of ``split`` and the camera that sees it.

    Held-out pairs are in every scene of ``new-pairs`` and in no other: a scene that does not fit is drawn again.
    """
    while True:
        look = draw_look(rng)
        camera = CAMERA
        if split.new_camera:
            look, camera = _other_camera(rng, look)
        if split.clutter:
            scene = draw_scene(rng, int(rng.integers(8, 13)), int(rng.integers(1, 3)), look, PACKED)
        else:
            scene = draw_scene(rng, look=look)
        held_out = any((item.colour, item.shape) in HELD_OUT_PAIRS for item in scene.items)
        if held_out == split.new_pairs:
            return scene, camera


def _other_camera(rng: np.random.Generator, look: Look) -> tuple[Look, Intrinsics]:
    """From another side, height and distance, with another focal length: outside of what training ever shows."""
    side = rng.choice([-1.0, 1.0])
    azimuth = side * rng.uniform(0.25, 0.60)
    elevation = rng.uniform(0.75, 1.15)
    distance = rng.uniform(0.50, 0.62)
    x, y, z = look.camera_target_m
    eye = (
        float(x + distance * np.cos(elevation) * np.cos(azimuth)),
        float(y + distance * np.cos(elevation) * np.sin(azimuth)),
        float(z + distance * np.sin(elevation)),
    )
    zoom = float(rng.uniform(0.80, 1.0)) if rng.random() < 0.5 else float(rng.uniform(1.0, 1.12))
    camera = replace(CAMERA, fx=CAMERA.fx * zoom, fy=CAMERA.fy * zoom)
    return replace(look, camera_m=eye), camera
