"""The whole hand-eye problem as one least squares: camera, board, joint zeros, encoder noise, and samples to distrust.

View i gives joints q[i] and corners of the board. A corner p of the board is expected at

    h(p) = project(X @ fk(q[i] + zeros + e[i]) @ Y @ p),    X = T_camera_base, Y = T_gripper_board,

with corner noise n ~ N(0, s^2) and encoder noise e[i] ~ N(0, E^2), new in every view. To first order a view's corners
then scatter about h at e = 0 with covariance S = s^2 I + E^2 J J^T, J their derivative by the joints. Weighting a view
by S^(-1/2) is the same as making e[i] unknowns with a prior of E and eliminating them, with 75 unknowns fewer in 15
views; a board that is off as encoder noise would have it costs little, one that is off otherwise costs all.

Gauge. A zero of the first joint turns everything about an axis that is fixed in the base, as turning the camera does:
no picture tells them apart, and no reach either. It is held at zero, which is what defines the base frame's x axis. The
last joint's zero is one with how the board is held; it, and whatever else the pictures do not tell, rests on the prior
of the zeros (ZERO_SIGMA_RAD about zero) and widens what is said of the error accordingly.

Zeros are solved for when asked, or when the data need them: when they lower the weighted squares by more than
NEED_OF_ZEROS times what one degree of freedom has. Without need they are left out: every unknown costs accuracy.

Should the arm be worse than E, the part of the residuals that moving the board of each view would remove is larger than
expected; by as much all covariances grow, and the bar for distrust and for zeros rises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import chi2

from calib.board import Board, Detection
from calib.corners import corner_noise
from calib.hand_eye import MIN_VIEWS, Pinhole, board_pose, first_guess
from calib.reach import Reach, best_looks, by_joint
from calib.rigid import apply, invert, retract, rms_length, skew
from calib.workspace import TIP_GRIPPER_M
from drivers.errors import UserError
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

ENCODER_SIGMA_RAD = float(np.radians(0.1))
"""What a cheap servo's reading is off by at random: one count of 4096 is 0.088 degrees, and there is play."""

ZERO_SIGMA_RAD = float(np.radians(2.0))
"""Prior of a joint zero: how well an arm is put together and homed by hand."""

NEED_OF_ZEROS = 20.0
"""Chi-square of four unknowns passes this by chance in one calibration of two thousand."""

OUTLIER_CHANCE = 1e-4
"""A sample is distrusted when a good one would be as far off as rarely as this."""

_ROUNDS = 6
_DRAWS = 400


