"""The robot file: the shipped ones are sound, and a wrong one is refused with a line that names the field."""

from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from drivers.arm.tables import RAD_PER_COUNT
from drivers.errors import UserError
from drivers.robot import SO101_PATH, Box, Robot, load_robot, robot_with_zeros

SHIPPED = sorted(SO101_PATH.parent.glob("*.yaml"))


def altered(tmp_path: Path, where: str, value: Any) -> Path:
    """The SO-101's file with one field set, or removed where ``value`` is ``...``."""
    content = yaml.safe_load(SO101_PATH.read_text())
    content["model"] = str(SO101_PATH.parent / "so101.xml")
    *parents, last = where.split(".")
    at = content
    for name in parents:
        at = at[name]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    path = tmp_path / "robot.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda path: path.stem)
def robot(request: pytest.FixtureRequest) -> Robot:
    return load_robot(request.param)


def posed(robot: Robot, position_rad: np.ndarray) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_path(str(robot.model))
    data = mujoco.MjData(model)
    data.qpos[:] = position_rad
    mujoco.mj_forward(model, data)
    return model, data


def geom_corners(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """(m, 3) corners of the boxes around every geom that moves with a joint above the first."""
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
    moving = [geom for geom in range(model.ngeom) if model.geom_bodyid[geom] > 2]
    return np.concatenate(
        [
            data.geom_xpos[geom]
            + (model.geom_aabb[geom, :3] + signs * model.geom_aabb[geom, 3:]) @ data.geom_xmat[geom].reshape(3, 3).T
            for geom in moving
        ]
    )


def test_four_arms_are_shipped() -> None:
    assert [path.stem for path in SHIPPED] == ["koch", "so100", "so101", "viperx"]


def test_a_shipped_file_and_its_model_agree(robot: Robot) -> None:
    assert robot.name == robot.path.stem
    model = mujoco.MjModel.from_xml_path(str(robot.model))
    # Every joint vector is the model's qpos as it is, and the gripper is the last in both.
    assert robot.joint_names == tuple(model.joint(i).name for i in range(model.njnt))
    assert robot.joint_names == tuple(model.actuator(i).name for i in range(model.nu))
    assert robot.joint_names[-1] == "gripper"
    assert model.nq == len(robot.joint_names)
    assert all(joint.zero_count == 2048 for joint in robot.arm.joints)


def test_so101_s_file_describes_the_arm() -> None:
    robot = load_robot()
    assert robot.name == "so101"
    assert robot.joint_names[0] == "shoulder_pan"
    assert robot.joint_names[-1] == "gripper"
    assert [joint.id for joint in robot.arm.joints] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(robot.lower_rad[[0, 5]], [-1.91986, -0.174533])
    np.testing.assert_allclose(robot.upper_rad[[0, 4]], [1.91986, 2.84121])
    np.testing.assert_allclose(robot.limits.velocity_rad_s, np.full(6, 2.5))


def test_limits_may_differ_from_joint_to_joint_and_boxes_are_kept_out_of_by_name(tmp_path: Path) -> None:
    names = load_robot().joint_names
    path = altered(tmp_path, "limits.velocity_rad_s", {name: 1.0 + i for i, name in enumerate(names)})
    np.testing.assert_allclose(load_robot(path).limits.velocity_rad_s, [1, 2, 3, 4, 5, 6])
    path = altered(tmp_path, "safety.keep_out", {"lamp": {"lower_m": [0.2, 0.3, 0], "upper_m": [0.3, 0.4, 0.5]}})
    assert load_robot(path).safety.keep_out == {"lamp": Box((0.2, 0.3, 0.0), (0.3, 0.4, 0.5))}


def test_at_rest_and_ready_the_arm_is_above_the_table(robot: Robot) -> None:
    for pose_rad in (robot.rest_rad, robot.ready_rad):
        model, data = posed(robot, pose_rad)
        assert geom_corners(model, data)[:, 2].min() > 0.01


def test_at_rest_the_arm_stays_when_torque_goes_off(robot: Robot) -> None:
    spec = mujoco.MjSpec.from_file(str(robot.model))
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1])
    model = spec.compile()
    data = mujoco.MjData(model)
    data.qpos[:] = robot.rest_rad
    model.actuator_gainprm[:] = model.actuator_biasprm[:] = 0.0
    for _ in range(1000):
        mujoco.mj_step(model, data)
    assert np.abs(data.qpos - robot.rest_rad).max() < 0.1


