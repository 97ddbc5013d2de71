"""A picture of a profile: the stages as stacked bars, of the typical, the slowest, the first decision and each run."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.profile.run import Report

_WIDTH_PX, _LEFT_PX, _RIGHT_PX, _BAR_PX, _STEP_PX, _COLUMNS_PX = 1200, 150, 90, 26, 38, 220
# RGB.
_PAPER, _INK, _LINE = (255, 255, 255), (40, 44, 52), (205, 208, 214)
_STAGES = {
    "preprocess": (142, 202, 230),
    "vision": (33, 110, 180),
    "prefill": (242, 170, 60),
    "decode": (214, 84, 56),
    "parse": (120, 170, 90),
    "rest": (150, 150, 158),
}


def draw_profile(report: Report, before: Report | None = None, budget_ms: float | None = None) -> NDArray[np.uint8]:
    """Bars in milliseconds on one scale, the floor's beside them, and below a column for each run.

    Args:
        report: of `edge.profile.run.profile`.
        before: another, whose typical decision gets a bar as well.
        budget_ms: drawn as a line.

    Returns:
        (h, 1200, 3) uint8 RGB.
    """
    runs_ms = report["runs_ms"]
    whole_ms = runs_ms["decision"]
    bars = [("median", _medians(runs_ms)), ("slowest", _one(runs_ms, int(np.argmax(whole_ms))))]
    if before is not None:
        bars.insert(0, ("before, median", _medians(before["runs_ms"])))
    bars += [("first, cold", report["first_decision_ms"]), ("floor", report["floor"]["ms"])]
    bars = [(name, {stage: ms for stage, ms in stages.items() if stage != "decision"}) for name, stages in bars]
    longest_ms = max(*(sum(stages.values()) for _, stages in bars), budget_ms or 0.0, 1e-6)
    top_px, foot_px = 50, 40
    columns_top = top_px + len(bars) * _STEP_PX + 30
    picture = np.full((columns_top + _COLUMNS_PX + foot_px, _WIDTH_PX, 3), _PAPER, np.uint8)
    _legend(picture, list(runs_ms))
    span_px = _WIDTH_PX - _LEFT_PX - _RIGHT_PX
    for i, (name, stages) in enumerate(bars):
        top = top_px + i * _STEP_PX
        _text(picture, name, 10, top + 18)
        x_ms = 0.0
        for stage, ms in stages.items():
            left, right = (_LEFT_PX + round(at / longest_ms * span_px) for at in (x_ms, x_ms + ms))
            cv2.rectangle(picture, (left, top), (right, top + _BAR_PX), _colour(stage), cv2.FILLED)
            x_ms += ms
        _text(picture, f"{x_ms:.1f} ms", _LEFT_PX + round(x_ms / longest_ms * span_px) + 6, top + 18)
    if budget_ms is not None:
        x = _LEFT_PX + round(budget_ms / longest_ms * span_px)
        cv2.line(picture, (x, top_px - 6), (x, columns_top - 24), _INK, 1, cv2.LINE_AA)
        _text(picture, "budget", x - 50, columns_top - 12)
    _columns(picture, report, columns_top)
    return picture


def _columns(picture: NDArray[np.uint8], report: Report, top: int) -> None:
    """Each run as a column of its stages, in the order they were made."""
    runs_ms, bottom = report["runs_ms"], top + _COLUMNS_PX
    stages = [stage for stage in runs_ms if stage != "decision"]
    n, highest_ms = len(runs_ms["decision"]), max(runs_ms["decision"])
    edges = np.rint(np.linspace(_LEFT_PX, _WIDTH_PX - _RIGHT_PX, n + 1)).astype(int)
    for run in range(n):
        y_ms, gap = 0.0, int(edges[run + 1] - edges[run] > 4)
        for stage in stages:
            ms = max(0.0, runs_ms[stage][run])
            y0, y1 = (bottom - round(at / highest_ms * _COLUMNS_PX) for at in (y_ms, y_ms + ms))
            corners = ((int(edges[run]), y1), (int(edges[run + 1]) - 1 - gap, y0))
            cv2.rectangle(picture, *corners, _colour(stage), cv2.FILLED)
            y_ms += ms
    cv2.line(picture, (_LEFT_PX, bottom), (_WIDTH_PX - _RIGHT_PX, bottom), _LINE, 1)
    _text(picture, f"{highest_ms:.1f} ms", 10, top + 12)
    _text(picture, "0", 10, bottom)
    _text(picture, f"the {n} runs, one after the other", _LEFT_PX, bottom + 24)


def _medians(runs_ms: dict[str, list[float]]) -> dict[str, float]:
    return {stage: float(np.median(ms)) for stage, ms in runs_ms.items()}


def _one(runs_ms: dict[str, list[float]], run: int) -> dict[str, float]:
    return {stage: ms[run] for stage, ms in runs_ms.items()}


def _legend(picture: NDArray[np.uint8], stages: list[str]) -> None:
    x = _LEFT_PX
    for stage in stages:
        if stage != "decision":
            cv2.rectangle(picture, (x, 16), (x + 14, 30), _colour(stage), cv2.FILLED)
            _text(picture, stage, x + 20, 28)
            x += 120


def _colour(stage: str) -> tuple[int, int, int]:
    return _STAGES.get(stage, _STAGES["rest"])


def _text(picture: NDArray[np.uint8], text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