class Disagreement(UserError):
    """Too few views agree with each other for any to be trusted; ``calib.diagnosis`` may know why."""


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What the pictures say, and how well.

    Attributes:
        T_base_camera, T_gripper_board: (4, 4).
        joint_zeros_rad: (n,) true joint = measured + zero; all 0 unless ``zeros_fitted``.
        zeros_fitted: whether zeros were solved for.
        outliers: views (from 0) that contradict the rest; nothing below but the arrays by view counts them.
        corner_px: sigma of a corner's coordinate, from the pictures alone.
        reprojection_px: rms distance between a seen corner and the one predicted from the joints.
        view_px: (n,) the same for each view.
        leave_one_out_m: (n,) for each view, solved from the others only (by one Gauss-Newton step): rms distance over
            the board's corners between where the arm says they are and where the camera sees them, metres.
        covariance: (6, 6) of the twist (rotation rad, translation m; camera frame) that turns T_base_camera into the
            true one: T_base_camera @ exp(twist).
        point_covariance_m2: (3, 3) of where the tip ends up for a point in the middle of ``reach_rad``, base frame.
        expected_mm: rms over ``reach_rad`` of the distance of the tip from a point the camera saw, as expected of the
            calibration: the median of what the covariance of all unknowns gives rise to.
        expected_reach_mm: the same for an arm that gets there by encoders as noisy as those it was calibrated with.
    """

    T_base_camera: Array
    T_gripper_board: Array
    joint_zeros_rad: Array
    zeros_fitted: bool
    outliers: tuple[int, ...]
    corner_px: float
    reprojection_px: float
    view_px: Array
    leave_one_out_m: Array
    covariance: Array
    point_covariance_m2: Array
    expected_mm: float
    expected_reach_mm: float

    @property
    def leave_one_out_mm(self) -> float:
        """Root mean square of ``leave_one_out_m`` over the views that count, in millimetres."""
        counted = np.delete(self.leave_one_out_m, self.outliers)
        return 1e3 * float(np.sqrt(np.mean(counted**2)))


def adjust(
    joints_rad: Sequence[Array] | Array,
    detections: Sequence[Detection],
    fk: Callable[[Array], Array],
    board: Board,
    intrinsics: Intrinsics,
    *,
    mount: str = "base",
    reach_rad: Array | None = None,
    fit_zeros: bool | None = None,
    encoder_sigma_rad: float = ENCODER_SIGMA_RAD,
    tip_m: tuple[float, float, float] = TIP_GRIPPER_M,
) -> Adjustment:
    """Solve for the camera, the board in the gripper and, where needed, the joints' zeros.

    Args:
        joints_rad: (n,) measured joints of each view, from the base outwards.
        detections: the board as seen in each view.
        fk: joints (n,) -> T_base_gripper (4, 4). For a camera in the gripper and a board that stands still give its
            inverse: T_base_camera is then T_gripper_camera, and T_gripper_board T_base_board.
        mount: "base", or "gripper" where ``fk`` is such an inverse; only what is said of the reach depends on it.
        reach_rad: (m, n) joint poses that the error is told for (``calib.workspace``), by default those of the views.
        fit_zeros: True, False, or None for where the data need it.
        encoder_sigma_rad: standard deviation of a joint reading about the joint.
        tip_m: the point that is to be where the camera saw something, in the gripper's frame.

    Raises:
        Disagreement: too few views agree with each other.
        UserError: too few views, or rotations that leave the answer open.
    """
    joints = np.asarray(joints_rad, dtype=float)
    T_base_camera, Y = first_guess([fk(q) for q in joints], detections, board, intrinsics)
    sigma_px, fits = corner_noise(detections, board, intrinsics)
    problem = Problem(joints, detections, fits, fk, board, Pinhole(intrinsics), sigma_px, encoder_sigma_rad)
    start = _State(invert(T_base_camera), Y, np.zeros(joints.shape[1]))
    everything = np.arange(len(joints), dtype=np.int64)

    # distrust is decided with the zeros free, wanted or not: a zero that is off must not be taken for a bad sample
    free = problem.separable
    state = start
    for loss in ("soft_l1", "cauchy"):  # the second forgets what is far off, and has its weights of the first's answer
        state = problem.solve(state, everything, free, loss).state
    kept = everything
    for _ in range(_ROUNDS):
        before, kept = kept, problem.agreeing(state, kept)
        if len(kept) < max(MIN_VIEWS, 2 * len(joints) / 3):
            raise Disagreement(
                f"hand-eye calibration: only {len(kept)} of {len(joints)} views agree with each other, none is right "
                "for sure; see that the board does not slip in the gripper, that the arm is at rest in each view, and "
                "check the arm's zero offsets"
            )
        fit = problem.solve(state, kept, free)
        if np.array_equal(kept, before):
            break
        state = fit.state
    if not fit_zeros:
        without = problem.solve(_State(fit.state.X, fit.state.Y, start.zeros), kept, ())
        if fit_zeros is False or without.squares - fit.squares <= NEED_OF_ZEROS * fit.scale:
            fit = without
    return _told(
        problem, fit, kept, detections, reach_of(problem, fit.state.X, fit.state.zeros, mount, reach_rad, tip_m)
    )


def reach_of(
    problem: Problem,
    X: Array,
    zeros_rad: Array,
    mount: str,
    reach_rad: Array | None,
    tip_m: tuple[float, float, float],
) -> Reach:
    """Where the error is told, by ``adjust``'s arguments; a camera in the gripper looks from one of the views."""
    joints = problem.joints if reach_rad is None or not len(reach_rad) else np.asarray(reach_rad, dtype=float)
    reach = Reach(problem.fk, joints, None, np.asarray(tip_m, dtype=float))
    if mount == "base":
        return reach

    def fk(q: Array) -> Array:
        return invert(problem.fk(q))

    reach = replace(reach, fk=fk)
    looks = best_looks(fk, problem.joints, reach.tips(zeros_rad), X, zeros_rad)
    return replace(reach, look_rad=looks)


