"""Why a hand-eye calibration is as good, or as bad, as it is: in words, with figures, the worst first.

Two questions are asked. What explains the pictures better than "all is as told" does: ``calib.causes`` compares. And
what the error to expect is made of, where all is as told: corner noise and encoder noise through the weights of
``calib.adjust``, zeros that had to be found too, and the encoders once more where the arm reaches. What the arm's poses
have to do with it is told by the dilution: the error that a calibration from these poses has where noise is as usual,
over that of a reach by encoders alone. Of 15 well spread poses it is 0.5 to 0.9, 1.1 where zeros are solved for; of
poses that look alike 1.8 to 4 (measured: 36 and 24 sets of
pictures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.adjust import ENCODER_SIGMA_RAD, ZERO_SIGMA_RAD, Adjustment, Problem, reach_of
from calib.board import Board, Detection
from calib.causes import NAMED, Group, Pictures, World, explain
from calib.corners import corner_noise
from calib.findings import Cause, Finding, Words
from calib.hand_eye import MIN_VIEWS, Pinhole, first_guess
from calib.observability import least_told
from calib.reach import Reach
from calib.rigid import invert
from calib.workspace import TIP_GRIPPER_M
from drivers.errors import UserError
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

BAD_REACH_MM = 5.0
"""A tip that misses by more grasps beside things: half the width of what a small jaw takes."""
BAD_LEAVE_ONE_OUT_MM = 20.0
"""No grasp would succeed with a calibration that contradicts its own views by this much."""
BAD_MISS_MM = 2.0
"""What a cause that was found, and not allowed for, may cost: the tip's error by its encoders is of this size."""

POOR_DILUTION = 1.5
USUAL_PX = 0.3
"""Corners are usually found to 0.1 to 0.3 px."""
LOOSE = 1.5
"""Encoder noise this many times the assumed is said to be so."""
NOISY_PX = 0.8
"""Corners this badly found are said to be so."""
TOLD_APART = 6.0
"""Evidence, as a difference of scores, for one cause over another: odds of 20 to 1."""

_KINDS: dict[str, Cause] = {
    "size": "board size",
    "lens": "intrinsics",
    "camera": "camera slipped",
    "board": "board slipped",
    "zeros": "joint zeros",
}


@dataclass(frozen=True)
class Diagnosis:
    """What is behind a calibration's error.

    Attributes:
        cause: what explains the error best; None where nothing is wrong, or where ``suspects`` cannot be told apart.
        suspects: causes that explain the pictures about equally well, best first; empty where one is named, or none.
        findings: all that is wrong, in order of importance; with ``suspects``, these.
        sentences: for people, in order of importance: those of the findings, and what the error is made of.
        shares_mm: parts of ``expected_reach_mm`` by "corner noise", "encoder noise" (while calibrating), "joint zeros"
            (that they had to be found too) and "encoders in reach"; their squares add up to its square. Empty without
            an adjustment.
        miss_mm: rms distance of the tip from a point that the camera saw, by the adjustment where the best explanation
            is true (of suspects the worst); 0 where nothing is wrong, None without an adjustment.
        smallest_singular_value: px per mrad or mm. How far the corners move in the picture, rms, when the camera turns
            (mrad) or moves (mm) the way that they tell the least, board and fitted zeros following as well as they can;
            the smallest singular value of their derivative. None where there are too few views.
        weakest: that way, in words.
        dilution: see the module; None where too few views agree.
        outliers: views (from 0) that contradict the rest even so.
        bad: whether the result had better not be kept.
    """

    cause: Cause | None
    suspects: tuple[Cause, ...]
    findings: tuple[Finding, ...]
    sentences: tuple[str, ...]
    shares_mm: dict[str, float]
    miss_mm: float | None
    smallest_singular_value: float | None
    weakest: str
    dilution: float | None
    outliers: tuple[int, ...]
    bad: bool


