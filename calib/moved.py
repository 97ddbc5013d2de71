"""Has the camera moved since it was calibrated? One picture from then, one from now, and what of both stood still.

The camera's motion is solved for from what both pictures show (``calib.seen_twice``): corners, by where they are seen,
and the shapes in both depth images (point to plane; table and arm only). Shadows that turned, objects that were taken
away or shifted contradict the rest and lose their weight (Cauchy's, then Geman and McClure's).

The arm is the best witness, since the calibration is about where the camera stands to it: its foot always is where it
was, and links that have moved a little are followed by their joints. Tiles look the same one tile further: where a
pattern repeats itself, a motion is believed only if the arm agrees.

How sure: everything but the arm may have been shifted, so the answer is asked for again with each window of the
picture in turn taken away (the arm is kept in all). The worst of these is what ``sigma_mm`` tells. An answer that
hangs on one object is thereby none; a bare table without depth, and the arm out of sight, says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from calib.hand_eye import Pinhole
from calib.rigid import apply, invert, retract, skew
from calib.seen_twice import (
    MIN_MATCHES,
    NO_FEATURES,
    Features,
    Snapshot,
    Surface,
    common_surface,
    repeats_itself,
    starts,
    track,
    views,
)
from calib.workspace import LOWER_M, UPPER_M
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

LIMIT_MM = 3.0
"""A camera that misplaces things by more than this has moved: a jaw's play beside an object is about that."""

_FEATURE_PX = 0.4  # sigma of a followed corner
_AGREE = 3.0  # a corner agrees with a motion within so many sigmas
_MIN_SHARE = 1 / 8  # of those followed; fewer may agree by chance
_ARM_SHARE = 0.2  # of the arm's corners, to be seen again where a pattern repeats itself
_DEPTH_SHARE = 0.002  # sigma of a depth, relative to it
_DEPTH_SAMPLES = 60.0  # depth errors hang together: however many pixels there are, they count as so many
_ROBUST = 2.0  # sigmas from which a residual counts less
_PRIOR = np.diag([0.2**-2] * 3 + [0.1**-2] * 3)  # how far a camera may have moved at all: rad, m
_ROUNDS = 12
_STILL_M, _SAME_M = 1e-5, 0.002
_WINDOWS = 5  # along each side, each covering a third of it
_SURE = 2.0  # standard deviations


@dataclass(frozen=True, eq=False)
class Motion:
    """How far the camera is from where it was.

    Attributes:
        T_then_now: (4, 4) camera coordinates now to those of then.
        moved_mm: rms distance, over the box of ``calib.workspace``, between where a thing is and where the calibration
            of then puts it when the camera of now sees it.
        at_least_mm: the least that agrees with the pictures (two standard deviations).
        sigma_mm: standard deviation of ``moved_mm``, were the part of the scene missing that it hangs on most.
        agreeing, followed: how many corners agree with this motion, of how many that were found in both pictures.
        limit_mm: above which the camera counts as moved.
    """

    T_then_now: Array
    moved_mm: float
    at_least_mm: float
    sigma_mm: float
    agreeing: int
    followed: int
    limit_mm: float = LIMIT_MM

    @property
    def translation_mm(self) -> float:
        return 1e3 * float(np.linalg.norm(self.T_then_now[:3, 3]))

    @property
    def rotation_deg(self) -> float:
        return float(np.degrees(np.linalg.norm(cv2.Rodrigues(self.T_then_now[:3, :3])[0])))

    @property
    def is_valid(self) -> bool:
        """Whether the camera is surely where it was, as far as ``limit_mm`` goes."""
        return self.moved_mm + _SURE * self.sigma_mm <= self.limit_mm

    @property
    def has_moved(self) -> bool:
        """Whether it surely is not. Where neither holds, the pictures say too little."""
        return self.at_least_mm > self.limit_mm

    def verdict(self) -> str:
        """One line for the user."""
        said = f"{self.moved_mm:.1f} mm (± {self.sigma_mm:.1f})"
        if self.is_valid:
            return f"still valid: the camera is where it was, to {said}"
        if not self.has_moved:
            why = "too little of what was there is seen" if self.sigma_mm > self.limit_mm / 2 else "that is the limit"
            return f"cannot tell: the camera may have moved by {said}, and {self.limit_mm:.1f} mm would matter; {why}"
        if self.sigma_mm > self.moved_mm / 4:
            return f"the camera has moved by at least {self.at_least_mm:.0f} mm: calibrate again"
        itself = f"itself by {self.translation_mm:.0f} mm and {self.rotation_deg:.1f} deg"
        return f"the camera has moved by {said} where the arm works ({itself}): calibrate again"