@dataclass(frozen=True, eq=False)
class _State:
    X: Array  # T_camera_base
    Y: Array  # T_gripper_board
    zeros: Array


@dataclass(frozen=True, eq=False)
class _Fit:
    """A minimum: weighted residuals and derivatives by view, by left twists of X and Y and the ``free`` zeros."""

    state: _State
    free: tuple[int, ...]
    residuals: list[Array]
    jacobians: list[Array]
    squares: float  # weighted, prior included
    scale: float  # how much larger than expected the poses' squares are, at least 1

    @property
    def prior(self) -> Array:
        """Its share of J^T J."""
        return np.diag([0.0] * 12 + [ZERO_SIGMA_RAD**-2] * len(self.free))

    @property
    def information(self) -> Array:
        return self.prior + np.sum([J.T @ J for J in self.jacobians], axis=0)

    @property
    def covariance(self) -> Array:
        return np.asarray(self.scale * np.linalg.inv(self.information), dtype=float)


class Problem:
    """The observations, their predictions and weights (shared with ``calib.causes``)."""

    def __init__(
        self,
        joints: Array,
        detections: Sequence[Detection],
        fits: Sequence[NDArray[np.bool_]],
        fk: Callable[[Array], Array],
        board: Board,
        camera: Pinhole,
        sigma_px: float,
        encoder_sigma_rad: float,
    ) -> None:
        self.joints, self.fk, self.board, self.camera = joints, fk, board, camera
        self.sigma_px, self.encoder_sigma_rad = sigma_px, encoder_sigma_rad
        self.points = [board.corners_m(d.ids[fit]) for d, fit in zip(detections, fits, strict=True)]
        self.ids = [d.ids[fit] for d, fit in zip(detections, fits, strict=True)]
        self.corners = [d.corners_px[fit].astype(float) for d, fit in zip(detections, fits, strict=True)]
        moving = tuple(
            j for j in range(joints.shape[1]) if any(np.abs(self.by_joint(q, j)).max() > 1e-6 for q in joints)
        )
        self.moving = moving  # joints that move the gripper; those after it do not
        self.separable = moving[1:]

    def predict(self, state: _State, i: int) -> Array:
        """(n, 2) pixels of view i's corners; far off where they are behind the camera."""
        points = apply(state.X @ self.fk(self.joints[i] + state.zeros) @ state.Y, self.points[i])
        px = self.camera.project(points)[0]
        px[points[:, 2] <= 1e-6] = 1e6
        return px

    def jacobian(self, state: _State, i: int, free: tuple[int, ...]) -> Array:
        """(2 n, 12 + free) derivative of view i's corners by left twists of X and Y and by the joints ``free``."""
        q = self.joints[i] + state.zeros
        in_gripper = apply(state.Y, self.points[i])
        T_camera_gripper = state.X @ self.fk(q)
        in_camera = apply(T_camera_gripper, in_gripper)
        eye = np.broadcast_to(np.eye(3), (len(in_camera), 3, 3))
        by = [-skew(in_camera), eye]
        by += [T_camera_gripper[:3, :3] @ -skew(in_gripper), np.broadcast_to(T_camera_gripper[:3, :3], eye.shape)]
        by += [apply(state.X @ self.by_joint(q, j), in_gripper)[:, :, None] for j in free]
        return (self.camera.project(in_camera)[1] @ np.concatenate(by, axis=2)).reshape(2 * len(in_camera), -1)

    def weight(self, state: _State, i: int) -> Array:
        """(2 n, 2 n) S^(-1/2) of view i: corner and encoder noise together."""
        J = self.encoder_sigma_rad * self.jacobian(state, i, self.moving)[:, 12:]
        values, vectors = np.linalg.eigh(self.sigma_px**2 * np.eye(len(J)) + J @ J.T)
        return np.asarray(vectors / np.sqrt(values) @ vectors.T)

    def solve(self, start: _State, views: Indices, free: tuple[int, ...], loss: str = "linear") -> _Fit:
        """Minimize over the views' weighted corners and the zeros' prior, from ``start``, whose weights are taken."""
        weights = [self.weight(start, i) for i in views]

        def weighted(state: _State) -> list[Array]:
            return [w @ (self.predict(state, i) - self.corners[i]).ravel() for w, i in zip(weights, views, strict=True)]

        def residuals(x: Array) -> Array:
            state = _moved(start, x, free)
            return np.concatenate([*weighted(state), state.zeros[list(free)] / ZERO_SIGMA_RAD])

        def derivative(x: Array) -> Array:
            state, turns = _moved(start, x, free), _twist_derivative(x)
            rows = [w @ self.jacobian(state, i, free) for w, i in zip(weights, views, strict=True)]
            prior = np.zeros((len(free), 12 + len(free)))
            prior[:, 12:] = np.eye(len(free)) / ZERO_SIGMA_RAD
            J = np.concatenate([*rows, prior])
            J[:, :12] = J[:, :12] @ turns
            return J

        zero = np.zeros(12 + len(free))
        options = {"x_scale": "jac", "loss": loss, "max_nfev": 60, "ftol": 1e-10, "xtol": 1e-10}
        found = least_squares(residuals, zero, derivative, **options)
        state = _moved(start, found.x, free)
        by_view = weighted(state)
        squares = float(sum(r @ r for r in by_view) + np.sum((state.zeros[list(free)] / ZERO_SIGMA_RAD) ** 2))
        jacobians = [w @ self.jacobian(state, i, free) for w, i in zip(weights, views, strict=True)]
        poses = sum(_of_pose(r, J) for r, J in zip(by_view, jacobians, strict=True))
        return _Fit(state, free, by_view, jacobians, squares, max(1.0, poses / (6 * len(views) - 12 - len(free))))

    def agreeing(self, state: _State, kept: Indices) -> Indices:
        """Views whose board is no further off than chance would have it, were ``kept`` good in the median."""
        squares = np.empty(len(self.joints))
        for i in range(len(self.joints)):
            w = self.weight(state, i)
            r = w @ (self.predict(state, i) - self.corners[i]).ravel()
            squares[i] = _of_pose(r, w @ self.jacobian(state, i, ()))
        scale = max(1.0, float(np.median(squares[kept])) / chi2.median(6))
        return np.flatnonzero(squares <= scale * chi2.isf(OUTLIER_CHANCE, 6)).astype(np.int64)

    def by_joint(self, q: Array, j: int) -> Array:
        """(4, 4) derivative of T_base_gripper by joint j."""
        return by_joint(self.fk, q, j)


