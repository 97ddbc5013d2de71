"""What one thing gone wrong would make the pictures of a hand-eye calibration look like this: nested fits, compared.

The model of ``calib.adjust`` is fitted again with one group of unknowns more: the joints' zeros (one, or all), the size
of the board's squares, the lens (focal length, principal point, first radial term), and a slip of the camera or of the
board between two views, which are in order of time. Each unknown has a normal prior of what goes wrong in life. A fit's
score is -2 ln of the evidence for it by Laplace's method (Bishop, Pattern Recognition and Machine Learning, 4.4.1):

    sum over views of [ln det S + min(pose, bar)] + the rest of the corners' squares + prior
        + ln det(1 + what the data tell of the group, in units of the prior),

so a group that the data say nothing about costs nothing and wins nothing (a slip also pays for the choice of its view,
2 ln of how many there are). "pose" is the part of a view's weighted squares that moving its board would remove; a view
beyond the bar counts as bad on its own account and costs the bar.
S holds corner noise and encoder noise, as in ``calib.adjust``, but here the encoder noise may be up to eight times as
large as assumed, in all views alike: an arm that is merely loose must not pass for one of the others.

Groups are added one at a time, the best first, as long as the evidence for one more is NAMED.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.adjust import ZERO_SIGMA_RAD, Problem
from calib.hand_eye import Pinhole
from calib.linear_views import BAR, TWISTS, Linear
from calib.rigid import apply, retract, skew

Array = NDArray[np.float64]

SIZE_SIGMA = 0.03
"""Prior of a print's scale: printers and "fit to page" are off by a few per cent."""
FOCAL_SIGMA, CENTRE_SIGMA_PX, RADIAL_SIGMA = 0.03, 20.0, 0.05
"""Priors of ln focal length, principal point and k1."""
SLIP_SIGMA_RAD, SLIP_SIGMA_M = float(np.radians(3.0)), 0.015
"""Prior of a slip, each axis."""

NAMED = 10.0
"""Evidence, as a difference of scores, for a cause to be taken for real: odds of 150 to 1."""

_ROUNDS = 8
_ALL_ALIKE = 2  # rounds
_SLIPS = ("camera", "board")
_MOST = 3  # groups
_TRIES = 2  # of a kind


@dataclass(frozen=True, eq=False)
class World:
    """What is taken to be true: ``calib.adjust``'s unknowns, and what it takes for granted.

    Attributes:
        X, Y: (4, 4) T_camera_base, T_gripper_board (of the views before a slip).
        zeros_rad: (n,).
        size: ln of true square over the board's ``square_m``.
        lens: (4,) ln of true over given focal length; true minus given cx, cy (px) and k1.
        camera_slip, board_slip: (4, 4) X, or Y, is this @ X, or @ Y, from view ``camera_from``, ``board_from``, on.
    """

    X: Array
    Y: Array
    zeros_rad: Array
    size: float
    lens: Array
    camera_slip: Array
    board_slip: Array
    camera_from: int
    board_from: int

    def optics(self, camera: Pinhole) -> tuple[Array, Array]:
        """(3, 3) camera matrix and (k,) distortion, OpenCV's, where ``camera`` is what was told."""
        K, distortion = camera.K.copy(), camera.distortion.copy()
        K[[0, 1], [0, 1]] *= np.exp(self.lens[0])
        K[:2, 2] += self.lens[1:3]
        distortion[0] += self.lens[3]
        return K, distortion


@dataclass(frozen=True)
class Group:
    """Unknowns that stand for one cause.

    ``kind`` is "zeros", "size", "lens", "camera" or "board" (slips); ``joints`` are those whose zeros are free;
    ``view`` is the first after the slip.
    """

    kind: str
    joints: tuple[int, ...] = ()
    view: int = 0


@dataclass(frozen=True, eq=False)
class Explanation:
    """The best fit with some groups free.

    Attributes:
        groups: in the order they were found.
        score: -2 ln evidence, up to a constant that all fits to the same pictures share.
        wear: factor on the encoder noise.
        tight: by how much the score would be worse were that factor one.
        bad: views (from 0) beyond the bar.
        values, sigmas: by group, its unknowns as in ``World`` (a slip as rotation vector and translation) and their
            standard deviations.
    """

    world: World
    groups: tuple[Group, ...]
    score: float
    wear: float
    tight: float
    bad: tuple[int, ...]
    values: dict[Group, Array]
    sigmas: dict[Group, Array]


@dataclass(frozen=True, eq=False)
class Explanations:
    """What came of the search.

    Attributes:
        plain: nothing wrong.
        best: with all groups that the evidence is for.
        rivals: fits with one group of another kind than the first that was found, best first.
    """

    plain: Explanation
    best: Explanation
    rivals: tuple[Explanation, ...]