def diagnose(
    joints_rad: Sequence[Array] | Array,
    detections: Sequence[Detection],
    fk: Callable[[Array], Array],
    board: Board,
    intrinsics: Intrinsics,
    adjustment: Adjustment | None,
    *,
    mount: str = "base",
    reach_rad: Array | None = None,
    joint_names: Sequence[str] = (),
    encoder_sigma_rad: float = ENCODER_SIGMA_RAD,
    tip_m: tuple[float, float, float] = TIP_GRIPPER_M,
) -> Diagnosis:
    """Say why ``adjust`` found what it found, or why it raised (``adjustment`` None).

    Args: those of ``calib.adjust.adjust``, ``fk`` and ``mount`` included; the views are in order of time.
        joint_names: what the joints are called, by default "joint 1" and so on.

    Raises:
        UserError: the intrinsics are not measured.
    """
    intrinsics.require_measured()
    joints = np.asarray(joints_rad, dtype=float)
    try:
        T_base_camera, Y = first_guess([fk(q) for q in joints], detections, board, intrinsics)
    except UserError as error:  # too few views, or turns
        said = str(error).removeprefix("hand-eye calibration: ")
        finding = Finding("poor poses", 0.0, said[:1].upper() + said[1:] + ".")
        return Diagnosis("poor poses", (), (finding,), (finding.sentence,), {}, None, None, "", None, (), True)
    sigma_px, fits = corner_noise(detections, board, intrinsics)
    problem = Problem(joints, detections, fits, fk, board, Pinhole(intrinsics), sigma_px, encoder_sigma_rad)
    if adjustment is not None:
        T_base_camera, Y = adjustment.T_base_camera, adjustment.T_gripper_board
    found = explain(problem, invert(T_base_camera), Y)
    pictures, best = Pictures(problem), found.best
    names = [joint_names[j] if j < len(joint_names) else f"joint {j + 1}" for j in range(joints.shape[1])]
    words = Words(mount, names, board, len(joints))

    fitted: tuple[int, ...]
    if adjustment is None:
        result, fitted, outliers = best.world, (), best.bad
    else:
        result = pictures.world(invert(T_base_camera), Y, adjustment.joint_zeros_rad)
        fitted, outliers = pictures.zeros if adjustment.zeros_fitted else (), adjustment.outliers
    reach = reach_of(problem, result.X, result.zeros_rad, mount, reach_rad, tip_m)
    kept = len(joints) - len(outliers)
    budget = _budget(pictures, result, fitted, outliers, best.wear, reach) if kept >= MIN_VIEWS else None
    smallest, weakest = _weakest(pictures, result, fitted)

    close = [e for e in found.rivals if len(best.groups) == 1 and e.score < best.score + TOLD_APART]
    miss_mm = max(_gap_mm(reach, problem.camera, result, e.world) if e.groups else 0.0 for e in (best, *close))
    findings: list[Finding] = []
    for explanation in (best, *close):
        for group in explanation.groups:
            without = pictures.best(best.world, tuple(g for g in explanation.groups if g != group), False)
            cost_mm = _gap_mm(reach, problem.camera, without.world, explanation.world)
            findings.append(words.group(explanation, group, cost_mm, group.kind == "zeros" and bool(fitted)))
    if not close:
        # zeros are allowed for, if not in this result then in one that nothing else stands in the way of
        findings.sort(key=lambda f: (f.cause == "joint zeros", -f.cost_mm))
    if best.wear >= LOOSE and best.tight > NAMED:
        findings.append(Finding("loose arm", 0.0, words.loose(best.wear, encoder_sigma_rad)))
    elif adjustment is None and not best.groups:
        findings.append(Finding("bad samples", 0.0, words.bad_samples(best.bad)))
    if budget is not None and budget.dilution > POOR_DILUTION:
        findings.append(Finding("poor poses", 0.0, words.poor_poses(budget.dilution, weakest)))
    if sigma_px > NOISY_PX:
        findings.append(Finding("detection noise", 0.0, words.noisy(sigma_px)))

    suspects = tuple(dict.fromkeys(_KINDS[e.groups[0].kind] for e in (best, *close))) if close else ()
    sentences = [f.sentence for f in findings]
    if suspects:
        sentences.insert(0, f"The pictures cannot tell these apart: {', '.join(suspects)}.")
    if not sentences:
        sentences.append("Nothing is wrong that the pictures could tell.")
    bad, shares_mm = True, {}
    if adjustment is not None and budget is not None:
        shares_mm = budget.shares_mm(adjustment)
        sentences.append(words.shares(adjustment, shares_mm, any(g.kind != "zeros" for g in best.groups)))
        if outliers:
            sentences.append(words.outliers(adjustment))
        bad = (
            adjustment.expected_reach_mm > BAD_REACH_MM
            or adjustment.leave_one_out_mm > BAD_LEAVE_ONE_OUT_MM
            or miss_mm > BAD_MISS_MM
        )
    sentences.append(words.observability(smallest, weakest))
    return Diagnosis(
        cause=None if suspects or not findings else findings[0].cause,
        suspects=suspects,
        findings=tuple(findings),
        sentences=tuple(sentences),
        shares_mm=shares_mm,
        miss_mm=None if adjustment is None else miss_mm,
        smallest_singular_value=smallest,
        weakest=weakest,
        dilution=None if budget is None else budget.dilution,
        outliers=outliers,
        bad=bad,
    )


