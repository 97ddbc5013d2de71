import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from edge.geometry import Grasp
from edge.kinematics import Kinematics, ReachError
from edge.motion import (
    ACCELERATION_RAD_S2,
    RATE_HZ,
    VELOCITY_RAD_S,
    JointTrajectory,
    is_holding,
    plan_move,
    plan_pick,
    plan_place,
)
from edge.uncertainty import Uncertainty

MODEL = Path(__file__).parents[2] / "drivers" / "arm" / "so101.xml"
kin = Kinematics(MODEL)
READY = np.array([0.0, -1.60, 0.80, 1.50, 0.0, 0.3])

# Shrinking a plan takes minutes, and a failing grasp reads well enough as it is.
settings.register_profile("plans", deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
plans = settings.get_profile("plans")

joints = st.tuples(*(st.floats(a, b) for a, b in zip(kin.lower_rad, kin.upper_rad, strict=True))).map(np.array)
places = st.tuples(st.floats(0.115, 0.235), st.floats(-0.72, 0.72))


def xy(place: tuple[float, float]) -> np.ndarray:
    return np.array([0.0388353 + place[0] * math.cos(place[1]), place[0] * math.sin(place[1])])


@st.composite
def grasps(draw: st.DrawFn) -> Grasp:
    height = draw(st.floats(0.021, 0.044))
    width = draw(st.floats(0.021, 0.045))
    return Grasp(np.append(xy(draw(places)), height / 2), draw(st.floats(-1.57, 1.57)), width, height)


def assert_sound(trajectory: JointTrajectory) -> None:
    """Rising times, joint limits, velocity and acceleration by finite differences, rest at both ends, the table."""
    t, q = trajectory.times_s, trajectory.position_rad
    assert t[0] == 0.0 and np.allclose(np.diff(t), 1 / RATE_HZ)
    assert q.shape == (len(t), 6)
    assert np.all(q >= kin.lower_rad - 1e-6) and np.all(q <= kin.upper_rad + 1e-6)
    assert np.abs(np.diff(q, axis=0)).max() * RATE_HZ <= VELOCITY_RAD_S * 1.01
    # Second differences of what is sampled at 100 Hz overstate a knot between two samples.
    assert np.abs(np.diff(q, 2, axis=0)).max() * RATE_HZ**2 <= ACCELERATION_RAD_S2 * 2.0
    assert np.abs(q[1] - q[0]).max() < 0.01 and np.abs(q[-1] - q[-2]).max() < 0.01


@given(joints, joints)
def test_a_move_starts_and_ends_where_it_says(a: np.ndarray, b: np.ndarray) -> None:
    trajectory = plan_move(a, b)
    np.testing.assert_allclose(trajectory.position_rad[0], a, atol=1e-9)
    np.testing.assert_allclose(trajectory.position_rad[-1], b, atol=1e-9)
    if np.abs(a - b).max() > 0.05:
        assert_sound(trajectory)


@given(joints, joints)
def test_a_move_stays_between_its_ends(a: np.ndarray, b: np.ndarray) -> None:
    q = plan_move(a, b).position_rad
    assert np.all(q >= np.minimum(a, b) - 1e-9) and np.all(q <= np.maximum(a, b) + 1e-9)


def test_a_move_to_where_it_is_is_short() -> None:
    trajectory = plan_move(READY, READY)
    assert trajectory.duration_s < 0.1
    np.testing.assert_array_equal(trajectory.position_rad[-1], READY)


@settings(plans, max_examples=15)
@given(grasps())
def test_a_pick_closes_at_the_object_and_lifts_it(grasp: Grasp) -> None:
    trajectory = plan_pick(kin, READY, grasp, READY)
    assert_sound(trajectory)
    q = trajectory.position_rad
    np.testing.assert_array_equal(q[0], READY)
    assert min(kin.lowest_tip_m(x) for x in q) >= 0.004
    assert kin.angle_to_opening(q[:, -1].max()) > grasp.width_m + 0.01
    assert kin.angle_to_opening(q[-1, -1]) < grasp.width_m - 0.01
    # Where the jaws close: the arm stands still and the point between them is the object's centre.
    opened = int(q[:, -1].argmax())  # on the way there the jaws may pass the angle at which they end
    closing = opened + int(np.flatnonzero(np.isclose(q[opened:, -1], q[-1, -1]))[0])
    near = [np.linalg.norm(kin.grasp_point(q[closing], grasp.width_m, d)[:3, 3] - grasp.position_base_m)
            for d in np.linspace(-0.012, 0.010, 45)]  # fmt: skip
    assert min(near) < 0.002
    assert kin.fk(q[-1])[2, 3] - kin.fk(q[closing])[2, 3] > 0.075


@settings(plans, max_examples=10)
@given(grasps())
def test_the_hand_comes_straight_down_on_the_object(grasp: Grasp) -> None:
    q = plan_pick(kin, READY, grasp, READY).position_rad
    opened = np.isclose(q[:, -1], q[:, -1].max())
    down = [x for x in q[opened] if kin.lowest_tip_m(x) < grasp.height_m]
    assert len(down) > 5
    centres = np.array([kin.grasp_point(x, kin.angle_to_opening(x[-1]))[:2, 3] for x in down])
    assert np.linalg.norm(centres - grasp.position_base_m[:2], axis=1).max() < 0.003


@settings(plans, max_examples=12)
@given(grasps(), places, st.integers(0, 2**32 - 1))
def test_a_place_carries_high_and_lets_go_over_the_container(
    grasp: Grasp, container: tuple[float, float], seed: int
) -> None:
    pick = plan_pick(kin, READY, grasp, READY)
    start, end = grasp.position_base_m[:2], xy(container)
    way = np.linspace(start, end, 5)
    way[1:-1] += np.random.default_rng(seed).normal(0, 0.006, (3, 2))
    hang = grasp.position_base_m[2]
    waypoints = np.vstack([np.column_stack([way, np.full(5, 0.055 + hang)]), [*end, 0.02 + hang]])
    trajectory = plan_place(kin, pick.position_rad[-1], waypoints, grasp)
    assert_sound(trajectory)
    q = trajectory.position_rad
    np.testing.assert_array_equal(q[0], pick.position_rad[-1])
    assert min(kin.lowest_tip_m(x) for x in q) >= 0.004
    opening = np.array([kin.angle_to_opening(x[-1]) for x in q])
    assert opening[-1] > grasp.width_m + 0.015
    release = int(np.flatnonzero(opening > opening[0] + 1e-4)[0])
    assert np.linalg.norm(kin.grasp_point(q[release], grasp.width_m)[:2, 3] - end) < 0.004
    assert pick.duration_s + trajectory.duration_s < 16.0


def test_a_measured_gripper_does_not_loosen_the_grip() -> None:
    grasp = Grasp(np.array([0.2, 0.05, 0.015]), 0.4, 0.030, 0.030)
    held = plan_pick(kin, READY, grasp, READY).position_rad[-1].copy()
    squeezed = held[-1]
    held[-1] = kin.opening_to_angle(0.030)  # what the servo reports with the object between the jaws
    waypoints = np.array([[0.2, 0.05, 0.09], [0.2, -0.02, 0.09], [0.2, -0.09, 0.09], [0.2, -0.09, 0.04]])
    q = plan_place(kin, held, waypoints, grasp).position_rad
    assert q[0, -1] == pytest.approx(squeezed, abs=1e-6)
    np.testing.assert_allclose(q[0, :5], held[:5])


def test_holding_is_told_from_the_gripper_alone() -> None:
    grasp = Grasp(np.array([0.2, 0.0, 0.015]), 0.0, 0.030, 0.030)
    q = plan_pick(kin, READY, grasp, READY).position_rad[-1].copy()
    assert not is_holding(kin, q, grasp)
    q[-1] = kin.opening_to_angle(0.029)
    assert is_holding(kin, q, grasp)


def test_a_width_that_is_not_known_opens_wider_and_closes_further() -> None:
    sure = Grasp(np.array([0.2, 0.0, 0.015]), 0.0, 0.030, 0.030)
    known = Uncertainty(box_m2=np.diag([0.005**2, 0.004**2, 0.004**2]), width_m=0.005, top_m=0.008)
    unsure = replace(sure, uncertainty=known)
    gripper = {}
    for name, grasp in (("sure", sure), ("unsure", unsure)):
        q = plan_pick(kin, READY, grasp, READY).position_rad
        assert_sound(JointTrajectory(np.arange(len(q)) / RATE_HZ, q))
        assert kin.angle_to_opening(q[:, -1].max()) == pytest.approx(grasp.opening_m, abs=1e-4)
        gripper[name] = q[-1].copy()
    assert gripper["unsure"][-1] < gripper["sure"][-1]
    held = gripper["unsure"].copy()
    held[-1] = kin.opening_to_angle(0.021)  # nine millimetres narrower than thought, and held
    assert is_holding(kin, held, unsure) and not is_holding(kin, held, sure)
    assert not is_holding(kin, gripper["unsure"], unsure)


def test_what_cannot_be_reached_is_refused() -> None:
    with pytest.raises(ReachError, match="out of reach"):
        plan_pick(kin, READY, Grasp(np.array([0.55, 0.0, 0.02]), 0.0, 0.03, 0.04), READY)


def test_an_object_too_flat_for_the_fingers_is_refused() -> None:
    with pytest.raises(ReachError, match="low enough"):
        plan_pick(kin, READY, Grasp(np.array([0.22, 0.0, 0.004]), 0.0, 0.03, 0.008), READY)
