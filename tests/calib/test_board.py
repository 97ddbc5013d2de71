"""The board: its print lies where its corners are said to be, and a 640x480 camera finds it at working distance."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from calib_views import VGA, project, render, transform

from calib.board import Board, T_gripper_board_nominal
from drivers.errors import UserError

BOARD = Board()


def in_front(distance_m: float, tilt_rad: float, axis_rad: float, roll_rad: float) -> np.ndarray:
    """T_camera_board with the plate's middle on the optical axis."""
    R = transform((tilt_rad * np.cos(axis_rad), tilt_rad * np.sin(axis_rad), 0), (0, 0, 0))[:3, :3]
    R = R @ transform((0, 0, roll_rad), (0, 0, 0))[:3, :3]
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, np.array([0, 0, distance_m]) - R @ BOARD.centre_m
    return T


def test_corners_are_those_of_opencv():
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
    theirs = cv2.aruco.CharucoBoard((5, 4), BOARD.square_m, BOARD.marker_m, dictionary)
    np.testing.assert_allclose(BOARD.corners_m(), theirs.getChessboardCorners(), atol=1e-7)
    np.testing.assert_allclose(BOARD.corners_m(np.array([11, 0])), BOARD.corners_m()[[11, 0]])


def test_print_is_exact():
    px_per_m = 10_000
    image = BOARD.image(px_per_m)
    assert image.shape == (1040, 1280)
    assert (image[:40] == 255).all() and (image[:, -40:] == 255).all()
    found = BOARD.detect(image)
    assert found is not None and len(found.ids) == 12
    # pixel (i, j) covers [i, i + 1) / px_per_m, so a corner at x has pixel coordinate (x + margin) px_per_m - 0.5
    expected = (BOARD.corners_m(found.ids)[:, :2] + BOARD.margin_m) * px_per_m - 0.5
    np.testing.assert_allclose(found.corners_px, expected, atol=0.3)


@pytest.mark.parametrize("distance_m", [0.35, 0.42, 0.5])
@pytest.mark.parametrize("tilt_deg", [0, 25, 45])
def test_found_at_working_distance(distance_m: float, tilt_deg: float):
    rng = np.random.default_rng(int(1000 * distance_m) + tilt_deg)
    errors, seen = [], 0
    for _ in range(4):
        T = in_front(distance_m, np.radians(tilt_deg), *rng.uniform(-np.pi, np.pi, 2))
        found = BOARD.detect(render(BOARD, T, rng))
        if found is not None:
            seen += len(found.ids)
            errors.append(found.corners_px - project(BOARD.corners_m(found.ids), T, VGA))
    assert seen >= 0.95 * 4 * 12
    error = np.concatenate(errors)
    assert np.sqrt(np.mean(error**2)) < 0.2  # px, per coordinate
    assert np.abs(error.mean(axis=0)).max() < 0.08  # no shared shift: the pixel conventions agree


def test_without_antialiasing_still_found():
    # a ray caster that takes one ray a pixel draws such edges
    rng = np.random.default_rng(0)
    T = in_front(0.45, 0.5, 1.0, 2.0)
    found = BOARD.detect(render(BOARD, T, rng, oversample=1))
    assert found is not None and len(found.ids) >= 11
    assert np.sqrt(np.mean((found.corners_px - project(BOARD.corners_m(found.ids), T, VGA)) ** 2)) < 0.4


def test_absent_or_hidden_board_is_not_found():
    rng = np.random.default_rng(0)
    assert BOARD.detect(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)) is None
    image = render(BOARD, in_front(0.4, 0.0, 0.0, 0.0), rng)
    assert BOARD.detect(image) is not None
    image[:, 290:] = 90  # what is left is one column of corners at most
    assert BOARD.detect(image) is None


def test_mirrored_board_is_not_taken_for_one():
    image = render(BOARD, in_front(0.4, 0.3, 0.0, 0.0), np.random.default_rng(0))
    assert BOARD.detect(np.ascontiguousarray(image[:, ::-1])) is None


def test_nominal_mount_is_ahead_of_the_jaws():
    T = T_gripper_board_nominal(BOARD)
    np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(T[:3, :3]) == pytest.approx(1.0)
    plate = BOARD.plate_corners_m @ T[:3, :3].T + T[:3, 3]
    assert plate[:, 2].max() < -0.0981  # all of it beyond the jaw tips
    np.testing.assert_allclose(-T[:3, 2], [1, 0, 0], atol=1e-12)  # the print faces the moving jaw


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"squares_x": 2}, "at least 3x3"),
        ({"marker_m": 0.03}, "smaller than the square"),
        ({"dictionary": "DICT_9X9"}, "no dictionary 'DICT_9X9'"),
    ],
)
def test_impossible_board_is_refused(fields: dict, says: str):
    with pytest.raises(UserError, match=says):
        Board(**fields)
