"""A camera's intrinsics from views of a board: the lens model that the data support, and how well it is known.

Zhang's calibration (2000) as OpenCV has it. Around it: views that contradict the others are left out, the number of
distortion coefficients is chosen by the error on views that the fit did not have, and a focal length that the views
do not determine is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.board import Board, Detection
from calib.rigid import rms_length, rotation
from drivers.errors import UserError
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

MIN_VIEWS = 8
MAX_HOLDOUT_PX = 1.0
"""A calibration that is further off on views it has not seen is poor: an object half a metre away is missed by 1 mm."""

MAX_FOCAL_SIGMA = 0.01
"""Relative; above it, the views do not determine the focal length."""

MAX_FACTORY_PX = 1.0
"""Factory intrinsics further off than this, anywhere the board was seen, are worth replacing."""

_UNTIL = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 50, 1e-8)
_MODELS = (0, 1, 2, 4, 5)  # distortion coefficients solved for: none, k1, k2, p1 p2, k3
_TOO_NOISY = 2.5  # times the median noise of the views; chance reaches 2.5 in one of a million views of six corners
_EXPLAINED = 0.5  # of the squared residuals: a cause that explains more is the one
_STRETCH = 0.005  # fx and fy of a sensor differ less


@dataclass(frozen=True, eq=False)
class Known:
    """Intrinsics, and the (9, 9) covariance of fx, fy, cx, cy, k1, k2, p1, p2, k3."""

    intrinsics: Intrinsics
    covariance: Array


@dataclass(frozen=True, eq=False)
class Solution:
    """A solved camera.

    Attributes:
        intrinsics: with as many distortion coefficients as the data support, the rest 0.
        sigma_px: (4,) standard deviations of fx, fy, cx, cy, from the scatter of the residuals.
        wide: the same camera with all coefficients solved for: unbiased, so that others can be judged by it.
        used: (n,) bool; False for a view that contradicts the others and does not count.
        residuals_px: for each view (m, 2) seen minus predicted corners; of a view that is not used, at its best pose.
        reprojection_px: rms distance over the used views' corners.
        holdout_px: the same for views that the fit did not have (each left out in turn), at their best poses.
        warning: what to look at although the result is good; or "".
    """

    intrinsics: Intrinsics
    sigma_px: Array
    wide: Known
    used: NDArray[np.bool_]
    residuals_px: tuple[Array, ...]
    reprojection_px: float
    holdout_px: float
    warning: str = ""

    @property
    def view_px(self) -> Array:
        """(n,) rms distance in each view."""
        return np.array([rms_length(residual) for residual in self.residuals_px])


def solve_intrinsics(detections: Sequence[Detection], board: Board, width: int, height: int) -> Solution:
    """Solve for a camera whose images are ``width`` x ``height`` pixels.

    Raises:
        UserError: too few views, views that contradict one another, or a focal length that they do not determine.
            `poor` tells of a result that is determined, and bad.
    """
    views = _views(detections, board)
    size = (width, height)
    if len(views) < MIN_VIEWS:
        raise _too_few(f"{len(views)} views of the board")
    # The widest model first: what a poorer one cannot follow is no fault of a view.
    used, widest = _consistent(views, size)
    good = [view for view, use in zip(views, used, strict=True) if use]
    _require_focal_length(good, size)
    fits = [(coefficients, _narrowed(widest, good, size, coefficients)) for coefficients in _MODELS]
    coefficients, fit, holdout_px = _choose_model(fits, good)
    residuals = tuple(_at_best_pose(view, fit.K, fit.lens) for view in views)
    intrinsics = _intrinsics(fit, size, coefficients)
    sigma_px = np.sqrt(np.diag(_covariance(fit, good, coefficients))[:4])
    fx, fy = intrinsics.fx, intrinsics.fy
    stretch = fx / fy - 1.0
    warning = ""
    # fx and fy share most of their error, so their difference is known better than this says
    if abs(stretch) > max(_STRETCH, 3.0 * float(np.hypot(sigma_px[0] / fx, sigma_px[1] / fy))):
        warning = f"fx and fy differ by {100 * abs(stretch):.1f} %: is the print stretched? measure it across and down"
    reprojection_px = rms_length(np.concatenate(fit.residuals))
    wide = Known(_intrinsics(widest, size, _MODELS[-1]), _covariance(widest, good, _MODELS[-1]))
    return Solution(intrinsics, sigma_px, wide, used, residuals, reprojection_px, holdout_px, warning)


def poor(solution: Solution, detections: Sequence[Detection], board: Board) -> str:
    """Why the result is too bad to be saved, with the likely cause; "" for a good one."""
    if solution.holdout_px <= MAX_HOLDOUT_PX:
        return ""
    good = [detection for detection, use in zip(detections, solution.used, strict=True) if use]
    views, ids = _views(good, board), [detection.ids for detection in good]
    by_shape, by_lens = _explained_by_shape(views, ids, solution.intrinsics), _explained_by_lens(views, solution)
    if by_shape > max(_EXPLAINED, by_lens):
        cause = "the same corners are off in every view: the board is not flat, or not the one it is taken for"
    elif by_lens > _EXPLAINED:
        cause = "the lens bends the image in ways that the model (k1 k2 p1 p2 k3) has not, say a fisheye"
    else:
        cause = "corners are off at random: blur, or the board moved in the picture; give more light and hold it still"
    return f"off by {solution.holdout_px:.2f} px on views left out (at most {MAX_HOLDOUT_PX:g}); {cause}"


@dataclass(frozen=True)
class FactoryCheck:
    """Given intrinsics beside those that views of a board ask for.

    Attributes:
        view_px: (n,) rms distance in each view, at its best pose, with the given intrinsics.
        reprojection_px: the same over the corners of all views that count.
        free: the solution of the same views.
        off_px: greatest distance between where both put the same ray, where the board was seen; a turn of the camera,
            which a hand-eye calibration takes up, is not counted.
        off_sigma_px: standard deviation of that from the corners' noise.
    """

    view_px: Array
    reprojection_px: float
    free: Solution
    off_px: float
    off_sigma_px: float

    @property
    def good(self) -> bool:
        return self.off_sigma_px <= MAX_FACTORY_PX and self.off_px <= max(MAX_FACTORY_PX, 3.0 * self.off_sigma_px)

    @property
    def verdict(self) -> str:
        """A sentence."""
        off = f"off by {self.off_px:.1f} px at the edge of where the board was seen"
        if self.off_px > max(MAX_FACTORY_PX, 3.0 * self.off_sigma_px):
            return f"{off}: calibrate this camera instead (without --check)"
        if self.off_sigma_px > MAX_FACTORY_PX:
            return f"cannot tell: these views know the lens to {self.off_sigma_px:.1f} px only; take more, tilted ones"
        return f"good: within noise ({off})" if self.off_px <= 3.0 * self.off_sigma_px else f"good: {off}"


def check_intrinsics(detections: Sequence[Detection], board: Board, intrinsics: Intrinsics) -> FactoryCheck:
    """Compare ``intrinsics`` with what the views say. Raises UserError as `solve_intrinsics` does."""
    intrinsics.require_measured()
    free = solve_intrinsics(detections, board, intrinsics.width, intrinsics.height)
    K, lens = intrinsics.matrix, _padded(intrinsics.distortion)
    views = _views(detections, board)
    residuals = [_at_best_pose(view, K, lens) for view in views]
    counted = np.concatenate([residual for residual, use in zip(residuals, free.used, strict=True) if use])
    off_px, off_sigma_px = _apart(intrinsics, free.wide, np.concatenate([view.corners_px for view in views]))
    view_px = np.array([rms_length(residual) for residual in residuals])
    return FactoryCheck(view_px, rms_length(counted), free, off_px, off_sigma_px)


def rough_intrinsics(detections: Sequence[Detection], board: Board, given: Intrinsics) -> Intrinsics:
    """One focal length and k1 from a handful of views, the principal point in the middle: to tell tilts by.

    ``given`` where the views do not determine even that.
    """
    views = _views(detections, board)
    start = np.array([[given.fx, 0.0, (given.width - 1) / 2], [0.0, given.fx, (given.height - 1) / 2], [0.0, 0.0, 1.0]])
    flags = cv2.CALIB_USE_INTRINSIC_GUESS | cv2.CALIB_FIX_ASPECT_RATIO | cv2.CALIB_FIX_PRINCIPAL_POINT
    try:
        fit = _fit(views, (given.width, given.height), 1, start, flags)
    except UserError:
        return given
    focal_px = float(fit.K[0, 0])
    if not 0.3 * given.width < focal_px < 3.0 * given.width:
        return given
    return Intrinsics(
        given.width,
        given.height,
        focal_px,
        focal_px,
        float(fit.K[0, 2]),
        float(fit.K[1, 2]),
        tuple(fit.lens.tolist()),
        nominal=True,
    )


# --- below: views as points of the plane and pixels -------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    points_m: Array  # (m, 3) in the board frame
    corners_px: Array  # (m, 2)

    @property
    def freedom(self) -> int:
        """Numbers seen less the pose's."""
        return 2 * len(self.corners_px) - 6


