"""Scenes and tasks: the same for the same seed, nothing touches, names are unique, tasks can be asked of them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.sim.scene import FINGER_GAP_M, PAN_AXIS_XY_M, REACH_M, draw_scene, draw_task

seeds = st.integers(0, 2**31)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_items_lie_apart_within_reach_and_are_named_once(seed: int) -> None:
    scene = draw_scene(np.random.default_rng(seed))
    names = [item.name for item in scene.items]
    assert len(set(names)) == len(names)
    for i, a in enumerate(scene.items):
        assert REACH_M[0] <= np.hypot(a.x_m - PAN_AXIS_XY_M[0], a.y_m - PAN_AXIS_XY_M[1]) <= REACH_M[1]
        for b in scene.items[:i]:
            assert np.hypot(a.x_m - b.x_m, a.y_m - b.y_m) > a.radius_m + b.radius_m + FINGER_GAP_M


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_a_task_names_what_it_means(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng)
    task = draw_task(rng, scene)
    assert scene.items[task.target].name in task.instruction
    assert not scene.items[task.target].is_container
    if task.kind == "place":
        assert task.container is not None and scene.items[task.container].is_container
        assert scene.items[task.container].name in task.instruction
    else:
        assert task.container is None


def test_a_seed_draws_the_same_scene_again() -> None:
    assert draw_scene(np.random.default_rng(5)) == draw_scene(np.random.default_rng(5))
    assert draw_scene(np.random.default_rng(5)) != draw_scene(np.random.default_rng(6))
