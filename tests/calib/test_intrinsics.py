"""Intrinsics from views projected by a known camera: they come back, outliers are named, what is open is refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.board import CAMERA_BOARD, Board, Detection
from calib.intrinsics import (
    MAX_HOLDOUT_PX,
    MIN_VIEWS,
    check_intrinsics,
    poor,
    rough_intrinsics,
    solve_intrinsics,
)
from drivers.errors import UserError
from drivers.protocols import Intrinsics

TRUE = Intrinsics(640, 480, 575.0, 577.0, 326.0, 233.0, (-0.16, 0.06, 0.0008, -0.0006, 0.0))
POINTS_M = CAMERA_BOARD.corners_m()


def project(points_m: np.ndarray, T: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """(n, 2) pixels; Brown's model written out, as an independent reference."""
    x, y = ((points_m @ T[:3, :3].T + T[:3, 3]) @ np.diag([1.0, 1.0, 1.0])).T[:2] / (points_m @ T[2, :3] + T[2, 3])
    k1, k2, p1, p2, k3 = camera.distortion or (0.0,) * 5
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.column_stack([camera.fx * u + camera.cx, camera.fy * v + camera.cy])


def look(
    camera: Intrinsics = TRUE,
    count: int = 16,
    noise_px: float = 0.1,
    tilt_deg: tuple[float, float] = (15.0, 45.0),
    seed: int = 0,
    points_m: np.ndarray = POINTS_M,
) -> list[Detection]:
    """Views all over the image: the board's middle on a grid, tilted every way in turn."""
    rng = np.random.default_rng(seed)
    views: list[Detection] = []
    while len(views) < count:
        axis = 2 * np.pi * len(views) / 7 + rng.uniform(-0.2, 0.2)
        tilt = np.radians(rng.uniform(*tilt_deg))
        R = cv2.Rodrigues(tilt * np.array([np.cos(axis), np.sin(axis), 0.0]))[0]
        R = R @ cv2.Rodrigues(np.array([0.0, 0.0, rng.uniform(-0.4, 0.4)]))[0]
        depth_m = rng.uniform(0.35, 0.6) * camera.fx / 575
        at = np.array([rng.uniform(80, 560), rng.uniform(60, 420)])
        T = np.eye(4)
        T[:3, :3] = R
        centre = np.array([(at[0] - camera.cx) / camera.fx, (at[1] - camera.cy) / camera.fy, 1.0]) * depth_m
        T[:3, 3] = centre - R @ CAMERA_BOARD.centre_m
        px = project(points_m, T, camera)
        inside = (px > 2).all(axis=1) & (px < [637, 477]).all(axis=1)
        if inside.sum() >= 12:
            noise = rng.normal(0, noise_px, (int(inside.sum()), 2))
            views.append(Detection(np.flatnonzero(inside), px[inside] + noise))
    return views


def four(camera: Intrinsics) -> np.ndarray:
    return np.array([camera.fx, camera.fy, camera.cx, camera.cy])


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    fx=st.floats(400, 900),
    aspect=st.floats(0.998, 1.002),
    centre=st.tuples(st.floats(300, 340), st.floats(220, 260)),
    k1=st.floats(-0.3, 0.1),
    tangential=st.tuples(st.floats(-0.001, 0.001), st.floats(-0.001, 0.001)),
    noise_px=st.floats(0.05, 0.3),
    seed=st.integers(0, 1000),
)
def test_a_known_camera_comes_back_as_well_as_is_said(fx, aspect, centre, k1, tangential, noise_px, seed):
    true = Intrinsics(640, 480, fx, fx * aspect, *centre, (k1, 0.3 * k1 * k1, *tangential, 0.0))
    found = solve_intrinsics(look(true, 18, noise_px, seed=seed), CAMERA_BOARD, 640, 480)
    assert found.used.all()
    assert (np.abs(four(found.intrinsics) - four(true)) < 6 * found.sigma_px).all()
    assert (found.sigma_px < 60 * noise_px).all()
    # two coordinates a corner
    assert found.reprojection_px == pytest.approx(noise_px * np.sqrt(2), rel=0.12)
    assert found.holdout_px == pytest.approx(noise_px * np.sqrt(2), rel=0.12)
    # and what counts: where a ray in the middle half of the image ends up, the board's pose being free
    rays = np.column_stack([np.random.default_rng(1).uniform(-0.2, 0.2, (50, 2)), np.ones(50)])
    apart = project(rays, np.eye(4), found.intrinsics) - project(rays, np.eye(4), true)
    assert np.abs(apart - apart.mean(axis=0)).max() < 12 * noise_px


def test_sigmas_are_those_of_many_calibrations():
    found = [solve_intrinsics(look(seed=seed, noise_px=0.2), CAMERA_BOARD, 640, 480) for seed in range(6)]
    z = np.array([(four(one.intrinsics) - four(TRUE)) / one.sigma_px for one in found])
    assert 0.5 < np.sqrt(np.mean(z**2)) < 1.8  # 24 numbers: chance stays near 1, choosing a model adds some


