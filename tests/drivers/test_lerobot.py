"""LeRobot's calibration files: what they mean for our joints, and ours written as they write theirs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers.arm.lerobot import LeRobotMotor, lerobot_of, load_lerobot, robot_with_lerobot
from drivers.arm.tables import RAD_PER_COUNT
from drivers.errors import UserError
from drivers.robot import load_robot

ROBOT = load_robot()
KOCH = replace(ROBOT, arm=replace(ROBOT.arm, type="dynamixel"))
SO101_FOLLOWER = """{
    "shoulder_pan": {
        "id": 1,
        "drive_mode": 0,
        "homing_offset": -1312,
        "range_min": 779,
        "range_max": 3360
    },
    "shoulder_lift": {
        "id": 2,
        "drive_mode": 0,
        "homing_offset": 1044,
        "range_min": 811,
        "range_max": 3215
    },
    "elbow_flex": {
        "id": 3,
        "drive_mode": 0,
        "homing_offset": -871,
        "range_min": 884,
        "range_max": 3076
    },
    "wrist_flex": {
        "id": 4,
        "drive_mode": 0,
        "homing_offset": 1530,
        "range_min": 858,
        "range_max": 3189
    },
    "wrist_roll": {
        "id": 5,
        "drive_mode": 0,
        "homing_offset": -402,
        "range_min": 171,
        "range_max": 3972
    },
    "gripper": {
        "id": 6,
        "drive_mode": 0,
        "homing_offset": 1291,
        "range_min": 2031,
        "range_max": 3476
    }
}"""
KOCH_FOLLOWER = """{
    "shoulder_pan": {"id": 1, "drive_mode": 0, "homing_offset": -24, "range_min": 0, "range_max": 4095},
    "shoulder_lift": {"id": 2, "drive_mode": 0, "homing_offset": 1087, "range_min": 870, "range_max": 3203},
    "elbow_flex": {"id": 3, "drive_mode": 1, "homing_offset": -2002, "range_min": 906, "range_max": 3150},
    "wrist_flex": {"id": 4, "drive_mode": 0, "homing_offset": 3140, "range_min": 801, "range_max": 3277},
    "wrist_roll": {"id": 5, "drive_mode": 0, "homing_offset": -40, "range_min": 0, "range_max": 4095},
    "gripper": {"id": 6, "drive_mode": 0, "homing_offset": 12, "range_min": 1470, "range_max": 2780}
}"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_follower.json"
    path.write_text(SO101_FOLLOWER)
    return path


def changed(file: Path, motor: str, **values: Any) -> Path:
    """The file with some fields of one motor changed, or left out where they are None."""
    content = json.loads(file.read_text())
    content[motor] = {key: value for key, value in (content[motor] | values).items() if value is not None}
    file.write_text(json.dumps(content))
    return file


def test_a_file_is_read_as_lerobot_writes_it(file: Path) -> None:
    motors = load_lerobot(file)
    assert list(motors) == list(ROBOT.joint_names)
    assert motors["wrist_flex"] == LeRobotMotor(4, 0, 1530, 858, 3189)


def test_the_middle_of_the_recorded_range_is_the_middle_of_the_joints(file: Path) -> None:
    robot = robot_with_lerobot(ROBOT, file)
    motors = load_lerobot(file)
    for joint, lower, upper in zip(robot.arm.joints, ROBOT.lower_rad, ROBOT.upper_rad, strict=True):
        motor = motors[joint.name]
        middle_rad = joint.direction * ((motor.range_min + motor.range_max) / 2 - joint.zero_count) * RAD_PER_COUNT
        assert middle_rad == pytest.approx((lower + upper) / 2, abs=0.51 * RAD_PER_COUNT)
    # For a joint that is symmetric in the model that is LeRobot's own zero: (count - middle) * 360 / 4095 degrees.
    pan = robot.arm.joints[0]
    ours_deg = np.rad2deg((3000 - pan.zero_count) * RAD_PER_COUNT)
    theirs_deg = (3000 - (779 + 3360) / 2) * 360 / 4095
    assert ours_deg == pytest.approx(theirs_deg, abs=0.1)


def test_limits_are_what_model_and_record_both_allow(file: Path) -> None:
    robot = robot_with_lerobot(ROBOT, file)
    assert (robot.lower_rad >= ROBOT.lower_rad).all() and (robot.upper_rad <= ROBOT.upper_rad).all()
    elbow = ROBOT.joint_names.index("elbow_flex")
    joint = robot.arm.joints[elbow]
    assert robot.lower_rad[elbow] == pytest.approx((884 - joint.zero_count) * RAD_PER_COUNT)  # narrower than the model
    lift = ROBOT.joint_names.index("shoulder_lift")
    assert robot.lower_rad[lift] == ROBOT.lower_rad[lift]  # wider
    for pose_rad in (robot.rest_rad, robot.ready_rad):
        assert ((robot.lower_rad <= pose_rad) & (pose_rad <= robot.upper_rad)).all()
    assert robot.limits is ROBOT.limits and robot.safety is ROBOT.safety


def test_ids_and_directions_come_from_the_file(file: Path) -> None:
    changed(file, "gripper", id=16, drive_mode=1)
    joints = {joint.name: joint for joint in robot_with_lerobot(ROBOT, file).arm.joints}
    assert (joints["gripper"].id, joints["gripper"].direction) == (16, -1)
    assert (joints["elbow_flex"].id, joints["elbow_flex"].direction) == (3, 1)


