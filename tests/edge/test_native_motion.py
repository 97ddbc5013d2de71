"""What the servo loop would send, for any plan and any limits: setpoints break no limit and never jump."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from edge.native import _native

Array = NDArray[np.float64]
PERIOD_S = 0.005


def motion_of(limits: Array, start: Array, period_s: float = PERIOD_S) -> _native.Motion:
    motion = _native.Motion(limits, period_s)
    motion.reset(start)
    return motion


def follow(motion: _native.Motion, times: Array, positions: Array, elapsed_s: float = 0.0) -> None:
    velocities = PchipInterpolator(times, positions).derivative()(times) if len(times) > 1 else np.zeros_like(positions)
    motion.follow(times, positions, np.ascontiguousarray(velocities), elapsed_s)


def check_limits(setpoints: Array, limits: Array, period_s: float, start: Array) -> None:
    """Differences from step to step, from rest at `start` on, against the limits; what is left is rounding."""
    low, high = np.minimum(limits[:, 0], start), np.maximum(limits[:, 1], start)
    assert (setpoints >= low - 1e-12).all() and (setpoints <= high + 1e-12).all()
    path = np.vstack([np.repeat(start[None], 3, axis=0), setpoints])
    for order, column in ((1, 2), (2, 3), (3, 4)):
        change = np.abs(np.diff(path, order, axis=0)).max(axis=0)
        rounding = 2.0 ** (order + 2) * np.finfo(float).eps * max(1.0, np.abs(path).max())
        assert (change <= limits[:, column] * period_s**order * (1 + 1e-9) + rounding).all(), (order, change)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_subnormal=False)


@st.composite
def limit_sets(draw: st.DrawFn, joints: int) -> Array:
    rows = []
    for _ in range(joints):
        low = draw(numbers(-4, 3))
        size = lambda least, most: 10.0 ** draw(numbers(least, most))  # noqa: E731
        rows.append([low, low + size(-3, 1), size(-2, 2), size(-2, 3), size(-2, 5)])
    return np.array(rows)


@st.composite
def plans(draw: st.DrawFn, joints: int) -> tuple[Array, Array, Array, float]:
    count = draw(st.integers(1, 6))
    gaps = draw(st.lists(numbers(1e-4, 1.0), min_size=count, max_size=count))
    size = st.lists(numbers(-8, 8), min_size=joints, max_size=joints)
    positions = np.array(draw(st.lists(size, min_size=count, max_size=count)))
    velocities = np.array(draw(st.lists(size, min_size=count, max_size=count)))
    return np.cumsum(gaps), positions, velocities, draw(numbers(-0.2, 1.5))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_stream_of_plans_breaks_a_limit(data: st.DataObject) -> None:
    joints = data.draw(st.integers(1, 3))
    limits = data.draw(limit_sets(joints))
    period_s = data.draw(st.sampled_from([0.001, 0.005, 0.02]))
    inside = np.array([data.draw(numbers(-0.2, 1.2)) for _ in range(joints)])  # also a little outside
    start = limits[:, 0] + inside * (limits[:, 1] - limits[:, 0])
    motion = motion_of(limits, start, period_s)
    sent = []
    for _ in range(data.draw(st.integers(1, 8))):
        match data.draw(st.sampled_from(["plan", "plan", "brake", "hold"])):
            case "plan":
                motion.follow(*data.draw(plans(joints)))
            case "brake":
                motion.brake()
            case "hold":
                motion.hold_at(np.array([data.draw(numbers(-8, 8)) for _ in range(joints)]))
        sent.append(motion.step(data.draw(st.integers(1, 150))))
    motion.brake()
    sent.append(motion.step(300))
    check_limits(np.vstack(sent), limits, period_s, start)


SO101 = np.tile([-1.7, 1.7, 2.5, 12.0, 400.0], (3, 1))


def run_out(motion: _native.Motion, most: int = 4000) -> Array:
    """Steps until nothing moves."""
    sent = [motion.step(1)]
    while not motion.settled:
        sent.append(motion.step(1))
        assert len(sent) < most
    return np.vstack(sent)


def smooth_plan() -> tuple[Array, Array]:
    times = np.arange(0, 2.001, 0.01)
    s = np.clip(times / 1.8, 0, 1)
    s = s**3 * (10 - 15 * s + 6 * s**2)
    return times, np.outer(s, [0.8, -0.5, 0.3])


def test_a_plan_within_the_limits_is_followed_exactly_a_moment_later() -> None:
    times, positions = smooth_plan()
    motion = motion_of(SO101, np.zeros(3))
    follow(motion, times, positions)
    sent = run_out(motion)
    np.testing.assert_allclose(sent[-1], positions[-1], atol=1e-9)
    window = 12  # 2 A / (J dt) with A = 12 rad/s^2, J = 400 rad/s^3
    at = (np.arange(1, len(sent) + 1) - (window - 1) / 2) * PERIOD_S
    expected = np.stack([np.interp(at, times, positions[:, j]) for j in range(3)], axis=1)
    assert np.abs(sent - expected).max() < 1e-3


@settings(max_examples=50, deadline=None)
@given(numbers(1.5, 200.0))
def test_a_plan_that_is_too_fast_is_slowed_down_and_its_path_kept(faster: float) -> None:
    times, positions = smooth_plan()
    motion = motion_of(SO101, np.zeros(3))
    follow(motion, times / faster, positions)
    sent = run_out(motion)
    check_limits(sent, SO101, PERIOD_S, np.zeros(3))
    np.testing.assert_allclose(sent[-1], positions[-1], atol=1e-9)
    along = sent[:, :1] / 0.8  # the path is a straight line in joint space
    assert np.abs(sent - along * [0.8, -0.5, 0.3]).max() < 0.04


def test_a_new_plan_takes_over_in_motion() -> None:
    times, positions = smooth_plan()
    motion = motion_of(SO101, np.zeros(3))
    follow(motion, times, positions)
    first = motion.step(160)
    follow(motion, times, positions[-1] + positions * [-1.5, 0.5, 1.0], elapsed_s=0.3)
    second = run_out(motion)
    sent = np.vstack([first, second])
    check_limits(sent, SO101, PERIOD_S, np.zeros(3))
    np.testing.assert_allclose(sent[-1], positions[-1] * [-0.5, 1.5, 2.0], atol=1e-9)


def test_braking_stops_all_joints_together_within_the_limits() -> None:
    times, positions = smooth_plan()
    motion = motion_of(SO101, np.zeros(3))
    follow(motion, times, positions)
    moving = motion.step(200)
    speed = (moving[-1] - moving[-2]) / PERIOD_S
    motion.brake()
    sent = run_out(motion)
    check_limits(np.vstack([moving, sent]), SO101, PERIOD_S, np.zeros(3))
    assert len(sent) * PERIOD_S <= np.abs(speed).max() / 12.0 + 12 * PERIOD_S + 2 * PERIOD_S
    way = sent[-1] - moving[-1]
    np.testing.assert_allclose(way / way[0], speed / speed[0], atol=0.1)


def test_a_joint_found_outside_its_limits_only_comes_back_in() -> None:
    start = np.array([1.8, 0.0, -1.9])
    motion = motion_of(SO101, start)
    motion.step(50)
    motion.hold_at(np.array([3.0, 0.0, -3.0]))
    np.testing.assert_allclose(motion.step(100)[-1], start)
    motion.hold_at(np.array([1.0, 0.0, -1.0]))
    sent = run_out(motion)
    assert (np.diff(sent[:, 0]) <= 0).all() and (np.diff(sent[:, 2]) >= 0).all()
    motion.hold_at(np.array([3.0, 0.0, -3.0]))
    np.testing.assert_allclose(run_out(motion)[-1], [1.7, 0.0, -1.7])
