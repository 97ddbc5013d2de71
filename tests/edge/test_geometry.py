"""Lifting pixels to metres, judged against scenes whose depth MuJoCo casts ray by ray."""

import math

import cv2
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.protocols import Frame, Intrinsics
from edge.contract import Affordance, Trajectory
from edge.geometry import GraspError, deproject, lift_affordance, lift_trajectory, pixel_rays

K = Intrinsics(640, 480, 560.0, 560.0, 319.5, 239.5)
EYE, AIM = np.array([0.52, 0.0, 0.42]), np.array([0.21, 0.0, 0.02])


def look_at() -> np.ndarray:
    z = (AIM - EYE) / np.linalg.norm(AIM - EYE)
    x = np.cross(z, (0.0, 0.0, 1.0))
    x /= np.linalg.norm(x)
    T = np.eye(4)
    T[:3, :3] = np.column_stack([x, np.cross(z, x), z])
    T[:3, 3] = EYE
    return T


T_BASE_CAMERA = look_at()
Shot = tuple[Frame, np.ndarray]


def geom(kind: str, size: tuple[float, ...], x: float, y: float, yaw: float = 0.0) -> str:
    z = {"box": size[-1], "cylinder": size[-1], "sphere": size[0]}[kind]
    sizes = " ".join(map(str, size))
    return f'<geom type="{kind}" size="{sizes}" pos="{x} {y} {z}" euler="0 0 {math.degrees(yaw)}"/>'


def bowl(x: float, y: float, radius: float = 0.045, height: float = 0.03) -> str:
    walls = []
    for k in range(16):
        a = 2 * math.pi * k / 16
        walls.append(
            f'<geom type="box" size="0.002 {radius * math.tan(math.pi / 16)} {height / 2}" '
            f'euler="0 0 {math.degrees(a)}" pos="{x + radius * math.cos(a)} {y + radius * math.sin(a)} {height / 2}"/>'
        )
    return f'<geom type="cylinder" size="{radius} 0.002" pos="{x} {y} 0.002"/>' + "".join(walls)


def shoot(geoms: list[str], noise_m: float = 0.0, seed: int = 0, T: np.ndarray = T_BASE_CAMERA) -> Shot:
    """The depth frame of a table with ``geoms`` on it, and the geom id of every pixel (0 is the table)."""
    xml = f'<mujoco><worldbody><geom type="plane" size="2 2 .1"/>{"".join(geoms)}</worldbody></mujoco>'
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    u, v = np.meshgrid(np.arange(640.0), np.arange(480.0))
    rays = np.stack([(u - K.cx) / K.fx, (v - K.cy) / K.fy, np.ones_like(u)], -1).reshape(-1, 3)
    rays = np.ascontiguousarray(rays @ T[:3, :3].T)
    ids = np.empty(len(rays), np.int32)
    depth = np.empty(len(rays))
    mujoco.mj_multiRay(model, data, T[:3, 3].copy(), rays.ravel(), None, True, -1, ids, depth, None, len(rays), 1e9)
    depth += noise_m * np.random.default_rng(seed).standard_normal(len(depth))
    depth_m = np.where(ids >= 0, depth, 0.0).reshape(480, 640).astype(np.float32)
    return Frame(np.zeros((480, 640, 3), np.uint8), depth_m, 0.0, K), ids.reshape(480, 640)


def box_around(mask: np.ndarray, shift: tuple[float, float] = (0.0, 0.0), grow: float = 1.0) -> Affordance:
    """The box around a mask, off by ``shift`` of its size and ``grow`` times as large."""
    ys, xs = np.nonzero(mask)
    w, h = (np.ptp(xs) + 1) / 640, (np.ptp(ys) + 1) / 480
    x, y = (xs.min() + xs.max() + 1) / 1280, (ys.min() + ys.max() + 1) / 960
    return Affordance(x + shift[0] * w, y + shift[1] * h, w * grow, h * grow)


def axis_error(a: float, b: float, period: float) -> float:
    return abs((a - b + period / 2) % period - period / 2)


Row = tuple[float, float, float, float]