def test_a_koch_follower_keeps_the_direction_that_its_servos_turn_themselves(file: Path) -> None:
    file.write_text(KOCH_FOLLOWER)
    robot = robot_with_lerobot(KOCH, file)
    assert {joint.direction for joint in robot.arm.joints} == {1}
    pan = robot.arm.joints[0]
    assert pan.zero_count == 2048  # a full turn is recorded for it
    np.testing.assert_array_equal(robot.lower_rad[:1], KOCH.lower_rad[:1])


def test_what_we_write_lerobot_reads_and_so_do_we(file: Path) -> None:
    robot = robot_with_lerobot(ROBOT, file)
    offsets = {name: motor.homing_offset for name, motor in load_lerobot(file).items()}
    written = lerobot_of(robot, offsets)
    assert list(written["gripper"]) == ["id", "drive_mode", "homing_offset", "range_min", "range_max"]
    assert {name: values["homing_offset"] for name, values in written.items()} == offsets
    file.write_text(json.dumps(written, indent=4))
    again = robot_with_lerobot(ROBOT, file)
    for before, after in zip(robot.arm.joints, again.arm.joints, strict=True):
        assert (after.id, after.direction) == (before.id, before.direction)
        assert abs(after.zero_count - before.zero_count) <= 1
    np.testing.assert_allclose(again.lower_rad, robot.lower_rad, atol=2 * RAD_PER_COUNT)
    np.testing.assert_allclose(again.upper_rad, robot.upper_rad, atol=2 * RAD_PER_COUNT)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(st.integers(1950, 2150), st.integers(-1, 400), st.booleans()), min_size=6, max_size=6),
)
def test_any_plausible_calibration_keeps_the_arm_within_its_record(
    tmp_path: Path, motors: list[tuple[int, int, bool]]
) -> None:
    half = [
        round((upper - lower) / 2 / RAD_PER_COUNT)
        for lower, upper in zip(ROBOT.lower_rad, ROBOT.upper_rad, strict=True)
    ]
    record = {}
    for id, (name, (middle, slack, turned)) in enumerate(zip(ROBOT.joint_names, motors, strict=True), start=1):
        reach = min(half[id - 1] + slack, middle, 4095 - middle)
        record[name] = {
            "id": id,
            "drive_mode": int(turned),
            "homing_offset": middle - 2047,
            "range_min": middle - reach,
            "range_max": middle + reach,
        }
    path = tmp_path / "any.json"
    path.write_text(json.dumps(record))
    robot = robot_with_lerobot(ROBOT, path)
    for joint, lower, upper in zip(robot.arm.joints, robot.lower_rad, robot.upper_rad, strict=True):
        counts = sorted(joint.zero_count + joint.direction * angle / RAD_PER_COUNT for angle in (lower, upper))
        motor = record[joint.name]
        assert motor["range_min"] - 1e-6 <= counts[0] < counts[1] <= motor["range_max"] + 1e-6
    path.write_text(json.dumps(lerobot_of(robot, dict.fromkeys(robot.joint_names, 0))))
    again = robot_with_lerobot(ROBOT, path)
    for before, after in zip(robot.arm.joints, again.arm.joints, strict=True):
        assert after.direction == before.direction
        assert abs(after.zero_count - before.zero_count) <= 1


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"range_min": None}, "field elbow_flex.range_min is missing"),
        ({"range_min": 2.5}, r"field elbow_flex.range_min must be a whole number in 0..4095, got 2.5"),
        ({"id": True}, "field elbow_flex.id must be a whole number"),
        ({"id": 6}, "field elbow_flex.id is 6, which another motor has too"),
        ({"range_max": 5000}, "field elbow_flex.range_max must be .*got 5000"),
        ({"range_max": 884}, "field elbow_flex.range_min is 884, not below range_max 884"),
        ({"norm_mode": 1}, "field elbow_flex.norm_mode is unknown"),
        ({"range_min": 1700}, r"field elbow_flex has a range that ends at .* does not reach rest_rad's 1.60"),
    ],
)
def test_bad_fields_are_named(file: Path, values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=f"LeRobot calibration {file}: {complaint}") as raised:
        robot_with_lerobot(ROBOT, changed(file, "elbow_flex", **values))
    assert "\n" not in str(raised.value)


def test_other_arms_are_refused(file: Path) -> None:
    content = json.loads(file.read_text())
    content["elbow"] = content.pop("elbow_flex")
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="field elbow_flex is missing; robot file .* has the joints shoulder_pan"):
        robot_with_lerobot(ROBOT, file)
    content["elbow_flex"] = content["elbow"] | {"id": 7}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="field elbow is no joint of robot file"):
        robot_with_lerobot(ROBOT, file)


def test_a_zero_outside_the_turn_is_refused(file: Path) -> None:
    with pytest.raises(UserError, match="gripper.range_min and range_max, 0..1000, put the joint's zero at count -12"):
        robot_with_lerobot(ROBOT, changed(file, "gripper", range_min=0, range_max=1000))


@pytest.mark.parametrize(
    ("text", "complaint"), [("{", "not JSON"), ("[]", "expected an object of motors"), ('{"a": 1}', "field a must be")]
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_lerobot(path)
    with pytest.raises(UserError, match="none.json: No such file"):
        load_lerobot(tmp_path / "none.json")
