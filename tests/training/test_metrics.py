"""Metrics against slow definitions: counted cells, recursion, SciPy's Hausdorff distance, dense sampling."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import directed_hausdorff

from edge.agreement import corners, discrete_frechet, iou
from edge.contract import Affordance
from training.metrics import (
    bootstrap_interval,
    end_point_error,
    giou,
    hausdorff,
    resample,
    rmse,
)

hundredth = st.integers(-30, 130).map(lambda v: v / 100)
unit = st.integers(0, 100).map(lambda v: v / 100)
side = st.integers(0, 60).map(lambda v: v / 100)
boxes = st.builds(Affordance, hundredth, hundredth, side, side)
paths = st.lists(st.tuples(unit, unit), min_size=1, max_size=7)
walks = st.lists(st.tuples(unit, unit), min_size=2, max_size=7, unique=True)


def cells(box: Affordance) -> np.ndarray:
    """The cells of a grid of half hundredths that a box of whole hundredths covers, exactly."""
    centres = (np.arange(200) + 0.5) / 200
    x, y = np.meshgrid(centres, centres)
    inside_x = (x > box.x - box.width / 2) & (x < box.x + box.width / 2)
    return inside_x & (y > box.y - box.height / 2) & (y < box.y + box.height / 2)


def hull(mask: np.ndarray) -> int:
    rows, columns = np.nonzero(mask)
    return int((np.ptp(rows) + 1) * (np.ptp(columns) + 1))


@given(boxes, boxes)
@settings(deadline=None)
def test_iou_and_giou_are_what_counting_cells_gives(a: Affordance, b: Affordance) -> None:
    in_a, in_b = cells(a), cells(b)
    union = int((in_a | in_b).sum())
    overlap = int((in_a & in_b).sum()) / union if union else 0.0
    if union:  # a box clipped to nothing may keep a sliver of rounding
        assert iou(a, b) == pytest.approx(overlap, abs=1e-9)
    assert iou(a, b) == iou(b, a)
    assert giou(a, b) == giou(b, a)
    assert -1.0 <= giou(a, b) <= iou(a, b) + 1e-12
    if in_a.any() and in_b.any():  # a box without an area has a place, which cells do not show
        around = hull(in_a | in_b)
        assert giou(a, b) == pytest.approx(overlap - (around - union) / around, abs=1e-9)


@given(boxes, boxes)
def test_a_box_written_with_negative_sides_is_the_same_box(a: Affordance, b: Affordance) -> None:
    turned = Affordance(a.x, a.y, -a.width, -a.height)
    assert corners(turned) == corners(a)
    assert giou(turned, b) == giou(a, b)


def test_giou_of_far_boxes_falls_towards_minus_one() -> None:
    a = Affordance(0.05, 0.05, 0.02, 0.02)
    near, far = Affordance(0.15, 0.05, 0.02, 0.02), Affordance(0.95, 0.95, 0.02, 0.02)
    assert giou(a, a) == pytest.approx(1.0)
    assert 0.0 > giou(a, near) > giou(a, far) > -1.0


def by_recursion(p: np.ndarray, q: np.ndarray) -> float:
    @cache
    def lead(i: int, j: int) -> float:
        here = float(np.hypot(*(p[i] - q[j])))
        before = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
        if i == j == 0:
            return here
        return max(here, min(lead(k, m) for k, m in before if k >= 0 and m >= 0))

    return lead(len(p) - 1, len(q) - 1)


@given(paths, paths)
@settings(deadline=None)
def test_frechet_is_what_the_recursive_definition_gives(a: list, b: list) -> None:
    assert discrete_frechet(a, b) == pytest.approx(by_recursion(np.array(a), np.array(b)))
    assert discrete_frechet(a, b) >= hausdorff(a, b) - 1e-12


@given(paths, paths)
def test_hausdorff_is_the_larger_of_scipys_two(a: list, b: list) -> None:
    assert hausdorff(a, b) == max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0])
    assert hausdorff(a, a) == 0.0


@given(walks, st.integers(2, 40))
@settings(deadline=None)
def test_resampled_points_are_where_walking_the_path_in_small_steps_comes_by(path: list, count: int) -> None:
    p = np.array(path)
    small = np.concatenate([np.linspace(a, b, 2000, endpoint=False) for a, b in zip(p, p[1:], strict=False)] + [p[-1:]])
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(small, axis=0), axis=1))])
    nearest = [small[np.argmin(np.abs(walked - s))] for s in np.linspace(0.0, walked[-1], count)]
    assert resample(path, count) == pytest.approx(np.array(nearest), abs=2e-3)


@given(paths, st.tuples(unit, unit))
def test_rmse_of_a_shifted_path_is_the_shift_however_many_points_say_it(path: list, by: tuple) -> None:
    shifted = np.array(path) + by
    finer = np.repeat(shifted, 2, axis=0)  # the same polyline in twice the points
    assert rmse(path, shifted) == pytest.approx(np.hypot(*by))
    assert rmse(path, finer) == pytest.approx(np.hypot(*by))
    assert end_point_error(path, shifted) == pytest.approx(np.hypot(*by))


def test_rmse_takes_equal_numbers_of_points_as_they_are() -> None:
    assert rmse([(0, 0), (0.1, 0), (1, 0)], [(0, 0), (0.4, 0), (1, 0)]) == pytest.approx(0.3 / np.sqrt(3))


@pytest.mark.parametrize("metric", [discrete_frechet, hausdorff, rmse, end_point_error])
def test_an_empty_path_is_an_error(metric) -> None:
    with pytest.raises(ValueError, match="empty"):
        metric([], [(0.0, 0.0)])
    with pytest.raises(ValueError, match="empty"):
        metric([(0.0, 0.0)], [])


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_the_bootstrap_interval_is_scipys(statistic) -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(5).beta(4, 2, 300)
    theirs = bootstrap((values,), statistic, n_resamples=4000, method="percentile").confidence_interval
    assert bootstrap_interval(values, statistic, n=4000) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(0.6, 0.2, 60), n=200) for _ in range(300)]
    assert 0.88 <= np.mean([low <= 0.6 <= high for low, high in intervals]) <= 0.98


def test_the_bootstrap_interval_of_the_same_values_is_the_same_and_of_none_is_nan() -> None:
    values = [0.1, 0.9, 0.4]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert np.isnan(bootstrap_interval([])).all()
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