def _views(detections: Sequence[Detection], board: Board) -> list[_View]:
    return [_View(board.corners_m(d.ids), np.asarray(d.corners_px, dtype=float)) for d in detections]


@dataclass(frozen=True)
class _Fit:
    K: Array  # (3, 3)
    lens: Array  # (5,)
    poses: list[tuple[Array, Array]]  # rotation vector and translation of T_camera_board, a view
    residuals: list[Array]  # (m, 2) a view

    @property
    def squares(self) -> float:
        return float(sum(np.sum(residual**2) for residual in self.residuals))


def _fit(
    views: Sequence[_View], size: tuple[int, int], coefficients: int, K: Array | None = None, flags: int = 0
) -> _Fit:
    """OpenCV's calibration. Raises UserError where it fails or does not end in a camera."""
    for count, flag in (
        (1, cv2.CALIB_FIX_K1),
        (2, cv2.CALIB_FIX_K2),
        (4, cv2.CALIB_ZERO_TANGENT_DIST),
        (5, cv2.CALIB_FIX_K3),
    ):
        if coefficients < count:
            flags |= flag
    # Not CALIB_DISABLE_SCHUR_COMPLEMENT: that engine of OpenCV 5.0.0 solves for a tilted sensor unasked.
    points = [view.points_m.astype(np.float32) for view in views]
    corners = [view.corners_px.astype(np.float32) for view in views]
    start = None if K is None else K.copy()
    try:
        _, found, curved, rvecs, tvecs = cv2.calibrateCamera(
            points, corners, size, start, np.zeros(5), flags=flags, criteria=_UNTIL
        )
    except cv2.error:
        raise _undetermined("no camera explains these views") from None
    K, lens = np.asarray(found, dtype=np.float64), np.asarray(curved, dtype=np.float64).ravel()[:5]
    poses = [
        (np.asarray(r, dtype=float).ravel(), np.asarray(t, dtype=float).ravel())
        for r, t in zip(rvecs, tvecs, strict=True)
    ]
    residuals = [
        view.corners_px - cv2.projectPoints(view.points_m, *pose, K, lens)[0].reshape(-1, 2)
        for view, pose in zip(views, poses, strict=True)
    ]
    fit = _Fit(K, lens, poses, residuals)
    if not (np.isfinite(K).all() and np.isfinite(fit.squares) and min(K[0, 0], K[1, 1]) > 0.05 * size[0]):
        raise _undetermined("no camera explains these views")
    return fit


