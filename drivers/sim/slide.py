"""A thing moved over the simulated table by the referee: where to, so that it meets nothing, and how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drivers.sim.scene import PAN_AXIS_XY_M, REACHABLE, Item, Layout, Scene

_TRIES = 200
_STEPS = 12


@dataclass(frozen=True)
class Slide:
    """Item ``item`` goes from ``start_m`` by ``way_m`` (x, y in the base frame), from ``began_s`` in simulated time."""

    item: int
    start_m: tuple[float, float]
    way_m: tuple[float, float]
    began_s: float
    duration_s: float

    def at(self, t_s: float) -> tuple[float, float, float, float]:
        """Place (x, y) in metres and velocity (x, y) in m/s at a simulated time."""
        u = (t_s - self.began_s) / self.duration_s
        share, rate = smooth(u), 6.0 * u * (1.0 - u) / self.duration_s if 0.0 < u < 1.0 else 0.0
        (x, y), (dx, dy) = self.start_m, self.way_m
        return x + share * dx, y + share * dy, rate * dx, rate * dy


def smooth(share_of_time: float) -> float:
    """Share of the way after a share of the time: at rest at both ends."""
    u = min(max(share_of_time, 0.0), 1.0)
    return u * u * (3.0 - 2.0 * u)


def clear_slide(
    scene: Scene, index: int, distance_m: float, rng: np.random.Generator, layout: Layout = REACHABLE
) -> tuple[float, float] | None:
    """A random direction in which an item can slide so far within reach and clear of all others; None if none is.

    Returns:
        The way (x, y) in metres, base frame.
    """
    item = scene.items[index]
    others = [other for i, other in enumerate(scene.items) if i != index]
    for _ in range(_TRIES):
        a = rng.uniform(-math.pi, math.pi)
        way = distance_m * math.cos(a), distance_m * math.sin(a)
        if all(
            _clear(item.x_m + share * way[0], item.y_m + share * way[1], item.radius_m, others, layout)
            for share in np.linspace(0.0, 1.0, _STEPS + 1)[1:]
        ):
            return way
    return None


def _clear(x_m: float, y_m: float, radius_m: float, others: list[Item], layout: Layout) -> bool:
    dx, dy = x_m - PAN_AXIS_XY_M[0], y_m - PAN_AXIS_XY_M[1]
    if not layout.reach_m[0] <= math.hypot(dx, dy) <= layout.reach_m[1]:
        return False
    if abs(math.atan2(dy, dx)) > layout.sector_rad:
        return False
    return all(math.hypot(x_m - o.x_m, y_m - o.y_m) > radius_m + o.radius_m + layout.gap_m for o in others)
