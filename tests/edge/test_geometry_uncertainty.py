"""What lifts say of their own error, with and without depth, against scenes that are known."""

import math
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from drivers.protocols import Frame
from edge.contract import Affordance, Trajectory
from edge.depth_points import TALLEST_M
from edge.geometry import Grasp, GraspError, lift_affordance, lift_trajectory, release_covariance_m2
from edge.grasp import require_known
from edge.object_grasp import grasp_of_box, grasp_of_thing, things_meant
from edge.uncertainty import DEPTH_BIAS, DEPTH_NOISE_PER_M
from edge.view import View
from tests.edge.test_geometry import T_BASE_CAMERA, K, bowl, box_around, geom, pixel_of, shoot

GOOD, BAD = (0.001**2 * np.eye(3), 0.008**2 * np.eye(3))
CUBE = geom("box", (0.015, 0.015, 0.015), 0.22, 0.03)


def blind(frame: Frame) -> Frame:
    """The same without depth."""
    return replace(frame, depth_m=None)


def as_a_camera_sees(frame: Frame, rng: np.random.Generator) -> Frame:
    """Depth with a bias of its own and noise that neighbours share."""
    assert frame.depth_m is not None
    noise = cv2.GaussianBlur(rng.standard_normal(frame.depth_m.shape), (0, 0), 1.4)
    depth = frame.depth_m * (1 + DEPTH_BIAS * rng.standard_normal())
    depth += DEPTH_NOISE_PER_M * frame.depth_m**2 * noise / noise.std()
    return replace(frame, depth_m=depth.astype(np.float32))


@cache
def draws() -> list[tuple[Frame, Affordance, np.ndarray, tuple[float, ...], str]]:
    """Frames with depth, boxes 5 % off, the object's middle, its half extents, its kind."""
    found = []
    for k in range(36):
        rng = np.random.default_rng([11, k])
        kind = ("box", "cylinder", "sphere")[k % 3]
        half = rng.uniform(0.013, 0.021, {"box": 3, "cylinder": 2, "sphere": 1}[kind])
        x, y, yaw = rng.uniform(0.15, 0.27), rng.uniform(-0.12, 0.12), rng.uniform(-math.pi, math.pi)
        frame, ids = shoot([geom(kind, tuple(half), x, y, yaw)])
        exact = box_around(ids == 1)
        left, right, top, bottom = 0.05 * rng.standard_normal(4)
        box = Affordance(
            exact.x + exact.width * (left + right) / 2,
            exact.y + exact.height * (top + bottom) / 2,
            exact.width * (1 + right - left),
            exact.height * (1 + bottom - top),
        )
        found.append((frame, box, np.array([x, y, half[-1]]), (*half, yaw), kind))
    return found


def squares(grasp: Grasp, truth: np.ndarray) -> float:
    """Mahalanobis distance of the truth in the table's plane, squared: 2 in the mean for an honest covariance."""
    error = (grasp.position_base_m - truth)[:2]
    return float(error @ np.linalg.solve(grasp.covariance_m2[:2, :2], error))


def test_with_depth_the_error_is_as_said() -> None:
    found, tops = [], []
    rng = np.random.default_rng(5)
    for frame, box, truth, _, _ in draws():
        shift = 0.001 * rng.standard_normal(3)
        T = T_BASE_CAMERA.copy()
        T[:3, 3] += shift
        grasp = lift_affordance(box, as_a_camera_sees(frame, rng), T, reach_covariance_m2=GOOD)
        found.append(squares(grasp, truth))
        tops.append((grasp.height_m - 2 * truth[2]) / math.hypot(grasp.uncertainty.top_m, 0.001))
        assert grasp.notes == ()
    assert 0.5 < np.mean(found) < 3.5 and np.mean(np.array(found) < 6.0) > 0.85
    assert 0.4 < np.sqrt(np.mean(np.square(tops))) < 1.8


def test_without_depth_the_error_is_as_said_and_the_jaws_pass_beside_what_they_may_take() -> None:
    found, tops, clear = [], [], []
    for frame, box, truth, half, kind in draws():
        grasp = grasp_of_box(box, View(blind(frame), T_BASE_CAMERA, 0.0, np.zeros((3, 3))))
        found.append(squares(grasp, truth))
        tops.append((grasp.height_m - 2 * truth[2]) / grasp.uncertainty.top_m)
        try:
            require_known(grasp)
        except GraspError:
            continue
        turn = grasp.yaw_rad - half[-1]
        wide = 2 * half[0]
        if kind == "box":
            wide = 2 * (half[0] * abs(math.cos(turn)) + half[1] * abs(math.sin(turn)))
        off = abs((grasp.position_base_m - truth) @ grasp.jaw_axis)
        clear.append(off + wide / 2 < grasp.opening_m / 2)
    assert 0.4 < np.mean(found) < 3.5 and np.mean(np.array(found) < 6.0) > 0.85
    assert np.sqrt(np.mean(np.square(tops))) < 2.0
    assert len(clear) > 18 and np.mean(clear) > 0.9