def test_hold_out_is_the_error_of_views_that_opencv_was_not_given():
    """One Newton step in place of a fit without the view: beside fits without each view in turn."""
    views = look(count=12, noise_px=0.3)
    found = solve_intrinsics(views, CAMERA_BOARD, 640, 480)
    flags = 0
    lens = found.intrinsics.distortion or (0.0,) * 5
    for i, fixed in (
        (0, cv2.CALIB_FIX_K1),
        (1, cv2.CALIB_FIX_K2),
        (2, cv2.CALIB_ZERO_TANGENT_DIST),
        (4, cv2.CALIB_FIX_K3),
    ):
        flags |= fixed if lens[i] == 0 else 0
    squares, corners = 0.0, 0
    for left in range(len(views)):
        others = [view for i, view in enumerate(views) if i != left]
        points = [POINTS_M[view.ids].astype(np.float32) for view in others]
        px = [view.corners_px.astype(np.float32) for view in others]
        _, K, D, _, _ = cv2.calibrateCamera(points, px, (640, 480), None, None, flags=flags)
        view = views[left]
        _, r, t = cv2.solvePnP(POINTS_M[view.ids], view.corners_px, K, D)
        predicted = cv2.projectPoints(POINTS_M[view.ids], r, t, K, D)[0].reshape(-1, 2)
        squares += np.sum((predicted - view.corners_px) ** 2)
        corners += len(view.ids)
    assert found.holdout_px == pytest.approx(np.sqrt(squares / corners), rel=0.01)
    assert found.holdout_px > found.reprojection_px


def test_coefficients_that_the_views_do_not_ask_for_stay_zero():
    straight = Intrinsics(640, 480, 575.0, 577.0, 326.0, 233.0)
    none = [solve_intrinsics(look(straight, seed=seed), CAMERA_BOARD, 640, 480).intrinsics for seed in (0, 1)]
    assert all(camera.distortion == () for camera in none)
    bent = Intrinsics(640, 480, 420.0, 420.0, 310.0, 245.0, (-0.32, 0.14, 0.001, -0.0005, -0.03))
    found = solve_intrinsics(look(bent, 25, 0.05), CAMERA_BOARD, 640, 480).intrinsics
    assert found.distortion[4] == pytest.approx(-0.03, abs=0.01)


@pytest.mark.parametrize("kind", ["noisy", "swapped", "one corner"])
def test_views_that_contradict_the_others_are_named_and_do_no_harm(kind: str):
    rng = np.random.default_rng(3)
    views = look(count=16)
    clean = solve_intrinsics(views, CAMERA_BOARD, 640, 480)
    for i in (4, 11):
        px = views[i].corners_px
        if kind == "noisy":  # a board that moved under a rolling shutter
            px = px + rng.normal(0, 1.5, px.shape)
        elif kind == "swapped":
            px = rng.permutation(px)
        else:
            px = px + np.where(np.arange(len(px))[:, None] == 5, 6.0, 0.0)
        views[i] = Detection(views[i].ids, px)
    found = solve_intrinsics(views, CAMERA_BOARD, 640, 480)
    assert np.flatnonzero(~found.used).tolist() == [4, 11]
    assert found.view_px[[4, 11]].min() > 3 * found.view_px[found.used].max()
    assert (np.abs(four(found.intrinsics) - four(clean.intrinsics)) < 3 * clean.sigma_px).all()
    assert poor(found, views, CAMERA_BOARD) == ""


@pytest.mark.parametrize("tilt_deg", [(0.0, 0.0), (0.0, 3.0), (5.0, 6.0)])
@pytest.mark.parametrize("seed", range(2))
def test_frontal_views_are_refused_with_what_to_do(tilt_deg: tuple[float, float], seed: int):
    views = look(tilt_deg=tilt_deg, noise_px=0.2, seed=seed)
    with pytest.raises(UserError, match="camera calibration: .*; tilt the board by 20 to 45 degrees"):
        solve_intrinsics(views, CAMERA_BOARD, 640, 480)


def test_too_few_views_are_refused():
    with pytest.raises(UserError, match=f"7 views of the board, {MIN_VIEWS} are needed"):
        solve_intrinsics(look(count=7), CAMERA_BOARD, 640, 480)


def test_views_most_of_which_contradict_each_other_are_refused():
    views = look(count=12)
    rng = np.random.default_rng(0)
    for i in range(0, 12, 2):
        views[i] = Detection(views[i].ids, views[i].corners_px + rng.normal(0, 1.0 + i, views[i].corners_px.shape))
    with pytest.raises(UserError, match="contradict the others|agree with one another"):
        solve_intrinsics(views, CAMERA_BOARD, 640, 480)


