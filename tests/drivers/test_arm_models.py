"""The shipped arm models against the public descriptions they come from, multiplied out here with numpy alone.

The tables carry the frames as published: origin of each joint in its parent (xyz in metres, fixed-axis rpy in
radians), the joint's axis in its own frame and the published limits. Our models are written in other frames and count
their angles from another zero, so the two only agree where both are right. For each joint ``sign`` and ``offset`` say
what the published angle is: sign * ours + offset.
"""

import math
from dataclasses import dataclass

import mujoco
import numpy as np
import pytest

from drivers.errors import UserError
from drivers.robot import SO101_PATH, Robot, load_robot
from edge.kinematics import FINGER_DEPTH_M, Kinematics

Array = np.ndarray
PI = math.pi


@dataclass(frozen=True)
class Link:
    """A moving link of a description and the joint that carries it."""

    xyz: tuple[float, float, float]
    rpy: tuple[float, float, float]
    axis: tuple[float, float, float]
    lower: float
    upper: float
    mass_kg: float
    sign: int = 1
    offset: float = 0.0


@dataclass(frozen=True)
class Arm:
    """``base`` (yaw) turns the description's base frame into ours; ``tool`` is the tool frame on the last arm link."""

    ids: tuple[int, ...]
    links: tuple[Link, ...]
    base: float
    tool_xyz: tuple[float, float, float]
    tool_axes: tuple[tuple[float, float, float], tuple[float, float, float]]  # x and z
    narrower: tuple[str, ...] = ()  # joints that we keep off the wrap of the servo's count, or limit further
    finger_kg: float = 0.0  # what of the last arm link is published as links of its own


ARMS = {
    # github.com/TheRobotStudio/SO-ARM100, Simulation/SO100/so100.urdf; tool: the tip of the fixed jaw's foremost pad in
    # github.com/google-deepmind/mujoco_menagerie, trs_so_arm100/so_arm100.xml (same frame).
    "so100": Arm(
        ids=(1, 2, 3, 4, 5, 6),
        links=(
            Link((0, -0.0452, 0.0165), (1.57079, 0, 0), (0, 1, 0), -2, 2, 0.119226, sign=-1),
            Link((0, 0.1025, 0.0306), (-1.8, 0, 0), (1, 0, 0), 0, 3.5, 0.162409, offset=1.8),
            Link((0, 0.11257, 0.028), (1.57079, 0, 0), (1, 0, 0), -3.14158, 0, 0.147968, offset=-1.57079),
            Link((0, 0.0052, 0.1349), (-1, 0, 0), (1, 0, 0), -2.5, 1.2, 0.0661321, offset=1 - PI / 2),
            Link((0, -0.0601, 0), (0, 1.57079, 0), (0, 1, 0), -3.14158, 3.14158, 0.0929859),
            Link((-0.0202, -0.0244, 0), (0, 3.14158, 0), (0, 0, 1), -0.2, 2.0, 0.0202444, offset=-0.18),
        ),
        base=PI / 2,
        tool_xyz=(0.0089 - 0.001, -0.1014 - 0.005, 0),
        tool_axes=((1, 0, 0), (0, -1, 0)),
        narrower=("wrist_roll",),
    ),
    # github.com/haosulab/ManiSkill, mani_skill/assets/robots/koch/follower_arm_v1.1_simplified.urdf, joint_1 to 6;
    # the tips are 3.8 mm beyond its gripper_tcp, as in github.com/google-deepmind/mujoco_menagerie, low_cost_robot_arm.
    "koch": Arm(
        ids=(1, 2, 3, 4, 5, 6),
        links=(
            Link((0.005766, -0.040523, 0.038579), (0, 0, 0), (0, 0, -1), -3.14159, 3.14159, 0.0490603),
            Link((0.020713, 0, 0.015368), (PI / 2, 0, 0), (-1, 0, 0), 0, 2.5, 0.0495781, sign=-1, offset=PI / 2),
            Link((-0.038026, -0.014951, 0.108424), (-PI / 2, 0, 0), (1, 0, 0), 0, 3.05, 0.0631913, offset=PI / 2),
            Link((-0.000251, -0.100502, 0.002641), (-PI / 2, 0, 0), (1, 0, 0), -1, 2.14159, 0.0198049),
            Link((0.019234, 0.00037, -0.044779), (0, 0, -PI / 2), (0, 0, -1), -3.14159, 3.14159, 0.0286782, sign=-1),
            Link((0.007429, -0.017441, -0.013336), (0, 0, 0), (0, -1, 0), 0, 1.75, 0.012831),
        ),
        base=PI / 2,
        tool_xyz=(-0.008, 0, -0.0688),
        tool_axes=((-1, 0, 0), (0, 0, -1)),
        narrower=("shoulder_pan", "wrist_flex", "wrist_roll", "gripper"),
    ),
    # github.com/Interbotix/interbotix_ros_manipulators, interbotix_xsarm_descriptions/urdf/vx300s.urdf.xacro; ids and
    # crank: interbotix_xsarm_control/config/vx300s.yaml. The crank turns endlessly there.
    "viperx": Arm(
        ids=(1, 2, 4, 6, 7, 8, 9),
        links=(
            Link((0, 0, 0.079), (0, 0, 0), (0, 0, 1), -PI, PI, 0.798614),
            Link((0, 0, 0.04805), (0, 0, 0), (0, 1, 0), math.radians(-106), math.radians(72), 0.792592),
            Link((0.05955, 0, 0.3), (0, 0, 0), (0, 1, 0), math.radians(-101), math.radians(92), 0.322228),
            Link((0.2, 0, 0), (0, 0, 0), (1, 0, 0), -PI, PI, 0.414823),
            Link((0.1, 0, 0), (0, 0, 0), (0, 1, 0), math.radians(-107), math.radians(128), 0.115395),
            Link((0.069744, 0, 0), (0, 0, 0), (1, 0, 0), -PI, PI, 0.097666),
            Link((0.042825 + 0.005675, 0, 0), (0, 0, 0), (1, 0, 0), -PI, PI, 0.008009),
        ),
        base=0.0,
        tool_xyz=(0.042825 + 0.025875 + 0.0385, 0, 0),
        tool_axes=((0, 1, 0), (1, 0, 0)),
        narrower=("waist", "forearm_roll", "wrist_rotate", "gripper"),
        finger_kg=0.150986 + 2 * 0.034796,
    ),
}


