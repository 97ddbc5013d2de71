"""A decision goes along with what it is about: the box with the target, the path's end with the container."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from drivers.protocols import Frame
from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render, scaled
from drivers.sim.scene import Item, Scene, draw_look
from drivers.sim.world import build_model, set_arm
from edge.appearance import thumbnail_of
from edge.carrying import Carrier
from edge.contract import Affordance, Trajectory
from edge.freshness import FreshnessLimits, StaleError

SMALL = scaled(CAMERA, 320, 240)
CUBE = Item("cube", "red", 0.22, 0.03, 0.3, (0.015, 0.015, 0.015))
BOWL = Item("bowl", "blue", 0.19, -0.11, 0.0, (0.044, 0.028))
LOOK = draw_look(np.random.default_rng(0))
T_CAMERA_BASE = np.linalg.inv(camera_pose(LOOK))
LIMITS = FreshnessLimits(frame_age_s=1e9, decision_s=1e9)  # these frames are from another time
BARE = (0.20, -0.03)


def seen(*items: Item, seed: int = 0, depth: bool = True) -> Frame:
    model = build_model(Scene(items, LOOK))
    data = mujoco.MjData(model)
    set_arm(model, data, load_robot().ready_rad)
    mujoco.mj_kinematics(model, data)
    picture = render(model, data, LOOK, camera_pose(LOOK), SMALL, np.random.default_rng(seed))
    return Frame(picture.rgb, picture.depth_m if depth else None, float(seed), SMALL, "TEST")


def point(x_m: float, y_m: float, z_m: float = 0.0) -> tuple[float, float]:
    x, y, z, _ = T_CAMERA_BASE @ [x_m, y_m, z_m, 1.0]
    return float((SMALL.fx * x / z + SMALL.cx + 0.5) / 320), float((SMALL.fy * y / z + SMALL.cy + 0.5) / 240)


def cube_at(item: Item) -> np.ndarray:
    return np.array(point(item.x_m, item.y_m, 0.015))


BOX = Affordance(*point(CUBE.x_m, CUBE.y_m, 0.015), 0.09, 0.12)
IN_BOWL = point(BOWL.x_m, BOWL.y_m, 0.01)


def path_to(end: tuple[float, float]) -> Trajectory:
    start, stop = np.array([BOX.x, BOX.y]), np.array(end)
    return Trajectory(tuple((float(x), float(y)) for x, y in (start + t * (stop - start) for t in (0.0, 0.5, 1.0))))


@pytest.fixture(scope="module")
def first() -> Frame:
    return seen(CUBE, BOWL)


def carried_into(first: Frame, path: Trajectory | None, *frames: Frame):
    carrier = Carrier(first, BOX, path, LIMITS)
    for frame in frames:
        carrier.update(thumbnail_of(frame))
    return carrier.at(frames[-1])


def moved(item: Item, dx_m: float, dy_m: float) -> Item:
    return replace(item, x_m=item.x_m + dx_m, y_m=item.y_m + dy_m)


def test_where_nothing_moves_the_decision_stays_exactly_as_it_is(first: Frame) -> None:
    path = path_to(IN_BOWL)
    carried = carried_into(first, path, *(seen(CUBE, BOWL, seed=k) for k in (1, 2)))
    assert (carried.box, carried.path, carried.moved) == (BOX, path, False)


def test_the_box_goes_with_the_target_and_the_end_of_the_path_stays_at_the_bowl(first: Frame) -> None:
    path = path_to(IN_BOWL)
    away = moved(CUBE, 0.02, 0.05)
    carried = carried_into(first, path, seen(moved(CUBE, 0.01, 0.025), BOWL, seed=1), seen(away, BOWL, seed=2))
    assert carried.moved and carried.path is not None
    shift = cube_at(away) - cube_at(CUBE)
    np.testing.assert_allclose([carried.box.x - BOX.x, carried.box.y - BOX.y], shift, atol=0.008)
    now = np.array(carried.path.points)
    np.testing.assert_allclose(now - path.points, [shift, 0.5 * shift, [0.0, 0.0]], atol=0.008)


def test_the_end_of_the_path_goes_with_the_bowl_and_the_box_stays(first: Frame) -> None:
    path = path_to(IN_BOWL)
    away = moved(BOWL, 0.02, -0.03)
    carried = carried_into(first, path, seen(CUBE, moved(BOWL, 0.01, -0.015), seed=1), seen(CUBE, away, seed=2))
    assert carried.box == BOX and carried.moved and carried.path is not None
    shift = np.array(point(away.x_m, away.y_m, 0.01)) - IN_BOWL
    np.testing.assert_allclose(np.array(carried.path.points) - path.points, [[0, 0], 0.5 * shift, shift], atol=0.01)


def test_a_path_of_one_point_goes_with_the_bowl_alone(first: Frame) -> None:
    away = moved(BOWL, 0.0, -0.03)
    carried = carried_into(first, Trajectory((IN_BOWL,)), seen(moved(CUBE, 0.0, 0.03), away, seed=1))
    assert carried.path is not None
    np.testing.assert_allclose(carried.path.points, [point(away.x_m, away.y_m, 0.01)], atol=0.01)


def test_a_bare_place_stays_where_it_is_while_the_target_moves(first: Frame) -> None:
    path = path_to(point(*BARE))
    carried = carried_into(first, path, seen(moved(CUBE, 0.0, 0.02), BOWL, seed=1))
    assert carried.path is not None and carried.moved
    assert carried.path.points[-1] == pytest.approx(path.points[-1], abs=0.005)


@pytest.mark.parametrize("depth", [True, False])
def test_a_target_that_is_gone_is_said(depth: bool) -> None:
    first = seen(CUBE, BOWL, depth=depth)
    with pytest.raises(StaleError, match="the target was lost") as error:
        carried_into(first, None, seen(BOWL, seed=1, depth=depth))
    assert error.value.what == "target"


def test_a_place_that_something_stands_on_now_is_said(first: Frame) -> None:
    tray = Item("tray", "yellow", *BARE, 0.2, (0.03, 0.02))
    with pytest.raises(StaleError, match="the place for it was lost"):
        carried_into(first, path_to(point(*BARE)), seen(CUBE, BOWL, tray, seed=1))


def test_a_decision_that_is_too_old_is_said_wherever_the_target_is(first: Frame) -> None:
    carrier = Carrier(first, BOX, None, replace(LIMITS, decision_s=0.0))
    frame = seen(CUBE, BOWL, seed=1)
    carrier.update(thumbnail_of(frame))
    with pytest.raises(StaleError, match="the image it was made on") as error:
        carrier.at(frame)
    assert error.value.what == "decision"


def test_another_image_size_is_said_and_is_no_error_of_the_tracker(first: Frame) -> None:
    other = replace(first, rgb=np.ascontiguousarray(first.rgb[::2, ::2]), depth_m=None)
    carrier = Carrier(first, BOX, None, LIMITS)
    carrier.update(thumbnail_of(other))
    with pytest.raises(StaleError, match="another size"):
        carrier.at(other)
