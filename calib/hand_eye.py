"""Where a fixed camera stands, from pictures of a board that the gripper carries (eye-to-hand).

Every view i gives T_base_gripper[i] (from the joints) and some corners of the board in pixels. Unknown are
T_base_camera and T_gripper_board; a corner p of the board is seen at

    project(T_camera_base @ T_base_gripper[i] @ T_gripper_board @ p).

A closed-form solution of our own (OpenCV 5.0.0's Python package lacks calibrateHandEye: opencv issue 29565) starts a
Levenberg-Marquardt minimization of all reprojection errors at once under Huber's loss. Here the arm's word is taken
for its poses; ``calib.adjust`` goes on from there with encoders that are noisy and zeros that are off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.board import Board, Detection
from calib.rigid import apply, invert, retract, rigid, rms_length, rotation, skew
from drivers.errors import UserError
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

MIN_VIEWS = 5
MIN_SPREAD_RAD = float(np.radians(6.0))
"""Least rms rotation about the second axis: below it, the translation along the first axis is guessed from noise."""


@dataclass(frozen=True)
class HandEye:
    """A solved hand-eye problem.

    Attributes:
        T_base_camera, T_gripper_board: (4, 4).
        reprojection_px: rms distance between a seen and a predicted corner.
        view_px: (n,) the same for each view.
        leave_one_out_m: (n,) for each view, solved from the others only: rms distance over the board's seen corners
            between where the arm says they are and where the camera sees them, metres in the base frame.
    """

    T_base_camera: Array
    T_gripper_board: Array
    reprojection_px: float
    view_px: Array
    leave_one_out_m: Array

    @property
    def leave_one_out_mm(self) -> float:
        """Root mean square of ``leave_one_out_m`` over the views, in millimetres."""
        return 1e3 * float(np.sqrt(np.mean(self.leave_one_out_m**2)))


def solve_hand_eye(
    T_base_gripper: Sequence[Array], detections: Sequence[Detection], board: Board, intrinsics: Intrinsics
) -> HandEye:
    """Solve for T_base_camera and T_gripper_board.

    Args:
        T_base_gripper: one (4, 4) per view.
        detections: the board as seen in each view, at least ``board.MIN_CORNERS`` corners each.

    Raises:
        UserError: too few views, or rotations that leave the answer undetermined.
    """
    views, camera = _views(T_base_gripper, detections, board), Pinhole(intrinsics)
    X, Y = _refine(*_closed_form(views, camera), views, camera)

    view_px = np.array([rms_length(_residuals(X, Y, [view], camera)) for view in views])
    leave_one_out = np.empty(len(views))
    for i, view in enumerate(views):
        Xi, Yi = _refine(X, Y, views[:i] + views[i + 1 :], camera)
        predicted = apply(view.T_base_gripper @ Yi, view.points_m)
        T_camera_board = _refined_pose(view, camera, Xi @ view.T_base_gripper @ Yi)
        seen = apply(invert(Xi) @ T_camera_board, view.points_m)
        leave_one_out[i] = np.sqrt(np.mean(np.sum((predicted - seen) ** 2, axis=1)))
    return HandEye(invert(X), Y, rms_length(_residuals(X, Y, views, camera)), view_px, leave_one_out)


def first_guess(
    T_base_gripper: Sequence[Array], detections: Sequence[Detection], board: Board, intrinsics: Intrinsics
) -> tuple[Array, Array]:
    """T_base_camera and T_gripper_board in closed form: where a refinement starts.

    Raises:
        UserError: too few views, or rotations that leave the answer undetermined.
    """
    X, Y = _closed_form(_views(T_base_gripper, detections, board), Pinhole(intrinsics))
    return invert(X), Y


def rotation_spread_rad(T_base_gripper: Sequence[Array]) -> Array:
    """(3,) rms rotation of the poses about the three principal axes of their scatter, largest first.

    Taken about the chordal mean orientation; hand-eye calibration needs the second to be well above zero
    (two rotations about axes that are not parallel: Tsai & Lenz 1989).
    """
    rotations = np.array([T[:3, :3] for T in T_base_gripper])
    mean = _nearest_rotation(rotations.sum(axis=0))
    vectors = np.array([cv2.Rodrigues(mean.T @ R)[0].ravel() for R in rotations])
    return np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) / np.sqrt(len(vectors))


def reprojection_rms_px(
    T_base_camera: Array,
    T_gripper_board: Array,
    T_base_gripper: Sequence[Array],
    detections: Sequence[Detection],
    board: Board,
    intrinsics: Intrinsics,
) -> float:
    """Root mean square distance, in pixels, between the seen corners and those the transforms predict."""
    views = [_View(T, board.corners_m(d.ids), d.corners_px) for T, d in zip(T_base_gripper, detections, strict=True)]
    return rms_length(_residuals(invert(T_base_camera), T_gripper_board, views, Pinhole(intrinsics)))


def information(
    T_camera_base: Array, T_base_gripper: Array, T_gripper_board: Array, points_m: Array, intrinsics: Intrinsics
) -> Array:
    """(12, 12) J^T J of one view's corners: what it tells of both transforms (twists, radians and metres) per px^2."""
    view = _View(T_base_gripper, points_m, np.zeros((len(points_m), 2)))
    J = _jacobian(T_camera_base, T_gripper_board, view, Pinhole(intrinsics))
    return J.T @ J


