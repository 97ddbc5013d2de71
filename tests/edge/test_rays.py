import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from drivers.protocols import Intrinsics
from drivers.sim.render import look_at
from edge.rays import on_plane, plane_derivative, project, to_base

cameras = st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6), st.floats(0.25, 0.9), st.floats(-3.1, 3.1)).map(
    lambda c: look_at(np.array(c[:3]), np.array([0.2, 0.01, 0.0]), c[3])
)
lenses = st.tuples(
    st.floats(-0.1, 0.1), st.floats(-0.05, 0.05), st.floats(-0.002, 0.002), st.floats(-0.002, 0.002)
).map(lambda d: Intrinsics(640, 480, 560.0, 550.0, 321.0, 243.0, (*d, 0.0)))
near_the_middle = st.tuples(st.floats(260, 380), st.floats(190, 290)).map(np.array)


@given(cameras, lenses, near_the_middle, st.floats(-0.05, 0.05))
def test_a_place_on_a_plane_is_seen_at_its_pixel(
    T: np.ndarray, lens: Intrinsics, pixel: np.ndarray, z_m: float
) -> None:
    place = on_plane(pixel, lens, T, z_m)
    np.testing.assert_allclose(place[0, 2], z_m, atol=1e-9)
    np.testing.assert_allclose(project(place, lens, T)[0], pixel, atol=0.02)
    depth = (place[0] - T[:3, 3]) @ T[:3, 2]
    np.testing.assert_allclose(to_base(pixel[None], [depth], lens, T), place, atol=1e-6)


@given(cameras, lenses, near_the_middle)
def test_the_derivative_says_where_the_next_pixel_is(T: np.ndarray, lens: Intrinsics, pixel: np.ndarray) -> None:
    step = np.array([0.3, -0.2])
    moved = on_plane(pixel + step, lens, T, 0.0) - on_plane(pixel, lens, T, 0.0)
    expected = plane_derivative(pixel, lens, T, 0.0) @ step
    np.testing.assert_allclose(moved[0, :2], expected, rtol=0.03, atol=1e-6)


def test_a_ray_that_does_not_come_down_meets_nothing() -> None:
    level = np.eye(4)
    level[:3, :3] = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # looks along +x
    level[2, 3] = 0.3
    lens = Intrinsics(640, 480, 560.0, 560.0, 319.5, 239.5)
    up, ahead, down = on_plane([(320, 100), (319.5, 239.5), (320, 400)], lens, level, 0.0)
    assert np.isinf(up).all() and np.isinf(ahead).all()
    assert down[0] > 0.0 and down[2] == 0.0
