"""The fits behind a diagnosis: derivatives, what is allowed for, and what evidence says of nothing and of something."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from arm_views import BOARD, ENCODER_RAD, T_BASE_CAMERA, T_GRIPPER_BOARD, arm, make
from calib_views import VGA, transform

from calib.adjust import Problem
from calib.causes import NAMED, Group, Pictures, explain
from calib.corners import corner_noise
from calib.hand_eye import Pinhole
from calib.rigid import invert

X = invert(T_BASE_CAMERA)


def problem(joints, seen, board=BOARD, intrinsics=VGA):
    sigma_px, fits = corner_noise(seen, board, intrinsics)
    return Problem(joints, seen, fits, arm(), board, Pinhole(intrinsics), sigma_px, ENCODER_RAD)


def test_derivatives_are_those_of_the_residuals():
    pictures = Pictures(problem(*make(0, count=5)))
    world = replace(
        pictures.world(X, T_GRIPPER_BOARD, np.radians([0, 1, -1, 1, 0.5, 0])),
        size=0.02,
        lens=np.array([0.03, 8.0, -5.0, 0.02]),
        camera_slip=transform((0.02, -0.03, 0.01), (0.005, 0.01, -0.004)),
        board_slip=transform((-0.03, 0.01, 0.02), (0.004, 0.002, -0.01)),
        camera_from=2,
        board_from=3,
    )
    for i in (1, 2, 4):  # before, between and after the slips
        J = pictures.view(world, i)[1]
        for k in range(J.shape[1]):
            if (k >= pictures.board and i < 3) or (pictures.camera <= k < pictures.board and i < 2):
                continue  # of a slip that is yet to come
            step = np.zeros(J.shape[1])
            step[k] = 1e-6
            ahead, behind = (pictures.view(pictures.moved(world, s * step), i)[0] for s in (1, -1))
            np.testing.assert_allclose(J[:, k], (ahead - behind) / 2e-6, rtol=2e-4, atol=2e-3)


def test_the_joints_that_move_stand_for_encoder_noise():
    """A view's squares along its pose are chi-square of six when its noise is as assumed."""
    squares = []
    for seed in range(4):
        pictures = Pictures(problem(*make(seed)))
        squares.append(pictures.linear(pictures.world(X, T_GRIPPER_BOARD)).poses(1.0))
    assert np.mean(squares) == pytest.approx(6.0, rel=0.2)


def test_nothing_is_found_where_nothing_is_wrong():
    for seed in range(4):
        found = explain(problem(*make(seed)), X, T_GRIPPER_BOARD)
        assert found.best.groups == () and found.best.bad == () and found.best.wear < 1.5


@pytest.mark.parametrize("factor", [2.5, 5.0])
def test_a_loose_arm_is_that_and_nothing_else(factor):
    found = explain(problem(*make(3, encoder_rad=factor * ENCODER_RAD)), X, T_GRIPPER_BOARD)
    assert found.best.groups == () and found.best.tight > NAMED
    assert found.best.wear == pytest.approx(factor, rel=0.4)


def test_unknowns_come_back_from_a_poor_start():
    slip = transform((0.02, 0.03, -0.02), (0.01, -0.006, 0.008))
    joints, seen = make(
        1, camera_slip=slip, slip_view=6, zeros_deg=(0, 0, 2.0, 0, 0, 0), noise_px=0.05, encoder_rad=1e-5
    )
    start = transform((0.05, -0.04, 0.03), (0.03, 0.02, -0.03))
    found = explain(problem(joints, seen), start @ X, T_GRIPPER_BOARD)
    assert {(g.kind, g.view, g.joints) for g in found.best.groups} == {("camera", 6, ()), ("zeros", 0, (2,))}
    np.testing.assert_allclose(np.degrees(found.best.world.zeros_rad[2]), 2.0, atol=0.1)
    # X after the slip is T_camera_base @ ..., so the slip as seen from the camera is undone
    np.testing.assert_allclose(found.best.world.camera_slip, invert(slip), atol=2e-3)


def test_what_the_data_say_nothing_about_costs_and_wins_nothing():
    """The roll's zero is one with how the board is held: its evidence is that of its prior."""
    pictures = Pictures(problem(*make(2)))
    plain = pictures.best(pictures.world(X, T_GRIPPER_BOARD), (), False)
    roll = pictures.best(plain.world, (Group("zeros", (4,)),), False)
    lift = pictures.best(plain.world, (Group("zeros", (1,)),), False)
    assert roll.score - plain.score == pytest.approx(0.0, abs=0.5)
    assert lift.score - plain.score > 2.0  # that it is not off is known well
    assert roll.sigmas[Group("zeros", (4,))][0] > 10 * lift.sigmas[Group("zeros", (1,))][0]