class Pinhole:
    """OpenCV's projection with its derivative."""

    def __init__(self, intrinsics: Intrinsics) -> None:
        intrinsics.require_measured()
        self.K = intrinsics.matrix
        self.distortion = np.array(intrinsics.distortion, dtype=float) if intrinsics.distortion else np.zeros(5)

    def project(self, points_m: Array) -> tuple[Array, Array]:
        """(n, 3) camera points -> (n, 2) pixels and the derivative (n, 2, 3) by the camera point."""
        zero = np.zeros(3)
        px, J = cv2.projectPoints(np.ascontiguousarray(points_m), zero, zero, self.K, self.distortion)
        # columns 3:6 are by the translation, which at zero rotation is the camera point itself
        return np.asarray(px, dtype=float).reshape(-1, 2), np.asarray(J, dtype=float)[:, 3:6].reshape(-1, 2, 3)


def board_pose(detection: Detection, board: Board, camera: Pinhole, guess: Array) -> Array:
    """(4, 4) T_camera_board of one view by its own corners alone, from a guess."""
    view = _View(guess, board.corners_m(detection.ids), np.asarray(detection.corners_px, dtype=float))
    return _refined_pose(view, camera, guess)


# --- below: X is T_camera_base, Y is T_gripper_board ------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    T_base_gripper: Array
    points_m: Array  # (n, 3) in the board frame
    corners_px: Array  # (n, 2)


def _views(T_base_gripper: Sequence[Array], detections: Sequence[Detection], board: Board) -> list[_View]:
    """The observations, once they are seen to determine an answer."""
    if len(detections) != len(T_base_gripper):
        raise ValueError(f"{len(T_base_gripper)} arm poses for {len(detections)} detections")
    if len(detections) < MIN_VIEWS:
        raise UserError(
            f"hand-eye calibration: {len(detections)} views of the board, {MIN_VIEWS} are needed; add arm poses"
        )
    spread = rotation_spread_rad(T_base_gripper)
    if spread[1] < MIN_SPREAD_RAD:
        first, second = np.degrees(spread[:2])
        raise UserError(
            f"hand-eye calibration: the gripper turned {first:.1f} deg rms about one axis but only {second:.1f} deg "
            f"about a second (at least {np.degrees(MIN_SPREAD_RAD):.0f}); add arm poses that tilt the board another way"
        )
    return [
        _View(np.asarray(T, dtype=float), board.corners_m(d.ids), np.asarray(d.corners_px, dtype=float))
        for T, d in zip(T_base_gripper, detections, strict=True)
    ]