def test_ready_leaves_the_view_of_the_table_free(robot: Robot) -> None:
    camera = np.array([0.5, 0.0, 0.45])
    corners = geom_corners(*posed(robot, robot.ready_rad))
    share = camera[2] / (camera[2] - corners[:, 2])  # along the ray from the camera, 1 at the corner
    hidden_x = camera[0] + share * (corners[:, 0] - camera[0])
    assert hidden_x.max() < 0.14


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("schema", 2, "schema 2 is not supported; expected 1"),
        ("schema", ..., "field schema is missing"),
        ("colour", "red", "field colour is unknown"),
        ("arm.speed", 3, "field arm.speed is unknown"),
        ("arm.type", "canopen", "field arm.type must be one of: feetech, dynamixel"),
        ("arm.port", "", "field arm.port must be a text"),
        ("arm.baudrate", "fast", "field arm.baudrate must be a whole number"),
        ("arm.joints", [], "field arm.joints must be a mapping"),
        ("arm.joints.gripper.id", 1, "field arm.joints.gripper.id is 1, which another joint has"),
        ("arm.joints.gripper.id", True, "field arm.joints.gripper.id must be a whole number"),
        ("arm.joints.gripper.direction", 0, "field arm.joints.gripper.direction must be 1 or -1"),
        ("arm.joints.gripper.zero_count", ..., "field arm.joints.gripper.zero_count is missing"),
        ("arm.joints.gripper.zero_count", 4000, "outside the servo's turn"),
        ("arm.joints.tail", {"id": 7, "zero_count": 0, "direction": 1}, "arm.joints.tail is no joint with limits"),
        ("arm.usb_serial", 7, "field arm.usb_serial must be a text"),
        ("limits.velocity_rad_s", 0, "field limits.velocity_rad_s must be a number in 0.001..50"),
        ("limits.jerk_rad_s3", {"gripper": 1.0}, "field limits.jerk_rad_s3.shoulder_pan is missing"),
        ("safety.command_timeout_s", ..., "field safety.command_timeout_s is missing"),
        ("safety.contact_load", 90, "field safety.contact_load must be a number in 0.01..1"),
        ("safety.max_temperature_c", float("nan"), "field safety.max_temperature_c must be a number"),
        ("safety.workspace.upper_m", [0.1, 0.2], "field safety.workspace.upper_m must be three numbers"),
        ("safety.workspace.upper_m", [-1, -1, -1], "field safety.workspace.lower_m must be below upper_m"),
        ("safety.keep_out", {"lamp": {"lower_m": [0, 0, 0]}}, "field safety.keep_out.lamp.upper_m is missing"),
        ("safety.stop_inputs", "keyboard", "field safety.stop_inputs must be a list"),
        ("model", "nothing.xml", "which does not exist"),
        ("model", str(SO101_PATH), "which MuJoCo cannot read"),
        ("rest_rad", [0.0, 1.0], "field rest_rad must be 6 angles"),
        ("ready_rad", [0, 0, 0, 0, 0, "up"], "field ready_rad must be 6 angles"),
        ("ready_rad", [9.0, 0, 0, 0, 0, 0], "field ready_rad is outside the joint limits"),
        ("ready_rad", [float("nan"), 0, 0, 0, 0, 0], "field ready_rad is outside the joint limits"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(tmp_path: Path, where: str, value: Any, message: str) -> None:
    path = altered(tmp_path, where, value)
    with pytest.raises(UserError) as caught:
        load_robot(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "not YAML"),
        (b"- 1", "expected a mapping"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"a: 2001-99-99", "not YAML"),
    ],
)
def test_a_file_that_is_no_robot_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "robot.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_robot(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: No such file"):
        load_robot(tmp_path / "nothing.yaml")


@given(st.lists(st.floats(-0.05, 0.05), min_size=6, max_size=6))
def test_joint_zeros_correct_every_angle_and_limits_stay_on_the_servos_turn(zeros: list[float]) -> None:
    plain = load_robot()
    robot = robot_with_zeros(plain, zeros)
    assert robot.joint_zeros_rad == tuple(zeros)
    for i, (before, after) in enumerate(zip(plain.arm.joints, robot.arm.joints, strict=True)):
        measured = before.direction * (1000 - before.zero_count) * RAD_PER_COUNT
        corrected = after.direction * (1000 - after.zero_count) * RAD_PER_COUNT
        assert corrected == pytest.approx(measured + zeros[i])
        for limit in (robot.lower_rad[i], robot.upper_rad[i]):
            assert -1e-6 <= after.zero_count + after.direction * limit / RAD_PER_COUNT <= 4095 + 1e-6


def test_joint_zeros_of_another_arm_are_refused() -> None:
    with pytest.raises(UserError, match="has 6 joints, the calibration's joint_zeros_rad 5"):
        robot_with_zeros(load_robot(), [0.0] * 5)
