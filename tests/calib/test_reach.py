"""What a calibration's error comes to at the tip: the derivatives against the thing itself, for both mounts."""

from __future__ import annotations

import numpy as np
import pytest
from arm_views import T_BASE_CAMERA, arm, rms, spread_poses
from calib_views import transform

from calib.reach import Reach, best_looks
from calib.rigid import invert, retract
from calib.workspace import TIP_GRIPPER_M, workspace_poses

T_GRIPPER_CAMERA = transform((0.1, 3.0, 0.2), (0.03, 0.02, -0.04))
TIP = np.array(TIP_GRIPPER_M)


def same(points):
    return points


def reach_and_camera(mount):
    reach_rad = workspace_poses(arm(), 6, count=10)
    if mount == "base":
        return Reach(arm(), reach_rad, None, TIP), invert(T_BASE_CAMERA)
    return Reach(arm(), reach_rad, spread_poses()[:10], TIP), invert(T_GRIPPER_CAMERA)


@pytest.mark.parametrize("mount", ["base", "gripper"])
@pytest.mark.parametrize("unknown", range(9))
def test_derivatives_are_those_of_the_gap(mount, unknown):
    reach, X = reach_and_camera(mount)
    zeros = np.radians([0, 1, -1, 0.5, 0, 0])
    step = np.zeros(9)
    step[unknown] = 1e-4
    true_zeros = zeros.copy()
    true_zeros[1:4] += step[6:]
    gap_m = reach.gap_m(X, zeros, retract(step[:6]) @ X, true_zeros, same)
    told = reach.derivatives(X, zeros, (1, 2, 3)) @ step
    assert gap_m == pytest.approx(rms(np.linalg.norm(told, axis=1)), rel=2e-3)
    assert gap_m > 1e-6


@pytest.mark.parametrize("mount", ["base", "gripper"])
def test_what_is_true_has_no_gap_and_a_lens_moves_points_sideways(mount):
    reach, X = reach_and_camera(mount)
    zeros = np.zeros(6)
    assert reach.gap_m(X, zeros, X, zeros, same) == pytest.approx(0, abs=1e-12)
    shift = np.array([0.003, -0.004, 0.0])
    assert reach.gap_m(X, zeros, X, zeros, lambda p: p + shift) == pytest.approx(0.005, abs=1e-9)


def test_encoders_wobble_the_tip_as_random_joints_do():
    reach, rng = Reach(arm(), workspace_poses(arm(), 6, count=10), None, TIP), np.random.default_rng(0)
    sigma = np.radians(0.1)
    tips = reach.tips(np.zeros(6))
    off = [
        np.linalg.norm(arm()(q + rng.normal(0, sigma, 6))[:3] @ [*TIP, 1] - tip)
        for _ in range(200)
        for q, tip in zip(reach.joints_rad, tips, strict=True)
    ]
    assert reach.wobble_m(np.zeros(6), sigma) == pytest.approx(rms(off), rel=0.05)


def test_a_camera_in_the_gripper_looks_from_where_it_has_the_point_in_view():
    X, poses = invert(T_GRIPPER_CAMERA), spread_poses()[:12]
    points = np.array(
        [(arm()(q) @ T_GRIPPER_CAMERA @ [0.0, 0.0, 0.3, 1.0])[:3] for q in poses]
    )  # each right before one
    np.testing.assert_array_equal(best_looks(arm(), poses, points, X, np.zeros(6)), poses)