@pytest.mark.parametrize("cause", ["blur", "not flat", "fisheye"])
def test_a_poor_result_names_its_likely_cause(cause: str):
    if cause == "blur":
        views, told = look(noise_px=0.9, count=30), "at random"
    elif cause == "not flat":  # rolled up by 8 mm, as loose paper is
        arched = POINTS_M.copy()
        arched[:, 2] = 0.008 * np.sin(np.pi * arched[:, 0] / CAMERA_BOARD.squares_size_m[0])
        views, told = look(points_m=arched, count=20), "not flat"
    else:  # equidistant, 150 degrees across
        views, told = fisheye_views(), "a fisheye"
    found = solve_intrinsics(views, CAMERA_BOARD, 640, 480)
    assert found.holdout_px > MAX_HOLDOUT_PX
    said = poor(found, views, CAMERA_BOARD)
    assert f"off by {found.holdout_px:.2f} px" in said and told in said


def fisheye_views() -> list[Detection]:
    rng = np.random.default_rng(0)
    views: list[Detection] = []
    while len(views) < 24:
        away = np.array([rng.uniform(-1.2, 1.2), rng.uniform(-0.9, 0.9), 1.0])
        away /= np.linalg.norm(away)
        R = cv2.Rodrigues(np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), rng.uniform(-0.3, 0.3)]))[0]
        p = POINTS_M @ R.T + away * 0.3 - R @ CAMERA_BOARD.centre_m
        theta = np.arctan2(np.linalg.norm(p[:, :2], axis=1), p[:, 2])
        px = 240 * (theta / np.linalg.norm(p[:, :2], axis=1))[:, None] * p[:, :2] + [319.5, 239.5]
        inside = (px > 2).all(axis=1) & (px < [637, 477]).all(axis=1) & (p[:, 2] > 0.02)
        if inside.sum() >= 12:
            views.append(Detection(np.flatnonzero(inside), px[inside]))
    return views


def test_a_print_stretched_along_one_side_is_told_of():
    stretched = POINTS_M * [1.02, 1.0, 1.0]
    found = solve_intrinsics(look(points_m=stretched), CAMERA_BOARD, 640, 480)
    assert "is the print stretched" in found.warning
    assert solve_intrinsics(look(), CAMERA_BOARD, 640, 480).warning == ""


def test_the_size_of_the_squares_does_not_matter():
    half = Board(8, 6, 0.015, 0.011, "DICT_5X5_50")
    a, b = (solve_intrinsics(look(), board, 640, 480) for board in (CAMERA_BOARD, half))
    np.testing.assert_allclose(four(a.intrinsics), four(b.intrinsics), rtol=1e-4)


def test_right_factory_intrinsics_pass_and_wrong_ones_are_told_by_how_much():
    views = look(count=24, noise_px=0.05)
    right = check_intrinsics(views, CAMERA_BOARD, TRUE)
    assert right.good and right.verdict.startswith("good: within noise")
    assert right.reprojection_px == pytest.approx(right.free.reprojection_px, rel=0.05)
    # 2 % longer: at the farthest corner seen, some 370 px from the middle, 7 px, of which a fit takes none up
    longer = Intrinsics(640, 480, 1.02 * TRUE.fx, 1.02 * TRUE.fy, TRUE.cx, TRUE.cy, TRUE.distortion)
    wrong = check_intrinsics(views, CAMERA_BOARD, longer)
    assert not wrong.good and "calibrate this camera instead" in wrong.verdict
    assert 4.5 < wrong.off_px < 9.0
    assert wrong.reprojection_px > 1.2 * wrong.free.reprojection_px
    # off by 3 px sideways is a turn of the camera, to less than a pixel: hand-eye takes it up
    aside = Intrinsics(640, 480, TRUE.fx, TRUE.fy, TRUE.cx + 3.0, TRUE.cy, TRUE.distortion)
    assert check_intrinsics(views, CAMERA_BOARD, aside).off_px < 1.5


def test_a_check_that_cannot_tell_says_so():
    vague = check_intrinsics(look(count=9, noise_px=0.5, tilt_deg=(30.0, 45.0)), CAMERA_BOARD, TRUE)
    assert not vague.good and vague.verdict.startswith("cannot tell")


def test_nominal_intrinsics_cannot_be_checked():
    with pytest.raises(UserError, match="assumed, not measured"):
        check_intrinsics(look(), CAMERA_BOARD, Intrinsics.assumed(640, 480))


def test_a_rough_focal_length_comes_from_a_handful_of_views():
    wide = Intrinsics(640, 480, 400.0, 400.0, 322.0, 238.0, (-0.25, 0.08, 0.0, 0.0, 0.0))
    found = rough_intrinsics(look(wide, 6, 0.2), CAMERA_BOARD, Intrinsics.assumed(640, 480))
    assert found.nominal and found.fx == pytest.approx(400, rel=0.06)
    frontal = look(count=6, noise_px=0.2, tilt_deg=(0.0, 0.0))
    assert 0.3 * 640 <= rough_intrinsics(frontal, CAMERA_BOARD, Intrinsics.assumed(640, 480)).fx <= 3 * 640