def camera_motion(
    then: Snapshot,
    now: Snapshot,
    T_mount_camera: Array,
    intrinsics: Intrinsics,
    workspace_m: Array | None = None,
    limit_mm: float = LIMIT_MM,
) -> Motion:
    """How the camera has moved on its mount between two pictures of the same size.

    Args:
        T_mount_camera: (4, 4) as calibrated then.
        intrinsics: of both pictures.
        workspace_m: (k, 3) points, in the mount's frame, that ``moved_mm`` is told for; by default the corners and
            the middle of the box of ``calib.workspace``, which is in the base frame.
    """
    if workspace_m is None:
        workspace_m = workspace_points()
    camera = Pinhole(intrinsics)
    before, after = views(then, now, T_mount_camera, intrinsics)
    surface = common_surface(then, now, before, after)
    displacements = _displacements(workspace_m, T_mount_camera)
    fits: list[_Fit] = []
    for T in starts(before, after, camera):
        if fits and _distance_m(T, fits[-1].T, displacements) < _SAME_M:
            continue  # it got there already
        for _ in range(2):  # what is followed from nearby is followed better
            fit = _Problem(camera, track(before, after, T, camera), surface, displacements).solve(T)
            T = fit.T
        fits.append(fit)
    needs_arm = repeats_itself(before)
    best = max(fits, key=lambda fit: (fit.arm_seen or not needs_arm, fit.agreeing))
    few = max(MIN_MATCHES, _MIN_SHARE * best.features)
    if best.agreeing < few or (needs_arm and not best.arm_seen):  # chance, or the next tile: let depth speak alone
        best = _Problem(camera, NO_FEATURES, surface, displacements).solve(np.eye(4))
    return _told(best, displacements, intrinsics, limit_mm)


def workspace_points() -> Array:
    """(9, 3) corners and middle of the box that arms reach into, base frame."""
    low, high = np.array(LOWER_M), np.array(UPPER_M)
    signs = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    return np.vstack([low + signs * (high - low), (low + high) / 2])


def _displacements(workspace_m: Array, T_mount_camera: Array) -> Array:
    """(6, 6) S: a small left twist x of T_now_then misplaces things by rms sqrt(x^T S x) metres over the workspace."""
    points = apply(invert(T_mount_camera), workspace_m)
    J = _by_twist(points).reshape(-1, 6)
    return J.T @ J / len(points)


def _distance_m(T: Array, other: Array, displacements: Array) -> float:
    """How far apart, rms over the workspace, two T_now_then put things."""
    D = T @ invert(other)
    x = np.concatenate([cv2.Rodrigues(D[:3, :3])[0].ravel(), D[:3, 3]])
    return float(np.sqrt(x @ displacements @ x))


@dataclass(frozen=True, eq=False)
class _Fit:
    T: Array  # T_now_then
    jacobian: Array  # (m, 6) weighted rows, by left twists of T
    residuals: Array  # (m,)
    at_px: Array  # (m, 2) where then
    arm: NDArray[np.bool_]  # (m,)
    agreeing: int
    features: int
    arm_agreeing: int
    arm_expected: int

    @property
    def arm_seen(self) -> bool:
        """Whether the arm is seen where this motion has it, as far as it should be seen at all."""
        return self.arm_agreeing >= _ARM_SHARE * self.arm_expected

    @property
    def information(self) -> Array:
        return np.asarray(self.jacobian.T @ self.jacobian + _PRIOR)


