"""A solid from a box, judged against cylinders projected by OpenCV itself."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from drivers.protocols import Intrinsics
from drivers.sim.render import look_at
from edge.box_solid import Solid, fit_solid

LENS = Intrinsics(640, 480, 560.0, 550.0, 321.0, 243.0, (0.08, -0.03, 0.001, -0.001, 0.0))
SHAPE_LOG = 0.35  # the prior's, of height against width
PLAIN = Intrinsics(640, 480, 560.0, 560.0, 319.5, 239.5)


def edges_of(T: np.ndarray, lens: Intrinsics, x: float, y: float, width: float, height: float, table: float = 0.0):
    """(4,) the box around an upright cylinder of 400 outline points."""
    turns = np.linspace(0, 2 * np.pi, 200)
    rim = np.column_stack([x + width / 2 * np.cos(turns), y + width / 2 * np.sin(turns), np.full(200, table)])
    points = np.vstack([rim, rim + (0, 0, height)])
    rvec, tvec = cv2.Rodrigues(T[:3, :3].T)[0], -T[:3, :3].T @ T[:3, 3]
    pixels, _ = cv2.projectPoints(points, rvec, tvec, lens.matrix, np.array(lens.distortion or [0.0] * 5))
    return np.concatenate([pixels.min(axis=0)[0], pixels.max(axis=0)[0]])


def errors(solid: Solid, x: float, y: float, width: float, height: float) -> np.ndarray:
    """(5,) in the order of ``Solid.covariance``."""
    sides = np.log(np.array(solid.footprint.sides_m) / width)
    return np.array([*(solid.footprint.centre_m - (x, y)), *sides, np.log(solid.height_m / height)])


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0.35, 0.7)),
    st.floats(-3.1, 3.1),
    st.tuples(st.floats(0.12, 0.28), st.floats(-0.1, 0.1), st.floats(0.018, 0.05), st.floats(0.018, 0.06)),
    st.floats(-0.05, 0.05),
)
def test_the_truth_is_within_what_is_said(
    eye: tuple[float, float, float], roll: float, truth: tuple[float, float, float, float], table: float
) -> None:
    assume(abs(math.log(truth[3] / truth[2])) < 2.0 * SHAPE_LOG)  # a thing such as the prior expects
    T = look_at(np.array([eye[0], eye[1], eye[2] + table]), np.array([0.2, 0.013, table]), roll)
    solid = fit_solid(edges_of(T, LENS, *truth, table), LENS, T, table)
    assert solid is not None
    error = errors(solid, *truth)
    assert error @ np.linalg.solve(solid.covariance, error) < chi2.isf(1e-3, 5)
    assert np.linalg.norm(error[:2]) < 0.02


def test_what_the_prior_expects_is_found_as_it_is() -> None:
    T = look_at(np.array([0.5, 0.0, 0.44]), np.array([0.2, 0.0, 0.0]))
    solid = fit_solid(edges_of(T, PLAIN, 0.2, 0.03, 0.032, 0.032), PLAIN, T, 0.0)
    assert solid is not None
    np.testing.assert_allclose(errors(solid, 0.2, 0.03, 0.032, 0.032), 0.0, atol=0.03)


def test_seen_from_straight_above_the_height_does_not_move_the_centre() -> None:
    above, slanted = (look_at(np.array([0.2 + away, 0.0, 0.5]), np.array([0.2, 0.0, 0.0])) for away in (0.002, 0.5))
    spreads = []
    for T in (above, slanted):
        solid = fit_solid(edges_of(T, PLAIN, 0.2, 0.0, 0.03, 0.04), PLAIN, T, 0.0)
        assert solid is not None
        spreads.append(np.sqrt(solid.covariance[0, 0]))
    assert spreads[1] > 1.3 * spreads[0]


@pytest.mark.parametrize("grow", [0.5, 1.0, 2.0])
def test_a_box_less_sure_makes_a_place_less_sure(grow: float) -> None:
    near, far = (look_at(np.array([0.5, 0.0, 0.44]) * scale, np.array([0.2, 0.0, 0.0])) for scale in (1.0, 2.0))
    solids = [fit_solid(edges_of(T, PLAIN, 0.2, 0.0, 0.03 * grow, 0.03 * grow), PLAIN, T, 0.0) for T in (near, far)]
    areas = [np.linalg.det(solid.covariance[:2, :2]) for solid in solids if solid is not None]
    assert len(areas) == 2 and areas[1] > areas[0]


def test_a_box_above_the_horizon_is_on_no_table() -> None:
    T = look_at(np.array([0.5, 0.0, 0.3]), np.array([0.0, 0.0, 0.4]))
    assert fit_solid(np.array([300.0, 200.0, 340.0, 240.0]), PLAIN, T, 0.0) is None


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 640), st.floats(0, 480), st.floats(1, 600), st.floats(1, 400))
def test_any_box_gives_a_finite_solid_or_none(x: float, y: float, w: float, h: float) -> None:
    T = look_at(np.array([0.5, 0.0, 0.3]), np.array([0.1, 0.0, 0.1]))
    solid = fit_solid(np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]), PLAIN, T, 0.0)
    if solid is not None:
        assert np.isfinite(solid.covariance).all() and np.linalg.eigvalsh(solid.covariance)[0] > 0
        assert solid.height_m > 0 and min(solid.footprint.sides_m) > 0
