"""What is wrong with a hand-eye calibration, said to people: the cause, figures, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from calib.adjust import Adjustment
from calib.board import Board
from calib.causes import Explanation, Group
from calib.rigid import apply, invert

Array = NDArray[np.float64]

Cause = Literal[
    "board size",
    "intrinsics",
    "camera slipped",
    "board slipped",
    "joint zeros",
    "bad samples",
    "loose arm",
    "poor poses",
    "detection noise",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        cost_mm: rms distance by which the tip misses a point that the camera saw where this is not allowed for; 0 for
            what has no such figure.
        sentence: for people.
        joints: of "joint zeros": those that are clearly off, from 0.
        view: of a slip: the first view (from 0) after it.
        corrected: the result allows for it already.
    """

    cause: Cause
    cost_mm: float
    sentence: str
    joints: tuple[int, ...] = ()
    view: int | None = None
    corrected: bool = False


@dataclass(frozen=True)
class Words:
    """The sentences. ``mount`` is what carries the camera, "base" or "gripper"; ``views`` how many there are."""

    mount: str
    joint_names: Sequence[str]
    board: Board
    views: int

    def group(self, explanation: Explanation, group: Group, cost_mm: float, corrected: bool) -> Finding:
        value, sigma, world = explanation.values[group], explanation.sigmas[group], explanation.world
        cost = f"the tip misses by {cost_mm:.1f} mm for it"
        match group.kind:
            case "size":
                told_mm, true_mm = (1e3 * self.board.square_m * np.exp(v) for v in (0.0, value[0]))
                text = (
                    f"The board's squares are {true_mm:.2f} mm (+-{true_mm * sigma[0]:.2f}), not {told_mm:.2f}: "
                    f"{cost}. Measure the print over several squares and give that size."
                )
                return Finding("board size", cost_mm, text)
            case "lens":
                text = (
                    f"The intrinsics are wrong: the focal length by {100 * np.expm1(value[0]):+.1f} % "
                    f"(+-{100 * sigma[0]:.1f}), the image centre by {value[1]:+.0f}, {value[2]:+.0f} px "
                    f"(+-{sigma[1]:.0f}, {sigma[2]:.0f}): {cost}. Calibrate the camera again, at this resolution and "
                    "focus."
                )
                return Finding("intrinsics", cost_mm, text)
            case "camera":
                before, after = invert(world.X)[:3, 3], invert(world.camera_slip @ world.X)[:3, 3]
                what = "The camera moved" if self.mount == "base" else "The camera moved on the gripper"
                text = self._slip(what, before, after, world.camera_slip, group.view, cost)
                return Finding("camera slipped", cost_mm, text, view=group.view)
            case "board":
                before, after = (apply(T, self.board.centre_m) for T in (world.Y, world.board_slip @ world.Y))
                what = "The board moved in the gripper" if self.mount == "base" else "The board moved"
                text = self._slip(what, before, after, world.board_slip, group.view, cost)
                return Finding("board slipped", cost_mm, text, view=group.view)
        clear = np.abs(value) > 3 * sigma
        clear[np.argmax(np.abs(value) / sigma)] = True
        joints = tuple(j for j, is_clear in zip(group.joints, clear, strict=True) if is_clear)
        each = ", ".join(
            f"{self.joint_names[j]} by {np.degrees(v):+.1f} deg (+-{np.degrees(s):.1f})"
            for j, v, s in zip(group.joints, value, sigma, strict=True)
            if j in joints
        )
        if corrected:
            text = f"Joint zeros are off, and corrected: {each}; else the tip would miss by {cost_mm:.1f} mm."
        else:
            text = f"Joint zeros are off: {each}: {cost}. Set them anew, or have them solved for."
        return Finding("joint zeros", cost_mm, text, joints=joints, corrected=corrected)

    def _slip(self, what: str, before_m: Array, after_m: Array, T: Array, view: int, cost: str) -> str:
        by_mm = 1e3 * float(np.linalg.norm(after_m - before_m))
        turn_deg = float(np.degrees(np.linalg.norm(cv2.Rodrigues(T[:3, :3])[0])))
        return (
            f"{what} by {by_mm:.0f} mm and {turn_deg:.1f} deg between views {view} and {view + 1} of {self.views}: "
            f"{cost}. Fix it so that it cannot, and take the views again."
        )

    def loose(self, wear: float, encoder_sigma_rad: float) -> str:
        return (
            f"The arm is {wear:.1f} times as inexact as assumed, about {np.degrees(wear * encoder_sigma_rad):.2f} deg "
            "a joint: look for play in the joints, and let it come to rest before each picture."
        )

    def bad_samples(self, bad: tuple[int, ...]) -> str:
        return (
            f"{len(bad)} of {self.views} views contradict the others ({_numbers(bad)}), and no single cause explains "
            "them: see that the arm is at rest in each view and that nothing but the arm moves, and take them again."
        )

    def poor_poses(self, dilution: float, weakest: str) -> str:
        return (
            f"The poses are too few or too much alike: were all noise as usual, the calibration would still be off by "
            f"{dilution:.1f} times what the encoders are (1 or less is usual); {weakest} is the least certain. Add "
            "poses that tilt the board about other axes, far from each other."
        )

    def noisy(self, sigma_px: float) -> str:
        return (
            f"The board's corners are found to {sigma_px:.1f} px only, 0.1 to 0.3 is usual: see to focus, light and "
            "an even print, and hold still."
        )

    def shares(self, adjustment: Adjustment, shares_mm: dict[str, float], something_else: bool) -> str:
        parts = {
            f"noise of the corners ({adjustment.corner_px:.2f} px)": shares_mm["corner noise"],
            "of the encoders while calibrating": shares_mm["encoder noise"],
            "of zeros that had to be found": shares_mm["joint zeros"],
            "of the encoders in reaching": shares_mm["encoders in reach"],
        }
        each = ", ".join(f"{part:.1f} {name}" for name, part in parts.items() if part >= 0.05)
        which = "Were all that is off noise, the tip would miss" if something_else else "By noise alone the tip misses"
        return f"{which} by {adjustment.expected_reach_mm:.1f} mm, of which (squares add up) {each}."

    def outliers(self, adjustment: Adjustment) -> str:
        worst_mm = 1e3 * float(adjustment.leave_one_out_m[list(adjustment.outliers)].max())
        return (
            f"Left out as contradicting the rest, by up to {worst_mm:.0f} mm: "
            f"view{'s' if len(adjustment.outliers) > 1 else ''} {_numbers(adjustment.outliers)} of {self.views}."
        )

    def observability(self, smallest: float, weakest: str) -> str:
        unit = "mrad" if weakest.startswith("turning") else "mm"
        return (
            f"Least told by these poses is {weakest}: a {unit} that way moves the corners by {smallest:.3f} px "
            "(smallest singular value)."
        )


def _numbers(views: tuple[int, ...]) -> str:
    return ", ".join(str(i + 1) for i in views)