class _Problem:
    """Residuals in standard deviations, and their weights."""

    def __init__(self, camera: Pinhole, features: Features, surface: Surface | None, displacements: Array) -> None:
        self.camera, self.features, self.surface, self.displacements = camera, features, surface, displacements

    def solve(self, T: Array) -> _Fit:
        for power in (0.5, 1.0):  # of Cauchy's weights, then of Geman and McClure's, which forget what is far off
            for _ in range(_ROUNDS):
                fit = self._linear(T, power)
                step = np.asarray(np.linalg.solve(fit.information, -fit.jacobian.T @ fit.residuals), dtype=float)
                T = retract(step) @ T
                if step @ self.displacements @ step < _STILL_M**2:
                    break
        return self._linear(T, power)

    def _linear(self, T: Array, power: float) -> _Fit:
        features, surface = self.features, self.surface
        points = apply(T, features.points)
        px, by_point = self.camera.project(points) if len(points) else (np.empty((0, 2)), np.empty((0, 2, 3)))
        r = (px - features.px) / _FEATURE_PX
        J = by_point @ _by_twist(points) / _FEATURE_PX
        lengths = np.linalg.norm(r, axis=1)
        w = (1 + (lengths / _ROBUST) ** 2) ** -power
        rows, residuals = [(J * w[:, None, None]).reshape(-1, 6)], [(r * w[:, None]).ravel()]
        at, arm = [np.repeat(features.at_px, 2, axis=0)], [np.repeat(features.arm, 2)]
        if surface is not None:
            J1, r1, seen = self._point_to_plane(T, surface)
            share = np.sqrt(min(1.0, _DEPTH_SAMPLES / max(len(r1), 1)))
            w1 = share * (1 + (r1 / _ROBUST) ** 2) ** -power
            rows.append(J1 * w1[:, None])
            residuals.append(r1 * w1)
            at.append(surface.at_px[seen])
            arm.append(surface.arm[seen])
        return _Fit(
            T,
            np.concatenate(rows),
            np.concatenate(residuals),
            np.concatenate(at),
            np.concatenate(arm),
            int((lengths < _AGREE).sum()),
            len(lengths),
            int((features.arm & (lengths < _AGREE)).sum()),
            features.arm_expected,
        )

    def _point_to_plane(self, T: Array, surface: Surface) -> tuple[Array, Array, NDArray[np.int64]]:
        points, normals = apply(T, surface.points), surface.normals @ T[:3, :3].T
        height, width = surface.now.shape[:2]
        px = np.full((len(points), 2), -1)
        front = points[:, 2] > 0.05
        if front.any():
            px[front] = np.rint(np.clip(self.camera.project(points[front])[0], -1, 1e5)).astype(int)
        seen = np.flatnonzero((px >= 0).all(axis=1) & (px[:, 0] < width) & (px[:, 1] < height))
        there = surface.now[px[seen, 1], px[seen, 0]]
        near = np.isfinite(there[:, 2])
        seen, there = seen[near], there[near]
        sigma_m = _DEPTH_SHARE * points[seen, 2]
        off = np.einsum("ni,ni->n", normals[seen], points[seen] - there)
        J = np.einsum("ni,nij->nj", normals[seen], _by_twist(points[seen]))
        return J / sigma_m[:, None], off / sigma_m, seen


def _told(fit: _Fit, displacements: Array, intrinsics: Intrinsics, limit_mm: float) -> Motion:
    """What to say of a fit, as sure as it is without the window that it hangs on most."""
    # where most of what was followed contradicts, those that agree may do so by chance, too
    doubt = fit.features / max(fit.agreeing, 1) if fit.features else 1.0
    covariance = np.asarray(doubt * np.linalg.inv(fit.information), dtype=float)
    spread_m = np.sqrt(np.trace(displacements @ covariance))
    for low, high in _windows(intrinsics):
        inside = (fit.at_px >= low).all(axis=1) & (fit.at_px < high).all(axis=1) & ~fit.arm
        J, r = fit.jacobian[inside], fit.residuals[inside]
        without = np.asarray(np.linalg.inv(fit.information - J.T @ J), dtype=float)
        step = without @ J.T @ r  # one step of Gauss and Newton
        without = doubt * without + np.outer(step, step)
        if (other_m := np.sqrt(np.trace(displacements @ without))) > spread_m:
            spread_m, covariance = other_m, without
    x = np.concatenate([cv2.Rodrigues(fit.T[:3, :3])[0].ravel(), fit.T[:3, 3]])
    moved_m = _distance_m(fit.T, np.eye(4), displacements)
    least_m = _least(x, displacements, covariance)
    return Motion(
        invert(fit.T), 1e3 * moved_m, 1e3 * least_m, 1e3 * float(spread_m), fit.agreeing, fit.features, limit_mm
    )


def _by_twist(points: Array) -> Array:
    """(n, 3, 6) derivative of points by a left twist."""
    return np.concatenate([-skew(points), np.broadcast_to(np.eye(3), (len(points), 3, 3))], axis=2)


def _least(x: Array, S: Array, covariance: Array) -> float:
    """min sqrt(y^T S y) over (y - x)^T C^-1 (y - x) <= _SURE^2, by the generalized eigenvectors of S and C^-1."""
    values, V = eigh(S, np.linalg.inv(covariance))  # V^T C^-1 V = 1, V^T S V = values
    a = np.linalg.solve(V, x)
    if a @ a <= _SURE**2:
        return 0.0
    low, high = 0.0, 1e9
    for _ in range(100):  # y = a m / (values + m): the larger m, the nearer to x
        m = np.sqrt(max(low, 1e-12) * high)
        y = a * m / (values + m)
        if (y - a) @ (y - a) > _SURE**2:
            low = m
        else:
            high = m
    y = a * high / (values + high)
    return float(np.sqrt(values @ y**2))


def _windows(intrinsics: Intrinsics) -> list[tuple[Array, Array]]:
    size = np.array([intrinsics.width, intrinsics.height], dtype=float)
    steps = np.linspace(0.0, 2 / 3, _WINDOWS)
    return [(size * (x, y), size * (x + 1 / 3, y + 1 / 3)) for x in steps for y in steps]
