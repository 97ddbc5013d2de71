"""Rigid transforms as (4, 4) matrices: ``T_a_b`` maps b coordinates to a coordinates. Metres and radians."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def rigid(R: Array, t: ArrayLike) -> Array:
    """(4, 4) from a rotation (3, 3) and a translation (3,)."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, np.ravel(t)
    return T


def invert(T: Array) -> Array:
    """T_b_a from a rigid T_a_b, (4, 4)."""
    return rigid(T[:3, :3].T, -T[:3, :3].T @ T[:3, 3])


def apply(T: Array, points: Array) -> Array:
    """(..., 3) points of T's right frame in its left one."""
    return points @ T[:3, :3].T + T[:3, 3]


def rotation(rvec: ArrayLike) -> Array:
    """(3, 3) from a rotation vector (3,)."""
    return np.asarray(cv2.Rodrigues(np.asarray(rvec, dtype=float))[0], dtype=float)


def retract(twist: Array) -> Array:
    """Rotation by the vector twist[:3], then translation by twist[3:]: a retraction, not the screw motion."""
    return rigid(rotation(twist[:3]), twist[3:])


def skew(v: Array) -> Array:
    """(n, 3) -> (n, 3, 3) cross-product matrices."""
    zero = np.zeros(len(v))
    x, y, z = v.T
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)


def rms_length(vectors: Array) -> float:
    """Root mean square length of (n, d) vectors."""
    return float(np.sqrt(np.mean(np.sum(vectors**2, axis=1))))