def _closed_form(views: list[_View], camera: Pinhole) -> tuple[Array, Array]:
    """A start for the refinement.

    A flat board seen from afar has two likely poses; a wrong one among them spoils an average. So the solution is
    tried from all views and from the half whose choice is clearest, and the poses are chosen again near its prediction.
    """
    pairs = [_board_poses(view, camera) for view in views]
    doubt = [errors[0] / max(errors[1], 1e-12) for _, errors in pairs]
    clear = np.argsort(doubt)[: max(len(views) // 2, 4)]
    best = (np.inf, np.eye(4), np.eye(4))
    for start in (np.arange(len(views)), clear):
        chosen = [pairs[i][0][0] for i in start]
        using = start
        for _ in range(4):
            X, Y = _robot_world([views[i].T_base_gripper for i in using], chosen)
            cost = _huber_cost(_residuals(X, Y, views, camera), delta_px=2.0)
            if cost < best[0]:
                best = (cost, X, Y)
            predicted = [X @ view.T_base_gripper @ Y for view in views]
            chosen = [_nearest(poses, T) for (poses, _), T in zip(pairs, predicted, strict=True)]
            using = np.arange(len(views))
    return best[1], best[2]


def _robot_world(T_base_gripper: list[Array], T_camera_board: list[Array]) -> tuple[Array, Array]:
    """X, Y of X B_i Y = A_i (B_i the gripper in the base, A_i the board in the camera), in closed form.

    Rotations by the singular vectors of the mean Kronecker product, then translations by least squares
    (M. Shah, "Solving the robot-world/hand-eye calibration problem using the Kronecker product", 2013, with Z = Y^-1).
    """
    RA, RB = (np.array([T[:3, :3] for T in Ts]) for Ts in (T_camera_board, T_base_gripper))
    tA, tB = (np.array([T[:3, 3] for T in Ts]) for Ts in (T_camera_board, T_base_gripper))
    # vec(R_X) = (R_B kron R_A) vec(R_Z), vec column by column
    U, _, Vt = np.linalg.svd(np.mean([np.kron(B, A) for A, B in zip(RA, RB, strict=True)], axis=0))
    R_X, R_Z = U[:, 0].reshape(3, 3).T, Vt[0].reshape(3, 3).T
    sign = np.sign(np.linalg.det(R_X)) or 1.0
    R_X, R_Z = _nearest_rotation(sign * R_X), _nearest_rotation(sign * R_Z)
    # R_A t_Z - t_X = R_X t_B - t_A
    lhs = np.concatenate([np.hstack([A, -np.eye(3)]) for A in RA])
    t, *_ = np.linalg.lstsq(lhs, (tB @ R_X.T - tA).ravel(), rcond=None)
    return rigid(R_X, t[3:]), invert(rigid(R_Z, t[:3]))


def _nearest_rotation(M: Array) -> Array:
    U, _, Vt = np.linalg.svd(M)
    return U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt


def _board_poses(view: _View, camera: Pinhole) -> tuple[list[Array], list[float]]:
    """Both T_camera_board that explain a view of a plane (IPPE: Collins & Bartoli 2014), with errors, best first."""
    centre = view.points_m.mean(axis=0)
    _, rvecs, tvecs, errors = cv2.solvePnPGeneric(
        view.points_m - centre, view.corners_px, camera.K, camera.distortion, flags=cv2.SOLVEPNP_IPPE
    )
    poses = [rigid(rotation(r), t) for r, t in zip(rvecs, tvecs, strict=True)]
    for T in poses:
        T[:3, 3] -= T[:3, :3] @ centre
    errors_px = [float(error) for error in np.ravel(errors)]
    order = np.argsort(errors_px)
    return [poses[i] for i in order], [*(errors_px[i] for i in order), np.inf][:2]


def _nearest(poses: list[Array], T: Array) -> Array:
    return max(poses, key=lambda pose: float(np.sum(pose[:3, :3] * T[:3, :3])))


def _refined_pose(view: _View, camera: Pinhole, guess: Array) -> Array:
    """T_camera_board of one view by its own corners alone, from a guess."""
    start = cv2.Rodrigues(guess[:3, :3])[0], guess[:3, 3].copy()
    _, rvec, tvec = cv2.solvePnP(
        view.points_m, view.corners_px, camera.K, camera.distortion, *start, True, cv2.SOLVEPNP_ITERATIVE
    )
    return rigid(rotation(rvec), tvec)


def _refine(X: Array, Y: Array, views: list[_View], camera: Pinhole) -> tuple[Array, Array]:
    """Minimize Huber's loss of all residuals; its threshold follows the noise (1.345 sigma: Huber 1964)."""
    for _ in range(4):
        lengths = np.linalg.norm(_residuals(X, Y, views, camera), axis=1)
        # the median length of a 2-D normal residual is 1.1774 sigma
        delta_px = max(1.345 * float(np.median(lengths)) / 1.1774, 0.02)
        X, Y = _levenberg_marquardt(X, Y, views, camera, delta_px)
    return X, Y


def _levenberg_marquardt(
    X: Array, Y: Array, views: list[_View], camera: Pinhole, delta_px: float
) -> tuple[Array, Array]:
    """Levenberg-Marquardt with iteratively reweighted squares on left twists of X and Y (Nocedal & Wright, ch. 10)."""
    damping = 1e-4
    residuals = _residuals(X, Y, views, camera)
    cost = _huber_cost(residuals, delta_px)
    for _ in range(50):
        J = np.concatenate([_jacobian(X, Y, view, camera) for view in views])
        weights = np.repeat(np.minimum(1.0, delta_px / np.maximum(np.linalg.norm(residuals, axis=1), 1e-12)), 2)
        H = (J * weights[:, None]).T @ J
        gradient = J.T @ (weights * residuals.ravel())
        step = -np.linalg.solve(H + damping * np.diag(np.diag(H)), gradient)
        if np.abs(step).max() < 1e-9:  # a nanometre
            break
        X_new, Y_new = retract(step[:6]) @ X, retract(step[6:]) @ Y
        residuals_new = _residuals(X_new, Y_new, views, camera)
        cost_new = _huber_cost(residuals_new, delta_px)
        if not cost_new < cost:
            damping *= 10.0
            if damping > 1e8:
                break
            continue
        done = cost - cost_new < 1e-10 * cost
        X, Y, residuals, cost = X_new, Y_new, residuals_new, cost_new
        damping = max(damping / 10.0, 1e-9)
        if done:
            break
    return X, Y


def _residuals(X: Array, Y: Array, views: list[_View], camera: Pinhole) -> Array:
    """(all corners, 2): predicted minus seen, in pixels; a corner behind the camera counts as 1e6 px off."""
    residuals = []
    for view in views:
        points = apply(X @ view.T_base_gripper @ Y, view.points_m)
        residual = camera.project(points)[0] - view.corners_px
        residual[points[:, 2] <= 1e-6] = 1e6
        residuals.append(residual)
    return np.concatenate(residuals)


def _jacobian(X: Array, Y: Array, view: _View, camera: Pinhole) -> Array:
    """(2 n, 12) derivative of a view's residuals by the twists (rotation, translation) of exp(xi) X and exp(eta) Y."""
    in_gripper = apply(Y, view.points_m)
    T_camera_gripper = X @ view.T_base_gripper
    in_camera = apply(T_camera_gripper, in_gripper)
    d_px = camera.project(in_camera)[1]
    eye = np.broadcast_to(np.eye(3), (len(in_camera), 3, 3))
    by_X = np.concatenate([-skew(in_camera), eye], axis=2)
    by_Y = T_camera_gripper[:3, :3] @ np.concatenate([-skew(in_gripper), eye], axis=2)
    return (d_px @ np.concatenate([by_X, by_Y], axis=2)).reshape(-1, 12)


def _huber_cost(residuals: Array, delta_px: float) -> float:
    length = np.linalg.norm(residuals, axis=1)
    return float(np.sum(np.where(length <= delta_px, 0.5 * length**2, delta_px * (length - 0.5 * delta_px))))
