"""Has the camera moved: rendered before and after, with other light, other objects, another arm pose, no texture."""

from __future__ import annotations

from dataclasses import replace

import cv2
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from calib.moved import Motion, _least, camera_motion, workspace_points
from calib.rigid import apply, invert, retract
from calib.seen_twice import Snapshot
from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render, scaled
from drivers.sim.scene import Look, Scene, draw_look, draw_scene
from drivers.sim.world import build_model, set_arm

QVGA = scaled(CAMERA, 320, 240)
ROBOT = load_robot()
LINKS = mujoco.MjModel.from_xml_path(str(ROBOT.model)).nbody  # in a scene's model they come first
# rotation vector (rad) and shift (m) in the camera's own frame: a knock
KNOCK = np.array([0.008, -0.012, 0.010, 0.006, -0.004, 0.007])


def scene(table: str, seed: int = 3, **changes) -> Scene:
    rng = np.random.default_rng(seed)
    look = replace(draw_look(rng), table=table)
    return replace(draw_scene(rng, look=look), **changes)


def relit(look: Look, seed: int = 8) -> Look:
    other = draw_look(np.random.default_rng(seed))
    return replace(look, light_m=other.light_m, ambient=other.ambient, diffuse=other.diffuse, gain=other.gain)


def take(scene: Scene, q: np.ndarray, T_true: np.ndarray, T_calibrated: np.ndarray, depth: bool, seed=0) -> Snapshot:
    """A picture from where the camera is; what the arm's model says of it, from where the calibration has it."""
    rng = np.random.default_rng(seed)
    model = build_model(scene)
    data = mujoco.MjData(model)
    set_arm(model, data, q)
    mujoco.mj_kinematics(model, data)
    seen = render(model, data, scene.look, T_true, QVGA, rng)
    said = seen if T_true is T_calibrated else render(model, data, scene.look, T_calibrated, QVGA, rng)
    owner = np.append(model.geom_bodyid, 0)[said.geom]  # of the last: nothing
    body = np.where(owner < LINKS, owner, 0).astype(np.int32)
    surface = np.where(body > 0, said.depth_m, table_depth(T_calibrated)).astype(np.float32)
    T_base_body = np.tile(np.eye(4), (LINKS, 1, 1))
    for b in range(LINKS):
        T_base_body[b, :3, :3], T_base_body[b, :3, 3] = data.xmat[b].reshape(3, 3), data.xpos[b]
    noisy = seen.depth_m * (1 + 0.0015 * rng.standard_normal(seen.depth_m.shape)).astype(np.float32)
    return Snapshot(seen.rgb, noisy if depth else None, body, surface, T_base_body)


def table_depth(T_base_camera: np.ndarray) -> np.ndarray:
    v, u = np.mgrid[: QVGA.height, : QVGA.width]
    rays = np.stack([(u - QVGA.cx) / QVGA.fx, (v - QVGA.cy) / QVGA.fy, np.ones(u.shape)], -1)
    return (-T_base_camera[2, 3] / (rays @ T_base_camera[2, :3])).astype(np.float32)


def checked(
    table: str,
    *,
    knock: np.ndarray | None = None,
    depth: bool = True,
    then: Scene | None = None,
    now: Scene | None = None,
    q_now: np.ndarray = ROBOT.ready_rad,
) -> tuple[Motion, float]:
    """What is said of it, and the truth: how far off the workspace's points are put, rms, mm."""
    then = then or scene(table)
    now = now or then
    T = camera_pose(then.look)
    T_now = T if knock is None else T @ retract(knock)
    before = take(then, ROBOT.ready_rad, T, T, depth)
    motion = camera_motion(before, take(now, q_now, T_now, T, depth, seed=1), T, QVGA)
    points = workspace_points()
    off = apply(T @ invert(T_now), points) - points
    return motion, 1e3 * float(np.sqrt((off**2).sum(axis=1).mean()))


@pytest.mark.parametrize(("table", "depth"), [("wood", True), ("speckle", False)])
def test_a_knock_is_measured_under_other_light_among_other_objects(table: str, depth: bool) -> None:
    then = scene(table)
    now = scene(table, seed=4, look=relit(then.look))
    motion, truth_mm = checked(table, knock=KNOCK, depth=depth, then=then, now=now)
    assert truth_mm > 8.0
    assert motion.has_moved and not motion.is_valid
    assert abs(motion.moved_mm - truth_mm) < 3 * motion.sigma_mm + 0.3
    assert motion.at_least_mm <= motion.moved_mm
    assert "calibrate again" in motion.verdict()


