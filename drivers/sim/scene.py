"""Tabletop scenes and tasks drawn from a seed: what lies where, how it is lit, what is asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.08, 0.08),
    "orange": (0.95, 0.45, 0.05),
    "yellow": (0.92, 0.82, 0.10),
    "green": (0.10, 0.58, 0.16),
    "blue": (0.08, 0.22, 0.78),
    "purple": (0.45, 0.12, 0.62),
    "white": (0.93, 0.93, 0.93),
    "black": (0.06, 0.06, 0.07),
}
OBJECTS = ("cube", "cylinder", "ball", "bar")
CONTAINERS = ("bowl", "tray")
TABLES = ("plain", "wood", "tiles", "speckle")

PAN_AXIS_XY_M = (0.0388353, 0.0)  # the arm's first axis, about which the reachable ring lies
REACH_M = (0.115, 0.235)  # inner and outer radius of the ring in which items are laid
SECTOR_RAD = 0.72  # half angle of the ring
FINGER_GAP_M = 0.020  # free table around an item, so that a finger fits beside it


@dataclass(frozen=True)
class Layout:
    """Where items are laid: a ring (inner, outer radius) about the arm's first axis, its half angle, and the free table
    around each item. The default is what the arm reaches and its fingers need."""

    reach_m: tuple[float, float] = REACH_M
    sector_rad: float = SECTOR_RAD
    gap_m: float = FINGER_GAP_M


REACHABLE = Layout()


@dataclass(frozen=True)
class Item:
    """A thing on the table. ``size_m``: half extents (cube, bar), (radius, half height) or (radius,);
    (inner radius or half side, height) for containers. Position is in the arm's base frame."""

    shape: str
    colour: str
    x_m: float
    y_m: float
    yaw_rad: float
    size_m: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def is_container(self) -> bool:
        return self.shape in CONTAINERS

    @property
    def radius_m(self) -> float:
        """Radius of the circle around its footprint."""
        if self.shape in ("cube", "bar"):
            return float(np.hypot(self.size_m[0], self.size_m[1]))
        if self.shape == "tray":
            return float(np.sqrt(2.0) * (self.size_m[0] + WALL_M))
        if self.shape == "bowl":
            return self.size_m[0] + 2 * WALL_M
        return self.size_m[0]


WALL_M = 0.004


@dataclass(frozen=True)
class Look:
    """How the scene appears: table pattern, light and camera mounting. None of it is known to the runtime."""

    table: str
    table_rgb: tuple[float, float, float]
    table_rgb2: tuple[float, float, float]
    pattern_m: float
    pattern_rad: float
    light_m: tuple[float, float, float]
    ambient: float
    diffuse: float
    gain: tuple[float, float, float]
    noise: float
    camera_m: tuple[float, float, float]
    camera_target_m: tuple[float, float, float]
    camera_roll_rad: float


@dataclass(frozen=True)
class Scene:
    items: tuple[Item, ...]
    look: Look
    ready_jitter_rad: tuple[float, ...] = (0.0,) * 6


@dataclass(frozen=True)
class Task:
    """``kind`` is "pick" or "place"; ``target`` and ``container`` index ``Scene.items``."""

    kind: str
    target: int
    container: int | None
    instruction: str


PICK_WORDS = (
    "pick up the {t}",
    "grasp the {t}",
    "lift the {t}",
    "take the {t}",
    "grab the {t}",
)
PLACE_WORDS = (
    "put the {t} in the {c}",
    "place the {t} in the {c}",
    "move the {t} into the {c}",
    "drop the {t} into the {c}",
    "put the {t} into the {c}",
)