def test_without_depth_a_grasp_says_what_it_is() -> None:
    frame, ids = shoot([CUBE])
    deep = lift_affordance(box_around(ids == 1), frame, T_BASE_CAMERA, reach_covariance_m2=GOOD)
    flat = lift_affordance(box_around(ids == 1), blind(frame), T_BASE_CAMERA, reach_covariance_m2=GOOD)
    assert flat.shape == "unknown" and any("no depth" in note for note in flat.notes)
    np.testing.assert_allclose(flat.position_base_m, deep.position_base_m, atol=0.006)
    assert np.trace(flat.covariance_m2) > 3 * np.trace(deep.covariance_m2)
    assert flat.opening_m >= deep.opening_m and flat.uncertainty.top_m > 0.004
    np.testing.assert_array_equal(flat.approach, (0.0, 0.0, -1.0))


def test_the_footprint_is_the_objects() -> None:
    frame, ids = shoot([geom("box", (0.012, 0.03, 0.015), 0.2, 0.03, 0.5)])
    grasp = lift_affordance(box_around(ids == 1), frame, T_BASE_CAMERA)
    footprint = grasp.footprint
    assert footprint is not None
    np.testing.assert_allclose(sorted(footprint.sides_m), (0.024, 0.060), atol=0.002)
    corner = np.array([0.2, 0.03]) + [[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]] @ np.array(
        [0.012, 0.03]
    )
    assert footprint.outside_m(corner) < 0.002
    assert footprint.outside_m(corner + 1.5 * (corner - (0.2, 0.03))) > 0.03
    assert grasp.width_m == pytest.approx(0.024, abs=0.002)


def test_a_camera_low_over_the_table_needs_depth() -> None:
    T = T_BASE_CAMERA.copy()
    eye, aim = np.array([0.62, 0.0, 0.09]), np.array([0.2, 0.0, 0.02])
    z = (aim - eye) / np.linalg.norm(aim - eye)
    T[:3, :3] = np.column_stack([(0.0, 1.0, 0.0), np.cross(z, (0.0, 1.0, 0.0)), z])
    T[:3, 3] = eye
    frame, ids = shoot([CUBE], T=T)
    lift_affordance(box_around(ids == 1), frame, T)
    with pytest.raises(GraspError, match="from the box: .*gives depth"):
        lift_affordance(box_around(ids == 1), blind(frame), T)


def test_a_box_off_the_table_is_refused_without_depth() -> None:
    frame = Frame(np.zeros((480, 640, 3), np.uint8), None, 0.0, K)
    level = T_BASE_CAMERA.copy()
    level[:3, :3] = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # looks along -x, level
    with pytest.raises(GraspError, match="off the table"):
        lift_affordance(Affordance(0.5, 0.1, 0.1, 0.1), frame, level)


@pytest.mark.parametrize(("x", "y"), [(0.04, 0.5), (0.96, 0.5), (0.5, 0.04), (0.5, 0.97)])
def test_without_depth_what_is_half_out_of_the_picture_is_refused(x: float, y: float) -> None:
    frame = Frame(np.zeros((480, 640, 3), np.uint8), None, 0.0, K)
    with pytest.raises(GraspError, match="border"):
        lift_affordance(Affordance(x, y, 0.1, 0.1), frame, T_BASE_CAMERA)


def test_a_poor_calibration_is_refused_before_anything_moves_and_an_unknown_one_is_noted() -> None:
    frame, ids = shoot([CUBE])
    box = box_around(ids == 1)
    assert lift_affordance(box, frame, T_BASE_CAMERA, reach_covariance_m2=GOOD).notes == ()
    assert "calibration" in lift_affordance(box, frame, T_BASE_CAMERA).notes[0]
    with pytest.raises(GraspError, match=r"known to 1\d mm .95 %.*calibration: run `vlar1 calibrate hand-eye`"):
        lift_affordance(box, frame, T_BASE_CAMERA, reach_covariance_m2=BAD)