@dataclass(frozen=True)
class _Budget:
    """What an adjustment's error is made of: variances of the tip, m^2, mean over the reach; and the dilution."""

    corners: float
    encoders: float
    zeros: float
    dilution: float

    def shares_mm(self, adjustment: Adjustment) -> dict[str, float]:
        """Scaled to what the adjustment expects, which is a median."""
        each = {"corner noise": self.corners, "encoder noise": self.encoders, "joint zeros": self.zeros}
        total = sum(each.values())
        shares = {name: adjustment.expected_mm * float(np.sqrt(part / total)) for name, part in each.items()}
        wobble_mm2 = adjustment.expected_reach_mm**2 - adjustment.expected_mm**2
        return {**shares, "encoders in reach": float(np.sqrt(max(wobble_mm2, 0.0)))}


def _budget(
    pictures: Pictures, world: World, fitted: tuple[int, ...], outliers: tuple[int, ...], wear: float, reach: Reach
) -> _Budget:
    kept = np.ones(pictures.views)
    kept[list(outliers)] = 0.0
    free = pictures.free((Group("zeros", fitted),) if fitted else ())
    tips = np.zeros((len(reach.joints_rad), 3, len(free)))
    by_reach = reach.derivatives(world.X, world.zeros_rad, fitted)
    tips[:, :, :6], tips[:, :, 12:] = by_reach[:, :, :6], by_reach[:, :, 6:]
    tips *= pictures.sigmas[free]

    def variance(covariance: NDArray[np.floating[Any]]) -> float:
        k = len(covariance)
        return float(np.einsum("mai,ij,maj->", tips[:, :, :k], covariance, tips[:, :, :k]) / len(tips))

    linear = pictures.linear(world)
    H = linear.information(wear, kept)[np.ix_(free, free)]
    known = np.linalg.inv(H[:12, :12])  # with the zeros known
    of_corners, of_encoders = linear.noise_information(wear, kept)
    corners, encoders = (variance(known @ F[:12, :12] @ known) for F in (of_corners, of_encoders))
    zeros = max(variance(np.linalg.inv(H)) - corners - encoders, 0.0)

    usual = copy(pictures.problem)
    usual.sigma_px = min(usual.sigma_px, USUAL_PX)
    H = Pictures(usual).linear(world).information(1.0, kept)[np.ix_(free, free)]
    wobble_m = reach.wobble_m(world.zeros_rad, max(usual.encoder_sigma_rad, ENCODER_SIGMA_RAD))
    return _Budget(corners, encoders, zeros, float(np.sqrt(variance(np.linalg.inv(H)))) / wobble_m)


def _weakest(pictures: Pictures, world: World, fitted: tuple[int, ...]) -> tuple[float, str]:
    """The smallest singular value, px per mrad or mm (``Diagnosis``), and its direction in words."""
    columns = pictures.free((Group("zeros", fitted),) if fitted else ())
    J = np.concatenate([pictures.view(world, i)[1][:, columns] for i in range(pictures.views)])
    # zeros follow as far as their prior lets them: one of a camera's own turns may be all one with a joint's
    prior = np.diag([0.0] * 12 + [pictures.problem.sigma_px / ZERO_SIGMA_RAD] * len(fitted))
    return least_told(J.T @ J + prior**2, len(J) // 2)


def _gap_mm(reach: Reach, camera: Pinhole, believed: World, true: World) -> float:
    """Rms distance, mm, of the tip from a point the camera saw, as the camera stands after a slip."""

    def lens(points: Array) -> Array:
        zero = np.zeros(3)
        px = cv2.projectPoints(np.ascontiguousarray(points), zero, zero, *believed.optics(camera))[0]
        rays = cv2.undistortPoints(px, *true.optics(camera)).reshape(-1, 2)
        return points[:, 2:] * np.column_stack([rays, np.ones(len(rays))])

    X, true_X = (world.camera_slip @ world.X for world in (believed, true))
    return 1e3 * reach.gap_m(X, believed.zeros_rad, true_X, true.zeros_rad, lens)
