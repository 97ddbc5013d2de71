"""What a thing looks like in a small image: which pixels are it by colour and height, and which look as they did."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from drivers.protocols import Frame
from edge.freshness import light_gain

Array = NDArray[np.float64]
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

WIDTH_PX = 320
"""Things are followed in images of this width: as sure as at twice the width, in a third of the time."""

_RAISED_M = 0.005
_MIN_PIXELS = 25
_BINS = 16  # of each colour channel
_SAME_LEVELS = 26.0  # of 255
_SHADES = (0.45, 0.6, 0.8, 1.3, 1.7)  # how much darker or brighter a thing may become as it passes through shadow
_SHADE_PX = 7  # over which a shade is even
_AROUND = 0.12  # of the image's width, each way: what is looked at for the surface around a point


@dataclass(frozen=True)
class Thumbnail:
    """What is kept of a frame to follow things in: at most `WIDTH_PX` wide.

    Attributes:
        rgb: (h, w, 3) uint8.
        depth_m: (h, w) float32, 0 where unknown; or None.
        t_s: when it was taken.
    """

    rgb: Image
    depth_m: Floats | None
    t_s: float

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height)."""
        return self.rgb.shape[1], self.rgb.shape[0]


def thumbnail_of(frame: Frame) -> Thumbnail:
    """A frame at the size that things are followed at."""
    height, width = frame.rgb.shape[:2]
    if width <= WIDTH_PX:
        return Thumbnail(frame.rgb, frame.depth_m, frame.t_s)
    size = (WIDTH_PX, max(1, round(height * WIDTH_PX / width)))
    depth = None
    if frame.depth_m is not None:
        depth = np.asarray(cv2.resize(frame.depth_m, size, interpolation=cv2.INTER_NEAREST), np.float32)
    return Thumbnail(np.asarray(cv2.resize(frame.rgb, size, interpolation=cv2.INTER_AREA), np.uint8), depth, frame.t_s)


def foreground(view: Thumbnail, corners: Array, below_m: Floats | None) -> Mask:
    """Which pixels (h, w) are the thing in a box: what stands out in it by depth, else by colour, else all of the box.

    Args:
        corners: (left, top, right, bottom) of the box, pixels.
        below_m: (h, w) depth of the surface it stands on (`surface_below`).
    """
    inside = _rectangle(view, corners, 0.0)
    if below_m is not None and view.depth_m is not None:
        part = _part((raised(view.depth_m, below_m) > 0.5) & _rectangle(view, corners, 0.25), inside)
        if part is not None:
            return part
    core = _rectangle(view, corners, -0.2)
    core = core if core.any() else inside
    like = likeness(view.rgb, core, _rectangle(view, corners, 0.5) & ~_rectangle(view, corners, 0.1))
    part = _part((looked_up(like, view.rgb) > 0.5) & _rectangle(view, corners, 0.1), inside)
    return part if part is not None and part.sum() > 0.2 * inside.sum() else inside


def raised_parts(view: Thumbnail, pixel: Array) -> list[Mask]:
    """What stands out from the surface around a pixel (2,) of a view with depth: a mask (h, w) for each thing."""
    if view.depth_m is None:
        return []
    around = np.concatenate([pixel - _AROUND * view.size_px[0], pixel + _AROUND * view.size_px[0]])
    below_m = surface_below(view.depth_m, around)
    if below_m is None:
        return []
    standing = (raised(view.depth_m, below_m) > 0.5) & _rectangle(view, around, 0.5)
    count, label = cv2.connectedComponents(standing.astype(np.uint8), connectivity=4)
    sizes = np.bincount(label.ravel(), minlength=count)
    return [label == i for i in range(1, count) if sizes[i] >= _MIN_PIXELS]


def blurred(rgb: Image) -> Floats:
    return np.asarray(cv2.GaussianBlur(rgb, (5, 5), 0), np.float32)


def in_light_of(first: Image, now: Image) -> Image:
    """An image as it would be in the light of the first."""
    gain = light_gain(first[::2, ::2], now[::2, ::2])
    table = np.clip(np.arange(256)[:, None] / np.maximum(gain, 1e-3), 0.0, 255.0).astype(np.uint8)
    return np.asarray(cv2.LUT(now, table[:, None]), np.uint8)


def same(first: Floats, now: Floats) -> Mask:
    """Where two looks differ by shade at most, the same all around a pixel."""
    side = (_SHADE_PX, _SHADE_PX)
    both, alone = (cv2.boxFilter((first * other).sum(axis=2), -1, side) for other in (now, first))
    shade = np.clip(both / np.maximum(alone, 1.0), _SHADES[0], _SHADES[-1])
    limit = _SAME_LEVELS * np.minimum(np.maximum(shade, 0.5), 1.0)
    return np.asarray(np.abs(now - first * shade[..., None]).max(axis=2) < limit)


