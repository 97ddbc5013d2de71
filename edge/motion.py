"""From a grasp and waypoints to timed joint setpoints: straight lines where it matters, limits everywhere.

A phase is a path of joint knots from rest to rest. Along it the arm speeds up, cruises and slows down, with no
step in acceleration, as fast as the limits on joint velocity and acceleration allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from edge.grasp import FINGER_FLOOR_M, MIN_HOLD_M, Grasp
from edge.kinematics import FINGER_DEPTH_M, MAX_OPENING_M, Kinematics, ReachError, Solution

Array = NDArray[np.float64]

VELOCITY_RAD_S = 1.5
ACCELERATION_RAD_S2 = 6.0
RATE_HZ = 100.0

_FLOOR_M = 0.004  # no finger comes nearer to the table
_DROP_PLAY_M = 0.010  # how much each jaw opens to let go
_LIFT_M = 0.085  # of the held object's lowest point over the table
_SAFE_TIP_M = 0.055  # fingers above this pass over everything that stands on the table
_RETREAT_M = 0.06
_STEP_M = 0.005
_JUMP_RAD = 0.30  # more than this within one step is another configuration of the arm, not a movement
_SETTLE_S = 0.15  # for the jaws to build up force
_RAMPS = (0.2, 0.3, 0.4, 0.5)  # shares of a phase in which to speed up: long ones cruise, short ones do not


@dataclass(frozen=True)
class JointTrajectory:
    """Joint setpoints over time.

    Attributes:
        times_s: (n,) from 0, increasing.
        position_rad: (n, 6) setpoints, the gripper last.
    """

    times_s: Array
    position_rad: Array

    @property
    def duration_s(self) -> float:
        return float(self.times_s[-1])


def plan_move(q_from_rad: ArrayLike, q_to_rad: ArrayLike) -> JointTrajectory:
    """Straight through joint space, from rest to rest. Both (6,). Nothing in the way is looked at."""
    return _timed(np.array([q_from_rad, q_to_rad], dtype=float))


def plan_rest(trajectory: JointTrajectory, q_from_rad: ArrayLike) -> JointTrajectory:
    """What is left of a trajectory that ended on its way at ``q_from_rad`` (6,), from rest to rest."""
    q_from = np.asarray(q_from_rad, dtype=float)
    nearest = int(np.abs(trajectory.position_rad - q_from).max(axis=1).argmin())
    return _timed(np.vstack([q_from, trajectory.position_rad[nearest:]]))


def plan_pick(
    kin: Kinematics, q_now_rad: ArrayLike, grasp: Grasp, ready_rad: ArrayLike, table_z_m: float = 0.0
) -> JointTrajectory:
    """Open, go above the object, straight down, close, straight up.

    The jaws stand ``grasp.opening_m`` apart on the way down, along ``grasp.approach``, and close evenly about the
    object's centre: the arm moves the fixed jaw in while the gripper brings the moving jaw.

    Args:
        q_now_rad: (6,) where the arm is.
        ready_rad: (6,) a pose clear of the table, passed through when the direct way would come low over it.

    Returns:
        A trajectory from ``q_now_rad`` that ends holding the object ``_LIFT_M`` above the table.

    Raises:
        ReachError: the arm cannot get there, or a finger would touch the table.
    """
    q_now = _inside(kin, q_now_rad)
    width = grasp.width_m
    open_width = grasp.opening_m
    depth = _finger_depth(kin, grasp, table_z_m)
    at = _grasp_solution(kin, q_now, grasp, open_width, depth, table_z_m)
    yaw = kin.yaw_of(at.position_rad)
    centre = grasp.position_base_m

    above_z = max(grasp.height_m + 0.025, table_z_m + _SAFE_TIP_M) + FINGER_DEPTH_M + 0.005
    down_points = _line(centre, centre - (above_z - centre[2]) * grasp.approach)
    up_knots = _follow(kin, at.position_rad, down_points, yaw, open_width, depth)
    opened = kin.opening_to_angle(open_width)
    descend = _with_gripper(up_knots[::-1], opened)
    phases = [*_free_move(kin, q_now, descend[0], np.asarray(ready_rad, dtype=float)), descend]

    widths = np.linspace(open_width, width, 6)
    closing = [at.position_rad]
    for value in widths[1:]:
        closing.append(_require(kin.track(centre, yaw, closing[-1], width_m=value, depth_m=depth)).position_rad)
    angles = np.array([kin.opening_to_angle(value) for value in widths])
    squeezed = kin.opening_to_angle(grasp.closed_m)
    phases += [np.column_stack([closing, angles]), _with_gripper(np.array([closing[-1]] * 2), (angles[-1], squeezed))]

    lift_z = table_z_m + _LIFT_M + (centre[2] - table_z_m)
    lift_points = _line(centre, np.array([centre[0], centre[1], lift_z]))
    lift = _follow(kin, closing[-1], lift_points, yaw, width, depth, give_way=True)
    phases.append(_with_gripper(lift, squeezed))
    dwell = {len(phases) - 2: _SETTLE_S}
    return _checked(kin, _joined([_timed(phase, dwell.get(i, 0.0)) for i, phase in enumerate(phases)]), table_z_m)


def plan_place(
    kin: Kinematics, q_now_rad: ArrayLike, waypoints_m: ArrayLike, grasp: Grasp, table_z_m: float = 0.0
) -> JointTrajectory:
    """Carry the held object along waypoints, lower it, let go, go straight up.

    Args:
        q_now_rad: (6,) where the arm is, holding the object; the gripper keeps squeezing whatever angle it shows.
        waypoints_m: (n, 3) of ``lift_trajectory``: the first is where the object was taken and is left out, the last is
            where to let go.
        grasp: of the held object.

    Raises:
        ReachError: the place cannot be reached, or a finger would touch the table.
    """
    q_now = _inside(kin, q_now_rad)
    waypoints = np.asarray(waypoints_m, dtype=float)
    width = grasp.width_m
    # Measured, the gripper stands at the object's width; sent back as a setpoint, that would let go.
    closed = min(float(q_now[-1]), kin.opening_to_angle(grasp.closed_m))
    depth = _finger_depth(kin, grasp, table_z_m)
    start = kin.grasp_point(q_now, width, depth)[:3, 3]
    release = waypoints[-1]
    over = np.array([release[0], release[1], max(waypoints[-2][2], release[2])])
    inner = waypoints[1:-2] if len(waypoints) > 3 else np.zeros((0, 3))
    # Rising comes first: the way across is at travel height from its first step.
    raised = np.array([start[0], start[1], max(start[2], over[2])])
    way = _smooth(np.vstack([raised, inner, over]))

    above = _require(kin.solve(over, None, q_now, width_m=width, depth_m=depth))
    yaw_from, yaw_to = kin.yaw_of(q_now), kin.yaw_of(above.position_rad)
    turn = (yaw_to - yaw_from + math.pi) % (2 * math.pi) - math.pi
    rise = _follow(kin, q_now[:5], _line(start, raised), yaw_from, width, depth, give_way=True)
    yaws = yaw_from + turn * np.linspace(0.0, 1.0, len(way))
    across = _follow(kin, rise[-1], way, yaws, width, depth, give_way=True)
    lower = _follow(kin, across[-1], _line(over, release), yaw_to, width, depth)

    open_width = min(width + 2 * _DROP_PLAY_M, MAX_OPENING_M)
    widths = np.linspace(width, open_width, 5)
    opening = [lower[-1]]
    for value in widths[1:]:
        opening.append(_require(kin.track(release, yaw_to, opening[-1], width_m=value, depth_m=depth)).position_rad)
    angles = np.linspace(closed, kin.opening_to_angle(open_width), len(widths))
    away = _line(release, release + (0.0, 0.0, _RETREAT_M))
    retreat = _follow(kin, opening[-1], away, yaw_to, open_width, depth, give_way=True)
    carry = [np.vstack([rise, across[1:]])] if len(rise) > 1 else [across]
    phases = [*(_with_gripper(part, closed) for part in (*carry, lower))]
    phases.append(np.column_stack([opening, angles]))
    phases.append(_with_gripper(retreat, angles[-1]))
    return _checked(kin, _joined([_timed(phase) for phase in phases]), table_z_m)


def is_holding(kin: Kinematics, q_measured_rad: ArrayLike, grasp: Grasp) -> bool:
    """Whether something keeps the jaws apart: they were told to close further than the object lets them."""
    opening_m = kin.angle_to_opening(float(np.asarray(q_measured_rad)[-1]))
    return opening_m > grasp.held_m


# Paths


def _finger_depth(kin: Kinematics, grasp: Grasp, table_z_m: float) -> float:
    """How far behind the tips the grasp point lies: up to the pads' middle, as far as the table leaves room.

    For a hand that points straight down, which it does near the table; of all openings between open and squeezed the
    one that reaches lowest counts.
    """
    narrow, wide = grasp.closed_m, grasp.opening_m
    beyond_m = max(kin.tips_beyond_tool_m(kin.opening_to_angle(width)) for width in np.linspace(narrow, wide, 5))
    return min(FINGER_DEPTH_M, float(grasp.position_base_m[2]) - table_z_m - FINGER_FLOOR_M - beyond_m)


def _grasp_solution(
    kin: Kinematics, q_now: Array, grasp: Grasp, open_width_m: float, depth_m: float, table_z_m: float
) -> Solution:
    """Joints at the object with open jaws."""
    solution = _require(kin.solve(grasp.position_base_m, grasp.yaw_rad, q_now, width_m=open_width_m, depth_m=depth_m))
    tip_z = float(kin.fk(solution.position_rad)[2, 3])
    if grasp.height_m - tip_z < MIN_HOLD_M:
        raise ReachError(
            f"grasp: the fingers cannot get low enough beside an object {(grasp.height_m - table_z_m) * 1e3:.0f} mm "
            f"high at ({grasp.position_base_m[0]:.3f}, {grasp.position_base_m[1]:.3f}) m"
        )
    return solution


def _follow(
    kin: Kinematics,
    q_start: Array,
    points_m: Array,
    yaw_rad: float | Array,
    width_m: float,
    depth_m: float = FINGER_DEPTH_M,
    give_way: bool = False,
) -> Array:
    """Joint knots (n, 5) that take the point between the jaws along (n, 3), the first of them ``q_start`` itself.

    With ``give_way`` a point too near the base or too high is moved outwards or inwards by up to 60 mm until the arm
    can reach it: the way through the air matters less than getting there.
    """
    yaws = np.broadcast_to(yaw_rad, len(points_m))
    shifts = np.arange(-6, 7) * 0.01 if give_way else np.zeros(1)
    knots, given = [np.asarray(q_start, dtype=float)[:5]], 0.0
    for point, yaw in zip(points_m[1:], yaws[1:], strict=True):
        outwards = np.append(point[:2] / max(float(np.linalg.norm(point[:2])), 1e-9), 0.0)
        back = given - math.copysign(min(abs(given), 0.01), given)  # back to the line when it can be reached again
        for shift in sorted(shifts, key=lambda s, back=back: (abs(s - back), abs(s))):
            solution = kin.track(point + shift * outwards, float(yaw), knots[-1], width_m=width_m, depth_m=depth_m)
            if solution.reached:
                break
        else:
            raise ReachError(f"plan: {solution.reason}")
        step = float(np.abs(solution.position_rad - knots[-1]).max())
        if step > (2 * _JUMP_RAD if give_way else _JUMP_RAD):  # near its limits the arm sweeps far for a short way
            x, y, z = point
            raise ReachError(f"plan: the arm would have to jump near ({x:.3f}, {y:.3f}, {z:.3f}) m on a straight line")
        given = shift
        knots.append(solution.position_rad)
    return _rounded(np.array(knots)) if give_way else np.array(knots)


def _rounded(knots_rad: Array) -> Array:
    """Knots (m, k) with the bends taken out that a joint meeting its limit makes: a bend has to be taken slowly.

    Binomial smoothing with a standard deviation of three knots; the ends stay.
    """
    for _ in range(18):
        knots_rad = np.vstack(
            [knots_rad[:1], 0.25 * knots_rad[:-2] + 0.5 * knots_rad[1:-1] + 0.25 * knots_rad[2:], knots_rad[-1:]]
        )
    return knots_rad


def _free_move(kin: Kinematics, q_from: Array, q_to: Array, ready: Array) -> list[Array]:
    """Joint paths through the air: direct if no finger comes low on the way, else by the ready pose."""
    limit_m = min(_SAFE_TIP_M, kin.lowest_tip_m(q_from), kin.lowest_tip_m(q_to)) - 0.002
    tips = [kin.lowest_tip_m(q_from + s * (q_to - q_from)) for s in np.linspace(0.0, 1.0, 15)]
    if min(tips) >= limit_m:
        return [np.array([q_from, q_to])]
    return [np.array([q_from, ready]), np.array([ready, q_to])]


def _line(a_m: Array, b_m: Array) -> Array:
    """Points (n, 3) from a to b, at most ``_STEP_M`` apart."""
    n = max(1, math.ceil(float(np.linalg.norm(b_m - a_m)) / _STEP_M))
    return a_m + (b_m - a_m) * np.linspace(0.0, 1.0, n + 1)[:, None]


def _smooth(corners_m: Array) -> Array:
    """A polyline (n, 3) at ``_STEP_M``, its corners rounded by a moving mean over 4 cm; its ends stay."""
    parts = [_line(a, b)[1:] for a, b in zip(corners_m[:-1], corners_m[1:], strict=True)]
    line = np.vstack([corners_m[:1], *parts])
    half = 4
    padded = np.vstack([np.repeat(line[:1], half, axis=0), line, np.repeat(line[-1:], half, axis=0)])
    smooth = np.stack([np.convolve(padded[:, k], np.ones(2 * half + 1) / (2 * half + 1), "valid") for k in range(3)], 1)
    smooth[0], smooth[-1] = line[0], line[-1]
    return smooth


def _with_gripper(arm_knots: Array, gripper_rad: float | Sequence[float]) -> Array:
    return np.column_stack([arm_knots, np.broadcast_to(gripper_rad, len(arm_knots))])


def _require(solution: Solution) -> Solution:
    if not solution.reached:
        raise ReachError(f"plan: {solution.reason}")
    return solution


def _inside(kin: Kinematics, q_rad: ArrayLike) -> Array:
    """A measured pose (6,), brought back within limits that a servo may overstep by a count or two."""
    return np.clip(np.asarray(q_rad, dtype=float), kin.lower_rad, kin.upper_rad)


# Time


def _timed(knots_rad: Array, dwell_s: float = 0.0) -> JointTrajectory:
    """Joint knots (m, 6) as a trajectory at ``RATE_HZ`` from rest to rest, then ``dwell_s`` of standing still.

    For one shape over normalized time t, the steepest velocity and acceleration give the duration,
    T = max(|q'| / v_max, sqrt(|q''| / a_max)); of a few shapes the quickest is taken.
    """
    steps = np.abs(np.diff(knots_rad, axis=0)).max(axis=1)
    keep = np.concatenate([[True], steps > 1e-9])
    knots = knots_rad[keep]
    length = np.concatenate([[0.0], np.cumsum(steps[keep[1:]])])
    if len(knots) == 1:
        n = max(1, round(dwell_s * RATE_HZ))
        return JointTrajectory(np.arange(n + 1) / RATE_HZ, np.repeat(knots, n + 1, axis=0))
    path = PchipInterpolator(length / length[-1], knots)
    t = np.linspace(0.0, 1.0, 401)
    durations_s = []
    for ramp in _RAMPS:
        dq = np.gradient(path(_progress(t, ramp)), t, axis=0)
        velocity, acceleration = np.abs(dq).max(), np.abs(np.gradient(dq, t, axis=0)).max()
        durations_s.append(max(velocity / VELOCITY_RAD_S, math.sqrt(acceleration / ACCELERATION_RAD_S2)))
    best = int(np.argmin(durations_s))
    duration_s = max(durations_s[best], 2.0 / RATE_HZ)
    n = math.ceil(duration_s * RATE_HZ)
    position = path(_progress(np.linspace(0.0, 1.0, n + 1), _RAMPS[best]))
    position[0], position[-1] = knots_rad[0], knots_rad[-1]
    rest = round(dwell_s * RATE_HZ)
    position = np.vstack([position, np.repeat(position[-1:], rest, axis=0)])
    return JointTrajectory(np.arange(len(position)) / RATE_HZ, position)


def _progress(t: Array, ramp: float) -> Array:
    """The share of a path covered at normalized time t: speed rises and falls as 3 x^2 - 2 x^3 over ``ramp`` each."""
    x = np.clip(t / ramp, 0.0, 1.0)
    y = np.clip((1.0 - t) / ramp, 0.0, 1.0)
    # Integrals of the two ramps; between them the speed is 1 / (1 - ramp).
    rising, falling = ramp * (x**3 - x**4 / 2), ramp * (y**3 - y**4 / 2)
    cruise = np.clip(t - ramp, 0.0, 1.0 - 2.0 * ramp)
    return (rising + cruise + np.where(t > 1.0 - ramp, ramp / 2 - falling, 0.0)) / (1.0 - ramp)


def _joined(parts: Sequence[JointTrajectory]) -> JointTrajectory:
    position = np.vstack([parts[0].position_rad, *(part.position_rad[1:] for part in parts[1:])])
    return JointTrajectory(np.arange(len(position)) / RATE_HZ, position)


def _checked(kin: Kinematics, trajectory: JointTrajectory, table_z_m: float) -> JointTrajectory:
    """The trajectory itself, once every setpoint is within the joints' limits and no finger is at the table."""
    if not kin.within_limits(trajectory.position_rad):
        raise ReachError("plan: a joint would leave its limits on the way")
    tips_m = [kin.lowest_tip_m(q) for q in trajectory.position_rad[::2]]
    if min(tips_m) < min(table_z_m + _FLOOR_M, tips_m[0] - 0.001):
        raise ReachError(f"plan: a finger would come within {(min(tips_m) - table_z_m) * 1e3:.0f} mm of the table")
    return trajectory
