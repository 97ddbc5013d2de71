import time
from dataclasses import replace

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.protocols import Frame, Intrinsics
from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render, scaled, visible_corners
from drivers.sim.scene import Scene, draw_scene
from drivers.sim.world import build_model, item_of_geom, set_arm
from edge.contract import Affordance
from edge.freshness import MAX_CHANGED, FreshnessLimits, StaleError, changed, check_fresh

READY = load_robot().ready_rad
SMALL = scaled(CAMERA, 320, 240)
BOX = Affordance(0.5, 0.5, 0.2, 0.2)


def shot(scene: Scene, seed: int, t_s: float = 0.0) -> tuple[Frame, np.ndarray]:
    """A frame, and which item each of its pixels shows."""
    model = build_model(scene)
    data = mujoco.MjData(model)
    set_arm(model, data, READY)
    mujoco.mj_kinematics(model, data)
    picture = render(model, data, scene.look, camera_pose(scene.look), SMALL, np.random.default_rng(seed))
    return Frame(picture.rgb, picture.depth_m, t_s, SMALL), item_of_geom(model)[picture.geom]


def scene_and_box(seed: int) -> tuple[Scene, int, Frame, Affordance]:
    """A random scene, one of its objects, a frame of it, and a box as good as a model's around the object."""
    rng = np.random.default_rng([3, seed])
    scene = draw_scene(rng)
    target = int(rng.choice([i for i, item in enumerate(scene.items) if not item.is_container]))
    frame, items = shot(scene, seed)
    corners = visible_corners(items == target)
    assert corners is not None
    left, top, right, bottom = corners
    width, height = right - left, bottom - top
    dx, dy = rng.normal(0, 0.03, 2)
    grown = rng.uniform(0.9, 1.15, 2)
    box = Affordance((left + right) / 2 + dx * width, (top + bottom) / 2 + dy * height, *(grown * (width, height)))
    return scene, target, frame, box


def moved(scene: Scene, item: int, distance_m: float, rng: np.random.Generator) -> Scene:
    angle = rng.uniform(0, 2 * np.pi)
    there = replace(
        scene.items[item],
        x_m=scene.items[item].x_m + distance_m * np.cos(angle),
        y_m=scene.items[item].y_m + distance_m * np.sin(angle),
    )
    return replace(scene, items=(*scene.items[:item], there, *scene.items[item + 1 :]))


def without_depth(frame: Frame) -> Frame:
    return replace(frame, depth_m=None)


def test_noise_is_no_movement_and_a_movement_is_noticed() -> None:
    """With depth and by colour alone; the light changes by up to a tenth as well."""
    for seed in range(12):
        rng = np.random.default_rng([4, seed])
        scene, target, frame, box = scene_and_box(seed)
        gain = tuple(np.array(scene.look.gain) * rng.uniform(0.9, 1.1))
        again, _ = shot(replace(scene, look=replace(scene.look, gain=gain)), seed + 1000)
        there, _ = shot(moved(scene, target, 0.015, rng), seed + 2000)
        for see in (lambda x: x, without_depth):
            assert changed(see(frame), see(again), box) <= MAX_CHANGED
            assert changed(see(frame), see(there), box) > MAX_CHANGED


def test_what_moves_elsewhere_is_no_matter() -> None:
    """Containers far from the target, and their shadows."""
    for seed in range(4):
        scene, target, frame, box = scene_and_box(seed)
        here = scene.items[target]
        far = [
            i
            for i, item in enumerate(scene.items)
            if np.hypot(item.x_m - here.x_m, item.y_m - here.y_m) > item.radius_m + here.radius_m + 0.06
        ]
        for other in far[:1]:
            elsewhere, _ = shot(moved(scene, other, 0.01, np.random.default_rng(seed)), seed + 1000)
            assert changed(frame, elsewhere, box) <= MAX_CHANGED


def test_depth_alone_tells_that_the_target_is_gone() -> None:
    rgb = np.full((240, 320, 3), 120, np.uint8)
    depth = np.full((240, 320), 0.6, np.float32)
    depth[100:140, 140:180] = 0.56
    before = Frame(rgb, depth, 0.0, SMALL)
    after = Frame(rgb, np.full_like(depth, 0.6), 0.0, SMALL)
    box = Affordance(0.5, 0.5, 40 / 320, 40 / 240)
    assert changed(before, after, box) > 0.5
    assert changed(before, replace(after, depth_m=np.zeros_like(depth)), box) == 0.0  # unknown is not otherwise
    assert changed(without_depth(before), after, box) == 0.0


