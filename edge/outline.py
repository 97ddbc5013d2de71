"""Seen points to the shape they lie on: an oriented rectangle, a disc or a ball."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_WITHIN_80 = 1.28  # standard deviations within which 80 of 100 points are


@dataclass(frozen=True)
class Footprint:
    """The rectangle that an object covers seen from above, base frame.

    Attributes:
        centre_m: (2,) x and y.
        yaw_rad: direction of its first side.
        sides_m: lengths along and across that direction; both the diameter of what is round.
    """

    centre_m: Array
    yaw_rad: float
    sides_m: tuple[float, float]

    def local(self, xy_m: Array) -> Array:
        """Points (..., 2) of the base frame along and across the yaw, from the centre."""
        c, s = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return np.asarray((xy_m - self.centre_m) @ np.array([[c, -s], [s, c]]), dtype=float)

    def outside_m(self, xy_m: Array) -> float:
        """How far a point (2,) is outside; 0 within."""
        beyond = np.maximum(np.abs(self.local(xy_m)) - np.array(self.sides_m) / 2, 0.0)
        return float(np.linalg.norm(beyond))


def fit_rectangle(xy_m: Array) -> Footprint:
    """The smallest rectangle around points (n, 2), robust to a hundredth of them on each side.

    For evenly spread points the cut percentiles shorten a side by their share, which is put back.
    """
    yaws = np.radians(np.arange(0.0, 90.0, 1.5))
    for step in (math.radians(1.5), math.radians(0.3)):
        extents = [_extent(xy_m, yaw) for yaw in yaws]
        best = int(np.argmin([(high - low).prod() for low, high in extents]))
        yaws, yaw = yaws[best] + np.linspace(-step, step, 11), float(yaws[best])
    low, high = _extent(xy_m, yaw)
    c, s = math.cos(yaw), math.sin(yaw)
    centre = 0.5 * (low + high) @ np.array([[c, s], [-s, c]])
    sides = (high - low) / 0.98
    return Footprint(centre, yaw, (float(sides[0]), float(sides[1])))


def corner_share(xy_m: Array, rectangle: Footprint) -> float:
    """The share of points (n, 2) outside the ellipse in a rectangle: over 0.22 for a rectangle, about 0.1 for a disc.

    (1 - pi/4, and for the disc what the outline's cut percentiles leave out.)
    """
    local = rectangle.local(xy_m) / (np.array(rectangle.sides_m) / 2)
    return float(((local**2).sum(axis=1) > 1.0).mean())


def fit_ball(points_m: Array, table_z_m: float, noise_m: float) -> tuple[Array, float] | None:
    """Centre (3,) and radius of the sphere through points (n, 3), if they lie on one that rests on the table.

    Linear least squares on |p|^2 = 2 c.p + (r^2 - |c|^2). ``noise_m``: standard deviation of a point along its ray.
    """
    middle = points_m.mean(axis=0)
    p = points_m - middle
    A = np.column_stack([2.0 * p, np.ones(len(p))])
    solution, *_ = np.linalg.lstsq(A, (p**2).sum(axis=1), rcond=None)
    centre = solution[:3]
    radius_m = math.sqrt(max(float(solution[3] + centre @ centre), 0.0))
    residual_m = np.abs(np.linalg.norm(p - centre, axis=1) - radius_m)
    centre = centre + middle
    # A flat top misses the sphere by its sagitta, several millimetres for anything the jaws can hold.
    if (
        float(np.percentile(residual_m, 80.0)) > math.hypot(0.08 * radius_m, _WITHIN_80 * noise_m)
        or abs(centre[2] - radius_m - table_z_m) > 0.35 * radius_m
    ):
        return None
    return centre, radius_m


def half_turn(angle_rad: float) -> float:
    """Into [-pi/2, pi/2): axes have no sign."""
    return (angle_rad + math.pi / 2) % math.pi - math.pi / 2


def tangential(xy_m: Array) -> float:
    """The yaw across the line from the base to a point (2,): a tilted hand then still keeps both jaws level."""
    return math.atan2(xy_m[1], xy_m[0]) + math.pi / 2


def _extent(xy_m: Array, yaw_rad: float) -> tuple[Array, Array]:
    """Low and high (2,) ends of points (n, 2) along and across the yaw."""
    c, s = math.cos(yaw_rad), math.sin(yaw_rad)
    low, high = np.percentile(xy_m @ np.array([[c, -s], [s, c]]), (1.0, 99.0), axis=0)
    return low, high
