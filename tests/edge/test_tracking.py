"""A thing is followed wherever it goes and whatever goes on behind it; covered or gone, it is lost and not mistaken."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.protocols import Frame
from drivers.sim.render import CAMERA, scaled
from edge.appearance import WIDTH_PX, Thumbnail, thumbnail_of
from edge.contract import Affordance
from edge.tracking import Tracker

SIZE = np.array([320, 240])
START = np.array([140.0, 110.0])
SIDE = 40.0
ANCHOR = (float((START[0] + 8.5) / SIZE[0]), float((START[1] - 5.5) / SIZE[1]))


def noise(seed: int, low: int, high: int, shape: tuple[int, int] = (240, 320), blur: float = 2.0) -> np.ndarray:
    """A coloured texture."""
    rough = np.random.default_rng(seed).uniform(0.0, 1.0, (*shape, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(rough, (0, 0), blur)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return (low + (high - low) * smooth).astype(np.uint8)


PLAIN = np.full((40, 40, 3), (190, 40, 30), np.uint8)
PLAIN[26:] = (120, 25, 20)  # its front, in the shade
PRINTED = noise(99, 20, 250, (40, 40), 1.5)
TABLE = noise(1, 70, 170)


def view(
    at: np.ndarray | None,
    scale: float = 1.0,
    thing: np.ndarray = PLAIN,
    table: np.ndarray = TABLE,
    depth: bool = False,
    seed: int = 0,
) -> Thumbnail:
    """The thing with its middle at a pixel, on a table that a camera sees straight from above; None: no thing."""
    rgb = table.astype(np.float32)
    depth_m = np.full(rgb.shape[:2], 0.5, np.float32)
    if at is not None:
        half = (SIDE - 1.0) / 2.0
        M = np.array([[scale, 0.0, at[0] - scale * half], [0.0, scale, at[1] - scale * half]])
        size = (int(SIZE[0]), int(SIZE[1]))
        cover = cv2.warpAffine(np.ones(thing.shape[:2], np.float32), M, size)
        painted = cv2.warpAffine(thing.astype(np.float32), M, size, borderMode=cv2.BORDER_REPLICATE)
        rgb = rgb * (1.0 - cover[..., None]) + painted * cover[..., None]
        depth_m[cover > 0.5] = 0.47
    rng = np.random.default_rng(seed)
    rgb = np.clip(rgb + rng.normal(0.0, 2.0, rgb.shape), 0, 255).astype(np.uint8)
    depth_m *= 1.0 + 0.0015 * rng.standard_normal(depth_m.shape, np.float32)
    return Thumbnail(rgb, depth_m if depth else None, float(seed))


def box_at(at: np.ndarray, scale: float = 1.0) -> Affordance:
    x, y = (at + 0.5) / SIZE
    return Affordance(float(x), float(y), scale * SIDE / SIZE[0], scale * SIDE / SIZE[1])


def centre_px(box: Affordance) -> np.ndarray:
    return np.array([box.x, box.y]) * SIZE - 0.5


@settings(max_examples=12, deadline=None)
@given(
    way=st.tuples(st.floats(-60, 60), st.floats(-50, 50)),
    scale=st.floats(0.87, 1.15),
    printed=st.booleans(),
    depth=st.booleans(),
    steps=st.integers(3, 12),
)
def test_the_box_and_what_rides_with_it_follow_a_thing_that_moves_and_comes_nearer(
    way: tuple[float, float], scale: float, printed: bool, depth: bool, steps: int
) -> None:
    thing = PRINTED if printed else PLAIN
    tracker = Tracker(view(START, 1.0, thing, depth=depth), box_at(START), (ANCHOR,))
    for k in range(1, steps + 1):
        share = k / steps
        at, size = START + share * np.array(way), 1.0 + share * (scale - 1.0)
        tracked = tracker.update(view(at, size, thing, depth=depth, seed=k))
    assert tracked.lost is None
    np.testing.assert_allclose(centre_px(tracked.box), at, atol=1.5)
    assert tracked.box.width * SIZE[0] == pytest.approx(scale * SIDE, abs=3.0)
    rides = at + scale * (np.array(ANCHOR) * SIZE - 0.5 - START)
    np.testing.assert_allclose(np.array(tracked.points[0]) * SIZE - 0.5, rides, atol=1.5)


@settings(max_examples=6, deadline=None)
@given(off=st.lists(st.floats(-0.12, 0.12), min_size=4, max_size=4), depth=st.booleans())
def test_a_box_that_is_only_roughly_right_keeps_its_place_on_the_thing(off: list[float], depth: bool) -> None:
    exact = box_at(START)
    box = Affordance(
        exact.x + off[0] * exact.width,
        exact.y + off[1] * exact.height,
        exact.width * (1 + off[2]),
        exact.height * (1 + off[3]),
    )
    tracker = Tracker(view(START, depth=depth), box)
    for k in range(1, 7):
        tracked = tracker.update(view(START + k * np.array([6.0, -4.0]), depth=depth, seed=k))
    assert tracked.lost is None
    np.testing.assert_allclose(centre_px(tracked.box) - centre_px(box), [36.0, -24.0], atol=1.5)


@pytest.mark.parametrize("thing", [PLAIN, PRINTED], ids=["plain", "printed"])
def test_what_goes_on_behind_it_does_not_drag_it_along(thing: np.ndarray) -> None:
    tracker = Tracker(view(START, thing=thing), box_at(START))
    for k in range(1, 15):
        table = np.roll(TABLE, 9 * k, axis=1)
        tracked = tracker.update(view(START, thing=thing, table=table, seed=k))
        assert tracked.lost is None
        np.testing.assert_allclose(centre_px(tracked.box), START, atol=1.0)


@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("thing", [PLAIN, PRINTED], ids=["plain", "printed"])
def test_a_covered_thing_is_lost_and_found_again_where_it_is_then(thing: np.ndarray, depth: bool) -> None:
    tracker = Tracker(view(START, thing=thing, depth=depth), box_at(START))
    assert tracker.update(view(START, thing=thing, depth=depth, seed=1)).lost is None
    hand = view(START, thing=thing, depth=depth, seed=2)
    hand.rgb[70:, 100:180] = noise(5, 150, 210)[70:, 100:180]
    if hand.depth_m is not None:
        hand.depth_m[70:, 100:180] = 0.40
    covered = tracker.update(hand)
    assert covered.lost is not None and "covered" in covered.lost
    elsewhere = START + [35.0, 20.0]
    found = tracker.update(view(elsewhere, thing=thing, depth=depth, seed=3))
    assert found.lost is None
    np.testing.assert_allclose(centre_px(found.box), elsewhere, atol=1.5)


@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("thing", [PLAIN, PRINTED], ids=["plain", "printed"])
def test_a_thing_that_was_taken_away_or_exchanged_is_lost(thing: np.ndarray, depth: bool) -> None:
    tracker = Tracker(view(START, thing=thing, depth=depth), box_at(START))
    assert tracker.update(view(None, depth=depth, seed=1)).lost is not None
    other = np.full((40, 40, 3), (30, 60, 180), np.uint8)
    assert tracker.update(view(START, thing=other, depth=depth, seed=2)).lost is not None


def test_by_depth_even_a_thing_in_the_colour_of_the_table_is_followed_and_missed() -> None:
    white = np.full((40, 40, 3), 180, np.uint8)
    table = np.full((240, 320, 3), 180, np.uint8)
    tracker = Tracker(view(START, thing=white, table=table, depth=True), box_at(START))
    for k in range(1, 6):
        at = START + k * np.array([-7.0, 5.0])
        tracked = tracker.update(view(at, thing=white, table=table, depth=True, seed=k))
    assert tracked.lost is None
    np.testing.assert_allclose(centre_px(tracked.box), at, atol=1.5)
    assert tracker.update(view(None, table=table, depth=True, seed=9)).lost is not None


@pytest.mark.parametrize("gain", [0.6, 0.8, 1.2])
def test_other_light_is_no_loss_and_no_movement(gain: float) -> None:
    tracker = Tracker(view(START), box_at(START))
    lit = view(START, seed=1)
    lit = Thumbnail(np.clip(lit.rgb * gain, 0, 255).astype(np.uint8), None, 1.0)
    tracked = tracker.update(lit)
    assert tracked.lost is None
    np.testing.assert_allclose(centre_px(tracked.box), START, atol=0.5)


def test_a_shadow_that_falls_on_it_is_no_loss() -> None:
    tracker = Tracker(view(START), box_at(START))
    shaded = view(START, seed=1)
    shaded.rgb[:, :142] = (0.55 * shaded.rgb[:, :142]).astype(np.uint8)
    assert tracker.update(shaded).lost is None


@pytest.mark.parametrize("corner", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_a_box_at_the_edge_of_the_image_is_no_error(corner: tuple[float, float]) -> None:
    tracker = Tracker(view(START, depth=True), Affordance(*corner, 0.01, 0.01), (corner,))
    tracked = tracker.update(view(START, depth=True, seed=1))
    assert 0.0 <= tracked.box.x <= 1.0 and tracked.points[0] == pytest.approx(corner, abs=0.02)


def test_a_large_frame_is_followed_small() -> None:
    intrinsics = scaled(CAMERA, 1280, 960)
    rgb = cv2.resize(TABLE, (1280, 960))
    depth_m = np.full((960, 1280), 0.5, np.float32)
    small = thumbnail_of(Frame(rgb, depth_m, 7.0, intrinsics))
    assert small.size_px == (WIDTH_PX, 240) and small.t_s == 7.0
    assert small.depth_m is not None and small.depth_m.shape == (240, 320)
    assert np.abs(small.rgb.astype(int) - TABLE).mean() < 2.0