def _consistent(views: list[_View], size: tuple[int, int]) -> tuple[NDArray[np.bool_], _Fit]:
    """(n,) which views agree, and their fit: the noisiest is left out, and all fitted again, until none stands out."""
    used = np.ones(len(views), dtype=bool)
    while True:
        kept = np.flatnonzero(used)
        fit = _fit([views[i] for i in kept], size, _MODELS[-1])
        freedom = np.array([views[i].freedom for i in kept])
        noise_px = np.sqrt([np.sum(residual**2) for residual in fit.residuals] / freedom)
        worst = int(np.argmax(noise_px))
        if noise_px[worst] <= _TOO_NOISY * np.median(noise_px):
            return used, fit
        used[kept[worst]] = False
        if used.sum() < MIN_VIEWS:
            raise _too_few(f"only {used.sum()} of {len(views)} views agree with one another")
        if used.sum() < 0.7 * len(views):
            raise UserError(
                f"camera calibration: {np.sum(~used)} of {len(views)} views contradict the others; see that the board "
                "is flat and the one that was printed, and hold it still"
            )


def _require_focal_length(views: list[_View], size: tuple[int, int]) -> None:
    """Refuse views that another focal length explains as well.

    Asked of fits with the focal length held 10 % off, not of the curvature at the optimum: where nothing determines
    it, the fit ends somewhere by chance, and the curvature there means nothing.
    """
    free = _fit(views, size, 2)
    freedom = sum(view.freedom for view in views)
    rises = []
    for scale in (0.9, 1.1):
        K = free.K.copy()
        K[[0, 1], [0, 1]] *= scale
        held = _fit(views, size, 2, K, cv2.CALIB_USE_INTRINSIC_GUESS | cv2.CALIB_FIX_FOCAL_LENGTH)
        rises.append((held.squares - free.squares) * freedom / max(free.squares, 1e-12))
    sigma = 0.1 / np.sqrt(max(min(rises), 1e-6))
    if sigma > MAX_FOCAL_SIGMA:
        known = f"known to {100 * sigma:.0f} % only" if sigma < 0.3 else "not determined"
        raise _undetermined(f"the focal length is {known}")


