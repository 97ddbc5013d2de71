"""An SO-101 that shows a board to a camera, without rendering: what the hand-eye tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from calib_views import VGA, look_at, project, transform

from calib.board import Board, Detection, T_gripper_board_nominal
from calib.kinematics import GripperKinematics
from calib.rigid import invert
from calib.workspace import TIP_GRIPPER_M

MODEL = Path(__file__).parents[2] / "drivers" / "arm" / "so101.xml"
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
BOARD = Board()
T_BASE_CAMERA = look_at((0.52, 0.0, 0.42), (0.21, 0.0, 0.02)) @ transform((0.02, -0.03, 0.01), (0.012, -0.008, 0.015))
T_GRIPPER_BOARD = T_gripper_board_nominal(BOARD) @ transform((0.02, 0.01, -0.03), (0.002, -0.003, 0.0005))
ENCODER_RAD = float(np.radians(0.1))


@cache
def arm() -> GripperKinematics:
    return GripperKinematics(MODEL, JOINTS)


@cache
def spread_poses() -> np.ndarray:
    """(40, 6) poses that show the whole board, its print at most 45 degrees from the line of sight."""
    rng, found = np.random.default_rng(0), []
    limits_rad = arm().limits_rad
    while len(found) < 40:
        q = rng.uniform(limits_rad[:, 0], limits_rad[:, 1])
        T = invert(T_BASE_CAMERA) @ arm()(q) @ T_GRIPPER_BOARD
        centre = T[:3, :3] @ BOARD.centre_m + T[:3, 3]
        if centre[2] < 0.2 or T[:3, 2] @ centre < 0.7 * np.linalg.norm(centre):
            continue
        px = project(BOARD.plate_corners_m, T, VGA)
        if px.min() > 25 and (px < [614, 454]).all():
            found.append(q)
    return np.array(found)


def make(
    seed,
    *,
    zeros_deg=(0.0,) * 6,
    noise_px=0.3,
    encoder_rad=ENCODER_RAD,
    count=15,
    poses=None,
    camera_slip=None,
    board_slip=None,
    slip_view=0,
):
    """Measured joints and seen corners of ``count`` of the poses; from ``slip_view`` on, slipped by these (4, 4)."""
    rng = np.random.default_rng(seed)
    poses = spread_poses() if poses is None else poses
    joints = poses[rng.permutation(len(poses))[:count]].copy()
    seen = []
    for i, q in enumerate(joints):
        true = q + np.radians(zeros_deg) + rng.normal(0, encoder_rad, 6)
        camera, board = T_BASE_CAMERA, T_GRIPPER_BOARD
        if i >= slip_view:
            camera = camera if camera_slip is None else camera @ camera_slip
            board = board if board_slip is None else board @ board_slip
        px = project(BOARD.corners_m(), invert(camera) @ arm()(true) @ board, VGA)
        seen.append(Detection(np.arange(12), px + rng.normal(0, noise_px, px.shape)))
    return joints, seen


def views_from_gripper(
    seed, T_gripper_camera, *, count=15, noise_px=0.3, encoder_rad=ENCODER_RAD, slip=None, slip_view=0
):
    """Joints, seen corners and T_base_board, the camera in the gripper: random poses about one that see the board."""
    rng = np.random.default_rng(seed)
    start = spread_poses()[7]
    T_base_board = arm()(start) @ T_gripper_camera @ transform((0.2, 0.1, 0.3), (-0.05, -0.04, 0.45))
    joints, seen = [], []
    for _ in range(40_000):
        q = start + rng.uniform(-1.0, 1.0, 6)
        camera = T_gripper_camera if slip is None or len(joints) < slip_view else T_gripper_camera @ slip
        T = invert(arm()(q + rng.normal(0, encoder_rad, 6)) @ camera) @ T_base_board
        px = project(BOARD.corners_m(), T, VGA)
        if T[2, 3] > 0.2 and px.min() > 5 and (px < [634, 474]).all():
            joints.append(q)
            seen.append(Detection(np.arange(12), px + rng.normal(0, noise_px, px.shape)))
            if len(joints) == count:
                break
    return np.array(joints), seen, T_base_board


def some_zeros_deg(seed):
    return np.append(np.random.default_rng([seed, 9]).uniform(-2, 2, 5), 0.0)


def twist(T, truth):
    """(6,) with truth = T @ exp(twist)."""
    D = invert(T) @ truth
    return np.concatenate([cv2.Rodrigues(D[:3, :3])[0].ravel(), D[:3, 3]])


def tip_errors_mm(result, reach, zeros_deg, T_base_camera=T_BASE_CAMERA) -> np.ndarray:
    """(m,) how far the tip ends up from where a camera that stands still saw the point."""
    fk, errors = arm(), []
    for q in reach:
        tips = [(fk(p) @ [*TIP_GRIPPER_M, 1])[:3] for p in (q, q - result.joint_zeros_rad + np.radians(zeros_deg))]
        point = T_base_camera @ invert(result.T_base_camera) @ [*tips[0], 1]
        errors.append(1e3 * np.linalg.norm(tips[1] - point[:3]))
    return np.array(errors)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))
