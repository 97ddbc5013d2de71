"""Depth images beside a board whose place is known: what they say at its corners, and by what factor they are off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_VIEWS = 4
SIGNIFICANT = 3.0  # sigmas

_AROUND_PX = 2


def depth_at(depth_m: NDArray[np.float32], corners_px: Array) -> Array:
    """(m,) median of the known depths around each corner (m, 2) px, metres; 0 where none is known."""
    height, width = depth_m.shape
    found = np.zeros(len(corners_px))
    for k, (x, y) in enumerate(np.round(corners_px).astype(int)):
        rows = slice(max(y - _AROUND_PX, 0), min(y + _AROUND_PX + 1, height))
        columns = slice(max(x - _AROUND_PX, 0), min(x + _AROUND_PX + 1, width))
        known = depth_m[rows, columns]
        known = known[np.isfinite(known) & (known > 0)]
        if known.size:
            found[k] = float(np.median(known))
    return found


def depth_scale(seen_m: Sequence[Array], true_m: Sequence[Array]) -> float:
    """True depth over the camera's, from the corners of several views; 1 where they say no other for sure.

    Args:
        seen_m: for each view, depths (m,) at its corners, 0 where unknown.
        true_m: the same as the solved board has them.

    A view's corners share its errors, so a view counts as one: the median over views of their medians, and its
    standard deviation by the median absolute deviation.
    """
    ratios = []
    for seen, true in zip(seen_m, true_m, strict=True):
        known = seen > 0
        if known.any():
            ratios.append(float(np.median(true[known] / seen[known])))
    if len(ratios) < MIN_VIEWS:
        return 1.0
    scale = float(np.median(ratios))
    # 1.4826 MAD is sigma of a normal variable; its median over n has sigma sqrt(pi / (2 n)) of that
    sigma = 1.4826 * float(np.median(np.abs(np.array(ratios) - scale))) * np.sqrt(np.pi / (2 * len(ratios)))
    return scale if abs(scale - 1.0) > SIGNIFICANT * sigma else 1.0