def _of_pose(residuals: Array, jacobian: Array) -> float:
    """The part of a view's weighted squares that moving its board would remove: chi-square of six, from good data.

    What the arm gets wrong is in these six numbers; among all of a view's, corner noise would drown it.
    """
    Q = np.linalg.qr(jacobian[:, :6])[0]
    return float(np.sum((Q.T @ residuals) ** 2))


def _told(problem: Problem, fit: _Fit, kept: Indices, detections: Sequence[Detection], reach: Reach) -> Adjustment:
    """The figures that go with a minimum."""
    state, views = fit.state, range(len(detections))
    # all corners seen count here, those set aside too
    seen = [
        problem.camera.project(
            apply(state.X @ problem.fk(problem.joints[i] + state.zeros) @ state.Y, problem.board.corners_m(d.ids))
        )[0]
        - d.corners_px
        for i, d in enumerate(detections)
    ]
    leave_one_out = np.empty(len(detections))
    information, place = fit.information, {int(i): k for k, i in enumerate(kept)}
    for i in views:
        without = state
        if i in place:
            J, r = fit.jacobians[place[i]], fit.residuals[place[i]]
            step = np.asarray(np.linalg.solve(information - J.T @ J, J.T @ r), dtype=float)
            without = _moved(state, step, fit.free)
        leave_one_out[i] = _distance_at_board(problem, without, i)
    tips = np.zeros((len(reach.joints_rad), 3, 12 + len(fit.free)))
    at = [*range(6), *range(12, 12 + len(fit.free))]  # how the board is held does not matter there
    tips[:, :, at] = reach.derivatives(state.X, state.zeros, fit.free)
    covariance = fit.covariance
    zero, rng = np.zeros(len(covariance)), np.random.default_rng(0)
    draws = rng.multivariate_normal(zero, covariance, _DRAWS, method="cholesky")
    errors = np.sqrt(np.mean(np.sum((draws @ tips.transpose(0, 2, 1)) ** 2, axis=2), axis=0))
    expected_mm = 1e3 * float(np.median(errors))
    wobble_mm = 1e3 * reach.wobble_m(state.zeros, problem.encoder_sigma_rad * float(np.sqrt(fit.scale)))
    places = reach.tips(state.zeros)
    middle = tips[int(np.argmin(np.linalg.norm(places - places.mean(axis=0), axis=1)))]
    return Adjustment(
        T_base_camera=invert(state.X),
        T_gripper_board=state.Y,
        joint_zeros_rad=state.zeros,
        zeros_fitted=bool(fit.free),
        outliers=tuple(i for i in views if i not in place),
        corner_px=problem.sigma_px,
        reprojection_px=rms_length(np.concatenate([seen[i] for i in kept])),
        view_px=np.array([rms_length(r) for r in seen]),
        leave_one_out_m=leave_one_out,
        covariance=covariance[:6, :6],
        point_covariance_m2=middle @ covariance @ middle.T,
        expected_mm=expected_mm,
        expected_reach_mm=float(np.hypot(expected_mm, wobble_mm)),
    )


