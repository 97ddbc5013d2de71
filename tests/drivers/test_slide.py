"""A pushed item goes where it is told, at rest at both ends, and is pushed only where there is room."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.robot import load_robot
from drivers.sim.scene import FINGER_GAP_M, Item, Scene, draw_look, draw_scene
from drivers.sim.server import Tabletop
from drivers.sim.slide import Slide, clear_slide

LOOK = draw_look(np.random.default_rng(0))


@given(
    way=st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)),
    duration_s=st.floats(0.2, 5.0),
    t=st.floats(-0.5, 1.5),
)
def test_its_velocity_is_the_rate_of_its_place_and_it_is_at_rest_at_both_ends(
    way: tuple[float, float], duration_s: float, t: float
) -> None:
    slide = Slide(0, (0.2, 0.1), way, 3.0, duration_s)
    at_s, dt = 3.0 + t * duration_s, 1e-5 * duration_s
    before, after = np.array(slide.at(at_s - dt)), np.array(slide.at(at_s + dt))
    np.testing.assert_allclose((after[:2] - before[:2]) / (2 * dt), slide.at(at_s)[2:], atol=1e-4 / duration_s)
    assert slide.at(3.0) == pytest.approx((0.2, 0.1, 0.0, 0.0))
    assert slide.at(3.0 + duration_s) == pytest.approx((0.2 + way[0], 0.1 + way[1], 0.0, 0.0))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), distance_m=st.floats(0.03, 0.08))
def test_on_its_way_a_finger_fits_between_it_and_everything_else(seed: int, distance_m: float) -> None:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, look=LOOK)
    way = clear_slide(scene, 0, distance_m, rng)
    if way is None:
        return
    assert math.hypot(*way) == pytest.approx(distance_m)
    item = scene.items[0]
    for share in np.linspace(0.0, 1.0, 13)[1:]:
        x_m, y_m = item.x_m + share * way[0], item.y_m + share * way[1]
        for other in scene.items[1:]:
            gap_m = math.hypot(x_m - other.x_m, y_m - other.y_m) - item.radius_m - other.radius_m
            assert gap_m > FINGER_GAP_M


def test_no_way_is_given_where_there_is_none() -> None:
    ring = tuple(
        Item("cube", "red", 0.22 + 0.06 * math.cos(a), 0.06 * math.sin(a), 0.0, (0.015, 0.015, 0.015))
        for a in np.arange(8) * math.pi / 4
    )
    scene = Scene((Item("ball", "blue", 0.22, 0.0, 0.0, (0.015,)), *ring), LOOK)
    assert clear_slide(scene, 0, 0.06, np.random.default_rng(0)) is None


@pytest.mark.parametrize("shape", ["cube", "ball"])
def test_a_pushed_thing_comes_to_rest_where_it_was_pushed_to_and_stays_on_the_table(shape: str) -> None:
    size = (0.015, 0.015, 0.015) if shape == "cube" else (0.015,)
    scene = Scene(
        (Item(shape, "red", 0.22, 0.0, 0.0, size), Item("bowl", "blue", 0.2, -0.12, 0.0, (0.044, 0.028))), LOOK
    )
    table = Tabletop(load_robot(), scene, seed=0)
    try:
        start, bowl = np.array(table.position(0)), np.array(table.position(1))
        table.slide(0, 0.02, 0.05, 0.4)
        while table.sliding is not None:
            table.position(0)
        np.testing.assert_allclose(np.array(table.position(0)) - start, [0.02, 0.05, 0.0], atol=2e-3)
        np.testing.assert_allclose(table.position(1), bowl, atol=1e-3)
        with table.lock:
            assert np.abs(table.data.joint("item0").qvel).max() < 0.05
    finally:
        table.close()