def test_a_thing_that_is_known_too_badly_is_not_swapped_for_another() -> None:
    frame, ids = shoot([CUBE, geom("box", (0.04, 0.012, 0.015), 0.22, 0.075)])
    box = box_around(ids == 1, (0.4, 0.0), 1.8)
    view = View(frame, T_BASE_CAMERA)
    meant = [grasp_of_thing(thing, view) for thing in things_meant(box, view)]
    np.testing.assert_allclose([grasp.position_base_m[1] for grasp in meant], (0.03, 0.075), atol=0.003)
    level = np.diag([0.0085**2, 0.0085**2, 0.0])  # good enough for the long one, which the box also covers
    lift_affordance(box_around(ids == 2), frame, T_BASE_CAMERA, reach_covariance_m2=level)
    with pytest.raises(GraspError, match="along the jaws' faces the object is known to"):
        lift_affordance(box, frame, T_BASE_CAMERA, reach_covariance_m2=level)


def test_a_box_around_a_part_is_noted() -> None:
    frame, ids = shoot([geom("box", (0.012, 0.04, 0.015), 0.2, 0.0)])
    whole = box_around(ids == 1)
    assert not any("part" in note for note in lift_affordance(whole, frame, T_BASE_CAMERA).notes)
    end = replace(whole, x=whole.x + 0.35 * whole.width, width=0.3 * whole.width)
    assert any("part" in note for note in lift_affordance(end, frame, T_BASE_CAMERA).notes)


# Ways


def way_to(place: tuple[float, float, float]) -> Trajectory:
    return Trajectory((pixel_of((0.22, 0.03, 0.03)), pixel_of((0.22, -0.02, 0.0)), pixel_of(place)))


def test_without_depth_the_way_is_over_whatever_may_stand_there() -> None:
    frame, ids = shoot([CUBE, bowl(0.22, -0.09)])
    flat = blind(frame)
    grasp = lift_affordance(box_around(ids == 1), flat, T_BASE_CAMERA)
    waypoints = lift_trajectory(way_to((0.22, -0.09, 0.015)), flat, T_BASE_CAMERA, 0.02, grasp=grasp)
    assert waypoints.shape == (4, 3)
    np.testing.assert_allclose(waypoints[:-1, 2], TALLEST_M + 0.02 + grasp.position_base_m[2])
    np.testing.assert_allclose(waypoints[1, :2], (0.22, -0.02), atol=0.002)
    np.testing.assert_allclose(waypoints[-1, :2], (0.22, -0.09), atol=0.003)
    assert 0.01 < waypoints[-1, 2] - grasp.position_base_m[2] < 0.03  # no higher than a rim


def test_where_to_let_go_is_as_sure_as_said() -> None:
    frame, _ = shoot([])
    rng = np.random.default_rng(3)
    found = []
    for _ in range(150):
        x, y = pixel_of((0.22, -0.09, rng.uniform(0.0, 0.03)))
        path = Trajectory(((0.5, 0.5), (x + 0.008 * rng.standard_normal(), y + 0.0107 * rng.standard_normal())))
        end = lift_trajectory(path, blind(frame), T_BASE_CAMERA, 0.02)[-1, :2]
        covariance = release_covariance_m2(path, blind(frame), T_BASE_CAMERA)[:2, :2]
        error = end - (0.22, -0.09)
        found.append(error @ np.linalg.solve(covariance, error))
    assert 1.4 < np.mean(found) < 2.8 and np.mean(np.array(found) < 6.0) > 0.88


def test_the_calibration_is_carried_to_the_place_and_must_reach_the_container() -> None:
    frame, _ = shoot([CUBE, bowl(0.22, -0.09)])
    path = way_to((0.22, -0.09, 0.004))
    exact = release_covariance_m2(path, frame, T_BASE_CAMERA)
    np.testing.assert_allclose(
        release_covariance_m2(path, frame, T_BASE_CAMERA, reach_covariance_m2=BAD) - exact, BAD, atol=1e-12
    )
    assert np.trace(exact) < 0.2 * np.trace(release_covariance_m2(path, blind(frame), T_BASE_CAMERA))
    lift_trajectory(path, frame, T_BASE_CAMERA, 0.02, reach_covariance_m2=BAD)
    with pytest.raises(GraspError, match="where to let go is known to .*calibrate hand-eye"):
        lift_trajectory(path, frame, T_BASE_CAMERA, 0.02, reach_covariance_m2=16 * BAD)
