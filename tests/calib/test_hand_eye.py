"""The hand-eye solve: the truth comes back, outliers do not move it, and an undetermined problem is refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from calib_views import VGA, look_at, project, transform
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from calib.board import Board, Detection
from calib.hand_eye import information, reprojection_rms_px, rotation_spread_rad, solve_hand_eye
from drivers.errors import UserError
from drivers.protocols import Intrinsics

BOARD = Board()
T_BASE_CAMERA = look_at((0.52, 0.03, 0.42), (0.21, 0.0, 0.02))
T_GRIPPER_BOARD = transform((1.2, -1.1, 1.3), (-0.006, 0.05, -0.15))


def make_views(rng, count=12, noise_px=0.2, turn_rad=(0.7, 0.7, 1.4), T_base_camera=T_BASE_CAMERA, lens=VGA):
    """Arm poses and noisy corners for a board in random places before the camera."""
    arm, seen = [], []
    while len(arm) < count:
        T = transform(rng.uniform(-1, 1, 3) * turn_rad, (0, 0, 0))
        place = [*(rng.uniform(-1, 1, 2) * [0.08, 0.06]), rng.uniform(0.32, 0.5)]
        T[:3, 3] = place - T[:3, :3] @ BOARD.centre_m
        rvec = cv2.Rodrigues(T[:3, :3])[0]
        px = cv2.projectPoints(BOARD.corners_m(), rvec, T[:3, 3], lens.matrix, np.array(lens.distortion or [0.0] * 5))
        px = px[0].reshape(-1, 2)
        if px.min() < 5 or (px > [634, 474]).any():
            continue
        arm.append(T_base_camera @ T @ np.linalg.inv(T_GRIPPER_BOARD))
        seen.append(Detection(np.arange(12), px + rng.normal(0, noise_px, px.shape)))
    return arm, seen


def distance(A: np.ndarray, B: np.ndarray) -> tuple[float, float]:
    """Millimetres and degrees between two transforms."""
    turn = np.linalg.norm(cv2.Rodrigues(A[:3, :3].T @ B[:3, :3])[0])
    return 1e3 * float(np.linalg.norm(A[:3, 3] - B[:3, 3])), float(np.degrees(turn))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    place=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0.1, 0.8)),
    turn=st.tuples(*[st.floats(-1.8, 1.8)] * 3),
)
def test_exact_views_give_the_exact_answer(seed, place, turn):
    T_base_camera = transform(turn, place)
    arm, seen = make_views(np.random.default_rng(seed), count=8, noise_px=0.0, T_base_camera=T_base_camera)
    result = solve_hand_eye(arm, seen, BOARD, VGA)
    assert max(distance(result.T_base_camera, T_base_camera)) < 1e-4
    assert max(distance(result.T_gripper_board, T_GRIPPER_BOARD)) < 1e-4
    assert result.reprojection_px < 1e-4 and result.leave_one_out_mm < 1e-3


@pytest.mark.parametrize(("noise_px", "mm", "degrees"), [(0.1, 0.6, 0.08), (0.3, 1.5, 0.25), (1.0, 5.0, 0.8)])
def test_noisy_views_stay_within_bounds(noise_px: float, mm: float, degrees: float):
    for seed in range(4):
        arm, seen = make_views(np.random.default_rng(seed), noise_px=noise_px)
        result = solve_hand_eye(arm, seen, BOARD, VGA)
        for ours, truth in ((result.T_base_camera, T_BASE_CAMERA), (result.T_gripper_board, T_GRIPPER_BOARD)):
            error_mm, error_deg = distance(ours, truth)
            assert error_mm < mm and error_deg < degrees
        assert result.reprojection_px == pytest.approx(noise_px * np.sqrt(2), rel=0.2)


def test_lens_distortion_is_taken_into_account():
    lens = Intrinsics(640, 480, 560.0, 555.0, 325.0, 236.0, (-0.25, 0.08, 0.001, -0.002, 0.0))
    arm, seen = make_views(np.random.default_rng(1), noise_px=0.0, lens=lens)
    assert distance(solve_hand_eye(arm, seen, BOARD, lens).T_base_camera, T_BASE_CAMERA)[0] < 1e-3
    assert distance(solve_hand_eye(arm, seen, BOARD, VGA).T_base_camera, T_BASE_CAMERA)[0] > 1.0


def test_partly_seen_boards_will_do():
    rng = np.random.default_rng(3)
    arm, seen = make_views(rng, noise_px=0.1)
    parts = [np.sort(np.concatenate([[0, 1, 4], rng.permutation([2, 3, 5, 6, 7, 8, 9, 10, 11])[:4]])) for _ in seen]
    seen = [Detection(d.ids[p], d.corners_px[p]) for d, p in zip(seen, parts, strict=True)]
    assert distance(solve_hand_eye(arm, seen, BOARD, VGA).T_base_camera, T_BASE_CAMERA)[0] < 1.0


def test_matches_an_independent_least_squares():
    arm, seen = make_views(np.random.default_rng(5), noise_px=0.3)
    result = solve_hand_eye(arm, seen, BOARD, VGA)
    # plain squares in scipy's own solver; Huber's loss may cost ours a little of the rms, not more
    truth = np.concatenate([pack(np.linalg.inv(T_BASE_CAMERA)), pack(T_GRIPPER_BOARD)])

    def residuals(x):
        X, Y = unpack(x[:6]), unpack(x[6:])
        return np.concatenate(
            [
                (project(BOARD.corners_m(d.ids), X @ T @ Y, VGA) - d.corners_px).ravel()
                for T, d in zip(arm, seen, strict=True)
            ]
        )

    reference = least_squares(residuals, truth, x_scale="jac")
    reference_px = np.sqrt(2 * np.mean(reference.fun**2))
    assert reference_px <= result.reprojection_px * (1 + 1e-9) <= reference_px * 1.02
    assert distance(np.linalg.inv(unpack(reference.x[:6])), result.T_base_camera)[0] < 0.5


def pack(T):
    return np.concatenate([Rotation.from_matrix(T[:3, :3]).as_rotvec(), T[:3, 3]])


def unpack(x):
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_rotvec(x[:3]).as_matrix(), x[3:]
    return T


@pytest.mark.skipif(not hasattr(cv2, "calibrateHandEye"), reason="OpenCV 5.0.0's Python package lacks it")
def test_no_worse_than_opencv():
    for seed in range(3):
        arm, seen = make_views(np.random.default_rng(seed), noise_px=0.3)
        ours = solve_hand_eye(arm, seen, BOARD, VGA)
        inverted = [np.linalg.inv(T) for T in arm]
        boards = []
        for d in seen:
            _, rvec, tvec = cv2.solvePnP(BOARD.corners_m(d.ids), d.corners_px, VGA.matrix, None)
            boards.append((cv2.Rodrigues(rvec)[0], tvec))
        for method in (cv2.CALIB_HAND_EYE_PARK, cv2.CALIB_HAND_EYE_DANIILIDIS, cv2.CALIB_HAND_EYE_HORAUD):
            R, t = cv2.calibrateHandEye(
                [T[:3, :3] for T in inverted],
                [T[:3, 3] for T in inverted],
                [R for R, _ in boards],
                [t for _, t in boards],
                method=method,
            )
            theirs = np.eye(4)
            theirs[:3, :3], theirs[:3, 3] = R, t.ravel()
            assert distance(theirs, ours.T_base_camera)[0] < 10.0
            Rb, tb = boards[0]
            T_camera_board = np.eye(4)
            T_camera_board[:3, :3], T_camera_board[:3, 3] = Rb, tb.ravel()
            mount = inverted[0] @ theirs @ T_camera_board
            assert ours.reprojection_px <= reprojection_rms_px(theirs, mount, arm, seen, BOARD, VGA)


def test_wrong_corners_do_not_move_the_answer():
    rng = np.random.default_rng(7)
    arm, seen = make_views(rng, noise_px=0.1)
    clean = solve_hand_eye(arm, seen, BOARD, VGA)
    for d in seen[::2]:
        d.corners_px[rng.integers(12)] += rng.choice([-1, 1], 2) * rng.uniform(5, 15, 2)
    spoiled = solve_hand_eye(arm, seen, BOARD, VGA)
    assert distance(spoiled.T_base_camera, T_BASE_CAMERA)[0] < 1.0  # plain squares: several millimetres
    assert distance(spoiled.T_base_camera, clean.T_base_camera)[0] < 0.7
    assert spoiled.view_px[0] > 10 * spoiled.view_px[1]  # and the figures say where to look


def test_leave_one_out_tells_a_slipped_board():
    arm, seen = make_views(np.random.default_rng(8), noise_px=0.1)
    good = solve_hand_eye(arm, seen, BOARD, VGA)
    arm[4] = arm[4] @ transform((0, 0, 0), (0.0, 0.01, 0.0))  # the arm was 10 mm from where it said
    bad = solve_hand_eye(arm, seen, BOARD, VGA)
    assert good.leave_one_out_mm < 1.0
    assert int(np.argmax(bad.leave_one_out_m)) == 4
    assert 1e3 * bad.leave_one_out_m[4] == pytest.approx(10.0, abs=2.5)


def test_information_is_the_square_of_the_numerical_derivative():
    arm, _ = make_views(np.random.default_rng(9), count=1)
    X, points = np.linalg.inv(T_BASE_CAMERA), BOARD.corners_m()

    def px(twists):
        left = [np.eye(4), np.eye(4)]
        for T, twist in zip(left, (twists[:6], twists[6:]), strict=True):
            T[:3, :3], T[:3, 3] = cv2.Rodrigues(twist[:3])[0], twist[3:]
        return project(points, left[0] @ X @ arm[0] @ left[1] @ T_GRIPPER_BOARD, VGA).ravel()

    step = 1e-6
    J = np.stack([(px(step * e) - px(-step * e)) / (2 * step) for e in np.eye(12)], axis=1)
    ours = information(X, arm[0], T_GRIPPER_BOARD, points, VGA)
    np.testing.assert_allclose(ours, J.T @ J, rtol=1e-5, atol=1e-5 * np.abs(ours).max())


def test_too_few_views_are_refused():
    arm, seen = make_views(np.random.default_rng(0), count=4)
    with pytest.raises(UserError, match="4 views of the board, 5 are needed"):
        solve_hand_eye(arm, seen, BOARD, VGA)


@pytest.mark.parametrize("turn_rad", [(0.0, 0.0, 0.0), (0.0, 0.0, 1.4), (0.7, 0.0, 0.0), (0.02, 0.02, 1.4)])
def test_rotations_about_one_axis_are_refused_with_the_reason(turn_rad):
    arm, seen = make_views(np.random.default_rng(0), noise_px=0.1, turn_rad=turn_rad)
    with pytest.raises(UserError, match=r"only \d\.\d deg about a second .* tilt the board another way"):
        solve_hand_eye(arm, seen, BOARD, VGA)


def test_rotation_spread_is_about_principal_axes():
    rng = np.random.default_rng(0)
    arm = [transform(v, (0, 0, 0)) for v in rng.normal(0, [0.3, 0.1, 0.02], (400, 3))]
    np.testing.assert_allclose(rotation_spread_rad(arm), [0.3, 0.1, 0.02], rtol=0.15)
