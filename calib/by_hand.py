"""Views of a hand-eye calibration while a person moves the arm: one whenever all rests and something new is seen."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.board import Board, Detection
from calib.depth import depth_at
from calib.routine import STILL_RAD, Observation
from drivers.protocols import Arm, Camera

Array = NDArray[np.float64]

NEW_RAD = float(np.radians(8.0))
NEW_M = 0.03
"""A view is new when the gripper is turned or moved by so much from where it was in every other."""

STILL_PX = 1.0
STILL_LOOKS = 3
"""Looks in a row in which nothing moved: an arm in a hand trembles."""


class ByHand:
    """The views taken so far, and when to take the next.

    Attributes:
        taken: the views; the list that was given, if one was.

    Args:
        fk: measured joints (n,) -> T_base_gripper (4, 4).
    """

    def __init__(
        self,
        arm: Arm,
        camera: Camera,
        board: Board,
        fk: Callable[[Array], Array],
        taken: list[Observation] | None = None,
    ) -> None:
        self.taken: list[Observation] = [] if taken is None else taken
        self._arm, self._camera, self._board, self._fk = arm, camera, board, fk
        self._last: tuple[Array, Detection] | None = None
        self._still = 0

    def look(self) -> Observation | str:
        """One frame: the view it gave, added to ``taken``; or in a few words why none. Raises DeviceError."""
        before = self._arm.read().position_rad
        frame = self._camera.read()
        after = self._arm.read().position_rad
        detection = self._board.detect(frame.rgb)
        last, self._last = self._last, None if detection is None else (after, detection)
        if detection is None:
            self._still = 0
            return "the board is not seen"
        moved = last is None or np.abs(np.array([before, last[0]]) - after).max() > STILL_RAD
        if last is None or moved or _corners_moved_px(last[1], detection) > STILL_PX:
            self._still = 0
            return "hold still"
        self._still += 1
        if not self._is_new(after):
            return "seen from here already; turn or move it"
        if self._still < STILL_LOOKS:
            return "hold still"
        depth_m = None if frame.depth_m is None else depth_at(frame.depth_m, detection.corners_px)
        observation = Observation((before + after) / 2, detection, depth_m)
        self.taken.append(observation)
        return observation

    def _is_new(self, joints_rad: Array) -> bool:
        T = self._fk(joints_rad)
        for one in self.taken:
            other = self._fk(one.joints_rad)
            turned_rad = float(np.linalg.norm(cv2.Rodrigues(T[:3, :3].T @ other[:3, :3])[0]))
            if turned_rad < NEW_RAD and float(np.linalg.norm(T[:3, 3] - other[:3, 3])) < NEW_M:
                return False
        return True


def _corners_moved_px(a: Detection, b: Detection) -> float:
    """The largest movement of a corner that both show; infinite where they share none."""
    _, i, j = np.intersect1d(a.ids, b.ids, return_indices=True)
    return float(np.abs(a.corners_px[i] - b.corners_px[j]).max()) if len(i) else float("inf")
