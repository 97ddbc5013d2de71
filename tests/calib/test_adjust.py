"""The whole hand-eye problem: joint zeros come back, bad samples are named, and what is said of the error holds."""

from __future__ import annotations

import numpy as np
import pytest
from arm_views import (
    BOARD,
    T_BASE_CAMERA,
    T_GRIPPER_BOARD,
    arm,
    make,
    rms,
    some_zeros_deg,
    tip_errors_mm,
    twist,
    views_from_gripper,
)
from calib_views import VGA, project, transform

from calib.adjust import Disagreement, adjust
from calib.board import Detection
from calib.corners import corner_noise
from calib.rigid import invert
from calib.workspace import LOWER_M, TIP_GRIPPER_M, UPPER_M, workspace_poses


@pytest.fixture(scope="module")
def fk():
    return arm()


@pytest.fixture(scope="module")
def reach(fk) -> np.ndarray:
    return workspace_poses(fk, 6)


@pytest.mark.parametrize("seed", range(3))
def test_exact_observations_give_the_exact_zeros(fk, reach, seed):
    zeros_deg = some_zeros_deg(seed)
    joints, seen = make(seed, zeros_deg=zeros_deg, noise_px=0.0, encoder_rad=0.0)
    result = adjust(joints, seen, fk, BOARD, VGA, encoder_sigma_rad=1e-5)
    assert result.zeros_fitted and result.outliers == ()
    np.testing.assert_allclose(np.degrees(result.joint_zeros_rad[1:4]), zeros_deg[1:4], atol=2e-3)
    # what no picture tells: the pan's is held, the roll's stays with its prior
    assert result.joint_zeros_rad[0] == 0 and abs(result.joint_zeros_rad[4]) < 1e-3
    # the pan's zero is in the camera's place, and so misses nothing; the roll's, 8 mm off its axis, misses by little
    assert tip_errors_mm(result, reach, zeros_deg).max() < 0.3
    assert result.reprojection_px < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_zeros_are_fitted_where_they_are_off_and_only_there(fk, reach, seed):
    good = adjust(*make(seed), fk, BOARD, VGA)
    assert not good.zeros_fitted and (good.joint_zeros_rad == 0).all() and good.outliers == ()
    assert rms(tip_errors_mm(good, reach, np.zeros(6))) < 1.5
    zeros_deg = some_zeros_deg(seed)
    bad = adjust(*make(seed, zeros_deg=zeros_deg), fk, BOARD, VGA)
    assert bad.zeros_fitted and bad.outliers == ()
    np.testing.assert_allclose(np.degrees(bad.joint_zeros_rad[1:4]), zeros_deg[1:4], atol=0.4)
    assert rms(tip_errors_mm(bad, reach, zeros_deg)) < 2.5


def test_asked_for_or_not_zeros_are_as_asked(fk):
    off = make(0, zeros_deg=(0, 1.5, -1, 1, 0, 0))
    without = adjust(*off, fk, BOARD, VGA, fit_zeros=False)
    assert not without.zeros_fitted and without.outliers == ()  # views are not to blame for the zeros
    assert without.leave_one_out_mm > 1.3 * adjust(*off, fk, BOARD, VGA).leave_one_out_mm  # and they show
    fitted = adjust(*make(0), fk, BOARD, VGA, fit_zeros=True)
    assert fitted.zeros_fitted and np.abs(np.degrees(fitted.joint_zeros_rad)).max() < 0.4
    assert fitted.joint_zeros_rad[5] == 0  # the jaw moves no board


@pytest.mark.parametrize("zeros_off", [False, True])
def test_corrupted_samples_are_named_and_do_not_count(fk, reach, zeros_off):
    zeros_deg = some_zeros_deg(3) if zeros_off else np.zeros(6)
    joints, seen = make(3, zeros_deg=zeros_deg)
    clean = adjust(joints, seen, fk, BOARD, VGA)
    joints[2] = joints[7]  # a reading from another moment
    joints[5, 2] += np.radians(3)
    slipped = fk(joints[11] + np.radians(zeros_deg)) @ T_GRIPPER_BOARD @ transform((0, 0.05, 0), (0.0, 0.01, 0.0))
    px = project(BOARD.corners_m(), invert(T_BASE_CAMERA) @ slipped, VGA)
    seen[11] = Detection(seen[11].ids, px)
    result = adjust(joints, seen, fk, BOARD, VGA)
    assert result.outliers == (2, 5, 11) and result.zeros_fitted == zeros_off
    assert rms(tip_errors_mm(result, reach, zeros_deg)) < rms(tip_errors_mm(clean, reach, zeros_deg)) + 1.0
    assert result.leave_one_out_m[[2, 5, 11]].min() > 3 * np.median(result.leave_one_out_m)  # how far off they are
    assert result.leave_one_out_mm < 3.0


def test_a_wrong_corner_does_not_cost_its_view(fk):
    joints, seen = make(4)
    rng = np.random.default_rng(0)
    clean = adjust(joints, seen, fk, BOARD, VGA)
    for d in seen[::2]:
        d.corners_px[rng.integers(12)] += rng.choice([-1, 1], 2) * rng.uniform(5, 15, 2)
    spoiled = adjust(joints, seen, fk, BOARD, VGA)
    assert spoiled.outliers == () and not spoiled.zeros_fitted
    assert 1e3 * np.linalg.norm(twist(spoiled.T_base_camera, clean.T_base_camera)[3:]) < 0.5
    assert spoiled.corner_px == pytest.approx(0.3, rel=0.15)


