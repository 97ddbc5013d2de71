"""One thing followed from image to image: optical flow carries it, its first look tells whether it is still there.

A uniformly coloured thing on a table has its corners on its outline, where half of every window is background that
stays behind. So the flow is not computed on the image but on how much each pixel looks like the thing: by colour (its
histogram against that of its surroundings, Bayes' rule with even odds) and, where there is depth, by whether it stands
out from the surface below. Pyramidal Lucas-Kanade with a forward-backward check gives a similarity (RANSAC) from the
last image to this one; the corners of the first image, looked for where that puts them, take its drift away. Where
neither explains what is seen, the thing is searched for. What is found counts only while it looks like the first image.

The camera stands still, as it does while the arm waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from edge.appearance import (
    Array,
    Floats,
    Image,
    Mask,
    Thumbnail,
    blurred,
    foreground,
    in_light_of,
    likeness,
    looked_up,
    raised,
    same,
    surface_below,
)
from edge.contract import Affordance

MIN_QUALITY = 0.45
"""Share of the thing that must look as it did at first."""

_SAME_LEVELS = 26.0  # of 255
_FOUND = 0.6  # share of it that must, where it was searched for
_GOOD = 0.75  # share of the thing seen, at which nothing more is tried
_CORNERS = 40
_ENOUGH = 3  # points that agree: one more than make a similarity
_AGREE = 0.4  # of all points
_WINDOW = (13, 13)
_LEVELS = 3
_BACK_PX = 0.7  # how far a point may come back from where it started
_RANSAC_PX = 1.2
_STEP_SCALE = (0.8, 1.25)  # between two images
_SCALE = (0.5, 2.0)  # since the first
_SEARCH = 0.35  # of the image's width, each way
_CANDIDATES = 3
_RING_PX = 4


@dataclass(frozen=True)
class Tracked:
    """Where the thing is in the latest image.

    Attributes:
        box: around it, normalized by image width and height; the last known one while it is lost.
        points: what rides with it, (x, y) normalized.
        quality: share of it that looks as at first, 0 to 1.
        lost: in words, why it is not known where it is; None while it is.
    """

    box: Affordance
    points: tuple[tuple[float, float], ...]
    quality: float
    lost: str | None


class Tracker:
    """Follows what a box shows from the view it was drawn in through later ones, in their order.

    A thing that is lost in one image may be found again in a later one.

    Args:
        view: the first.
        box: around the thing; roughly is enough where it differs in colour or height from what is around it.
        points: what rides with it.
    """

    def __init__(self, view: Thumbnail, box: Affordance, points: tuple[tuple[float, float], ...] = ()) -> None:
        self._first, self._box, self._points = view, box, points
        width, height = view.size_px
        corners = np.array(box.corners) * (width, height, width, height) - 0.5
        self._below_m = None if view.depth_m is None else surface_below(view.depth_m, corners)
        self._mask = foreground(view, corners, self._below_m)
        self._colours = likeness(view.rgb, self._mask)
        v, u = np.nonzero(self._mask)
        pad = _RING_PX + 2
        left, top = max(0, int(u.min()) - pad), max(0, int(v.min()) - pad)
        self._corner_px = np.array([left, top], dtype=float)
        window = (slice(top, int(v.max()) + pad + 1), slice(left, int(u.max()) + pad + 1))
        self._inside = self._mask[window]
        near = np.ones((2 * _RING_PX + 1,) * 2, np.uint8)
        self._ring = cv2.dilate(self._inside.astype(np.uint8), near).astype(bool)
        self._ring &= ~cv2.dilate(self._inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        self._look = blurred(view.rgb)[window]
        shown, like = self._seen(view)
        self._like_ring = float(like[window][self._ring].mean()) if self._ring.any() else 0.0
        self._like_window = like[window]
        self._around = np.asarray(cv2.dilate(self._mask.astype(np.uint8), near), np.uint8)
        self._first_points = _corners(shown, self._around)
        self._first_shown = self._shown = shown
        self._S = np.eye(2, 3)  # similarity: pixels of the first view to those of the latest
        self._found = True

    @property
    def mask(self) -> Mask:
        """Which pixels of the first view are the thing, (h, w)."""
        return self._mask

    def update(self, view: Thumbnail) -> Tracked:
        """Find the thing in the next view, of the same camera and size."""
        rgb = in_light_of(self._first.rgb, view.rgb)
        view = Thumbnail(rgb, view.depth_m, view.t_s)
        shown, like = self._seen(view)
        look = blurred(rgb)
        best, quality = self._S, 0.0
        if self._found:
            best, quality = self._best([self._settled(shown, self._S)], look, like, self._S)
            if quality < _GOOD:
                carried = self._flow(shown)
                best, quality = self._best([best, carried, self._settled(shown, carried)], look, like, best)
        if quality < MIN_QUALITY:
            found, share = self._best([self._settled(shown, S) for S in self._search(look, like)], look, like, best)
            if share >= _FOUND:
                best, quality = found, share
        self._found = quality >= MIN_QUALITY
        if self._found:
            self._S = best
        self._shown = shown
        return self._tracked(view, quality)

    def _tracked(self, view: Thumbnail, quality: float) -> Tracked:
        width, height = view.size_px
        size = np.array([width, height], dtype=float)
        scale = float(math.hypot(self._S[0, 0], self._S[1, 0]))
        centre = _apply(self._S, np.array([[self._box.x, self._box.y]]) * size - 0.5)[0]
        x, y = (centre + 0.5) / size
        lost = None
        if quality < MIN_QUALITY:
            lost = "it is covered, gone, or looks otherwise"
        elif not (0.0 <= x <= 1.0 and 0.0 <= y <= 1.0):
            lost = "it left the image"
        sides = min(1.0, self._box.width * scale), min(1.0, self._box.height * scale)
        box = Affordance(float(np.clip(x, 0.0, 1.0)), float(np.clip(y, 0.0, 1.0)), *sides)
        points = _apply(self._S, np.array(self._points, dtype=float).reshape(-1, 2) * size - 0.5)
        points = np.clip((points + 0.5) / size, 0.0, 1.0)
        return Tracked(box, tuple((float(px), float(py)) for px, py in points), quality, lost)

    def _seen(self, view: Thumbnail) -> tuple[Image, Floats]:
        """What the flow is computed on, and how much each pixel looks like the thing (0 to 1)."""
        like = looked_up(self._colours, view.rgb)
        if self._below_m is not None and view.depth_m is not None:
            like = like * raised(view.depth_m, self._below_m)
        grey = np.asarray(cv2.cvtColor(view.rgb, cv2.COLOR_RGB2GRAY), np.float32)
        shown = np.clip(like * (128.0 + 0.5 * grey), 0.0, 255.0).astype(np.uint8)
        return np.asarray(cv2.GaussianBlur(shown, (3, 3), 0), np.uint8), like

    def _flow(self, shown: Image) -> Array:
        """From the last image to this one, on corners found in the last."""
        outline = np.asarray(
            cv2.warpAffine(self._around, self._S, (shown.shape[1], shown.shape[0]), flags=cv2.INTER_NEAREST), np.uint8
        )
        points = _corners(self._shown, outline)
        step = _similarity(self._shown, shown, points, points)
        if step is None or not _STEP_SCALE[0] < math.hypot(step[0, 0], step[1, 0]) < _STEP_SCALE[1]:
            return self._S
        return _compose(step, self._S)

    def _settled(self, shown: Image, S: Array) -> Array:
        """A guess made good by the first image's corners; the guess itself where they do not agree."""
        exact = _similarity(self._first_shown, shown, self._first_points, _apply(S, self._first_points))
        return S if exact is None else exact

    def _search(self, look: Floats, like: Floats) -> list[Array]:
        """Where else it may be, best first: at half the size, without turning it."""
        half = (look.shape[1] // 2, look.shape[0] // 2)
        small = np.asarray(cv2.resize(look, half, interpolation=cv2.INTER_AREA), np.float32)
        small_like = np.asarray(cv2.resize(like, half, interpolation=cv2.INTER_AREA), np.float32)
        size = (max(3, self._inside.shape[1] // 2), max(3, self._inside.shape[0] // 2))
        template = np.asarray(cv2.resize(self._look, size, interpolation=cv2.INTER_AREA), np.float32)
        shape = np.asarray(cv2.resize(self._inside.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)
        if size[0] > half[0] or size[1] > half[1]:
            return []
        weight = np.repeat(shape[..., None], 3, axis=2)
        different = cv2.matchTemplate(small, template, cv2.TM_SQDIFF, mask=weight)
        alike = cv2.matchTemplate(2.0 * small_like - 1.0, 2.0 * shape - 1.0, cv2.TM_CCORR)
        cost = np.asarray(different / (3 * _SAME_LEVELS**2 * max(shape.sum(), 1.0)) - alike / shape.size)
        here = _apply(self._S, self._corner_px[None])[0] / 2
        far = _SEARCH * look.shape[1] / 2
        v, u = np.mgrid[: cost.shape[0], : cost.shape[1]]
        cost = np.where(np.hypot(u - here[0], v - here[1]) <= far, cost, np.inf)
        found = []
        for _ in range(_CANDIDATES):
            row, column = np.unravel_index(int(np.argmin(cost)), cost.shape)
            if not np.isfinite(cost[row, column]):
                break
            found.append(np.column_stack([np.eye(2), np.array([column, row]) * 2.0 - self._corner_px]))
            rows = slice(max(0, row - size[1] // 2), row + size[1] // 2 + 1)
            cost[rows, max(0, column - size[0] // 2) : column + size[0] // 2 + 1] = np.inf
        return found

    def _best(self, candidates: list[Array], look: Floats, like: Floats, default: Array) -> tuple[Array, float]:
        best, quality = default, 0.0
        for S in candidates:
            share = self._quality(S, look, like) if _SCALE[0] < math.hypot(S[0, 0], S[1, 0]) < _SCALE[1] else 0.0
            if share > quality:
                best, quality = S, share
        return best, quality

    def _quality(self, S: Array, look: Floats, like: Floats) -> float:
        """How much of the thing is seen where ``S`` puts it, and how much less of it than before around that."""
        there = S.copy()
        there[:, 2] = _apply(S, self._corner_px[None])[0]
        size = (self._inside.shape[1], self._inside.shape[0])
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        outside = (-1e3, -1e3, -1e3)  # what is not in the image looks like nothing
        now = np.asarray(cv2.warpAffine(look, there, size, flags=how, borderValue=outside), np.float32)
        now_like = np.asarray(cv2.warpAffine(like, there, size, flags=how), np.float32)
        unchanged = same(self._look, now)
        # Each pixel counts by how much like the thing it is, measured by what it was at first.
        share = float((unchanged * np.minimum(now_like / np.maximum(self._like_window, 0.3), 1.0))[self._inside].mean())
        beside = float(now_like[self._ring].mean()) - self._like_ring if self._ring.any() else 0.0
        return share - max(0.0, beside)


def _apply(S: Array, points: Array) -> Array:
    return points @ S[:, :2].T + S[:, 2]


def _compose(after: Array, before: Array) -> Array:
    return np.column_stack([after[:, :2] @ before[:, :2], after[:, :2] @ before[:, 2] + after[:, 2]])


def _corners(shown: Image, mask: Image) -> Array:
    """(n, 2) points worth following."""
    left, top, width, height = cv2.boundingRect(mask)
    if width < 5 or height < 5:
        return np.zeros((0, 2))
    window = (slice(top, top + height), slice(left, left + width))
    found = cv2.goodFeaturesToTrack(shown[window], _CORNERS, 0.01, 3, mask=mask[window], blockSize=5)
    return np.zeros((0, 2)) if found is None else found.reshape(-1, 2).astype(float) + (left, top)


def _similarity(before: Image, after: Image, points: Array, guess: Array) -> Array | None:
    """The similarity (2, 3) by which points (n, 2) went from one image to the other; None where too few agree."""
    if len(points) < _ENOUGH:
        return None
    p = points[:, None].astype(np.float32)

    def flow(one: Image, other: Image, start: Floats, guess: Floats) -> tuple[Floats, Mask]:
        options = {"winSize": _WINDOW, "maxLevel": _LEVELS, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
        found, ok, _ = cv2.calcOpticalFlowPyrLK(one, other, start, guess.copy(), **options)  # type: ignore[call-overload]
        return found, ok.ravel() > 0

    there, ok = flow(before, after, p, guess[:, None].astype(np.float32))
    back, ok_back = flow(after, before, there, p)
    good = ok & ok_back
    good &= np.linalg.norm((back - p).reshape(-1, 2), axis=1) < _BACK_PX
    if good.sum() < _ENOUGH:
        return None
    S, agree = cv2.estimateAffinePartial2D(
        p[good], there[good], method=cv2.RANSAC, ransacReprojThreshold=_RANSAC_PX, maxIters=200, confidence=0.99
    )
    if S is None or agree.sum() < max(_ENOUGH, _AGREE * len(points)):
        return None
    return np.asarray(S, dtype=float)
