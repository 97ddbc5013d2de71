"""Where the tip ends up for a point that the camera saw: what a calibration's error comes to where the arm reaches.

A point seen by the camera (pixel and depth) is at base coordinates M(q1) @ X^-1 @ p, with X = T_camera_mount, p in the
camera and M(q1) where the mount was when it was seen: nowhere else than the base for a camera that stands still, the
gripper at joints q1 for a camera that it carries. The arm goes to q2, where fk(q2 + zeros) has the tip at that point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib.rigid import apply, invert, rms_length, skew

Array = NDArray[np.float64]

_STEP_RAD = 1e-5


@dataclass(frozen=True, eq=False)
class Reach:
    """The poses that a calibration's error is told for.

    Attributes:
        fk: joints (n,) -> T_base_gripper (4, 4).
        joints_rad: (m, n) where the arm reaches, as it measures itself.
        look_rad: (m, n) where it stood when its camera saw the point; None for a camera that stands still.
        tip_m: (3,) what is to be at the point, gripper frame.
    """

    fk: Callable[[Array], Array]
    joints_rad: Array
    look_rad: Array | None
    tip_m: Array

    def tips(self, zeros_rad: Array) -> Array:
        """(m, 3) base coordinates of the tip at ``joints_rad``."""
        return np.array([apply(self.fk(q + zeros_rad), self.tip_m) for q in self.joints_rad])

    def mounts(self, zeros_rad: Array) -> Array:
        """(m, 4, 4) T_base_mount when the points are seen."""
        if self.look_rad is None:
            return np.broadcast_to(np.eye(4), (len(self.joints_rad), 4, 4))
        return np.array([self.fk(q + zeros_rad) for q in self.look_rad])

    def derivatives(self, X: Array, zeros_rad: Array, free: Sequence[int]) -> Array:
        """(m, 3, 6 + free) of how far the tip ends up from the point, base frame, metres.

        By what truly differs from X and the zeros: a left twist of X (rad, m), and the zeros of the joints ``free``.
        """
        found = np.zeros((len(self.joints_rad), 3, 6 + len(free)))
        tips, mounts = self.tips(zeros_rad), self.mounts(zeros_rad)
        for k, (D, q, tip, M) in enumerate(zip(found, self.joints_rad, tips, mounts, strict=True)):
            in_mount = apply(invert(M), tip)
            back = (X @ invert(M))[:3, :3].T
            D[:, :3], D[:, 3:6] = -back @ skew(apply(X, in_mount)[None])[0], back
            for at, j in enumerate(free):
                D[:, 6 + at] = apply(by_joint(self.fk, q + zeros_rad, j), self.tip_m)
                if self.look_rad is not None:
                    D[:, 6 + at] -= apply(by_joint(self.fk, self.look_rad[k] + zeros_rad, j), in_mount)
        return found

    def wobble_m(self, zeros_rad: Array, sigma_rad: float) -> float:
        """Rms distance that the tip is off, metres, for joints that are off at random, each by ``sigma_rad``."""
        squares, tips, mounts = [], self.tips(zeros_rad), self.mounts(zeros_rad)
        for k, q in enumerate(self.joints_rad):
            for j in range(len(q)):
                squares.append(apply(by_joint(self.fk, q + zeros_rad, j), self.tip_m))
                if self.look_rad is not None:
                    in_mount = apply(invert(mounts[k]), tips[k])
                    squares.append(apply(by_joint(self.fk, self.look_rad[k] + zeros_rad, j), in_mount))
        return sigma_rad * float(np.sqrt(np.sum(np.square(squares)) / max(len(self.joints_rad), 1)))

    def gap_m(
        self, X: Array, zeros_rad: Array, true_X: Array, true_zeros_rad: Array, lens: Callable[[Array], Array]
    ) -> float:
        """Rms distance of the tip from the point, metres, for who believes X and the zeros where others are true.

        ``lens`` takes points (m, 3) in the camera, as pixel and depth give them by the intrinsics believed in, to
        where they truly are.
        """
        back = np.array([invert(M) for M in self.mounts(zeros_rad)])
        believed = np.array([apply(X @ b, tip) for b, tip in zip(back, self.tips(zeros_rad), strict=True)])
        seen = apply(invert(true_X), lens(believed))
        true = np.array([apply(M, p) for M, p in zip(self.mounts(true_zeros_rad), seen, strict=True)])
        return rms_length(self.tips(true_zeros_rad) - true)


def by_joint(fk: Callable[[Array], Array], q: Array, j: int) -> Array:
    """(4, 4) derivative of fk by joint j."""
    step = np.zeros(len(q))
    step[j] = _STEP_RAD
    return (fk(q + step) - fk(q - step)) / (2 * _STEP_RAD)


def best_looks(fk: Callable[[Array], Array], looks_rad: Array, points_m: Array, X: Array, zeros_rad: Array) -> Array:
    """(m, n) of the joint poses ``looks_rad`` the one whose line of sight passes each point (m, 3) the closest.

    For a camera in the gripper, X = T_camera_gripper; points in the base frame.
    """
    cosines = []
    for q in looks_rad:
        seen = apply(X @ invert(fk(q + zeros_rad)), points_m)
        cosines.append(seen[:, 2] / np.linalg.norm(seen, axis=1))
    return np.asarray(looks_rad[np.argmax(cosines, axis=0)], dtype=float)
