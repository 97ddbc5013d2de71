"""The simulator's process: reached only through its bus and its camera, it behaves as the hardware would."""

import time

import numpy as np
import pytest

from drivers.arm.servo_arm import open_arm
from drivers.arm.tables import GOAL_POSITION, RAD_PER_COUNT
from drivers.camera.sim import SimCamera
from drivers.errors import DeviceError
from drivers.robot import load_robot
from drivers.sim.process import SimulatedTable
from drivers.sim.scene import Item, Scene, Task, draw_look, draw_scene


@pytest.fixture(scope="module")
def robot():
    return load_robot()


@pytest.fixture(scope="module")
def table(robot):
    with SimulatedTable(robot, draw_scene(np.random.default_rng(3)), seed=0) as table:
        yield table


def wait_for(condition, timeout_s: float = 10.0) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def tell(arm, robot, position_rad) -> None:
    """Setpoints, as the servo loop sends them."""
    joints = zip(robot.arm.joints, position_rad, strict=True)
    arm.bus.sync_write({j.id: round(j.zero_count + j.direction * q / RAD_PER_COUNT) for j, q in joints}, GOAL_POSITION)


def lying_still(arm) -> np.ndarray:
    """Measured joints once they have not changed for 0.3 s."""
    positions = [arm.read().position_rad]

    def still() -> bool:
        time.sleep(0.25)
        positions.append(arm.read().position_rad)
        return bool(np.abs(positions[-1] - positions[-2]).max() < 0.002)

    assert wait_for(still)
    return positions[-1]


def test_the_arm_lies_still_until_it_is_told_to_move_and_then_goes_there(table, robot) -> None:
    arm = open_arm(robot, table.port)
    lying = lying_still(arm)
    arm.enable()
    time.sleep(0.3)
    assert np.abs(arm.read().position_rad - lying).max() < 0.02
    tell(arm, robot, robot.ready_rad)
    assert wait_for(lambda: np.abs(arm.read().position_rad - robot.ready_rad).max() < 0.02)
    tell(arm, robot, robot.rest_rad)
    assert wait_for(lambda: np.abs(arm.read().position_rad - robot.rest_rad).max() < 0.02)
    arm.disable()
    assert np.abs(lying_still(arm) - robot.rest_rad).max() < 0.15
    arm.close()


def test_the_camera_gives_rgb_and_depth_with_the_time_it_was_taken(table) -> None:
    camera = SimCamera(table.camera_address)
    before = time.monotonic()
    frame = camera.read()
    assert before <= frame.t_s <= time.monotonic()
    assert frame.rgb.shape == (480, 640, 3) and frame.depth_m is not None and frame.depth_m.shape == (480, 640)
    assert 0.2 < np.median(frame.depth_m) < 1.0
    camera.close()


def test_another_scene_leaves_the_arm_where_it_is(table, robot) -> None:
    arm = open_arm(robot, table.port)
    before = lying_still(arm)
    # Away from where the folded gripper lies: what is laid into it would push it.
    scene = Scene((Item("cube", "red", 0.2, 0.14, 0.0, (0.015,) * 3),), draw_look(np.random.default_rng(4)))
    table.lay_out(scene)
    assert np.abs(arm.read().position_rad - before).max() < 0.02
    assert not table.verdict(Task("pick", 0, None, "pick up the red cube")).success
    arm.close()


def test_recorded_states_are_of_the_scene_on_the_table(table) -> None:
    scene = draw_scene(np.random.default_rng(5))
    table.lay_out(scene)
    table.start_recording()
    time.sleep(0.6)
    states = table.stop_recording()
    assert states and all(s.qpos.shape == (6 + 7 * len(scene.items),) for s in states)
    assert all(a.t_s < b.t_s for a, b in zip(states, states[1:], strict=False))


def test_a_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(DeviceError, match="/tmp/nobody-here"):
        SimCamera("/tmp/nobody-here")
