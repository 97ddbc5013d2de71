"""What two pictures of a scene both show, placed in space: corners that are followed, and depth.

Corners of the first picture are followed into the second (Lucas and Kanade's pyramids, there and back) from near where
a guess of the camera's motion has them; SIFT gives a guess where the motion is large. Contrast is levelled first, so
that other light changes little. The arm's links are followed by their joints: each point is put to where its link is
now, unless the link has moved so far that the camera sees another side of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.hand_eye import Pinhole
from calib.rigid import apply, invert, rigid, rotation
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FOLLOWED_RAD = 0.04
"""Links that the camera sees displaced by more than this since then are left out: it sees other sides of them."""

MIN_MATCHES = 10

_MARGIN_PX = 8.0  # at 640 px: around what is left out; a model is not the arm
_SIFT_FEATURES = 800
_RATIO = 0.8  # Lowe 2004, section 7.1
_ALIKE = 150.0  # words no further apart look the same; their length is 512
_APART_PX = 16.0  # at 640 px
_REPEATED_SHARE = 1 / 3  # tiles have half of their words twice, other tables a quarter at most
_CORNERS, _ARM_CORNERS = 500, 150
_QUALITY = 0.03  # of the best corner: less is noise, or an edge that slides along itself
_PATCH_PX = 21.0  # at 640 px: what is followed of a corner
_LEVELS = 3  # of the pyramid: from up to eight patches away
_THERE_AND_BACK_PX = 0.5  # a corner followed to now and back to then is found again so near
_SMOOTH_PX = 1.0
_CONTRAST_PX, _CONTRAST_FLOOR = 15.0, 8.0  # at 640 px: contrast is levelled over this; grey values, above noise
_MODELLED_M = 0.015  # depth that is nearer to the model's is of the table or of the arm
_DEPTH_STEP_PX = 8
_EDGE_SHARE = 0.06  # depths that differ by more within 7 px are an edge


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A picture, and what its pixels belong to.

    Attributes:
        rgb: (h, w, 3) uint8.
        depth_m: (h, w) along the optical axis, 0 where unknown; None without a depth camera.
        body: (h, w) int, which of ``T_mount_body`` a pixel shows: 0 for the scene, others for the arm's links.
        surface_m: (h, w) depth as a model of arm and table has it, 0 where there is none; used where there is no other.
        T_mount_body: (n, 4, 4) where every body stood, in the frame of what carries the camera (the base, or the
            gripper); 0 is the scene, which may be given anywhere, as long as it is the same place both times.
    """

    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32] | None
    body: NDArray[np.int32]
    surface_m: NDArray[np.float32]
    T_mount_body: Array


@dataclass(frozen=True, eq=False)
class Features:
    """Corners found in both pictures."""

    points: Array  # (n, 3) where they are now, in the camera's coordinates of then
    px: Array  # (n, 2) where they are seen now
    at_px: Array  # (n, 2) where they were seen then
    arm: Mask  # (n,)
    arm_expected: int  # corners of the arm that should be in the second picture, found or not


NO_FEATURES = Features(np.empty((0, 3)), np.empty((0, 2)), np.empty((0, 2)), np.empty(0, dtype=bool), 0)


@dataclass(frozen=True, eq=False)
class Surface:
    """Samples of then's depth, and all of now's."""

    points: Array  # (n, 3) as in Features
    normals: Array  # (n, 3)
    at_px: Array
    arm: Mask
    now: Array  # (h, w, 3) points of now, NaN where unknown


