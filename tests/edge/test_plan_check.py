import math
import time
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from drivers.errors import UserError
from drivers.robot import Box, Robot, load_robot
from edge.geometry import Grasp
from edge.kinematics import Kinematics
from edge.motion import plan_move, plan_pick, plan_place
from edge.plan_check import STEP_RAD, LimitError, PlanChecker, _between

robot = load_robot()
kin = Kinematics(robot)
checker = PlanChecker(robot)
READY, REST = robot.ready_rad, robot.rest_rad

settings.register_profile("checks", deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
checks = settings.get_profile("checks")

joints = st.tuples(*(st.floats(a, b) for a, b in zip(kin.lower_rad, kin.upper_rad, strict=True))).map(np.array)
places = st.tuples(st.floats(0.115, 0.235), st.floats(-0.72, 0.72))


def with_safety(**changes: object) -> Robot:
    return replace(robot, safety=replace(robot.safety, **changes))  # type: ignore[arg-type]


def xy(place: tuple[float, float]) -> np.ndarray:
    return np.array([0.0388353 + place[0] * math.cos(place[1]), place[0] * math.sin(place[1])])


def down_to(z_m: float, xy_m: tuple[float, float] = (0.24, 0.05)) -> np.ndarray:
    """Joints (6,) with the fingertips straight above a point of the table, at a height."""
    high = kin.solve((*xy_m, 0.08), 0.3, READY, depth_m=0.0).position_rad
    low = kin.track((*xy_m, z_m), kin.yaw_of(high), high, depth_m=0.0)
    assert low.reached, low.reason
    return np.append(low.position_rad, 0.0)


@st.composite
def demo_plans(draw: st.DrawFn) -> list[np.ndarray]:
    """What one episode of the demo moves along: pick, place, and back to where the camera sees the table."""
    height, width = draw(st.floats(0.021, 0.044)), draw(st.floats(0.021, 0.045))
    grasp = Grasp(np.append(xy(draw(places)), height / 2), draw(st.floats(-1.57, 1.57)), width, height)
    start = READY + np.array(draw(st.tuples(*[st.floats(-0.02, 0.02)] * 6)))
    pick = plan_pick(kin, start, grasp, READY).position_rad
    end, hang = xy(draw(places)), height / 2
    way = np.linspace(grasp.position_base_m[:2], end, 5)
    waypoints = np.vstack([np.column_stack([way, np.full(5, 0.055 + hang)]), [*end, 0.02 + hang]])
    place = plan_place(kin, pick[-1], waypoints, grasp).position_rad
    return [pick, plan_move(pick[-1], READY).position_rad, place, plan_move(place[-1], READY).position_rad]


@settings(checks, max_examples=25)
@given(demo_plans())
def test_what_the_planner_makes_passes(plans: list[np.ndarray]) -> None:
    for plan in plans:
        checker.check(plan)


@pytest.mark.parametrize(("a", "b"), [(REST, READY), (READY, REST), (REST, REST)])
def test_the_arm_gets_up_and_lies_down(a: np.ndarray, b: np.ndarray) -> None:
    checker.check(plan_move(a, b).position_rad)


@settings(checks)
@given(joints, st.integers(0, 5), st.floats(0.01, 2.0), st.booleans())
def test_a_joint_beyond_its_limit_is_named(start: np.ndarray, joint: int, beyond_rad: float, up: bool) -> None:
    start[joint] = kin.upper_rad[joint] if up else kin.lower_rad[joint]
    end = start.copy()
    end[joint] += beyond_rad if up else -beyond_rad
    with pytest.raises(LimitError, match="nothing moved") as caught:
        checker.check(np.array([start, end]))
    assert caught.value.limit == f"joint limit of {robot.joint_names[joint]}"
    told_rad = float(str(caught.value).split("would turn ")[1].split(" rad")[0])
    assert told_rad == pytest.approx(beyond_rad, abs=6e-4)


@pytest.mark.parametrize("z_m", [-0.004, -0.02])
def test_fingers_in_the_table_are_refused_with_how_deep_and_where(z_m: float) -> None:
    plan = plan_move(READY, down_to(z_m)).position_rad
    with pytest.raises(LimitError, match=r"into the table \(table\), first at \d+%.*nothing moved") as caught:
        checker.check(plan)
    deepest_m = -min(kin.lowest_tip_m(q) for q in plan)
    told_m = float(str(caught.value).split("would go ")[1].split(" mm")[0]) / 1e3
    assert told_m >= deepest_m - 1e-4  # some other part may be deeper than the fingers
    assert "\n" not in str(caught.value)
    assert kin.lowest_tip_m(plan[caught.value.sample - 2]) > -1e-3


def test_the_table_may_be_elsewhere_than_the_robot_file_says() -> None:
    plan = plan_move(READY, down_to(0.03)).position_rad
    checker.check(plan)
    with pytest.raises(LimitError, match="table"):
        checker.check(plan, table_z_m=0.04)
    checker.check(plan)  # what one plan was told is not kept for the next
    with pytest.raises(LimitError, match="table"):
        PlanChecker(with_safety(table_z_m=0.04)).check(plan)


@settings(checks, max_examples=40)
@given(st.floats(0.15, 0.22), st.floats(-0.5, 0.5), st.floats(0.02, 0.06))
def test_a_box_in_the_way_is_refused_by_its_name(radius_m: float, angle_rad: float, half_m: float) -> None:
    """A box around where the fingertips go; the same box far away is no hindrance."""
    x, y = xy((radius_m, angle_rad))
    plan = plan_move(READY, down_to(0.05, (x, y))).position_rad
    lower, upper = (x - half_m, y - half_m, 0.0), (x + half_m, y + half_m, 0.12)
    with pytest.raises(LimitError, match="into lamp") as caught:
        PlanChecker(with_safety(keep_out={"lamp": Box(lower, upper)})).check(plan)
    assert caught.value.limit == "keep-out lamp" and 0 < caught.value.sample < len(plan)
    far = Box((lower[0], lower[1] + 2.0, 0.0), (upper[0], upper[1] + 2.0, 0.12))
    PlanChecker(with_safety(keep_out={"lamp": far})).check(plan)


def test_the_tip_stays_in_the_workspace() -> None:
    plan = plan_move(READY, down_to(0.05)).position_rad
    box = Box((-0.45, -0.45, 0.10), (0.50, 0.45, 0.55))
    with pytest.raises(LimitError, match="beyond z = 0.100 m") as caught:
        PlanChecker(with_safety(workspace=box)).check(plan)
    assert caught.value.limit == "workspace"
    tips = [kin.fk(q)[2, 3] for q in plan]
    assert tips[caught.value.sample] < 0.1 <= tips[caught.value.sample - 1]


def test_the_arm_does_not_run_into_itself() -> None:
    into = np.array([0.0, -1.70, 1.30, 1.65, 0.0, 0.3])  # the hand folds back onto the shoulder
    plan = plan_move(READY, into).position_rad
    with pytest.raises(LimitError, match="into each other") as caught:
        checker.check(plan)
    assert caught.value.limit.startswith("self-collision of ")
    assert " and " in caught.value.limit


@settings(checks, max_examples=60)
@given(joints, joints)
def test_what_passes_really_keeps_the_limits(a: np.ndarray, b: np.ndarray) -> None:
    """Against the planner's kinematics."""
    plan = plan_move(a, b).position_rad
    try:
        checker.check(plan)
    except LimitError:
        return
    heights = [kin.lowest_tip_m(q) for q in plan]
    assert min(heights) >= min(0.0, heights[0] - 0.001) - 1e-5
    tips = np.array([kin.fk(q)[:3, 3] for q in plan])
    box = robot.safety.workspace
    inside = ((tips >= box.lower_m) & (tips <= box.upper_m)).all(axis=1)
    assert inside.all() or not inside[0]


@pytest.mark.parametrize("table_z_m", [0.02, 0.05])
def test_out_of_a_violation_but_not_deeper_and_not_back(table_z_m: float) -> None:
    """Folded on a table that is higher than the arm's rest pose allows."""
    up = plan_move(REST, READY).position_rad
    checker.check(up, table_z_m=table_z_m)
    with pytest.raises(LimitError, match="table"):
        checker.check(up[::-1], table_z_m=table_z_m)
    with pytest.raises(LimitError, match="table"):
        checker.check(np.vstack([up, up[::-1]]), table_z_m=table_z_m)
    deeper = REST.copy()
    deeper[1] += 0.2
    with pytest.raises(LimitError, match="table"):
        checker.check(plan_move(REST, deeper).position_rad, table_z_m=table_z_m)


def test_a_servo_a_count_beyond_its_limit_may_come_back() -> None:
    start = READY.copy()
    start[1] = kin.lower_rad[1] - 0.003
    checker.check(plan_move(start, READY).position_rad)
    with pytest.raises(LimitError, match="0.003 rad beyond"):
        checker.check(plan_move(READY, start).position_rad)


@given(st.integers(2, 12), st.floats(0.0, 1.5), st.integers(0, 2**32 - 1))
def test_no_joint_moves_far_between_two_poses_looked_at(n: int, spread: float, seed: int) -> None:
    plan = np.random.default_rng(seed).uniform(-spread, spread, (n, 6))
    plan[n // 2] = plan[n // 2 - 1]  # standing still costs nothing
    poses, samples = _between(plan)
    assert np.abs(np.diff(poses, axis=0)).max(initial=0.0) <= STEP_RAD + 1e-12
    assert np.all(np.diff(samples) >= 0) and samples[-1] <= n - 1
    for row in plan:
        assert (poses == row).all(axis=1).any()


def test_a_jump_between_two_samples_is_looked_at_on_the_way() -> None:
    left, right = down_to(0.05, (0.20, -0.08)), down_to(0.05, (0.20, 0.08))
    post = {"post": Box((0.19, -0.005, 0.0), (0.21, 0.005, 0.2))}
    with pytest.raises(LimitError, match="keep-out post") as caught:
        PlanChecker(with_safety(keep_out=post)).check(np.array([left, right]))
    assert caught.value.sample == 1


@pytest.mark.parametrize("plan", [np.zeros((3, 5)), np.zeros(6), np.zeros((0, 6)), np.full((2, 6), np.nan)])
def test_what_is_no_plan_is_refused(plan: np.ndarray) -> None:
    with pytest.raises(UserError, match="expected .*nothing moved"):
        checker.check(plan)


def test_a_model_without_a_tool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "arm.xml"
    path.write_text("<mujoco><worldbody><body><geom size='1'/><joint name='a'/></body></worldbody></mujoco>")
    with pytest.raises(UserError, match="no site named 'tool'"):
        PlanChecker(replace(robot, model=path))
    with pytest.raises(UserError, match=r"nowhere\.xml: cannot be used"):
        PlanChecker(replace(robot, model=tmp_path / "nowhere.xml"))


def test_the_pairs_are_those_of_the_model(tmp_path: Path) -> None:
    """Neighbours are left out, what touches at rest too, and what the model itself excludes."""
    assert any(limit.name == "self-collision of upper_arm and wrist" for limit in checker._limits)
    assert not any(limit.name == "self-collision of upper_arm and lower_arm" for limit in checker._limits)
    spec = mujoco.MjSpec.from_file(str(robot.model))
    spec.add_exclude(bodyname1="wrist", bodyname2="upper_arm")
    path = tmp_path / "arm.xml"
    spec.compile()
    path.write_text(spec.to_xml())
    other = PlanChecker(replace(robot, model=path))
    assert not any(limit.name == "self-collision of upper_arm and wrist" for limit in other._limits)


def test_it_is_quick_enough_to_be_asked_before_every_motion() -> None:
    """10 ms for 800 samples on a desktop; the bound leaves room for a busy machine."""
    grasp = Grasp(np.array([0.2, 0.05, 0.015]), 0.4, 0.030, 0.030)
    plan = plan_pick(kin, READY, grasp, READY).position_rad
    took_s = []
    for _ in range(5):
        began = time.perf_counter()
        checker.check(plan)
        took_s.append(time.perf_counter() - began)
    assert min(took_s) * 800 / len(plan) < 0.05
