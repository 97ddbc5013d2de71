"""The referee goes by physics: it says yes to what is so, and no to everything that looks a little like it."""

import mujoco
import numpy as np
import pytest

from drivers.sim.judge import judge
from drivers.sim.scene import Item, Scene, Task, draw_look
from drivers.sim.world import build_model

CUBE = Item("cube", "red", 0.20, 0.0, 0.0, (0.015, 0.015, 0.015))
BOWL = Item("bowl", "blue", 0.20, 0.12, 0.0, (0.044, 0.028))
SCENE = Scene((CUBE, BOWL), draw_look(np.random.default_rng(0)))
PICK = Task("pick", 0, None, "pick up the red cube")
PLACE = Task("place", 0, 1, "put the red cube in the blue bowl")


def with_cube_at(x: float, y: float, z: float, settle_s: float = 0.5):
    model = build_model(SCENE)
    data = mujoco.MjData(model)
    data.joint("item0").qpos[:3] = x, y, z
    for _ in range(int(settle_s / model.opt.timestep)):
        mujoco.mj_step(model, data)
    mujoco.mj_forward(model, data)
    return model, data


def test_a_cube_dropped_into_the_bowl_is_placed() -> None:
    verdict = judge(*with_cube_at(0.20, 0.12, 0.05), SCENE, PLACE)
    assert verdict.success, verdict.reason


@pytest.mark.parametrize("at", [(0.20, 0.0, 0.016), (0.20, 0.05, 0.016)], ids=["on the table", "beside the bowl"])
def test_a_cube_elsewhere_is_not_placed(at: tuple[float, float, float]) -> None:
    verdict = judge(*with_cube_at(*at), SCENE, PLACE)
    assert not verdict.success and "mm from the middle" in verdict.reason


def test_a_cube_still_in_the_air_over_the_bowl_is_not_placed() -> None:
    assert not judge(*with_cube_at(0.20, 0.12, 0.10, settle_s=0.0), SCENE, PLACE).success


def test_a_cube_in_the_air_that_nobody_holds_is_not_picked() -> None:
    verdict = judge(*with_cube_at(0.20, 0.0, 0.12, settle_s=0.0), SCENE, PICK)
    assert not verdict.success and "not held" in verdict.reason


def test_a_cube_on_the_table_is_not_picked() -> None:
    verdict = judge(*with_cube_at(0.20, 0.0, 0.016), SCENE, PICK)
    assert not verdict.success and "above the table" in verdict.reason