def errors(kind: str, noise_m: float, n: int = 10) -> list[Row]:
    """(centre mm, yaw degrees, width mm, height mm) errors over places, sizes, yaws and boxes that are a little off."""
    rng = np.random.default_rng(7)
    rows = []
    for k in range(n):
        x, y, yaw = rng.uniform(0.15, 0.29), rng.uniform(-0.13, 0.13), rng.uniform(-math.pi, math.pi)
        if kind == "cube":
            half = rng.uniform(0.012, 0.0225)
            item, width, height = geom("box", (half, half, half), x, y, yaw), 2 * half, 2 * half
        elif kind == "bar":
            half = rng.uniform(0.010, 0.013)
            item, width, height = geom("box", (half, 0.03, half), x, y, yaw), 2 * half, 2 * half
        elif kind == "cylinder":
            radius, half = rng.uniform(0.013, 0.02), rng.uniform(0.012, 0.0225)
            item, width, height = geom("cylinder", (radius, half), x, y), 2 * radius, 2 * half
        else:
            radius = rng.uniform(0.013, 0.02)
            item, width, height = geom("sphere", (radius,), x, y), 2 * radius, 2 * radius
        # A neighbour as near as a finger's width, on a side that does not hide the item.
        side = -1.0 if y > 0 else 1.0
        frame, ids = shoot([item, geom("box", (0.015, 0.015, 0.018), x - 0.01, y + side * 0.062)], noise_m, seed=k)
        affordance = box_around(ids == 1, tuple(rng.uniform(-0.15, 0.15, 2)), rng.uniform(0.85, 1.15))
        grasp = lift_affordance(affordance, frame, T_BASE_CAMERA)
        period = {"cube": math.pi / 2, "bar": math.pi}.get(kind, 1e-9)
        rows.append(
            (
                1e3 * float(np.hypot(grasp.position_base_m[0] - x, grasp.position_base_m[1] - y)),
                math.degrees(axis_error(grasp.yaw_rad, yaw, period)),
                1e3 * (grasp.width_m - width),
                1e3 * (grasp.height_m - height),
            )
        )
        assert 0.3 * height < grasp.position_base_m[2] < 0.8 * height
    return rows


@pytest.mark.parametrize("noise_m", [0.0, 0.0015])
@pytest.mark.parametrize("kind", ["cube", "bar", "cylinder", "ball"])
def test_the_grasp_is_where_the_object_is(kind: str, noise_m: float) -> None:
    rows = np.abs(errors(kind, noise_m))
    assert np.median(rows[:, 0]) < 2.0 and rows[:, 0].max() < 5.0
    assert np.median(rows[:, 1]) < 2.0 and rows[:, 1].max() < 8.0
    assert rows[:, 2].max() < 4.0
    assert rows[:, 3].max() < 3.0


def test_the_object_meant_is_the_one_under_the_middle_of_the_box() -> None:
    places = [(0.20, -0.05), (0.20, 0.0), (0.20, 0.05)]
    frame, ids = shoot([geom("box", (0.014, 0.014, 0.014), x, y) for x, y in places])
    for k, (x, y) in enumerate(places):
        grasp = lift_affordance(box_around(ids == k + 1, (0.2, 0.1), 1.3), frame, T_BASE_CAMERA)
        np.testing.assert_allclose(grasp.position_base_m[:2], (x, y), atol=0.004)


def test_a_block_beside_a_bowl_is_meant_when_the_box_touches_both() -> None:
    frame, ids = shoot([geom("box", (0.014, 0.014, 0.014), 0.22, 0.0), bowl(0.22, 0.085)])
    grasp = lift_affordance(box_around(ids == 1, (0.3, 0.0), 1.5), frame, T_BASE_CAMERA)
    np.testing.assert_allclose(grasp.position_base_m[:2], (0.22, 0.0), atol=0.004)


def test_the_table_height_is_taken_into_account() -> None:
    frame, ids = shoot([geom("box", (0.015, 0.015, 0.02), 0.2, 0.03)])
    raised = T_BASE_CAMERA.copy()
    raised[2, 3] += 0.05
    grasp = lift_affordance(box_around(ids == 1), frame, raised, table_z_m=0.05)
    assert grasp.height_m == pytest.approx(0.09, abs=0.002)
    assert grasp.position_base_m[2] == pytest.approx(0.07, abs=0.004)


def test_nothing_in_the_box_is_refused() -> None:
    frame, _ = shoot([])
    with pytest.raises(GraspError, match="nothing stands on the table"):
        lift_affordance(Affordance(0.5, 0.5, 0.1, 0.1), frame, T_BASE_CAMERA)


def test_too_wide_an_object_is_refused() -> None:
    frame, ids = shoot([geom("box", (0.045, 0.045, 0.02), 0.22, 0.0)])
    with pytest.raises(GraspError, match=r"(8[5-9]|9\d) mm wide"):
        lift_affordance(box_around(ids == 1), frame, T_BASE_CAMERA)


@settings(deadline=None, max_examples=15)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_any_box_of_the_contract_gives_a_grasp_or_a_plain_refusal(x: float, y: float, w: float, h: float) -> None:
    frame = Frame(np.zeros((480, 640, 3), np.uint8), np.full((480, 640), 0.55, np.float32), 0.0, K)
    try:
        grasp = lift_affordance(Affordance(x, y, w, h), frame, T_BASE_CAMERA)
    except GraspError:
        return
    assert np.isfinite(grasp.position_base_m).all()


def pixel_of(point_m: tuple[float, float, float]) -> tuple[float, float]:
    camera = np.linalg.inv(T_BASE_CAMERA) @ (*point_m, 1.0)
    u, v = K.fx * camera[0] / camera[2] + K.cx, K.fy * camera[1] / camera[2] + K.cy
    return (u + 0.5) / 640, (v + 0.5) / 480


