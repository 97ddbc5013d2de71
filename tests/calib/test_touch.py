"""The touch test: what is measured, what it points to, and where the board is taken to lie."""

from __future__ import annotations

import numpy as np
import pytest
from calib_views import VGA, look_at, render, transform
from hypothesis import given
from hypothesis import strategies as st

from calib.board import Board
from calib.touch import MIN_TOUCHES, board_in_base, corners_to_touch, shifted_mm, touch_errors
from drivers.errors import UserError
from drivers.protocols import Frame

BOARD = Board()
T_BASE_CAMERA = look_at((0.5, 0.02, 0.35), (0.24, 0.0, 0.0))
# flat on the table, print up
T_BASE_BOARD = transform((np.pi, 0.0, 0.0), (0.29, 0.0, 0.0)) @ transform((0.0, 0.0, 0.2), (-0.06, -0.05, 0.0))
CORNERS = (BOARD.corners_m() @ T_BASE_BOARD[:3, :3].T + T_BASE_BOARD[:3, 3])[corners_to_touch(BOARD)]

mm = st.floats(-12.0, 12.0)


@given(mm, mm, mm)
def test_a_shift_is_all_bias(x: float, y: float, z: float) -> None:
    shift = np.array([x, y, z])
    touches = touch_errors(CORNERS, CORNERS + 1e-3 * shift)
    np.testing.assert_allclose(touches.bias_mm, shift, atol=1e-9)
    np.testing.assert_allclose(touches.errors_mm, np.tile(shift, (5, 1)), atol=1e-9)
    assert touches.rms_mm == pytest.approx(np.linalg.norm(shift), abs=1e-9)
    assert touches.rest_mm < 1e-9 and touches.turned_mm < 1e-9
    said = touches.suggests()
    if touches.rms_mm <= 1.0:
        assert "holds" in said
    elif abs(z) > 2 * np.hypot(x, y):
        assert "up or down" in said and f"{z:+.1f}" in said
    else:
        assert "camera's position" in said


@given(st.floats(3.0, 12.0), st.sampled_from([-1, 1]), mm, mm)
def test_a_turn_is_told_from_a_shift(deg: float, way: int, x: float, y: float) -> None:
    turn = transform((0.0, 0.0, way * np.radians(deg)), (0.0, 0.0, 0.0))[:3, :3]
    middle = CORNERS.mean(axis=0)
    tips = (CORNERS - middle) @ turn.T + middle + 1e-3 * np.array([x, y, 0.0])
    touches = touch_errors(CORNERS, tips)
    assert touches.turn_deg == pytest.approx(deg, abs=1e-6)
    assert touches.turned_mm < 1e-6 < touches.rest_mm
    np.testing.assert_allclose(touches.bias_mm, [x, y, 0.0], atol=1e-6)
    if touches.rest_mm > max(1.0, 0.5 * touches.rms_mm):
        assert f"turned by {deg:.1f}" in touches.suggests()


def test_scatter_points_at_the_joints() -> None:
    away = 1e-3 * np.array([[5, -4, 3], [-6, 2, 5], [4, 6, -5], [-3, -5, -4], [1, 2, 1]], dtype=float)
    touches = touch_errors(CORNERS, CORNERS + away)
    assert touches.suggests().startswith("each another way")


def test_too_few_touches_say_nothing() -> None:
    few = CORNERS[: MIN_TOUCHES - 1]
    with pytest.raises(UserError, match="2 corners were touched, 3 are needed"):
        touch_errors(few, few)
    with pytest.raises(UserError, match="0 corners"):
        touch_errors(few[:0], few[:0])


def test_corners_lie_far_apart() -> None:
    for board in (BOARD, Board(squares_x=8, squares_y=6), Board(squares_x=3, squares_y=3)):
        ids = corners_to_touch(board)
        assert len(ids) == 5 and ids.max() == len(board.corners_m()) - 1
        span = np.ptp(board.corners_m(ids), axis=0)
        np.testing.assert_allclose(span, np.ptp(board.corners_m(), axis=0))


def test_the_board_is_found_where_it_lies() -> None:
    rgb = render(BOARD, np.linalg.inv(T_BASE_CAMERA) @ T_BASE_BOARD, np.random.default_rng(0), oversample=2)
    found = board_in_base(Frame(rgb, None, 0.0, VGA), BOARD, T_BASE_CAMERA)
    assert shifted_mm(T_BASE_BOARD, found, BOARD) < 0.7
    moved = T_BASE_BOARD @ transform((0.0, 0.0, 0.0), (0.003, 0.004, 0.0))
    assert shifted_mm(T_BASE_BOARD, moved, BOARD) == pytest.approx(5.0)


def test_no_board_is_said() -> None:
    with pytest.raises(UserError, match="board is not seen"):
        board_in_base(Frame(np.full((480, 640, 3), 90, np.uint8), None, 0.0, VGA), BOARD, T_BASE_CAMERA)