class View:
    """A snapshot made ready: levelled grey, pixels that count, and what they show, moved to where it is now."""

    def __init__(self, snapshot: Snapshot, points: Array, moves: Array, followed: Mask) -> None:
        self.scale = snapshot.rgb.shape[1] / 640
        self.grey = _levelled(snapshot.rgb, self.scale)
        away = followed[snapshot.body].astype(np.uint8)
        far = cv2.distanceTransform(away, cv2.DIST_L2, 5) > _MARGIN_PX * self.scale
        self.mask = np.where(far, 255, 0).astype(np.uint8) if not away.all() else np.full(away.shape, 255, np.uint8)
        self.points, self._body, self._moves = points, snapshot.body, moves

    @cached_property
    def words(self) -> tuple[Array, NDArray[np.float32]]:
        """(n, 2) pixels of SIFT's keypoints, and (n, 128) what they look like."""
        sift = cv2.SIFT.create(_SIFT_FEATURES, contrastThreshold=0.02)
        keypoints, words = sift.detectAndCompute(self.grey, self.mask)
        px = np.array([k.pt for k in keypoints], dtype=float).reshape(-1, 2)
        return px, np.asarray(words if len(px) else np.empty((0, 128)), dtype=np.float32)

    def at(self, px: NDArray[np.floating]) -> tuple[Array, NDArray[np.int32]]:
        """(n, 3) what pixels (n, 2) show, moved, NaN where unknown; and (n,) which body it belongs to."""
        u, v = np.rint(px).astype(int).T
        body = self._body[v, u]
        return self.moved(self.points[v, u], body), body

    def corners(self) -> NDArray[np.float32]:
        """(n, 2) pixels of good corners: of the scene, and of the arm, which is not to drown in the table's pattern."""
        found = [
            cv2.goodFeaturesToTrack(self.grey, most, _QUALITY, 6 * self.scale, mask=np.where(part, self.mask, 0))
            for part, most in ((self._body == 0, _CORNERS), (self._body > 0, _ARM_CORNERS))
        ]
        return np.concatenate([np.empty((0, 2), np.float32), *(np.reshape(c, (-1, 2)) for c in found if c is not None)])

    def shows(self, px: NDArray[np.floating]) -> Mask:
        """(n,) whether pixels (n, 2) are in the picture and count."""
        height, width = self.mask.shape
        at = np.rint(np.clip(px, -1, max(height, width))).astype(int)
        inside = (at >= 0).all(axis=1) & (at[:, 0] < width) & (at[:, 1] < height)
        inside[inside] = self.mask[at[inside, 1], at[inside, 0]] > 0
        return inside

    def moved(self, points: Array, body: NDArray[np.int32], turn_only: bool = False) -> Array:
        turned = np.einsum("nij,nj->ni", self._moves[body][:, :3, :3], points)
        return turned if turn_only else turned + self._moves[body][:, :3, 3]


def views(then: Snapshot, now: Snapshot, T_mount_camera: Array, intrinsics: Intrinsics) -> tuple[View, View]:
    """Both pictures made ready; ``T_mount_camera`` (4, 4) is the camera's place of then."""
    moves = np.array([b @ invert(a) for a, b in zip(then.T_mount_body, now.T_mount_body, strict=True)])
    moves = invert(T_mount_camera) @ moves @ T_mount_camera  # of points in the camera's coordinates of then
    rays = _rays(intrinsics)
    points = rays * _depth(then)[..., None]
    followed = _followed(then.body, points, moves)
    stays = np.broadcast_to(np.eye(4), moves.shape)
    return View(then, points, moves, followed), View(
        now, rays * _depth(now, modelled=False)[..., None], stays, followed
    )


def _levelled(rgb: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """(h, w) grey with the same contrast everywhere, whatever the light."""
    grey = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), _SMOOTH_PX)
    sigma = _CONTRAST_PX * scale
    off = grey - cv2.GaussianBlur(grey, (0, 0), sigma)
    contrast = np.sqrt(cv2.GaussianBlur(off * off, (0, 0), sigma)) + _CONTRAST_FLOOR
    return np.clip(128 + 50 * off / contrast, 0, 255).astype(np.uint8)


def _depth(snapshot: Snapshot, modelled: bool = True) -> Array:
    """(h, w) measured depth, of the model where there is none and that may count; NaN where unknown."""
    depth = snapshot.surface_m if modelled else np.zeros_like(snapshot.surface_m)
    if snapshot.depth_m is not None:
        measured = cv2.medianBlur(np.ascontiguousarray(snapshot.depth_m, dtype=np.float32), 5)
        depth = np.where(measured > 0, measured, depth)
    return np.where(depth > 0, depth, np.nan).astype(float)


def _rays(intrinsics: Intrinsics) -> Array:
    """(h, w, 3) of every pixel, z = 1."""
    u, v = np.meshgrid(np.arange(intrinsics.width, dtype=float), np.arange(intrinsics.height, dtype=float))
    lens = np.array(intrinsics.distortion or [0.0] * 5)
    xy = cv2.undistortPoints(np.stack([u, v], -1).reshape(-1, 1, 2), intrinsics.matrix, lens)
    return np.concatenate([np.asarray(xy, dtype=float).reshape(*u.shape, 2), np.ones((*u.shape, 1))], axis=2)


def _followed(body: NDArray[np.int32], points: Array, moves: Array) -> Mask:
    """(bodies,) whether a body is nearly where it was, as far as it is seen."""
    followed = np.ones(len(moves), dtype=bool)
    for b in np.unique(body):
        seen = points[body == b]
        seen = seen[np.isfinite(seen[:, 2])][::16]
        if len(seen):
            angles = np.linalg.norm(apply(moves[b], seen) - seen, axis=1) / np.linalg.norm(seen, axis=1)
            followed[b] = angles.max() <= FOLLOWED_RAD
    return followed


def starts(then: View, now: View, camera: Pinhole) -> list[Array]:
    """Where the search for T_now_then begins: no motion, and what most SIFT matches agree with."""
    none = np.eye(4)
    (px_then, words_then), (px_now, words_now) = then.words, now.words
    if min(len(px_then), len(px_now)) < 2:
        return [none]
    i, j = _mutual(words_then, words_now)
    points, _ = then.at(px_then[i])
    known = np.isfinite(points[:, 2])
    if known.sum() < MIN_MATCHES:
        return [none]
    found, rvec, t, agreeing = cv2.solvePnPRansac(
        points[known], px_now[j][known], camera.K, camera.distortion, reprojectionError=3.0, iterationsCount=300
    )
    if not found or len(agreeing) < MIN_MATCHES:
        return [none]
    return [none, rigid(rotation(rvec), t)]