def _distance_at_board(problem: Problem, state: _State, i: int) -> float:
    """Rms distance, metres, of view i's corners as the arm places them from where the camera alone sees them."""
    T_base_board = problem.fk(problem.joints[i] + state.zeros) @ state.Y
    detection = Detection(problem.ids[i], problem.corners[i])
    seen = board_pose(detection, problem.board, problem.camera, state.X @ T_base_board)
    points = problem.points[i]
    return rms_length(apply(T_base_board, points) - apply(invert(state.X) @ seen, points))


def _moved(state: _State, x: Array, free: tuple[int, ...]) -> _State:
    zeros = state.zeros.copy()
    zeros[list(free)] += x[12:]
    return _State(retract(x[:6]) @ state.X, retract(x[6:12]) @ state.Y, zeros)


def _twist_derivative(x: Array) -> Array:
    """(12, 12): d(left twist at x) = this @ dx, for the two twists in x.

    A change dr of the vector r turns by w = vee(dR R^T); with p = R p0 + t, dp = w x (p - t) + dt = w x p + dt + t x w.
    """
    A = np.eye(12)
    for k in (0, 6):
        R, dR = cv2.Rodrigues(np.ascontiguousarray(x[k : k + 3]))
        spins = [np.asarray(d).reshape(3, 3) @ R.T for d in dR]
        turns = np.array([[s[2, 1], s[0, 2], s[1, 0]] for s in spins]).T
        A[k : k + 3, k : k + 3] = turns
        A[k + 3 : k + 6, k : k + 3] = skew(x[None, k + 3 : k + 6])[0] @ turns
    return A
