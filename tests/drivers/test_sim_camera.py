"""The ray-cast camera: depth, geoms and projection agree with geometry worked out by hand."""

import mujoco
import numpy as np

from drivers.sim.render import CAMERA, camera_pose, render, scaled
from drivers.sim.scene import Item, Scene, draw_look, draw_scene
from drivers.sim.world import build_model, item_of_geom

SMALL = scaled(CAMERA, 160, 120)


def shot(scene: Scene, board=None, face=None):
    model = build_model(scene, board)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    T = camera_pose(scene.look)
    return model, data, T, render(model, data, scene.look, T, SMALL, np.random.default_rng(0), face)


def test_table_depth_is_where_the_ray_meets_the_plane() -> None:
    scene = Scene((), draw_look(np.random.default_rng(1)))
    model, _, T, picture = shot(scene)
    v, u = np.nonzero(picture.geom == model.geom("table").id)
    rays = np.column_stack([(u - SMALL.cx) / SMALL.fx, (v - SMALL.cy) / SMALL.fy, np.ones(len(u))])
    points = (rays * picture.depth_m[v, u][:, None]) @ T[:3, :3].T + T[:3, 3]
    assert len(u) > 5000
    assert np.abs(points[:, 2]).max() < 1e-5


def test_a_ball_is_seen_where_it_projects() -> None:
    ball = Item("ball", "red", 0.2, 0.03, 0.0, (0.018,))
    scene = Scene((ball,), draw_look(np.random.default_rng(2)))
    model, _, T, picture = shot(scene)
    v, u = np.nonzero(item_of_geom(model)[picture.geom] == 0)
    centre = np.linalg.inv(T) @ [0.2, 0.03, 0.0185, 1.0]
    want = np.array([SMALL.fx, SMALL.fy]) * centre[:2] / centre[2] + [SMALL.cx, SMALL.cy]
    assert np.hypot(*(np.array([u.mean(), v.mean()]) - want)) < 1.0
    assert picture.rgb[v, u].mean(0).argmax() == 0


def test_every_item_is_in_view_of_the_camera() -> None:
    for seed in range(5):
        scene = draw_scene(np.random.default_rng(seed))
        model, _, _, picture = shot(scene)
        seen = set(np.unique(item_of_geom(model)[picture.geom]))
        assert set(range(len(scene.items))) <= seen


def test_the_board_is_seen_whole_and_its_print_upright() -> None:
    # Held up towards the camera, the print's first row up: white above, black below.
    look = draw_look(np.random.default_rng(3))
    scene = Scene((), look)
    model = build_model(scene)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    T_world_camera = camera_pose(look)
    T_camera_plate = np.diag([1.0, -1.0, -1.0, 1.0])
    T_camera_plate[2, 3] = 0.25
    gripper = data.body("gripper")
    T_world_gripper = np.eye(4)
    T_world_gripper[:3, :3], T_world_gripper[:3, 3] = gripper.xmat.reshape(3, 3), gripper.xpos
    T = np.linalg.inv(T_world_gripper) @ T_world_camera @ T_camera_plate
    face = np.zeros((80, 120), np.uint8)
    face[:40] = 255
    half = (0.03, 0.02, 0.001)
    model, _, _, picture = shot(scene, np.concatenate([half, T.ravel()]), face)
    v, u = np.nonzero(picture.geom == model.geom("board").id)
    wide, high = 2 * half[0] * SMALL.fx / 0.249, 2 * half[1] * SMALL.fy / 0.249
    assert abs(np.ptp(u) + 1 - wide) <= 1.5 and abs(np.ptp(v) + 1 - high) <= 1.5
    upper, lower = v < v.min() + 0.4 * high, v > v.min() + 0.6 * high
    assert picture.rgb[v[upper], u[upper]].mean() > 3 * picture.rgb[v[lower], u[lower]].mean()