class Pictures:
    """The observations, linearized about a world and fitted."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.views = len(problem.joints)
        self._arms: dict[tuple[int, bytes], tuple[Array, Array]] = {}
        self.zeros = problem.separable
        self.size = TWISTS + len(self.zeros)
        self.lens = self.size + 1
        self.camera = self.lens + 4
        self.board = self.camera + 6
        self.sigmas = np.ones(self.board + 6)
        self.sigmas[TWISTS : self.size] = ZERO_SIGMA_RAD
        self.sigmas[self.size] = SIZE_SIGMA
        self.sigmas[self.lens : self.camera] = [FOCAL_SIGMA, CENTRE_SIGMA_PX, CENTRE_SIGMA_PX, RADIAL_SIGMA]
        self.sigmas[self.camera :] = ([SLIP_SIGMA_RAD] * 3 + [SLIP_SIGMA_M] * 3) * 2

    def world(self, X: Array, Y: Array, zeros_rad: Array | None = None) -> World:
        """With nothing wrong but the zeros."""
        zeros = np.zeros(self.problem.joints.shape[1]) if zeros_rad is None else zeros_rad
        return World(X, Y, zeros, 0.0, np.zeros(4), np.eye(4), np.eye(4), self.views, self.views)

    def columns(self, group: Group) -> list[int]:
        """Where the group's unknowns are among all."""
        match group.kind:
            case "zeros":
                return [TWISTS + self.zeros.index(j) for j in group.joints]
            case "size":
                return [self.size]
            case "lens":
                return list(range(self.lens, self.camera))
            case "camera":
                return list(range(self.camera, self.board))
        return list(range(self.board, self.board + 6))

    def fit(self, start: World, groups: tuple[Group, ...], everyone: bool = False) -> Explanation:
        """The best fit with these groups free, from ``start``; with ``everyone``, at first no view is distrusted."""
        world = start
        for group in groups:
            if group.kind == "camera" and world.camera_from != group.view:
                world = replace(world, camera_slip=np.eye(4), camera_from=group.view)
            if group.kind == "board" and world.board_from != group.view:
                world = replace(world, board_slip=np.eye(4), board_from=group.view)
        free = self.free(groups)
        best: tuple[float, float, Linear, World] | None = None
        for k in range(_ROUNDS):
            linear = self.linear(world)
            score, wear = linear.score()
            done = best is not None and score > best[0] - 0.02
            if best is None or score < best[0]:
                best = score, wear, linear, world
            if done and not (everyone and k <= _ALL_ALIKE):
                break
            step = linear.pulled(free) if everyone and k < _ALL_ALIKE else linear.step(free)
            world = self.moved(world, step * self.sigmas)
        assert best is not None
        score, wear, linear, world = best
        poses = linear.poses(wear)
        H = linear.information(wear, (poses <= BAR).astype(float))[np.ix_(free, free)]
        deviations = dict(zip(free.tolist(), np.sqrt(np.diag(np.linalg.inv(H))) * self.sigmas[free], strict=True))
        values = {g: self._values(world)[self.columns(g)] for g in groups}
        sigmas = {g: np.array([deviations[c] for c in self.columns(g)]) for g in groups}
        bad = tuple(int(i) for i in np.flatnonzero(poses > BAR))
        return Explanation(world, groups, score + self._toll(H, groups), wear, linear.tight(), bad, values, sigmas)

    def best(self, start: World, groups: tuple[Group, ...], everyone: bool) -> Explanation:
        """The best fit from ``start``; with ``everyone``, also from trust in all views, where some seem bad."""
        world = self._without(start, groups)
        fit = self.fit(world, groups)
        if not (everyone and fit.bad):
            return fit
        return min(fit, self.fit(world, groups, True), key=lambda e: e.score)

    def one_more(self, found: Explanation) -> list[Explanation]:
        """Fits with one group more than ``found`` has, the best of each kind, best first, none that is hopeless."""
        linear = self.linear(found.world, masked=False)
        has = {g.kind for g in found.groups}
        zeroed = {j for g in found.groups for j in g.joints}
        candidates = [Group("zeros", (j,)) for j in self.zeros if j not in zeroed]
        candidates += [Group(kind) for kind in ("size", "lens") if kind not in has]
        candidates += [Group(kind, view=k) for kind in _SLIPS if kind not in has for k in range(1, self.views)]
        sets = [(g.kind, (*found.groups, g)) for g in candidates]
        if len(zeroed) < len(self.zeros) > 1:  # all zeros in place of some
            sets.append(("zeros", (*(g for g in found.groups if g.kind != "zeros"), Group("zeros", self.zeros))))
        told = sorted((self.foretold(linear, groups), k) for k, (_, groups) in enumerate(sets))
        fits: dict[str, Explanation] = {}
        tries: dict[tuple[str, int], int] = {}
        for foretold, k in told:
            kind, groups = sets[k]
            turn = kind, len(groups[-1].joints)
            # straight lines tell little from a fit that views are far off
            if (foretold > found.score and not found.bad) or tries.get(turn, 0) >= _TRIES:
                continue
            tries[turn] = tries.get(turn, 0) + 1
            fit = self.best(found.world, groups, bool(found.bad))
            if kind not in fits or fit.score < fits[kind].score:
                fits[kind] = fit
        return sorted(fits.values(), key=lambda e: e.score)

    def foretold(self, linear: Linear, groups: tuple[Group, ...]) -> float:
        """The score of ``fit`` as far as straight lines tell, from the world that ``linear`` is about."""
        slips = {g.kind: g.view for g in groups}
        linear = linear.seen(self._mask(slips.get("camera", self.views), slips.get("board", self.views)))
        free = self.free(groups)
        x = linear.step(free)
        score, wear = linear.score(x)
        H = linear.information(wear, (linear.poses(wear, x) <= BAR).astype(float))[np.ix_(free, free)]
        return score + self._toll(H, groups)

    def _toll(self, H: Array, groups: tuple[Group, ...]) -> float:
        """What freedom costs: Occam's share of the evidence."""
        told = float(np.linalg.slogdet(H)[1] - np.linalg.slogdet(H[:TWISTS, :TWISTS])[1])
        return told + sum(2 * float(np.log(self.views - 1)) for g in groups if g.kind in _SLIPS)

    def free(self, groups: tuple[Group, ...]) -> NDArray[np.int64]:
        """Places of the unknowns to solve for."""
        return np.array([*range(TWISTS), *(c for g in groups for c in self.columns(g))], dtype=np.int64)

    def linear(self, world: World, masked: bool = True) -> Linear:
        """All views about ``world``; unless ``masked`` the slips are as if before the first."""
        p, views = self.problem, [self.view(world, i) for i in range(self.views)]
        linear = Linear.of(views, self._values(world) / self.sigmas, self.sigmas, p.sigma_px, p.encoder_sigma_rad)
        return linear.seen(self._mask(world.camera_from, world.board_from)) if masked else linear

    def _without(self, world: World, groups: tuple[Group, ...]) -> World:
        """``world`` with everything at its best guess that no group speaks of."""
        kinds = {g.kind for g in groups}
        zeroed = [j for g in groups for j in g.joints]
        zeros = np.zeros_like(world.zeros_rad)
        zeros[zeroed] = world.zeros_rad[zeroed]
        world = replace(world, zeros_rad=zeros)
        if "size" not in kinds:
            world = replace(world, size=0.0)
        if "lens" not in kinds:
            world = replace(world, lens=np.zeros(4))
        if "camera" not in kinds:
            world = replace(world, camera_slip=np.eye(4), camera_from=self.views)
        if "board" not in kinds:
            world = replace(world, board_slip=np.eye(4), board_from=self.views)
        return world

    def _mask(self, camera_from: int, board_from: int) -> NDArray[np.bool_]:
        """(views, unknowns) whether a view has to do with an unknown."""
        mask = np.ones((self.views, len(self.sigmas)), dtype=bool)
        mask[:camera_from, self.camera : self.board] = False
        mask[:board_from, self.board :] = False
        return mask

    def _values(self, world: World) -> Array:
        """(board + 6,) all unknowns; those of the twists are zero."""
        v = np.zeros(self.board + 6)
        v[TWISTS : self.size] = world.zeros_rad[list(self.zeros)]
        v[self.size] = world.size
        v[self.lens : self.camera] = world.lens
        for at, T in ((self.camera, world.camera_slip), (self.board, world.board_slip)):
            v[at : at + 6] = np.concatenate([cv2.Rodrigues(T[:3, :3])[0].ravel(), T[:3, 3]])
        return v

    def moved(self, world: World, x: Array) -> World:
        """After a step of all unknowns, (board + 6,)."""
        zeros = world.zeros_rad.copy()
        zeros[list(self.zeros)] += x[TWISTS : self.size]
        return replace(
            world,
            X=retract(x[:6]) @ world.X,
            Y=retract(x[6:12]) @ world.Y,
            zeros_rad=zeros,
            size=world.size + float(x[self.size]),
            lens=world.lens + x[self.lens : self.camera],
            camera_slip=retract(x[self.camera : self.board]) @ world.camera_slip,
            board_slip=retract(x[self.board :]) @ world.board_slip,
        )

    def _arm(self, i: int, zeros_rad: Array) -> tuple[Array, Array]:
        """T_base_gripper of view i and its derivatives by the joints that move, (moving, 4, 4)."""
        key = i, zeros_rad.tobytes()
        if key not in self._arms:
            q = self.problem.joints[i] + zeros_rad
            self._arms[key] = self.problem.fk(q), np.array([self.problem.by_joint(q, j) for j in self.problem.moving])
        return self._arms[key]

    def view(self, world: World, i: int) -> tuple[Array, Array, Array]:
        """Residuals (2 n,), derivatives by all unknowns (2 n, unknowns) and by the joints that move (2 n, moving).

        The slips' are as if they were before this view: ``_mask`` knows better.
        """
        p = self.problem
        X = world.camera_slip @ world.X if i >= world.camera_from else world.X
        Y = world.board_slip @ world.Y if i >= world.board_from else world.Y
        points = np.exp(world.size) * p.points[i]
        in_gripper = apply(Y, points)
        T_base_gripper, by_q = self._arm(i, world.zeros_rad)
        T = X @ T_base_gripper
        in_camera = apply(T, in_gripper)
        K, lens = world.optics(p.camera)
        zero = np.zeros(3)
        px, by = cv2.projectPoints(np.ascontiguousarray(in_camera), zero, zero, K, lens)
        n = len(points)
        by = np.asarray(by, dtype=float).reshape(n, 2, -1)  # by rotation, translation, focal lengths, centre, lens
        eye = np.broadcast_to(np.eye(3), (n, 3, 3))
        by_X = np.concatenate([-skew(in_camera), eye], axis=2)
        by_Y = T[:3, :3] @ np.concatenate([-skew(in_gripper), eye], axis=2)
        by_joint = np.stack([apply(X @ D, in_gripper) for D in by_q], axis=2)
        space = np.zeros((n, 3, self.board + 6))
        space[:, :, :6] = by_X @ _carried(world.camera_slip) if i >= world.camera_from else by_X
        space[:, :, 6:12] = by_Y @ _carried(world.board_slip) if i >= world.board_from else by_Y
        space[:, :, TWISTS : self.size] = by_joint[:, :, [p.moving.index(j) for j in self.zeros]]
        space[:, :, self.size] = points @ (T[:3, :3] @ Y[:3, :3]).T
        space[:, :, self.camera : self.board] = by_X
        space[:, :, self.board :] = by_Y
        J = by[:, :, 3:6] @ space
        J[:, :, self.lens] = by[:, :, 6] * K[0, 0] + by[:, :, 7] * K[1, 1]
        J[:, :, self.lens + 1 : self.lens + 3] = by[:, :, 8:10]
        J[:, :, self.lens + 3] = by[:, :, 10]
        residuals = np.asarray(px, dtype=float).reshape(-1, 2) - p.corners[i]
        return residuals.ravel(), J.reshape(2 * n, -1), (by[:, :, 3:6] @ by_joint).reshape(2 * n, -1)