def _narrowed(widest: _Fit, views: list[_View], size: tuple[int, int], coefficients: int) -> _Fit | None:
    """The fit with fewer coefficients; None where no such camera comes near."""
    if coefficients == _MODELS[-1]:
        return widest
    try:
        return _fit(views, size, coefficients, widest.K, cv2.CALIB_USE_INTRINSIC_GUESS)
    except UserError:
        return None


def _choose_model(fits: list[tuple[int, _Fit | None]], views: list[_View]) -> tuple[int, _Fit, float]:
    """How many distortion coefficients, their fit, and the rms distance on views left out.

    The fewest that predict as well as the best, to within a standard error of the difference between the two (the
    one-standard-error rule: Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, 7.10).
    """
    candidates = [(coefficients, fit, _left_out(fit, views, coefficients)) for coefficients, fit in fits if fit]
    best = min((squares for _, _, squares in candidates), key=lambda squares: float(squares.sum()))
    corners = sum(len(view.corners_px) for view in views)
    chosen = next(
        candidate
        for candidate in candidates
        if (worse := candidate[2] - best).sum() <= np.sqrt(len(views)) * worse.std(ddof=1)
    )
    return chosen[0], chosen[1], float(np.sqrt(chosen[2].sum() / corners))


def _left_out(fit: _Fit, views: list[_View], coefficients: int) -> Array:
    """(n,) sum of squared distances in each view at its best pose, with the camera that the other views ask for.

    That camera is one Gauss-Newton step from the fit: the view's share is taken out of the normal equations.
    """
    normals = [_normal_equations(view, pose, fit, coefficients) for view, pose in zip(views, fit.poses, strict=True)]
    H, g = (np.sum(terms, axis=0) for terms in zip(*normals, strict=True))
    squares = []
    for view, (H_view, g_view) in zip(views, normals, strict=True):
        step = np.linalg.solve(H - H_view, g - g_view)
        K, lens = fit.K.copy(), fit.lens.copy()
        K[[0, 1, 0, 1], [0, 1, 2, 2]] += step[:4]
        lens[:coefficients] += step[4:]
        squares.append(np.sum(_at_best_pose(view, K, lens) ** 2))
    return np.array(squares)