def _rectangle(view: Thumbnail, corners: Array, grow: float) -> Mask:
    """Pixels of a box (left, top, right, bottom) grown by a share of its size on each side."""
    left, top, right, bottom = corners
    dx, dy = grow * (right - left), grow * (bottom - top)
    width, height = view.size_px
    out = np.zeros((height, width), dtype=bool)
    x0, y0 = (int(np.clip(round(v), 0, n - 1)) for v, n in ((left - dx, width), (top - dy, height)))
    x1, y1 = (int(np.clip(round(v), 0, n - 1)) for v, n in ((right + dx, width), (bottom + dy, height)))
    out[y0 : y1 + 1, x0 : x1 + 1] = True
    return out


def _part(mask: Mask, inside: Mask) -> Mask | None:
    """The connected part that has most of its pixels inside the box; None where there is none to speak of."""
    count, label = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    votes = np.bincount(label[inside], minlength=count)
    votes[0] = 0
    best = int(votes.argmax())
    return label == best if votes[best] >= _MIN_PIXELS else None


def surface_below(depth_m: Floats, corners: Array) -> Floats | None:
    """Depth (h, w) of the plane around a box; None where too little depth is known.

    A plane's inverse depth is affine in the pixel. What stands on the plane is nearer, so only residuals on the far
    side count as noise, and the near side is cut where the far side's ends.
    """
    height, width = depth_m.shape
    left, top, right, bottom = corners
    dx, dy = max(right - left, 20.0), max(bottom - top, 20.0)
    rows = slice(int(np.clip(top - dy, 0, height)), int(np.clip(bottom + dy + 1, 0, height)), 2)
    columns = slice(int(np.clip(left - dx, 0, width)), int(np.clip(right + dx + 1, 0, width)), 2)
    v, u = np.mgrid[rows, columns]
    z = depth_m[rows, columns]
    known = (z > 0.0) & np.isfinite(z)
    if known.sum() < 100:
        return None
    A = np.column_stack([u[known], v[known], np.ones(int(known.sum()))])
    y = 1.0 / z[known].astype(float)
    use = y <= np.partition(y, int(0.8 * len(y)))[int(0.8 * len(y))]
    for _ in range(12):
        plane = np.linalg.lstsq(A[use], y[use], rcond=None)[0]
        residual = y - A @ plane
        far = -residual[residual < 0.0]
        limit = max(3.0 * 1.4826 * float(np.median(far)) if len(far) else 0.0, 0.002 * float(np.median(y)))
        kept = residual < limit
        if kept.sum() < 50 or (kept == use).all():
            break
        use = kept
    v, u = np.mgrid[:height, :width]
    return np.asarray(1.0 / np.maximum(plane[0] * u + plane[1] * v + plane[2], 1e-3), np.float32)


def raised(depth_m: Floats, below_m: Floats) -> Floats:
    """How surely each pixel stands before the surface: 0 to 1, a half where depth is unknown."""
    sure = np.clip((below_m - depth_m) * np.float32(1.0 / _RAISED_M) - np.float32(0.5), 0.0, 1.0)
    return np.where(depth_m > 0.0, sure, np.float32(0.5))  # a depth that is no number is not above zero


def _histogram(rgb: Image, mask: Mask) -> Floats:
    """(bins, bins, bins), smooth over neighbouring colours, so that noise stays in it. Sums to one."""
    counts = cv2.calcHist([rgb], [0, 1, 2], mask.astype(np.uint8), [_BINS] * 3, [0, 256] * 3)
    smooth = gaussian_filter(counts, 0.8, mode="constant")
    return np.asarray(smooth / max(float(smooth.sum()), 1e-9), np.float32)


def likeness(rgb: Image, inside: Mask, outside: Mask | None = None) -> Floats:
    """For every colour how probably it is the thing's, 0 to 1, at even odds. Outside: all else, half of it nearby."""
    shaded = [_histogram(np.clip(rgb * shade, 0, 255).astype(np.uint8), inside) for shade in _SHADES]
    thing = 0.7 * _histogram(rgb, inside) + 0.3 * np.mean(shaded, axis=0)
    if outside is None:
        near = cv2.dilate(inside.astype(np.uint8), np.ones((25, 25), np.uint8)).astype(bool) & ~inside
        other = 0.5 * _histogram(rgb, near) + 0.5 * _histogram(rgb, ~inside)
    else:
        other = _histogram(rgb, outside)
    return np.asarray(thing / (thing + other + 1e-6), np.float32)


def looked_up(likeness: Floats, rgb: Image) -> Floats:
    # Not calcBackProject: in OpenCV 5.0 it takes wrong bins of a histogram over three channels.
    high = (rgb >> 4).astype(np.uint16)
    index = (high[..., 0] << 8) | (high[..., 1] << 4) | high[..., 2]
    return np.asarray(np.take(likeness.ravel(), index), np.float32)