def repeats_itself(view: View) -> bool:
    """Whether much of the picture looks like another part of it, as tiles do: one is then easily taken for the next."""
    px, words = view.words
    if len(px) < 2:
        return False
    squares = _squares(words, words)
    squares[np.linalg.norm(px[:, None] - px, axis=2) < _APART_PX * view.scale] = np.inf
    return float((squares.min(axis=1) < _ALIKE**2).mean()) > _REPEATED_SHARE


def _squares(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, m) squared distances between words."""
    return np.asarray((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T)


def _mutual(then: NDArray[np.float32], now: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of words that are each other's nearest by far, as rows of both."""
    squares = _squares(then, now)
    two = np.partition(squares, 1, axis=1)[:, :2]
    nearest = squares.argmin(axis=1)
    good = (two[:, 0] < _RATIO**2 * two[:, 1]) & (squares.argmin(axis=0)[nearest] == np.arange(len(then)))
    rows = np.flatnonzero(good)
    return rows, nearest[rows]


def track(then: View, now: View, T_now_then: Array, camera: Pinhole) -> Features:
    """Corners of then, found in the picture of now near where ``T_now_then`` puts them, there and back."""
    before = then.corners()
    if not len(before):
        return NO_FEATURES
    points, body = then.at(before)
    known = np.isfinite(points[:, 2])
    before, points, body = before[known], points[known], body[known]
    guess = camera.project(apply(T_now_then, points))[0].astype(np.float32)
    size = round(_PATCH_PX * then.scale) | 1

    def follow(a: View, b: View, at: NDArray[np.float32], near: NDArray[np.float32]) -> tuple[Any, Any]:
        flags = cv2.OPTFLOW_USE_INITIAL_FLOW
        found, there, _ = cv2.calcOpticalFlowPyrLK(
            a.grey, b.grey, at, near.copy(), winSize=(size, size), maxLevel=_LEVELS, flags=flags
        )
        return np.asarray(found, dtype=np.float32), np.asarray(there).ravel() == 1

    after, there = follow(then, now, before, guess)
    back, again = follow(now, then, after, before)
    expected = now.shows(guess)
    good = there & again & (np.linalg.norm(back - before, axis=1) < _THERE_AND_BACK_PX)
    good &= now.shows(after)
    arm = body > 0
    return Features(
        points[good], after[good].astype(float), before[good].astype(float), arm[good], int((arm & expected).sum())
    )


def common_surface(then: Snapshot, now: Snapshot, before: View, after: View) -> Surface | None:
    """Where both have depth: smooth samples of then's table and arm, and the points of now."""
    if then.depth_m is None or now.depth_m is None:
        return None
    # what lies on the table may be shifted, and would pull the table's depth along with it
    modelled = (then.depth_m > 0) & (np.abs(before.points[..., 2] - then.surface_m) < _MODELLED_M)
    normals = _normals(np.where(modelled[..., None], before.points, np.nan))
    k = _DEPTH_STEP_PX
    grid = np.zeros(normals.shape[:2], dtype=bool)
    grid[k // 2 :: k, k // 2 :: k] = True
    v, u = np.nonzero(grid & (before.mask > 0) & np.isfinite(normals[..., 2]))
    px = np.column_stack([u, v]).astype(float)
    points, body = before.at(px)
    turned = before.moved(normals[v, u], body, turn_only=True)
    return Surface(points, turned, px, body > 0, np.where((after.mask > 0)[..., None], after.points, np.nan))


def _normals(points: Array) -> Array:
    """(h, w, 3) unit normals of a smoothed depth image, NaN at edges: cross product of the slopes over 6 px."""
    known = np.isfinite(points[..., 2])
    smooth = cv2.blur(np.where(known[..., None], points, 0.0), (5, 5))
    smooth[cv2.erode(known.astype(np.uint8), np.ones((5, 5))) == 0] = np.nan
    right = np.full_like(points, np.nan)
    down = right.copy()
    right[:, 3:-3] = smooth[:, 6:] - smooth[:, :-6]
    down[3:-3] = smooth[6:] - smooth[:-6]
    normals = np.cross(right, down)
    depth = np.where(known, points[..., 2], 0.0)
    edge = cv2.dilate(depth, np.ones((7, 7))) - cv2.erode(depth, np.ones((7, 7))) > _EDGE_SHARE * depth
    normals[edge] = np.nan
    with np.errstate(invalid="ignore"):
        return np.asarray(normals / np.linalg.norm(normals, axis=2, keepdims=True))
