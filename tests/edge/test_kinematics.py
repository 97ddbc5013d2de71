"""Kinematics against the joint table of DESIGN, multiplied out here with numpy alone."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.errors import UserError
from edge.kinematics import FINGER_DEPTH_M, MAX_OPENING_M, Kinematics

MODEL = Path(__file__).parents[2] / "drivers" / "arm" / "so101.xml"
PI = math.pi
TABLE = (  # xyz (m), rpy (rad), lower, upper (rad)
    ((0.0388353, 0.0, 0.0624), (PI, 0, -PI), -1.91986, 1.91986),
    ((-0.0303992, -0.0182778, -0.0542), (-PI / 2, -PI / 2, 0), -1.74533, 1.74533),
    ((-0.11257, -0.028, 0.0), (0, 0, PI / 2), -1.69, 1.69),
    ((-0.1349, 0.0052, 0.0), (0, 0, -PI / 2), -1.65806, 1.65806),
    ((0.0, -0.0611, 0.0181), (PI / 2, 0.0486795, PI), -2.74385, 2.84121),
)
TOOL = ((-0.0079, -0.000218121, -0.0981274), (0, PI, 0))
LOWER = np.array([row[2] for row in TABLE])
UPPER = np.array([row[3] for row in TABLE])
HOME = np.array([0.0, -1.60, 0.80, 1.50, 0.0, 0.3])

kin = Kinematics(MODEL)


def rotation(axis: int, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    R = np.eye(3)
    R[i, i] = R[j, j] = c
    R[i, j], R[j, i] = -s, s
    return R


def pose(xyz: tuple[float, ...], rpy: tuple[float, ...]) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = rotation(2, rpy[2]) @ rotation(1, rpy[1]) @ rotation(0, rpy[0])
    T[:3, 3] = xyz
    return T


def table_fk(q: np.ndarray) -> np.ndarray:
    T = np.eye(4)
    for (xyz, rpy, _, _), angle in zip(TABLE, q, strict=True):
        turn = np.eye(4)
        turn[:3, :3] = rotation(2, angle)
        T = T @ pose(xyz, rpy) @ turn
    return T @ pose(*TOOL)


joints = st.tuples(*(st.floats(low, high) for low, high in zip(LOWER, UPPER, strict=True))).map(np.array)
# The ring of the table in which the scenes lie, by radius and angle about the pan axis.
places = st.tuples(st.floats(0.115, 0.24), st.floats(-0.75, 0.75), st.floats(0.012, 0.06))
yaws = st.floats(-PI, PI)


def point(place: tuple[float, float, float]) -> np.ndarray:
    radius, angle, z = place
    return np.array([0.0388353 + radius * math.cos(angle), radius * math.sin(angle), z])


@given(joints)
def test_fk_is_the_product_of_the_joint_table(q: np.ndarray) -> None:
    np.testing.assert_allclose(kin.fk(q), table_fk(q), atol=1e-6)


def test_joint_limits_are_those_of_the_table() -> None:
    np.testing.assert_allclose(kin.lower_rad[:5], LOWER)
    np.testing.assert_allclose(kin.upper_rad[:5], UPPER)
    assert kin.joint_names[-1] == "gripper"


@settings(deadline=None, max_examples=60)
@given(places, yaws, st.floats(0.0, 0.06))
def test_ik_puts_the_jaws_around_the_point(place: tuple[float, float, float], yaw: float, width: float) -> None:
    target = point(place)
    solution = kin.solve(target, yaw, HOME, width_m=width)
    assert solution.reached, solution.reason
    assert np.all(solution.position_rad >= LOWER - 1e-6) and np.all(solution.position_rad <= UPPER + 1e-6)
    T = table_fk(solution.position_rad)
    between = T[:3, 3] + T[:3, :3] @ (-width / 2, 0.0, -FINGER_DEPTH_M)
    assert np.linalg.norm(between - target) < 0.002
    assert solution.position_error_m == pytest.approx(float(np.linalg.norm(between - target)), abs=1e-5)
    assert math.acos(min(1.0, -T[2, 2])) == pytest.approx(solution.tilt_rad, abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(places, yaws)
def test_the_hand_points_down_near_the_table_and_the_jaws_open_as_asked(
    place: tuple[float, float, float], yaw: float
) -> None:
    target = point((place[0], place[1], 0.02))
    solution = kin.solve(target, yaw, HOME, width_m=0.03)
    T = table_fk(solution.position_rad)
    assert solution.tilt_rad < math.radians(10)
    across = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    assert abs(T[:3, 0] @ across) > math.cos(math.radians(8))  # either jaw may be on either side


def test_a_fixed_side_is_kept_when_asked() -> None:
    for yaw in (-2.0, -0.5, 0.7, 2.2):
        solution = kin.solve((0.22, 0.05, 0.03), yaw, HOME, either_way=False)
        assert solution.reached
        assert abs((kin.yaw_of(solution.position_rad) - yaw + PI) % (2 * PI) - PI) < math.radians(2)


def test_no_yaw_asked_for_leaves_the_wrist_roll_about_where_it_is() -> None:
    start = np.array([0.1, -0.3, 0.3, 1.2, 0.9, 0.2])
    solution = kin.solve((0.2, -0.08, 0.1), None, start)
    assert solution.reached
    assert abs(solution.position_rad[4] - start[4]) < 0.25


@pytest.mark.parametrize("target", [(0.60, 0.0, 0.02), (0.0, 0.5, 0.1), (0.2, 0.0, 0.6)])
def test_what_is_out_of_reach_is_said_to_be(target: tuple[float, float, float]) -> None:
    solution = kin.solve(target, 0.0, HOME)
    assert not solution.reached
    assert "out of reach" in solution.reason


@given(st.floats(0.0045, MAX_OPENING_M))
def test_opening_and_angle_are_inverse(width: float) -> None:
    assert kin.angle_to_opening(kin.opening_to_angle(width)) == pytest.approx(width, abs=1e-6)


def test_opening_grows_with_the_angle_and_agrees_with_fk() -> None:
    angles = np.linspace(0.0, 1.2, 40)
    widths = [kin.angle_to_opening(a) for a in angles]
    assert np.all(np.diff(widths) > 0)
    for angle, width in zip(angles, widths, strict=True):
        q = np.append(np.zeros(5), angle)
        gap = kin.fk(q, "jaw_moving")[:3, 3] - kin.fk(q, "jaw_fixed")[:3, 3]
        assert np.linalg.norm(gap) == pytest.approx(width, abs=1e-4)


def test_the_lowest_tip_is_near_the_tool_frame_when_pointing_down() -> None:
    solution = kin.solve((0.22, 0.0, 0.05), 0.3, HOME, depth_m=0.0)
    q = np.append(solution.position_rad, kin.opening_to_angle(0.03))
    assert kin.lowest_tip_m(q) == pytest.approx(0.05 - kin.tips_beyond_tool_m(q[-1]), abs=1e-3)


def test_a_missing_or_foreign_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such robot model"):
        Kinematics(tmp_path / "none.xml")
    other = tmp_path / "other.xml"
    other.write_text("<mujoco><worldbody/></mujoco>")
    with pytest.raises(UserError, match="other.xml.*tool"):
        Kinematics(other)
    other.write_text("not xml")
    with pytest.raises(UserError, match="other.xml"):
        Kinematics(other)
