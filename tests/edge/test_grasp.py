import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib.rigid import rotation
from edge.grasp import JAW_PLAY_M, SQUEEZE_M, Grasp, GraspError, require_fits, require_known
from edge.kinematics import MAX_OPENING_M
from edge.outline import Footprint
from edge.uncertainty import CONFIDENT, Uncertainty

AXES = {"along the jaws' opening": 0, "along the jaws' faces": 1, "in height": 2}


def grasp(known: Uncertainty, width_m: float = 0.03, shape: str = "round", yaw_rad: float = 0.0) -> Grasp:
    footprint = Footprint(np.array([0.2, 0.0]), yaw_rad, (width_m, width_m))
    position = np.array([0.2, 0.0, 0.015])
    return Grasp(position, yaw_rad, width_m, 0.03, shape, footprint=footprint, uncertainty=known)


def sigma(axis: int, sigma_m: float) -> np.ndarray:
    covariance = np.zeros((3, 3))
    covariance[axis, axis] = sigma_m**2
    return covariance


@given(st.floats(0.005, 0.062), st.floats(0.0, 0.02), st.floats(0.0, 0.01), st.sampled_from(["round", "unknown"]))
def test_the_jaws_open_for_what_is_known_and_close_beyond_it(
    width_m: float, sigma_m: float, width_sigma_m: float, shape: str
) -> None:
    it = grasp(Uncertainty(box_m2=sigma(0, sigma_m), width_m=width_sigma_m), width_m, shape)
    sure = grasp(Uncertainty(), width_m)
    assert sure.opening_m == pytest.approx(min(width_m + 2 * JAW_PLAY_M, MAX_OPENING_M))
    assert sure.opening_m - 1e-12 <= it.opening_m <= MAX_OPENING_M
    if it.opening_m < MAX_OPENING_M:  # either jaw passes beside the object wherever 95 % of the error put it
        assert (it.opening_m - width_m) / 2 >= CONFIDENT * (sigma_m + width_sigma_m / 2) - 1e-12
    assert 0.0 <= it.closed_m < it.held_m < width_m
    assert it.closed_m <= sure.closed_m
    if it.narrowest_m > SQUEEZE_M / 2:  # the narrowest it may be is told from nothing
        assert it.held_m <= it.narrowest_m + 1e-12


@pytest.mark.parametrize("way", AXES)
@pytest.mark.parametrize(
    ("cause", "advice"),
    [("calibration", "vlar1 calibrate hand-eye"), ("depth", "camera nearer"), ("box", "gives depth")],
)
def test_what_is_not_known_well_enough_is_refused_by_way_and_cause(way: str, cause: str, advice: str) -> None:
    bad = sigma(AXES[way], 0.02)
    known = Uncertainty(**{f"{cause}_m2": bad}, top_m=0.0 if cause == "calibration" or way != "in height" else 0.02)
    with pytest.raises(GraspError, match=f"{way}.* mm .*from the {cause}: .*{advice}") as error:
        require_known(grasp(known))
    assert "\n" not in str(error.value)


@given(
    st.floats(0.01, 0.055),
    st.lists(st.floats(0.0, 0.004), min_size=3, max_size=3),
    st.floats(1.0, 20.0),
    st.floats(0, 3),
)
def test_what_is_refused_stays_refused_when_less_is_known(
    width_m: float, sigmas: list[float], times: float, yaw_rad: float
) -> None:
    def refused(scale: float) -> bool:
        turn = rotation((0.0, 0.0, yaw_rad))
        covariance = turn @ np.diag(np.square(sigmas)) @ turn.T * scale**2
        try:
            require_known(grasp(Uncertainty(covariance), width_m, yaw_rad=yaw_rad))
        except GraspError:
            return True
        return False

    assert refused(times) or not refused(1.0)
    # The jaws see the error along their own axes, however they are turned.
    play, pad, floor = (MAX_OPENING_M - width_m) / 2, 0.009, 0.006
    expected = any(CONFIDENT * s * times > room for s, room in zip(sigmas, (play, pad, floor), strict=True))
    if not any(abs(CONFIDENT * s * times - r) < 1e-9 for s, r in zip(sigmas, (play, pad, floor), strict=True)):
        assert refused(times) == expected


def test_a_long_flat_side_may_be_held_anywhere() -> None:
    known = Uncertainty(box_m2=sigma(1, 0.010))
    bar = Grasp(np.array([0.2, 0.0, 0.012]), 0.0, 0.024, 0.03, "box", uncertainty=known)
    with pytest.raises(GraspError, match="faces"):
        require_known(bar)
    for footprint in (
        Footprint(np.array([0.2, 0.0]), 0.0, (0.024, 0.064)),
        Footprint(np.array([0.2, 0.0]), math.pi / 2, (0.064, 0.024)),
    ):
        require_known(Grasp(bar.position_base_m, 0.0, 0.024, 0.03, "box", footprint=footprint, uncertainty=known))


def test_too_wide_is_said_with_both_widths() -> None:
    require_fits(grasp(Uncertainty(), 0.060))
    with pytest.raises(GraspError, match="66 mm wide; the jaws take up to 62 mm"):
        require_fits(grasp(Uncertainty(), 0.066))
