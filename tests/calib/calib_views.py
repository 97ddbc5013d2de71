"""Pictures of a board as a known camera would see it: the ground truth of the calibration tests."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.board import Board
from drivers.protocols import Intrinsics

VGA = Intrinsics(width=640, height=480, fx=560.0, fy=560.0, cx=319.5, cy=239.5)


def transform(rotation_rad: NDArray[np.float64] | tuple[float, ...], translation_m: tuple[float, ...]) -> np.ndarray:
    """(4, 4) from a rotation vector and a translation."""
    T = np.eye(4)
    T[:3, :3] = cv2.Rodrigues(np.asarray(rotation_rad, dtype=float))[0]
    T[:3, 3] = translation_m
    return T


def look_at(eye: tuple[float, ...], target: tuple[float, ...]) -> np.ndarray:
    """T_base_camera of a camera at ``eye`` looking at ``target``, image y down as far as base z allows."""
    z = np.subtract(target, eye)
    z = z / np.linalg.norm(z)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    T = np.eye(4)
    T[:3, :3] = np.column_stack([x, np.cross(z, x), z])
    T[:3, 3] = eye
    return T


def project(points: NDArray[np.float64], T_camera_points: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """(n, 2) pixels of (n, 3) points; no distortion, written out as an independent reference."""
    p = points @ T_camera_points[:3, :3].T + T_camera_points[:3, 3]
    return p[:, :2] / p[:, 2:] * [intrinsics.fx, intrinsics.fy] + [intrinsics.cx, intrinsics.cy]


def render(
    board: Board, T_camera_board: np.ndarray, rng: np.random.Generator, *, oversample: int = 4, noise: float = 2.0
) -> NDArray[np.uint8]:
    """(480, 640, 3) uint8: the board before a grey background, antialiased by ``oversample``, with pixel noise."""
    px_per_m = 10_000.0
    texture = board.image(px_per_m).astype(np.float32) * 0.8 + 15
    # texture pixel (i, j) centre -> metres -> camera -> fine pixel
    to_board = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, px_per_m]]) / px_per_m
    to_board[:2, 2] -= board.margin_m
    K = VGA.matrix @ T_camera_board[:3][:, [0, 1, 3]]
    fine = np.array([[oversample, 0, (oversample - 1) / 2], [0, oversample, (oversample - 1) / 2], [0, 0, 1]])
    size = (VGA.width * oversample, VGA.height * oversample)
    H = fine @ K @ to_board
    flag = cv2.INTER_AREA if oversample > 1 else cv2.INTER_NEAREST
    image = np.full((size[1], size[0]), 90, np.float32)
    cv2.warpPerspective(texture, H, size, dst=image, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_TRANSPARENT)
    image = cv2.resize(image, (VGA.width, VGA.height), interpolation=flag)
    image = image + rng.normal(0, noise, image.shape)
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