def _best_pose(view: _View, K: Array, lens: Array) -> tuple[Array, Array]:
    """Rotation vector and translation of T_camera_board where the view fits best."""
    # A frontal start can end in the mirrored tilt: IPPE tries both and gives the better.
    _, rvec, tvec = cv2.solvePnP(view.points_m, view.corners_px, K, lens, flags=cv2.SOLVEPNP_IPPE)
    rvec, tvec = cv2.solvePnPRefineLM(view.points_m, view.corners_px, K, lens, rvec, tvec)
    return np.asarray(rvec, dtype=np.float64).ravel(), np.asarray(tvec, dtype=np.float64).ravel()


def _at_best_pose(view: _View, K: Array, lens: Array) -> Array:
    """(m, 2) seen minus predicted corners, the board where it fits best."""
    predicted = cv2.projectPoints(view.points_m, *_best_pose(view, K, lens), K, lens)[0]
    return view.corners_px - np.asarray(predicted, dtype=np.float64).reshape(-1, 2)


def _covariance(fit: _Fit, views: list[_View], coefficients: int) -> Array:
    """(4 + k, 4 + k) of fx, fy, cx, cy and k coefficients, by the scatter of the residuals."""
    normals = [_normal_equations(view, pose, fit, coefficients) for view, pose in zip(views, fit.poses, strict=True)]
    freedom = sum(view.freedom for view in views) - 4 - coefficients
    return np.asarray(np.linalg.inv(np.sum([H for H, _ in normals], axis=0)) * fit.squares / freedom)


def _normal_equations(view: _View, pose: tuple[Array, Array], fit: _Fit, coefficients: int) -> tuple[Array, Array]:
    """H and g of H step = g for fx, fy, cx, cy and k coefficients, the view's pose eliminated (Schur complement)."""
    predicted, J = cv2.projectPoints(view.points_m, *pose, fit.K, fit.lens)
    J = np.asarray(J, dtype=np.float64)
    P, C = J[:, :6], J[:, 6 : 10 + coefficients]  # by the pose; by fx, fy, cx, cy, k1, k2, p1, p2, k3
    C = C - P @ np.linalg.lstsq(P, C, rcond=None)[0]
    residual = view.corners_px - np.asarray(predicted, dtype=np.float64).reshape(-1, 2)
    return np.asarray(C.T @ C), np.asarray(C.T @ residual.ravel())