def test_views_that_contradict_each_other_are_refused(fk):
    joints, seen = make(5)
    joints[:6] = np.roll(joints[:6], 1, axis=0)
    with pytest.raises(Disagreement, match=r"only 9 of 15 views agree"):
        adjust(joints, seen, fk, BOARD, VGA)


@pytest.mark.parametrize("zeros_off", [False, True])
def test_what_is_said_of_the_error_holds(fk, reach, zeros_off):
    true_mm, said_mm, spread, loo_mm = [], [], [], []
    for seed in range(12):
        zeros_deg = some_zeros_deg(seed) if zeros_off else np.zeros(6)
        zeros_deg[0] = 0.0  # the camera's covariance is for a base whose x axis is where the pan reads zero
        joints, seen = make(seed, zeros_deg=zeros_deg)
        result = adjust(joints, seen, fk, BOARD, VGA, reach_rad=reach)
        true_mm.append(rms(tip_errors_mm(result, reach, zeros_deg)))
        said_mm.append(result.expected_mm)
        t = twist(result.T_base_camera, T_BASE_CAMERA)
        spread.append(t @ np.linalg.solve(result.covariance, t))
        loo_mm.append(result.leave_one_out_mm)
        assert result.expected_mm < result.expected_reach_mm < result.expected_mm + 2
        middle_mm = 1e3 * np.sqrt(np.trace(result.point_covariance_m2))
        assert 0.4 < middle_mm / result.expected_mm < 2
    assert 0.7 < rms(said_mm) / rms(true_mm) < 1.4
    ratio = np.array(said_mm) / true_mm
    assert np.mean((ratio > 0.5) & (ratio < 2)) >= 0.7
    assert 3.5 < np.mean(spread) < 9.0  # chi-square of six, mean of 12
    assert 0.5 < np.median(loo_mm) < 3.0


def test_the_first_joints_zero_is_the_cameras_yaw(fk):
    """Another reading of the pan turns the camera about the pan's axis and changes nothing else."""
    joints, seen = make(6)
    shift = np.array([0.05, 0, 0, 0, 0, 0])
    turn = fk(joints[0] + shift) @ invert(fk(joints[0]))
    first, second = adjust(joints, seen, fk, BOARD, VGA), adjust(joints + shift, seen, fk, BOARD, VGA)
    np.testing.assert_allclose(second.T_base_camera, turn @ first.T_base_camera, atol=1e-6)
    np.testing.assert_allclose(second.T_gripper_board, first.T_gripper_board, atol=1e-6)
    assert second.reprojection_px == pytest.approx(first.reprojection_px, abs=1e-6)


def test_a_camera_in_the_gripper_is_the_same_with_the_arm_inverted(fk):
    T_gripper_camera = transform((0.1, 3.0, 0.2), (0.03, 0.02, -0.04))
    joints, seen, T_base_board = views_from_gripper(7, T_gripper_camera, count=12, noise_px=0.1, encoder_rad=0.0)
    result = adjust(joints, seen, lambda q: invert(fk(q)), BOARD, VGA, mount="gripper", encoder_sigma_rad=1e-5)
    assert 1e3 * np.linalg.norm(twist(result.T_base_camera, T_gripper_camera)[3:]) < 1.0
    assert 1e3 * np.linalg.norm(twist(result.T_gripper_board, T_base_board)[3:]) < 1.0


def test_what_is_said_of_the_error_of_a_camera_in_the_gripper_holds(fk):
    T_gripper_camera, true_mm, said_mm = transform((0.1, 3.0, 0.2), (0.03, 0.02, -0.04)), [], []
    for seed in range(6):
        joints, seen, T_base_board = views_from_gripper(seed, T_gripper_camera)
        result = adjust(joints, seen, lambda q: invert(fk(q)), BOARD, VGA, mount="gripper", reach_rad=joints)
        said_mm.append(result.expected_mm)
        errors = []
        for q in joints:  # the camera sees a point where the tip would be; looked at from where it is best in view
            tip = fk(q) @ [*TIP_GRIPPER_M, 1]
            seen_from = [(invert(fk(p) @ T_gripper_camera) @ tip)[:3] for p in joints]
            at = fk(joints[int(np.argmax([p[2] / np.linalg.norm(p) for p in seen_from]))])
            point = at @ T_gripper_camera @ invert(result.T_base_camera) @ invert(at) @ tip
            errors.append(1e3 * np.linalg.norm((point - tip)[:3]))
        true_mm.append(rms(errors))
    assert 0.5 < rms(said_mm) / rms(true_mm) < 2


@pytest.mark.parametrize("noise_px", [0.1, 0.3, 1.0])
def test_corner_noise_is_told_without_the_arm(fk, noise_px):
    joints, seen = make(8, noise_px=noise_px, zeros_deg=(0, 20, -10, 0, 0, 0), count=12)
    seen[3].corners_px[5] += 12 * noise_px
    sigma_px, fits = corner_noise(seen, BOARD, VGA)
    assert sigma_px == pytest.approx(noise_px, rel=0.15)
    assert not fits[3][5] and np.concatenate(fits).mean() > 0.97


def test_workspace_poses_reach_for_the_table(fk, reach):
    assert reach.shape == (40, 6)
    np.testing.assert_array_equal(reach, workspace_poses(fk, 6))
    for q in reach:
        T = fk(q)
        tip = (T @ [*TIP_GRIPPER_M, 1])[:3]
        assert (tip > LOWER_M).all() and (tip < UPPER_M).all()
        assert -T[2, 2] < -np.cos(np.radians(45))  # the approach, -z of the gripper, points down
    assert len(workspace_poses(lambda q: np.eye(4), 6)) == 0