def explain(problem: Problem, X: Array, Y: Array) -> Explanations:
    """Look for causes, from a start (T_camera_base, T_gripper_board) that need not be good.

    The observations are ``problem``'s, in order of time.
    """
    pictures = Pictures(problem)
    start = pictures.world(X, Y)
    plain = pictures.best(start, (), True)
    best = plain
    rivals: tuple[Explanation, ...] = ()
    while len(best.groups) < _MOST:
        tried = pictures.one_more(best)
        if not tried or tried[0].score > best.score - NAMED:
            break
        if not best.groups:
            rivals = tuple(e for e in tried[1:] if e.groups[0].kind != tried[0].groups[0].kind)
        best = tried[0]
    if len(best.groups) > 1:  # what was found first may be explained by what was found later
        for group in best.groups:
            fewer = pictures.best(best.world, tuple(g for g in best.groups if g != group), False)
            if fewer.score < best.score + NAMED:
                best = fewer
    if 2 * len(best.bad) > pictures.views:  # what calls most views bad explains nothing
        return Explanations(plain, plain, ())
    return Explanations(plain, best, rivals)


def _carried(T: Array) -> Array:
    """(6, 6) that takes a left twist of A to the left twist of T @ A that is the same motion."""
    R = T[:3, :3]
    carried = np.zeros((6, 6))
    carried[:3, :3] = carried[3:, 3:] = R
    carried[3:, :3] = skew(T[None, :3, 3])[0] @ R
    return carried
