"""The arm's model in the image: where the renderer shows the links, lens distortion included, and what is drawn."""

from __future__ import annotations

from dataclasses import replace

import cv2
import mujoco
import numpy as np
import pytest

from drivers.errors import UserError
from drivers.protocols import Intrinsics
from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render, scaled
from drivers.sim.scene import Scene, draw_look
from drivers.sim.world import build_model, set_arm
from edge.arm_outline import ArmModel, draw_arm
from edge.kinematics import Kinematics
from edge.rays import project

ROBOT = load_robot()
ARM = ArmModel(ROBOT)
QVGA = scaled(CAMERA, 320, 240)
SCENE = Scene((), draw_look(np.random.default_rng(1)))
T_BASE_CAMERA = camera_pose(SCENE.look)
REACHING = np.array([0.4, -0.2, 0.6, 1.0, 0.5, 0.6])


def rendered(q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The simulator's own picture, which body each pixel is of (0 for the table), and its depth."""
    model = build_model(SCENE)
    data = mujoco.MjData(model)
    set_arm(model, data, q)
    mujoco.mj_kinematics(model, data)
    seen = render(model, data, SCENE.look, T_BASE_CAMERA, QVGA, np.random.default_rng(0))
    return seen.rgb, np.append(model.geom_bodyid, 0)[seen.geom], seen.depth_m


@pytest.mark.parametrize("q", [ROBOT.rest_rad, REACHING])
def test_links_are_where_the_camera_sees_them(q: np.ndarray) -> None:
    _, body, depth_m = rendered(q)
    seen = ARM.look(q, T_BASE_CAMERA, QVGA)
    assert len(np.unique(body)) > 3
    np.testing.assert_array_equal(seen.body, body)
    np.testing.assert_allclose(seen.depth_m[body > 0], depth_m[body > 0], atol=1e-6)
    coarse = ARM.look(q, T_BASE_CAMERA, QVGA, step_px=3)
    np.testing.assert_array_equal(coarse.body, body[::3, ::3])


def test_a_lens_bends_the_outline_as_it_bends_the_picture() -> None:
    bent = replace(QVGA, distortion=(-0.3, 0.1, 0.002, -0.001, 0.0))
    straight, seen = (ARM.look(REACHING, T_BASE_CAMERA, lens).body for lens in (QVGA, bent))
    v, u = np.nonzero(straight)
    rays = np.column_stack([(u - QVGA.cx) / QVGA.fx, (v - QVGA.cy) / QVGA.fy, np.ones(len(u))])
    px = np.rint(cv2.projectPoints(rays, np.zeros(3), np.zeros(3), QVGA.matrix, np.array(bent.distortion))[0][:, 0])
    inside = (px >= 0).all(axis=1) & (px < (320, 240)).all(axis=1)
    there = seen[px[inside, 1].astype(int), px[inside, 0].astype(int)]
    assert np.abs(px - np.column_stack([u, v])).max() > 4.0
    assert (there == straight[v[inside], u[inside]]).mean() > 0.97  # all but the links' edges


def test_the_tip_is_the_tool_of_the_kinematics() -> None:
    np.testing.assert_allclose(ARM.tip_m(REACHING), Kinematics(ROBOT).fk(REACHING)[:3, 3], atol=1e-9)


def test_outline_and_cross_are_drawn_on_a_copy_and_nowhere_else() -> None:
    rgb, body, _ = rendered(REACHING)
    before = rgb.copy()
    drawn = draw_arm(rgb, ARM, REACHING, T_BASE_CAMERA, QVGA)
    np.testing.assert_array_equal(rgb, before)
    changed = (drawn != rgb).any(axis=2)
    x, y = np.rint(project(ARM.tip_m(REACHING)[None], QVGA, T_BASE_CAMERA)[0]).astype(int)
    assert drawn[y, x].tolist() == [255, 72, 160]
    changed[y - 16 : y + 17, x - 16 : x + 17] = False
    edge = cv2.morphologyEx(body.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((13, 13))) > 0
    border = np.ones_like(edge)
    border[6:-6, 6:-6] = False
    assert changed.sum() > 200 and not (changed & ~edge & ~border).any()


def test_a_camera_that_looks_away_sees_no_arm() -> None:
    away = T_BASE_CAMERA @ np.diag([1.0, -1.0, -1.0, 1.0])
    rgb = np.full((240, 320, 3), 90, np.uint8)
    np.testing.assert_array_equal(draw_arm(rgb, ARM, REACHING, away, QVGA), rgb)


def test_assumed_intrinsics_draw_nothing() -> None:
    with pytest.raises(UserError, match="assumed"):
        ARM.look(REACHING, T_BASE_CAMERA, Intrinsics.assumed(320, 240))
