"""IoU and the discrete Fréchet distance against slow definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract import Affordance
from training.metrics import discrete_frechet, iou

unit = st.integers(0, 100).map(lambda v: v / 100)
side = st.integers(1, 60).map(lambda v: v / 100)
boxes = st.builds(Affordance, unit, unit, side, side)
paths = st.lists(st.tuples(unit, unit), min_size=1, max_size=4)


@given(boxes, boxes)
def test_iou_is_what_counting_cells_of_a_fine_grid_gives(a: Affordance, b: Affordance) -> None:
    centres = (np.arange(400) + 0.5) / 400
    x, y = np.meshgrid(centres, centres)

    def inside(box: Affordance) -> np.ndarray:
        x0, y0, x1, y1 = box.corners
        return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)

    union = (inside(a) | inside(b)).sum()
    counted = (inside(a) & inside(b)).sum() / union if union else 0.0
    assert iou(a, b) == pytest.approx(counted, abs=0.02)
    assert iou(a, b) == pytest.approx(iou(b, a))


def walks(n: int, m: int):
    """Every monotone walk of two dogs on leads of n and m points, by definition of the distance."""
    for order in itertools.product((0, 1, 2), repeat=n + m - 2):
        i = j = 0
        pairs = [(0, 0)]
        for move in order:
            i, j = min(i + (move != 1), n - 1), min(j + (move != 0), m - 1)
            pairs.append((i, j))
        if (i, j) == (n - 1, m - 1):
            yield pairs


@given(paths, paths)
@settings(max_examples=40, deadline=None)
def test_frechet_is_the_shortest_lead_over_all_walks(a: list, b: list) -> None:
    p, q = np.array(a), np.array(b)
    best = min(max(np.linalg.norm(p[i] - q[j]) for i, j in walk) for walk in walks(len(p), len(q)))
    assert discrete_frechet(a, b) == pytest.approx(best)


def test_an_empty_path_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        discrete_frechet([], [(0.0, 0.0)])
