"""The film of a recording: its frames at the pace they came, with what was decided on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Frame
from drivers.recording import Message, Recording
from edge.contract import Affordance, ContractError, Trajectory, parse_answer
from edge.film import FPS, VideoWriter
from edge.overlay import draw_decision

AFTER_S = 1.0  # the film goes on after the last frame or decision


@dataclass(frozen=True)
class Shown:
    """What is drawn on the frames: the last answers to one instruction on one frame."""

    instruction: str = ""
    frame_t_s: float | None = None
    box: Affordance | None = None
    path: Trajectory | None = None
    reasoning: str = ""
    not_found: bool = False

    def after(self, record: Mapping[str, Any]) -> Shown:
        """With one more decision: beside the earlier one where both are of one order and frame, else in its place."""
        instruction, frame_t_s = str(record.get("instruction", "")), record.get("frame_t_s")
        try:
            answer = parse_answer(str(record.get("text", "")))
        except ContractError as error:
            return Shown(instruction, frame_t_s, reasoning=f"not an answer: {error}")
        same = instruction == self.instruction and frame_t_s == self.frame_t_s
        shown = self if same else Shown(instruction, frame_t_s)
        if isinstance(answer.output, Affordance):
            shown = replace(shown, box=answer.output)
        elif isinstance(answer.output, Trajectory):
            shown = replace(shown, path=answer.output)
        reasoning = "\n".join(part for part in (shown.reasoning, answer.reasoning) if part)
        return replace(shown, reasoning=reasoning, not_found=shown.not_found or answer.output is None)


def write_film(path: Path, recording: Recording, decisions: Sequence[Message], start_s: float) -> int:
    """Write ``path`` (MP4), each frame and decision held until the next one.

    Args:
        decisions: by ``t_s``.
        start_s: ``t_s`` that the clock in the picture counts from.

    Returns:
        Pictures written; 0, and no file, for a recording without frames.
    """
    frames = recording.frames()
    frame = next(frames, None)
    if frame is None:
        return 0
    following = next(frames, None)
    shown, k, count = Shown(), 0, 0
    picture: NDArray[np.uint8] | None = None
    size: tuple[int, ...] = ()
    begin_s = frame.t_s
    writer = VideoWriter(path)
    try:
        while True:
            now_s = begin_s + count / FPS
            while following is not None and following.t_s <= now_s:
                frame, following, picture = following, next(frames, None), None
            while k < len(decisions) and decisions[k].t_s <= now_s:
                shown, k, picture = shown.after(decisions[k].data), k + 1, None
            last_s = max(frame.t_s, decisions[-1].t_s if decisions else frame.t_s)
            if following is None and k == len(decisions) and now_s > last_s + AFTER_S:
                return count
            if picture is None:
                picture = _draw(frame, shown)
                size = size or picture.shape
                if picture.shape != size:  # another camera: the film has one size
                    picture = np.asarray(cv2.resize(picture, (size[1], size[0])), np.uint8)
            writer.write(_stamped(picture, now_s - start_s))
            count += 1
    finally:
        writer.close()


def _draw(frame: Frame, shown: Shown) -> NDArray[np.uint8]:
    picture = draw_decision(
        frame.rgb, shown.box, shown.path, shown.instruction, shown.reasoning, not_found=shown.not_found
    )
    return picture[:, : picture.shape[1] // 2 * 2]


def _stamped(picture: NDArray[np.uint8], t_s: float) -> NDArray[np.uint8]:
    stamped = picture.copy()
    origin = (10, picture.shape[0] - 12)
    for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(stamped, clock(t_s), origin, cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, thickness, cv2.LINE_AA)
    return stamped


def clock(t_s: float) -> str:
    """Seconds as ``mm:ss.mmm``; minutes go on past 59."""
    ms = round(abs(t_s) * 1e3)
    return f"{'-' if t_s < 0 and ms else ''}{ms // 60000:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"