def _intrinsics(fit: _Fit, size: tuple[int, int], coefficients: int) -> Intrinsics:
    fx, fy, cx, cy = fit.K[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
    return Intrinsics(*size, fx, fy, cx, cy, tuple(fit.lens.tolist()) if coefficients else ())


def _apart(given: Intrinsics, free: Known, seen_px: Array) -> tuple[float, float]:
    """Greatest distance between where both put a ray, within the hull of (n, 2) ``seen_px``, and its sigma, pixels.

    A turn of the camera is fitted out.
    """
    mine = free.intrinsics
    x, y = np.meshgrid(np.linspace(0, mine.width - 1, 25), np.linspace(0, mine.height - 1, 19))
    hull = cv2.convexHull(seen_px.astype(np.float32))
    grid = np.stack([x, y], axis=-1).reshape(-1, 2)
    within = [cv2.pointPolygonTest(hull, (float(point[0]), float(point[1])), False) >= 0 for point in grid]
    px = np.concatenate([grid[within], hull.reshape(-1, 2)]).reshape(-1, 1, 2)
    criteria = (cv2.TERM_CRITERIA_COUNT, 50, 0.0)
    straight = cv2.undistortPoints(px, mine.matrix, _padded(mine.distortion), criteria=criteria)
    rays = np.concatenate([np.asarray(straight, dtype=float).reshape(-1, 2), np.ones((len(px), 1))], axis=1)
    zero = np.zeros(3)
    here, J = cv2.projectPoints(rays, zero, zero, mine.matrix, _padded(mine.distortion))
    there = cv2.projectPoints(rays, zero, zero, given.matrix, _padded(given.distortion))[0]
    J = np.asarray(J, dtype=float)
    turn = J[:, :3]
    project_out = np.eye(len(turn)) - turn @ np.linalg.pinv(turn)
    apart = (project_out @ (np.asarray(there) - np.asarray(here)).ravel()).reshape(-1, 2)
    worst = int(np.argmax(np.linalg.norm(apart, axis=1)))
    C = (project_out @ J[:, 6:15])[2 * worst : 2 * worst + 2]
    sigma_px = float(np.sqrt(np.linalg.eigvalsh(C @ free.covariance @ C.T)[-1]))
    return float(np.linalg.norm(apart[worst])), sigma_px


def _explained_by_shape(views: list[_View], ids: list[NDArray[np.int64]], camera: Intrinsics) -> float:
    """Share of the squared residuals that a board of another shape explains: corners moved, in all views alike."""
    K, lens = camera.matrix, _padded(camera.distortion)
    normals: dict[int, tuple[list[Array], list[Array]]] = {}
    total, numbers = 0.0, 0
    for view, seen in zip(views, ids, strict=True):
        rvec, tvec = _best_pose(view, K, lens)
        predicted, J = cv2.projectPoints(view.points_m, rvec, tvec, K, lens)
        residual = view.corners_px - np.asarray(predicted, dtype=np.float64).reshape(-1, 2)
        by_point = np.asarray(J, dtype=np.float64)[:, 3:6].reshape(-1, 2, 3) @ rotation(rvec)
        for corner, A, b in zip(seen.tolist(), by_point, residual, strict=True):
            stacked = normals.setdefault(corner, ([], []))
            stacked[0].append(A)
            stacked[1].append(b)
        total += float(np.sum(residual**2))
        numbers += residual.size
    left = 0.0
    for As, bs in normals.values():
        A, b = np.concatenate(As), np.concatenate(bs)
        left += float(np.sum((b - A @ np.linalg.lstsq(A, b, rcond=None)[0]) ** 2))
    return 1.0 - left / max(numbers - 3 * len(normals), 1) * numbers / total  # less what chance explains


def _explained_by_lens(views: list[_View], solution: Solution) -> float:
    """Share of the squared residuals that a lens with OpenCV's rational model explains; 0 where that does not fit."""
    camera = solution.intrinsics
    points = [view.points_m.astype(np.float32) for view in views]
    corners = [view.corners_px.astype(np.float32) for view in views]
    flags = cv2.CALIB_USE_INTRINSIC_GUESS | cv2.CALIB_RATIONAL_MODEL
    size, lens = (camera.width, camera.height), np.array([*_padded(camera.distortion), 0.0, 0.0, 0.0])
    try:
        rms_px = cv2.calibrateCamera(points, corners, size, camera.matrix, lens, flags=flags, criteria=_UNTIL)[0]
    except cv2.error:
        return 0.0
    return 1.0 - (rms_px / solution.reprojection_px) ** 2


def _padded(distortion: Sequence[float]) -> Array:
    """OpenCV wants at least five coefficients of a lens that has none."""
    return np.array([*distortion, *[0.0] * (5 - len(distortion))])


def _too_few(what: str) -> UserError:
    return UserError(f"camera calibration: {what}, {MIN_VIEWS} are needed; show it in more places and tilts")


def _undetermined(what: str) -> UserError:
    return UserError(
        f"camera calibration: {what}; tilt the board by 20 to 45 degrees, to the left, the right, up and down"
    )