def test_the_motion_itself_comes_out() -> None:
    motion, truth_mm = checked("speckle", knock=KNOCK)
    assert motion.sigma_mm < 0.5 and abs(motion.moved_mm - truth_mm) < 0.5
    np.testing.assert_allclose(motion.T_then_now, retract(KNOCK), atol=1.5e-3)
    assert motion.translation_mm == pytest.approx(10.0, abs=1.5)
    assert motion.rotation_deg == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(("table", "depth"), [("plain", True), ("tiles", False)])
def test_a_camera_that_stands_still_is_still_valid(table: str, depth: bool) -> None:
    motion, _ = checked(table, depth=depth)
    assert motion.is_valid and not motion.has_moved
    assert motion.verdict().startswith("still valid")


def test_an_arm_that_moved_and_its_shadow_do_not_count_as_the_camera() -> None:
    motion, _ = checked("speckle", q_now=np.array([0.3, -0.5, 0.8, 0.8, 0.2, 0.4]), depth=False)
    assert motion.is_valid


def test_a_small_motion_of_the_arm_is_taken_out_by_its_joints() -> None:
    q_now = ROBOT.ready_rad + np.radians([1.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    motion, _ = checked("tiles", q_now=q_now)
    assert motion.is_valid


@pytest.mark.parametrize("depth", [True, False])
def test_tiles_that_look_the_same_one_tile_further_do_not_deceive_it(depth: bool) -> None:
    tiles = scene("tiles", items=())
    look = replace(tiles.look, pattern_m=0.02)
    along = np.array([np.cos(look.pattern_rad), np.sin(look.pattern_rad), 0.0])
    across = np.array([-along[1], along[0], 0.0])
    T = camera_pose(look)
    knock = np.concatenate([np.zeros(3), T[:3, :3].T @ (look.pattern_m * (along + across))])
    motion, truth_mm = checked("tiles", knock=knock, depth=depth, then=replace(tiles, look=look))
    assert truth_mm == pytest.approx(28.3, abs=0.1)
    assert not motion.is_valid


def flat(grey: np.ndarray) -> Snapshot:
    """A picture of nothing but the table, without depth."""
    T = camera_pose(scene("plain").look)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    return Snapshot(rgb, None, np.zeros(grey.shape, np.int32), table_depth(T), np.eye(4)[None])


def test_a_bare_table_without_depth_and_without_arm_says_nothing() -> None:
    noise = np.random.default_rng(0).normal(150, 2, (2, 240, 320))
    then, now = (flat(np.round(n).astype(np.uint8)) for n in noise)
    motion = camera_motion(then, now, camera_pose(scene("plain").look), QVGA)
    assert not motion.is_valid and not motion.has_moved
    assert motion.verdict().startswith("cannot tell")


@pytest.mark.parametrize("shift_px", [0, 9])
def test_an_answer_that_hangs_on_one_thing_is_none(shift_px: int) -> None:
    """A cloth on a bare table: whether it or the camera moved, and whether both did, one picture does not tell."""
    cloth = np.random.default_rng(2).integers(0, 255, (18, 18), dtype=np.uint8)
    cloth = cv2.resize(cloth, (54, 54), interpolation=cv2.INTER_CUBIC)
    shots = []
    for left in (120, 120 + shift_px):
        grey = np.full((240, 320), 150, np.uint8)
        grey[100:154, left : left + 54] = cloth
        shots.append(flat(grey))
    motion = camera_motion(shots[0], shots[1], camera_pose(scene("plain").look), QVGA)
    assert motion.agreeing > 10  # they agree, but it is one thing
    assert not motion.is_valid and not motion.has_moved


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 8.0))
def test_the_least_motion_is_the_constrained_minimum(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(2, 6, 6))
    S, covariance = A @ A.T + 0.1 * np.eye(6), B @ B.T + 0.1 * np.eye(6)
    x = size * rng.normal(size=6)
    weight = np.linalg.inv(covariance)
    found = minimize(
        lambda y: y @ S @ y,
        x,
        jac=lambda y: 2 * S @ y,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda y: 4.0 - (y - x) @ weight @ (y - x)},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert _least(x, S, covariance) == pytest.approx(np.sqrt(max(found.fun, 0.0)), rel=2e-2, abs=2e-2)
