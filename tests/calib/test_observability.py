"""What the least visible motion of the camera moves the corners by, against moving it."""

from __future__ import annotations

import numpy as np
import pytest
from calib_rig import BOARD, JOINTS, MODEL, T_BASE_CAMERA, T_GRIPPER_BOARD
from calib_views import VGA, project

from calib.board import Detection
from calib.kinematics import GripperKinematics
from calib.observability import least_told, views_tell
from calib.rigid import retract

POSES = np.array([[0.1 * k, -1.0 + 0.05 * k, 0.5, 0.6 - 0.1 * k, 0.15 * (k % 3), 0.05] for k in range(-3, 4)])


@pytest.fixture(scope="module")
def fk() -> GripperKinematics:
    return GripperKinematics(MODEL, JOINTS)


def corners(fk, T_base_camera, T_gripper_board):
    points = BOARD.corners_m()
    found = [project(points, np.linalg.inv(T_base_camera) @ fk(q) @ T_gripper_board, VGA) for q in POSES]
    return np.concatenate(found)


def test_no_motion_of_the_camera_is_less_visible_than_said(fk):
    seen = [Detection(np.arange(12), np.zeros((12, 2)))] * len(POSES)
    given = (list(POSES), seen, fk, BOARD, VGA, "base", T_BASE_CAMERA, T_GRIPPER_BOARD)
    value, words = views_tell(*given)
    assert value > 0 and words.startswith(("turning about", "moving along"))
    before = corners(fk, T_BASE_CAMERA, T_GRIPPER_BOARD)
    rng = np.random.default_rng(0)
    by_board = np.stack(
        [(corners(fk, T_BASE_CAMERA, T_GRIPPER_BOARD @ retract(1e-5 * e)) - before).ravel() / 1e-5 for e in np.eye(6)],
        1,
    )
    least = np.inf
    for _ in range(300):
        twist = rng.normal(size=6)
        twist *= 1e-4 / np.linalg.norm(twist)  # 0.1 mrad or mm
        moved = (corners(fk, T_BASE_CAMERA @ retract(-twist), T_GRIPPER_BOARD) - before).ravel()
        left = moved - by_board @ np.linalg.lstsq(by_board, moved, rcond=None)[0]
        least = min(least, float(np.sqrt(np.mean(np.sum(left.reshape(-1, 2) ** 2, axis=1)))) / 0.1)
    assert value * 0.97 <= least < 12 * value  # random directions come near the worst one, and never below it


def test_fewer_kinds_of_views_tell_less(fk):
    seen = [Detection(np.arange(12), np.zeros((12, 2)))] * 3
    alike = [POSES[3], POSES[3] + 0.01, POSES[3] - 0.01]
    spread = [POSES[0], POSES[3], POSES[6]]
    values = [views_tell(q, seen, fk, BOARD, VGA, "base", T_BASE_CAMERA, T_GRIPPER_BOARD)[0] for q in (alike, spread)]
    assert values[0] < 0.3 * values[1]


def test_what_is_not_told_at_all_is_zero():
    H = np.diag([4.0, 4.0, 0.0, 4.0, 4.0, 4.0, 1.0])
    assert least_told(1e6 * H, 4) == (0.0, "turning about the camera's line of sight")
    assert least_told(1e6 * np.eye(6), 1)[0] == pytest.approx(1.0)