def draw_look(rng: np.random.Generator, camera_jitter: float = 1.0) -> Look:
    """A random appearance; ``camera_jitter`` scales how far the camera is from its nominal mounting."""
    base = np.array([0.62, 0.55, 0.47]) if rng.random() < 0.5 else np.array([0.55, 0.55, 0.56])
    rgb = np.clip(base * rng.uniform(0.65, 1.15) + rng.normal(0, 0.04, 3), 0.22, 0.78)
    rgb2 = np.clip(rgb * rng.uniform(0.78, 0.95) + rng.normal(0, 0.01, 3), 0.18, 0.78)
    j = camera_jitter

    def vec(v: np.ndarray) -> tuple[float, float, float]:
        return (float(v[0]), float(v[1]), float(v[2]))

    return Look(
        table=str(rng.choice(TABLES)),
        table_rgb=vec(rgb),
        table_rgb2=vec(rgb2),
        pattern_m=float(rng.uniform(0.02, 0.07)),
        pattern_rad=float(rng.uniform(0, np.pi)),
        light_m=vec(np.array([rng.uniform(-0.4, 0.9), rng.uniform(-0.8, 0.8), rng.uniform(0.9, 1.6)])),
        ambient=float(rng.uniform(0.35, 0.55)),
        diffuse=float(rng.uniform(0.50, 0.75)),
        gain=vec(rng.uniform(0.92, 1.08) * rng.normal(1, 0.02, 3)),
        noise=float(rng.uniform(0.004, 0.016)),
        camera_m=vec(np.array([0.50, 0.0, 0.44]) + j * rng.uniform(-0.012, 0.012, 3)),
        camera_target_m=vec(np.array([0.195, 0.0, 0.0]) + j * rng.uniform(-0.008, 0.008, 3)),
        camera_roll_rad=float(j * rng.uniform(-0.025, 0.025)),
    )


def _draw_size(rng: np.random.Generator, shape: str) -> tuple[float, ...]:
    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    if shape == "cube":
        half = u(0.0135, 0.0185)
        return (half, half, half)
    if shape == "cylinder":
        return (u(0.0135, 0.0180), u(0.015, 0.021))
    if shape == "ball":
        return (u(0.0150, 0.0190),)
    if shape == "bar":
        return (u(0.0105, 0.0135), u(0.026, 0.034), u(0.0105, 0.0135))
    if shape == "bowl":
        return (u(0.040, 0.047), u(0.024, 0.032))
    return (u(0.037, 0.043), u(0.018, 0.026))  # tray


def draw_scene(
    rng: np.random.Generator,
    n_objects: int | None = None,
    n_containers: int | None = None,
    look: Look | None = None,
    layout: Layout = REACHABLE,
) -> Scene:
    """A scene of objects and containers that do not touch, every name in it unique.

    Args:
        rng: the only source of chance.
        n_objects: graspable things, default 2 to 4.
        n_containers: default 1 or 2.
        look: a fixed appearance (a robot's camera stays where it is mounted); drawn when None.
    """
    look = look or draw_look(rng)
    while True:
        n_c = int(rng.integers(1, 3)) if n_containers is None else n_containers
        n_o = int(rng.integers(2, 5)) if n_objects is None else n_objects
        items: list[Item] = []
        for k in range(n_c + n_o):
            shape = str(rng.choice(CONTAINERS if k < n_c else OBJECTS))
            item = _lay_down(rng, shape, items, layout)
            if item is None:
                break
            items.append(item)
        if len(items) == n_c + n_o:
            jitter = tuple(float(v) for v in rng.normal(0, 0.01, 6))
            return Scene(tuple(items), look, jitter)


def _lay_down(rng: np.random.Generator, shape: str, items: list[Item], layout: Layout) -> Item | None:
    size = _draw_size(rng, shape)
    for _ in range(40):
        r = np.sqrt(rng.uniform(layout.reach_m[0] ** 2, layout.reach_m[1] ** 2))
        a = rng.uniform(-layout.sector_rad, layout.sector_rad)
        colour = str(rng.choice(list(COLOURS)))
        item = Item(
            shape,
            colour,
            float(PAN_AXIS_XY_M[0] + r * np.cos(a)),
            float(PAN_AXIS_XY_M[1] + r * np.sin(a)),
            float(rng.uniform(-np.pi, np.pi)),
            size,
        )
        # A container must not reach back under the folded arm.
        if item.is_container and item.x_m < 0.145:
            continue
        clear = all(
            np.hypot(item.x_m - o.x_m, item.y_m - o.y_m) > item.radius_m + o.radius_m + layout.gap_m
            and item.name != o.name
            for o in items
        )
        if clear:
            return item
    return None


def draw_task(rng: np.random.Generator, scene: Scene, kind: str | None = None) -> Task:
    """A pick or place that the scene allows, worded in one of several ways."""
    targets = [i for i, it in enumerate(scene.items) if not it.is_container]
    containers = [i for i, it in enumerate(scene.items) if it.is_container]
    kind = kind or ("place" if rng.random() < 0.6 else "pick")
    t = int(rng.choice(targets))
    if kind == "pick":
        words = str(rng.choice(PICK_WORDS)).format(t=scene.items[t].name)
        return Task("pick", t, None, words)
    c = int(rng.choice(containers))
    words = str(rng.choice(PLACE_WORDS)).format(t=scene.items[t].name, c=scene.items[c].name)
    return Task("place", t, c, words)