def rotation(axis: Array, angle: float) -> Array:
    """Rodrigues' formula."""
    x, y, z = axis
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * K + (1 - math.cos(angle)) * (K @ K)


def transform(xyz: tuple[float, ...], R: Array) -> Array:
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, xyz
    return T


def published(arm: Arm, q: Array) -> tuple[Array, Array, Array]:
    """(n, 3) joint anchors, (n, 3) directions in which our angles grow, and T_base_tool, for our angles ``q``."""
    x, y, z = np.eye(3)
    T = transform((0, 0, 0), rotation(z, arm.base))
    anchors, axes = [], []
    T_tool = np.eye(4)
    for i, (link, angle) in enumerate(zip(arm.links, q, strict=True)):
        roll, pitch, yaw = link.rpy
        T = T @ transform(link.xyz, rotation(z, yaw) @ rotation(y, pitch) @ rotation(x, roll))
        anchors.append(T[:3, 3].copy())
        axes.append(link.sign * T[:3, :3] @ link.axis)
        T = T @ transform((0, 0, 0), rotation(np.array(link.axis), link.sign * angle + link.offset))
        if i == len(arm.links) - 2:
            tool_x, tool_z = np.array(arm.tool_axes, dtype=float)
            T_tool = T @ transform(arm.tool_xyz, np.column_stack([tool_x, np.cross(tool_z, tool_x), tool_z]))
    return np.array(anchors), np.array(axes), T_tool