def textured(seed: int) -> np.ndarray:
    """(240, 320, 3) blocks of 8 px, from dark to saturated."""
    blocks = np.minimum(np.random.default_rng(seed).integers(50, 280, (30, 40, 3)), 255)
    return np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)


@settings(deadline=None)
@given(st.integers(0, 99), st.tuples(*[st.floats(0.6, 1.6)] * 3), st.integers(0, 99))
def test_a_change_of_light_is_no_movement(seed: int, gain: tuple[float, float, float], noise: int) -> None:
    rgb = textured(seed)
    lit = rgb * np.array(gain) + np.random.default_rng(noise).normal(0, 3, rgb.shape)
    frames = [Frame(x, None, 0.0, SMALL) for x in (rgb, np.clip(lit, 0, 255).astype(np.uint8))]
    assert changed(frames[0], frames[1], BOX) <= MAX_CHANGED
    assert changed(frames[1], frames[0], BOX) <= MAX_CHANGED


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(-1, 1), st.integers(-1, 1))
def test_a_trembling_camera_is_no_movement(seed: int, dx: int, dy: int) -> None:
    rgb = textured(seed)
    trembled = np.roll(rgb, (dy, dx), axis=(0, 1))
    assert changed(Frame(rgb, None, 0.0, SMALL), Frame(trembled, None, 0.0, SMALL), BOX) <= MAX_CHANGED


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.001, 1.0), st.floats(0.001, 1.0), st.booleans())
def test_any_box_can_be_asked_about(x: float, y: float, width: float, height: float, depth: bool) -> None:
    depth_m = np.full((240, 320), 0.5, np.float32) if depth else None
    frame = Frame(textured(0), depth_m, 0.0, SMALL)
    assert changed(frame, frame, Affordance(x, y, width, height)) == 0.0


# What is refused, and how it is said


def plain(t_s: float, **changes: object) -> Frame:
    return replace(Frame(textured(1), None, t_s, SMALL, "CAM-1"), **changes)  # type: ignore[arg-type]


def test_what_is_fresh_passes() -> None:
    check_fresh(plain(70.0), plain(99.9), BOX, now_s=100.0)
    frame = plain(100.0)
    check_fresh(frame, frame, BOX, now_s=100.0)


@pytest.mark.parametrize(
    ("decided", "newest", "what", "words"),
    [
        (plain(95.0), plain(99.0), "frame", "camera CAM-1: its newest image is 1.00 s old"),
        (plain(60.0), plain(99.9), "decision", "the image it was made on is 40.0 s old, expected at most 30.0 s"),
        (plain(95.0), plain(float("nan")), "frame", "its newest image is nan s old"),
        (plain(95.0), plain(99.9, serial="CAM-2"), "camera", "CAM-2: gives images of another size, or is another"),
        (plain(95.0), plain(99.9, rgb=np.zeros((480, 640, 3), np.uint8)), "camera", "images of another size"),
        (plain(95.0), plain(99.9, rgb=textured(2)), "target", "of the target's place in the image has changed"),
    ],
)
def test_each_kind_of_staleness_is_named(decided: Frame, newest: Frame, what: str, words: str) -> None:
    with pytest.raises(StaleError, match=words) as caught:
        check_fresh(decided, newest, BOX, now_s=100.0)
    assert caught.value.what == what
    assert "nothing moved" in str(caught.value) and "\n" not in str(caught.value)


def test_the_limits_are_the_callers() -> None:
    limits = FreshnessLimits(frame_age_s=2.0, decision_s=60.0, max_changed=9.0)
    check_fresh(plain(45.0), plain(98.5, rgb=textured(2)), BOX, limits, now_s=100.0)


def test_the_present_is_the_default() -> None:
    check_fresh(plain(time.monotonic()), plain(time.monotonic()), BOX)
    with pytest.raises(StaleError, match="newest image"):
        check_fresh(plain(time.monotonic()), plain(time.monotonic() - 5.0), BOX)


def test_it_is_judged_alike_at_every_image_size() -> None:
    big = Intrinsics(1280, 960, 1600.0, 1600.0, 639.5, 479.5)
    for shift, still in ((3, True), (40, False)):
        rgb = np.kron(textured(5), np.ones((4, 4, 1), np.uint8))
        other = np.roll(rgb, shift, axis=1)
        share = changed(Frame(rgb, None, 0.0, big), Frame(other, None, 0.0, big), BOX)
        assert (share <= MAX_CHANGED) == still