@pytest.mark.parametrize("off", [(0.0, 0.0), (0.02, 0.01), (-0.02, 0.03)])
@pytest.mark.parametrize("place", [(0.17, 0.07), (0.24, -0.08), (0.22, 0.10)])
def test_the_last_waypoint_is_the_centre_of_the_container(place: tuple[float, float], off: tuple[float, float]) -> None:
    frame, _ = shoot([geom("box", (0.015, 0.015, 0.015), 0.2, 0.0), bowl(*place)])
    last = (place[0] + off[0], place[1] + off[1], 0.004)
    middle = (0.5 * (0.2 + last[0]), 0.5 * last[1], 0.0)
    points = Trajectory((pixel_of((0.2, 0.0, 0.03)), pixel_of(middle), pixel_of(last)))
    waypoints = lift_trajectory(points, frame, T_BASE_CAMERA, 0.02)
    assert waypoints.shape == (4, 3)
    np.testing.assert_allclose(waypoints[-1, :2], place, atol=0.004)
    np.testing.assert_allclose(waypoints[-2, :2], waypoints[-1, :2])
    # The middle of the way may be seen on a rim in front of it.
    np.testing.assert_allclose(waypoints[1, :2], middle[:2], atol=0.02)
    assert np.all(waypoints[:-1, 2] >= 0.030 + 0.02 - 0.002)  # over the block and the rim, by the clearance
    assert 0.01 < waypoints[-1, 2] < 0.035  # inside, below the rim


def test_what_is_held_hangs_below_the_jaws() -> None:
    frame, ids = shoot([geom("box", (0.015, 0.015, 0.02), 0.2, 0.0), bowl(0.22, 0.09)])
    points = Trajectory((pixel_of((0.2, 0.0, 0.04)), pixel_of((0.22, 0.09, 0.004))))
    grasp = lift_affordance(box_around(ids == 1), frame, T_BASE_CAMERA)
    bare = lift_trajectory(points, frame, T_BASE_CAMERA, 0.02)
    held = lift_trajectory(points, frame, T_BASE_CAMERA, 0.02, grasp=grasp)
    np.testing.assert_allclose(held[:, 2] - bare[:, 2], grasp.position_base_m[2], atol=1e-9)


def test_a_tall_thing_on_the_way_is_passed_over() -> None:
    post = geom("box", (0.01, 0.01, 0.03), 0.2, 0.0)
    frame, _ = shoot([post])
    points = Trajectory((pixel_of((0.2, -0.1, 0.0)), pixel_of((0.2, 0.1, 0.0))))
    assert np.all(lift_trajectory(points, frame, T_BASE_CAMERA, 0.02)[:-1, 2] >= 0.078)


def test_a_place_without_a_container_is_the_point_itself() -> None:
    frame, _ = shoot([])
    points = Trajectory((pixel_of((0.2, 0.0, 0.0)), pixel_of((0.25, 0.05, 0.0))))
    waypoints = lift_trajectory(points, frame, T_BASE_CAMERA, 0.03)
    np.testing.assert_allclose(waypoints[-1], (0.25, 0.05, 0.0), atol=0.006)


def test_points_off_the_table_are_refused() -> None:
    frame = Frame(np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640), np.float32), 0.0, K)
    level = T_BASE_CAMERA.copy()
    level[:3, :3] = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # looks along -x, level
    with pytest.raises(GraspError, match="off the table"):
        lift_trajectory(Trajectory(((0.5, 0.1), (0.5, 0.2))), frame, level, 0.02)


@given(
    st.lists(st.tuples(st.floats(60, 580), st.floats(60, 420)), min_size=1, max_size=5),
    st.tuples(st.floats(-0.1, 0.1), st.floats(-0.05, 0.05), st.floats(-0.002, 0.002), st.floats(-0.002, 0.002)),
    st.floats(0.2, 2.0),
)
def test_deprojecting_undoes_opencvs_projection(
    pixels: list[tuple[float, float]], distortion: tuple[float, ...], depth: float
) -> None:
    intrinsics = Intrinsics(640, 480, 560.0, 550.0, 321.0, 243.0, (*distortion, 0.0))
    points = deproject(pixels, np.full(len(pixels), depth), intrinsics)
    np.testing.assert_allclose(points[:, 2], depth)
    back, _ = cv2.projectPoints(
        points, np.zeros(3), np.zeros(3), intrinsics.matrix, np.array(intrinsics.distortion, dtype=float)
    )
    np.testing.assert_allclose(back.reshape(-1, 2), pixels, atol=0.05)


def test_the_principal_point_looks_straight_ahead() -> None:
    np.testing.assert_allclose(pixel_rays([(K.cx, K.cy)], K), [(0.0, 0.0, 1.0)])
