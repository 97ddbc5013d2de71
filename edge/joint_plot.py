"""A picture of recorded joints: what each was told and where it was, over time."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Series = tuple[NDArray[np.float64], NDArray[np.float64]]  # t_s (n,), position_rad (n, joints)

_WIDTH_PX, _LEFT_PX, _RIGHT_PX, _ROW_PX, _PAD_PX, _FOOT_PX = 1200, 170, 16, 130, 14, 34
# RGB.
_PAPER, _FRAME, _INK, _TOLD, _WAS = (255, 255, 255), (205, 208, 214), (40, 44, 52), (240, 130, 20), (30, 100, 200)
_LEAST_SPAN_RAD = 0.02  # so that a joint at rest is not all noise
_SHIFT = 4  # curves are drawn to 1/16 px


def plot_joints(names: Sequence[str], measured: Series, setpoints: Series) -> NDArray[np.uint8]:
    """One strip a joint, measured over setpoint, each on its own scale in radians; seconds from the earliest sample.

    Args:
        names: of the joints.
        measured, setpoints: either may be empty, not both.

    Returns:
        (h, 1200, 3) uint8 RGB.
    """
    every_t_s = np.concatenate([measured[0], setpoints[0]])
    start_s, span_s = every_t_s.min(), max(float(np.ptp(every_t_s)), 1e-3)
    picture = np.full((_ROW_PX * len(names) + _FOOT_PX, _WIDTH_PX, 3), _PAPER, np.uint8)
    right = _WIDTH_PX - _RIGHT_PX
    for joint, name in enumerate(names):
        top, bottom = joint * _ROW_PX + _PAD_PX, (joint + 1) * _ROW_PX - _PAD_PX
        values = np.concatenate([series[1][:, joint] for series in (measured, setpoints) if len(series[0])])
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
        slack = max(0.0, _LEAST_SPAN_RAD - (high - low)) / 2
        low, high = low - slack, high + slack
        cv2.rectangle(picture, (_LEFT_PX, top), (right, bottom), _FRAME, 1)
        _text(picture, name, 8, (top + bottom) // 2 + 4)
        _text(picture, f"{high:.2f}", _LEFT_PX - 52, top + 10)
        _text(picture, f"{low:.2f}", _LEFT_PX - 52, bottom)
        for (t_s, position_rad), color in ((setpoints, _TOLD), (measured, _WAS)):
            seen = np.isfinite(position_rad[:, joint]) if len(t_s) else np.zeros(0, bool)
            if not seen.any():
                continue
            x = _LEFT_PX + (t_s[seen] - start_s) / span_s * (right - _LEFT_PX)
            y = bottom - (position_rad[seen, joint] - low) / (high - low) * (bottom - top)
            points = np.rint(np.column_stack([x, y]) * (1 << _SHIFT)).astype(np.int32)
            cv2.polylines(picture, [points], False, color, 1, cv2.LINE_AA, _SHIFT)
    foot = picture.shape[0] - 12
    _text(picture, "0 s", _LEFT_PX, foot)
    _text(picture, f"{span_s:.1f} s", right - 56, foot)
    _text(picture, "measured", _LEFT_PX + 300, foot, _WAS)
    _text(picture, "setpoint (rad)", _LEFT_PX + 420, foot, _TOLD)
    return picture


def _text(picture: NDArray[np.uint8], text: str, x: int, y: int, color: tuple[int, int, int] = _INK) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)
