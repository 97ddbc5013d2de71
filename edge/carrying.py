"""A decision carried from the frame it was made on to a newer one, by what its box and its path stand on.

The box and the path's first points ride with the target. Its last point, where something is to be put, rides with
whatever is there: a container, or the bare table. The points between go along in proportion to the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Frame
from edge.appearance import Mask, Thumbnail, raised_parts, thumbnail_of
from edge.contract import Affordance, Trajectory, box_from_corners
from edge.freshness import FreshnessLimits, StaleError, changed, check_age
from edge.tracking import Tracked, Tracker

Array = NDArray[np.float64]

_NEAR = 0.05  # of the image's width: how far beside a thing's outline a point may lie and still mean it
_BARE = 0.06  # of the image's width: half the side of a place where nothing stands
_BESIDE = 0.10  # of the box's size: points so far outside it still ride with the target


@dataclass(frozen=True)
class Carried:
    """A decision as it holds in a newer frame.

    Attributes:
        frame: the newer frame.
        box, path: where they are in it.
        moved: whether anything had to be carried.
    """

    frame: Frame
    box: Affordance
    path: Trajectory | None
    moved: bool

    def agrees(self, other: Carried, limit: float) -> bool:
        """Whether box and place lie within ``limit`` (a share of the image) of another's."""
        here, there = ([(c.box.x, c.box.y), *(c.path.points[-1:] if c.path else ())] for c in (self, other))
        return bool(np.abs(np.array(here) - np.array(there)).max() <= limit)


class Carrier:
    """Follows what a decision is about through the views that come after its frame, in their order.

    Args:
        decided: the frame the decision was made on.
        path: where the target is to go; None for a pick.
        limits: how old decision and frame may be, and how much of a place may look otherwise while nothing moved.
    """

    def __init__(
        self,
        decided: Frame,
        box: Affordance,
        path: Trajectory | None = None,
        limits: FreshnessLimits = FreshnessLimits(),  # noqa: B008 (frozen)
    ) -> None:
        self._decided, self._box, self._path, self._limits = decided, box, path, limits
        view = thumbnail_of(decided)
        self._size_px = view.size_px
        self._riding = 0 if path is None else _riding(path, box)
        self._target = Tracker(view, box, () if path is None else path.points[: self._riding])
        self._place: Tracker | None = None
        if path is not None and self._riding < len(path.points):
            self._place_box = _place_box(view, path.points[-1], self._target.mask)
            self._place = Tracker(view, self._place_box, path.points[-1:])
        self._target_now: Tracked | None = None
        self._place_now: Tracked | None = None

    @property
    def since_s(self) -> float:
        """When the frame was taken that the decision was made on."""
        return self._decided.t_s

    def update(self, view: Thumbnail) -> None:
        """Follow into the next view. One of another size is another camera's, which `at` says."""
        if view.size_px != self._size_px:
            return
        self._target_now = self._target.update(view)
        if self._place is not None:
            self._place_now = self._place.update(view)

    def at(self, frame: Frame) -> Carried:
        """The decision in ``frame``, the one that the latest view was made of.

        What looks as it did is taken to be where it was, exactly: no tracker is that sure.

        Raises:
            StaleError: ``what`` is "target": it, or the place for it, is lost; or as `check_age`.
        """
        check_age(self._decided, frame, self._limits)
        target = self._moved(frame, self._box, self._target_now, "the target")
        place = None
        if self._place is not None:
            place = self._moved(frame, self._place_box, self._place_now, "the place for it")
        path = self._path
        if path is not None and (target or place):
            path = _bent(path, self._riding, target, place)
        return Carried(frame, target.box if target else self._box, path, bool(target or place))

    def _moved(self, frame: Frame, box: Affordance, now: Tracked | None, what: str) -> Tracked | None:
        if now is None or changed(self._decided, frame, box) <= self._limits.max_changed:
            return None
        if now.lost is not None:
            raise StaleError("target", f"decision: {what} was lost since ({now.lost}); nothing moved")
        return now


def _riding(path: Trajectory, box: Affordance) -> int:
    """How many of a path's points ride with the target: the first, and those after it that lie in the box."""
    half = np.array([box.width, box.height]) * (0.5 + _BESIDE)
    inside = [bool((np.abs(np.array(point) - (box.x, box.y)) <= half).all()) for point in path.points]
    first_outside = next((i for i, yes in enumerate(inside) if not yes), len(inside))
    return max(first_outside, min(1, len(path.points) - 1))


def _bent(path: Trajectory, riding: int, target: Tracked | None, place: Tracked | None) -> Trajectory:
    """The path with both ends where they are now."""
    points = np.array(path.points, dtype=float)
    if not riding:  # one point, and it is the place
        return Trajectory(place.points) if place else path
    start = np.array(target.points) - points[:riding] if target else np.zeros((riding, 2))
    end = np.array(place.points[0]) - points[-1] if place else np.zeros(2)
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points[riding - 1 :], axis=0), axis=1))])
    share = way[1:, None] / max(float(way[-1]), 1e-9)
    shift = np.vstack([start, (1.0 - share) * start[-1] + share * end])
    return Trajectory(tuple((float(x), float(y)) for x, y in np.clip(points + shift, 0.0, 1.0)))


def _place_box(view: Thumbnail, point: tuple[float, float], target: Mask) -> Affordance:
    """A box around what stands where a path ends; around the bare place where nothing does."""
    width, height = view.size_px
    pixel = np.array(point) * (width, height) - 0.5
    most_px, best = -_NEAR * width, Affordance(*point, 2.0 * _BARE, 2.0 * _BARE * width / height)
    for part in raised_parts(view, pixel):
        if (part & target).sum() > 0.5 * part.sum():
            continue
        v, u = np.nonzero(part)
        hull = cv2.convexHull(np.column_stack([u, v]).astype(np.int32))
        inside_px = float(cv2.pointPolygonTest(hull, (float(pixel[0]), float(pixel[1])), True))
        if inside_px > most_px:
            corners = (u.min() / width, v.min() / height, (u.max() + 1) / width, (v.max() + 1) / height)
            most_px, best = inside_px, box_from_corners([float(v) for v in corners])
    return best
