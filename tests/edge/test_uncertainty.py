import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.protocols import Intrinsics
from drivers.sim.render import look_at
from edge.rays import on_plane, project, to_base
from edge.uncertainty import DEPTH_BIAS, DEPTH_NOISE_PER_M, Uncertainty, depth_covariance, in_plane

LENS = Intrinsics(640, 480, 560.0, 560.0, 319.5, 239.5)
T = look_at(np.array([0.5, 0.1, 0.45]), np.array([0.2, 0.0, 0.0]), 0.1)
POINT = np.array([0.18, 0.05, 0.03])


def spread(samples: np.ndarray) -> np.ndarray:
    """(3, 3) of samples (n, 3)."""
    return np.asarray(np.cov(samples.T))


def test_depths_that_are_off_scatter_a_point_as_said() -> None:
    rng = np.random.default_rng(0)
    pixel = project(POINT[None], LENS, T)
    depth = (POINT - T[:3, 3]) @ T[:3, 2]
    sigma = np.hypot(DEPTH_BIAS * depth, DEPTH_NOISE_PER_M * depth**2)
    samples = np.vstack([to_base(pixel, [depth + e], LENS, T) for e in sigma * rng.standard_normal(4000)])
    expected = depth_covariance(POINT, T, 1)
    np.testing.assert_allclose(spread(samples), expected, atol=0.08 * np.trace(expected))


def test_a_pixel_that_is_off_scatters_a_place_as_said() -> None:
    rng = np.random.default_rng(1)
    pixel, covariance_px2 = np.array([300.0, 250.0]), np.array([[4.0, 1.0], [1.0, 2.0]])
    samples = on_plane(rng.multivariate_normal(pixel, covariance_px2, 4000), LENS, T, 0.02)
    expected = in_plane(pixel, covariance_px2, LENS, T, 0.02)
    np.testing.assert_allclose(spread(samples), expected, atol=0.08 * np.trace(expected))


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_many_pixels_average_noise_away_but_no_bias(few: int, many: int) -> None:
    few, many = sorted((few, many))
    depth = float((POINT - T[:3, 3]) @ T[:3, 2])
    small, large = (np.trace(depth_covariance(POINT, T, n)) for n in (many, few))
    ray = (POINT - T[:3, 3]) / depth
    assert (DEPTH_BIAS * depth) ** 2 * (ray @ ray) <= small <= large


def test_causes_add_up_and_the_largest_is_named() -> None:
    known = Uncertainty(np.diag([1e-6, 0.0, 4e-6]), np.diag([2e-6, 1e-6, 0.0]), np.diag([3e-6, 0.0, 1e-6]))
    assert known.along_m(np.array([1.0, 0.0, 0.0])) == pytest.approx(np.sqrt(6e-6))
    assert [known.main_cause(axis) for axis in np.eye(3)] == ["box", "depth", "calibration"]