@pytest.fixture(params=ARMS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def robot(name: str) -> Robot:
    return load_robot(SO101_PATH.parent / f"{name}.yaml")


@pytest.fixture
def model(robot: Robot) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(str(robot.model))


def poses(robot: Robot, count: int = 20) -> list[Array]:
    rng = np.random.default_rng(3)
    return [np.zeros(len(robot.joint_names)), robot.rest_rad, robot.ready_rad] + [
        rng.uniform(robot.lower_rad, robot.upper_rad) for _ in range(count)
    ]


def test_forward_kinematics_is_the_product_of_the_published_frames(
    name: str, robot: Robot, model: mujoco.MjModel
) -> None:
    data = mujoco.MjData(model)
    for q in poses(robot):
        data.qpos[:] = q
        mujoco.mj_forward(model, data)
        anchors, axes, T_tool = published(ARMS[name], q)
        np.testing.assert_allclose(data.xanchor, anchors, atol=3e-5)  # the sources round pi/2 to 1.57079
        np.testing.assert_allclose(data.xaxis, axes, atol=5e-5)
        np.testing.assert_allclose(data.site("tool").xpos, T_tool[:3, 3], atol=3e-5)
        np.testing.assert_allclose(data.site("tool").xmat.reshape(3, 3), T_tool[:3, :3], atol=5e-5)


def test_limits_are_the_published_ones_or_within_them(name: str, robot: Robot) -> None:
    arm = ARMS[name]
    for link, joint, lower, upper in zip(arm.links, robot.joint_names, robot.lower_rad, robot.upper_rad, strict=True):
        bounds = sorted(link.sign * (np.array([link.lower, link.upper]) - link.offset))
        if joint in arm.narrower:
            # Koch's gripper closes 0.032 further in v1.0's description: the fingers do not meet at v1.1's 0.
            assert bounds[0] - 0.033 <= lower and upper <= bounds[1] + 1e-6
        else:
            np.testing.assert_allclose([lower, upper], bounds, atol=1e-4)


def test_masses_are_the_published_ones(name: str, model: mujoco.MjModel) -> None:
    arm = ARMS[name]
    expected = np.array([link.mass_kg for link in arm.links])
    expected[-2] += arm.finger_kg
    np.testing.assert_allclose(model.body_mass[2:], expected, atol=1e-6)


def test_ids_are_those_the_arm_is_set_up_with(name: str, robot: Robot) -> None:
    assert tuple(joint.id for joint in robot.arm.joints) == ARMS[name].ids
    assert robot.arm.type == ("feetech" if name == "so100" else "dynamixel")
    assert robot.arm.baudrate == 1_000_000


def test_the_simulated_servos_reach_ready_from_rest_and_hold_it(robot: Robot, model: mujoco.MjModel) -> None:
    data = mujoco.MjData(model)
    data.qpos[:] = robot.rest_rad
    for step in range(3000):
        share = min(1.0, step / 1500)
        data.ctrl[:] = robot.rest_rad + share * (robot.ready_rad - robot.rest_rad)
        mujoco.mj_step(model, data)
    assert np.abs(data.qpos - robot.ready_rad).max() < 0.03
    assert np.abs(data.qvel).max() < 0.01


@pytest.mark.parametrize(("name", "radii_m"), [("so100", (0.12, 0.18, 0.24)), ("koch", (0.09, 0.13, 0.17))])
def test_kinematics_puts_the_jaws_around_points_of_the_table(
    name: str, radii_m: tuple[float, ...], robot: Robot
) -> None:
    kin = Kinematics(robot)
    arm, rng = ARMS[name], np.random.default_rng(5)
    (pan_x, pan_y, _), *_ = published(arm, np.zeros(6))[0]
    for radius in radii_m:
        for _ in range(6):
            bearing, width = rng.uniform(-0.75, 0.75), rng.uniform(0.005, 0.05)
            target = np.array(
                [pan_x + radius * math.cos(bearing), pan_y + radius * math.sin(bearing), rng.uniform(0.015, 0.05)]
            )
            solution = kin.solve(target, rng.uniform(-PI, PI), robot.ready_rad, width_m=width)
            assert solution.reached, solution.reason
            assert solution.tilt_rad < math.radians(10)
            T = published(arm, np.append(solution.position_rad, 0.0))[2]
            between = T[:3, 3] + T[:3, :3] @ (-width / 2, 0.0, -FINGER_DEPTH_M)
            np.testing.assert_allclose(between, target, atol=0.002)


@pytest.mark.parametrize("name", ["so100", "koch"])
def test_the_moving_jaw_opens_away_from_the_fixed_one(robot: Robot) -> None:
    kin = Kinematics(robot)
    for angle in (0.1, 0.4, 0.8):
        q = np.append(np.zeros(5), angle)
        T_base_tool = kin.fk(q)
        moving = np.linalg.inv(T_base_tool) @ np.append(kin.fk(q, "jaw_moving")[:3, 3], 1.0)
        fixed = np.linalg.inv(T_base_tool) @ np.append(kin.fk(q, "jaw_fixed")[:3, 3], 1.0)
        np.testing.assert_allclose(fixed[:3], (0.0, 0.0, -FINGER_DEPTH_M), atol=1e-9)
        assert moving[0] < -0.8 * kin.angle_to_opening(angle)
        assert abs(moving[1]) < 1e-4
    assert kin.angle_to_opening(0.0) < 0.006
    assert kin.opening_to_angle(0.06) < robot.upper_rad[-1]


@pytest.mark.parametrize("name", ["viperx"])
def test_picking_s_kinematics_refuses_an_arm_whose_fingers_both_move(robot: Robot) -> None:
    with pytest.raises(UserError, match=r"viperx\.xml: the robot model has no site named 'jaw_fixed'"):
        Kinematics(robot)


@pytest.mark.parametrize("name", ["viperx"])
def test_the_crank_s_limits_are_the_fingers_limits(robot: Robot) -> None:
    def finger_m(q: float) -> float:
        return 0.022 * math.sin(q) + math.sqrt(0.036**2 - (0.022 * math.cos(q)) ** 2)

    assert finger_m(robot.lower_rad[-1]) == pytest.approx(0.021, abs=1e-4)
    assert finger_m(robot.upper_rad[-1]) == pytest.approx(0.057, abs=1e-4)
