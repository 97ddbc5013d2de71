"""Guidance: it asks for what is missing, takes what adds to it, and knows a board at rest from one that drifts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.board import CAMERA_BOARD, Detection
from calib.guidance import COLUMNS, LEAST_VIEWS, ROWS, TILTS, WANTED, Coverage, Stillness, outline_px, spread
from calib.intrinsics import solve_intrinsics
from drivers.protocols import Intrinsics

TRUE = Intrinsics(640, 480, 560.0, 560.0, 319.5, 239.5)
TURN = {"left": (0, -0.5, 0), "right": (0, 0.5, 0), "top": (0.5, 0, 0), "bottom": (-0.5, 0, 0), "": (0, 0, 0)}
"""Rotation vectors that bring each edge of the board nearer."""


def see(x: float, y: float, tilt: str = "", depth_m: float = 0.45, camera: Intrinsics = TRUE) -> Detection:
    """The board with its middle at a share of the image, the named edge nearer."""
    R = cv2.Rodrigues(np.array(TURN[tilt], dtype=float))[0]
    at = np.array([(x * 640 - camera.cx) / camera.fx, (y * 480 - camera.cy) / camera.fy, 1.0]) * depth_m
    p = (CAMERA_BOARD.corners_m() - CAMERA_BOARD.centre_m) @ R.T + at
    px = p[:, :2] / p[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    inside = (px > 1).all(axis=1) & (px < [638, 478]).all(axis=1)
    return Detection(np.flatnonzero(inside), px[inside])


def test_the_tilts_in_this_file_are_what_they_are_called():
    """Nearer is larger: the side of the board with that name is the longest of the opposite two."""
    for tilt in TILTS:
        top_left, top_right, bottom_right, bottom_left = outline_px(see(0.5, 0.5, tilt), CAMERA_BOARD)
        sides = {
            "left": np.linalg.norm(top_left - bottom_left),
            "right": np.linalg.norm(top_right - bottom_right),
            "top": np.linalg.norm(top_left - top_right),
            "bottom": np.linalg.norm(bottom_left - bottom_right),
        }
        opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[tilt]
        assert sides[tilt] > 1.2 * sides[opposite]


@pytest.mark.parametrize("tilt", TILTS)
def test_each_tilt_is_counted_as_what_it_is(tilt: str):
    coverage = Coverage(CAMERA_BOARD, TRUE)
    coverage.keep(see(0.5, 0.5, tilt))
    assert coverage.tilt_views.tolist() == [int(name == tilt) for name in TILTS]
    assert coverage.share == pytest.approx(0.5 * (0.25 / WANTED + np.mean(coverage.cell_views > 0) / WANTED))


def test_a_frontal_board_is_no_tilt_and_its_place_is_counted():
    coverage = Coverage(CAMERA_BOARD, TRUE)
    coverage.keep(see(0.12, 0.12, depth_m=0.8))
    assert coverage.tilt_views.sum() == 0
    assert (
        coverage.cell_views[0, 0] == 1 and coverage.cell_views[-1].sum() == 0 and coverage.cell_views[:, -1].sum() == 0
    )


def test_a_view_that_adds_nothing_is_not_taken():
    coverage = Coverage(CAMERA_BOARD, TRUE)
    view = see(0.5, 0.5, "left")
    assert coverage.adds(view)
    assert coverage.advice(view) == "hold it still"
    coverage.keep(view)
    assert not coverage.adds(view)
    assert not coverage.adds(see(0.51, 0.5, "left"))  # nearly the same
    assert coverage.adds(see(0.5, 0.5, "right"))
    for x in (0.4, 0.6):
        coverage.keep(see(x, 0.5, "left"))
    tilts = coverage.tilt_views[TILTS.index("left")]
    assert tilts == 3 and coverage.tilt_views.sum() == 3


def test_advice_asks_for_what_is_missing():
    coverage = Coverage(CAMERA_BOARD, TRUE)
    assert coverage.advice(None).startswith("show the board")
    far = see(0.5, 0.5, depth_m=1.6)
    assert coverage.advice(far).startswith("come closer")
    for x in (0.45, 0.55):
        for y in (0.45, 0.55):
            for tilt in TILTS:
                coverage.keep(see(x, y, tilt))
    old = see(0.45, 0.45, "left")
    assert coverage.advice(old) == "move it to the top left of the picture"
    coverage.cell_views[:] = WANTED
    coverage.cell_views[-1, -1] = 0
    assert coverage.advice(old) == "move it to the bottom right of the picture"
    coverage.cell_views[:] = WANTED
    coverage.tilt_views[:] = [WANTED, WANTED, 0, WANTED]
    assert coverage.advice(old) == "tilt it, so that its top edge in the picture is nearer to the camera"


def test_whoever_does_as_told_is_soon_done_and_gets_a_camera():
    """From a camera that does not know its field of view; what came of it determines the intrinsics."""
    wide = Intrinsics(640, 480, 430.0, 430.0, 325.0, 236.0)
    coverage = Coverage(CAMERA_BOARD, Intrinsics.assumed(640, 480))
    rng = np.random.default_rng(0)
    x, y, tilt, looks = 0.5, 0.5, "", 0
    shares = [0.0]
    places = {"left": 0.12, "right": 0.88, "top": 0.12, "bottom": 0.88}
    while not coverage.complete:
        looks += 1
        assert looks < 200
        view = see(x, y, tilt, rng.uniform(0.3, 0.4), wide)
        if len(view.ids) >= 12 and coverage.adds(view):
            coverage.keep(Detection(view.ids, view.corners_px + rng.normal(0, 0.1, view.corners_px.shape)))
            shares.append(coverage.share)
        words = coverage.advice(view).replace(",", "").split()
        if "tilt" in words:
            tilt = words[words.index("edge") - 1]
        elif "move" in words:
            x = next((places[word] for word in ("left", "right") if word in words), 0.5) + rng.uniform(-0.08, 0.08)
            y = next((places[word] for word in ("top", "bottom") if word in words), 0.5) + rng.uniform(-0.08, 0.08)
        else:
            x, y = rng.uniform(0.2, 0.8, 2)
    assert LEAST_VIEWS <= len(coverage.kept) <= 40
    assert shares[-1] == 1.0
    found = solve_intrinsics(coverage.kept, CAMERA_BOARD, 640, 480)
    assert found.intrinsics.fx == pytest.approx(430, rel=0.01)
    assert found.sigma_px[0] < 2.0


@settings(max_examples=50, deadline=None)
@given(
    drift=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    noise_px=st.floats(0, 0.2),
    frames=st.integers(2, 8),
    seed=st.integers(0, 99),
)
def test_still_means_that_corners_stay_where_they_were(drift, noise_px, frames, seed):
    """Against the definition: a run of frames whose corners are all near those of its first."""
    rng = np.random.default_rng(seed)
    view, stillness = see(0.5, 0.5), Stillness(limit_px=1.0, frames=frames)
    seen, first = [], 0
    for t in range(12):
        px = view.corners_px + t * np.array(drift) + rng.normal(0, noise_px, view.corners_px.shape)
        seen.append(px)
        if np.median(np.linalg.norm(px - seen[first], axis=1)) > 1.0:
            first = t
        assert stillness.see(Detection(view.ids, px)) == (t - first + 1 >= frames)


def test_a_board_that_drifts_slowly_or_is_lost_is_not_still():
    view = see(0.5, 0.5)
    drifting = Stillness(1.0, frames=4)
    assert not any(drifting.see(Detection(view.ids, view.corners_px + 0.4 * t)) for t in range(30))
    lost = Stillness(1.0, frames=3)
    assert [lost.see(one) for one in (view, view, None, view, view, view)] == [False] * 5 + [True]
    partly = Stillness(1.0, frames=2)  # other corners come into sight, those in both stay
    assert not partly.see(Detection(view.ids[:20], view.corners_px[:20]))
    assert partly.see(Detection(view.ids[10:], view.corners_px[10:]))
    other = Stillness(1.0, frames=2)
    assert not other.see(Detection(view.ids[:10], view.corners_px[:10]))
    assert not other.see(Detection(view.ids[10:], view.corners_px[10:]))


def test_of_many_views_those_far_apart_are_chosen():
    near = [see(0.5 + 0.001 * i, 0.5) for i in range(20)]
    corners = [see(x, y) for x in (0.25, 0.75) for y in (0.3, 0.7)]
    chosen = spread([*near, *corners], CAMERA_BOARD, 5)
    assert chosen == sorted(chosen) and len(chosen) == 5
    assert set(range(20, 24)) <= set(chosen)
    assert spread(near, CAMERA_BOARD, 40) == list(range(20))


def test_cells_and_tilts_are_as_many_as_documented():
    coverage = Coverage(CAMERA_BOARD, TRUE)
    assert coverage.cell_views.shape == (ROWS, COLUMNS) and coverage.tilt_views.shape == (len(TILTS),)
    assert coverage.share == 0.0 and not coverage.complete
