"""A grasp: where the jaws go, how far they open, and whether what is known of the object is good enough for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from edge.kinematics import FINGER_DEPTH_M, MAX_OPENING_M
from edge.outline import Footprint
from edge.uncertainty import CONFIDENT, Uncertainty

Array = NDArray[np.float64]

JAW_PLAY_M = 0.008  # room between each jaw and the object on the way down
LEAST_PLAY_M = 0.004  # what it may shrink to for wide objects
FINGER_FLOOR_M = 0.006  # the tips come no nearer to the table
MIN_HOLD_M = 0.005  # the fixed jaw must reach at least this far below the object's top
SQUEEZE_M = 0.015  # how much narrower than the object the closed jaws are told to be
_PAD_M = 0.009  # half the width of the jaws' pads: what is off by less still touches them

_ADVICE = {
    "calibration": "run `vlar1 calibrate hand-eye` again, with more poses",
    "depth": "bring the camera nearer to the table",
    "box": "bring the camera nearer, let it look down more steeply, or use one that gives depth",
}


class GraspError(UserError):
    """Nothing there to grasp, or nothing that these jaws can hold, or not known well enough; the message says which."""


@dataclass(frozen=True)
class Grasp:
    """How to take hold of one object.

    Attributes:
        position_base_m: (3,) the point midway between the jaws, base frame.
        yaw_rad: direction of the opening axis in the base xy plane, in [-pi/2, pi/2); either jaw may be on either side.
        width_m: what the jaws close across.
        height_m: height of the object's top in the base frame.
        shape: ``"box"``, ``"round"`` (upright cylinder) or ``"ball"``: which outline fitted the depth best;
            ``"unknown"`` without depth.
        notes: what makes the estimate less sure, in plain words; empty when nothing does.
        footprint: what the object covers seen from above; None where nothing but the grasp is known.
        approach: (3,) unit vector, base frame: the way the jaws come to the object.
        uncertainty: of ``position_base_m``, the width and the height, by cause.
    """

    position_base_m: Array
    yaw_rad: float
    width_m: float
    height_m: float
    shape: str = "box"
    notes: tuple[str, ...] = ()
    footprint: Footprint | None = None
    approach: Array = field(default_factory=lambda: np.array([0.0, 0.0, -1.0]))
    uncertainty: Uncertainty = field(default_factory=Uncertainty)

    @property
    def covariance_m2(self) -> Array:
        """(3, 3) of ``position_base_m`` against where the object is for the arm, base frame."""
        return self.uncertainty.covariance_m2

    @property
    def jaw_axis(self) -> Array:
        """(3,) unit vector along which the jaws open, base frame."""
        return np.array([math.cos(self.yaw_rad), math.sin(self.yaw_rad), 0.0])

    @property
    def error_at_jaw_m(self) -> float:
        """How far inwards a jaw may find the object's side, with 95 %: the centre's error and half the width's."""
        return CONFIDENT * (self.uncertainty.along_m(self.jaw_axis) + self.uncertainty.width_m / 2)

    @property
    def opening_m(self) -> float:
        """How far the jaws open on the way down: the width and play on both sides, more where the error asks for it."""
        return min(self.width_m + 2 * max(JAW_PLAY_M, self.error_at_jaw_m), MAX_OPENING_M)

    @property
    def narrowest_m(self) -> float:
        """The least the jaws may find between them (95 %): what was seen from its corner turns until its sides meet."""
        turned = math.sqrt(0.5) if self.shape == "unknown" else 1.0
        return turned * self.width_m - CONFIDENT * self.uncertainty.width_m

    @property
    def closed_m(self) -> float:
        """How near the jaws are told to come: narrower than the object, also where that is narrower than thought."""
        return max(min(self.width_m - SQUEEZE_M, self.narrowest_m - 0.5 * SQUEEZE_M), 0.0)

    @property
    def held_m(self) -> float:
        """Jaws told to close that stay further apart than this hold something."""
        return self.closed_m + 0.5 * min(SQUEEZE_M, self.width_m)


def require_fits(grasp: Grasp) -> None:
    """Raises GraspError where the object is too wide for the jaws."""
    if grasp.width_m + 2 * LEAST_PLAY_M > MAX_OPENING_M:
        raise GraspError(
            f"affordance: the object is {grasp.width_m * 1e3:.0f} mm wide; the jaws take up to "
            f"{(MAX_OPENING_M - 2 * LEAST_PLAY_M) * 1e3:.0f} mm; ask for a narrower one"
        )


def require_known(grasp: Grasp, table_z_m: float = 0.0) -> None:
    """Return if the jaws allow for how well the object is known.

    What they allow is compared with 95 % of the error: along the opening, the play of the jaws at their widest; along
    the jaws' faces, how far the middle of the pads may miss that of the object; downwards, the room between tips and
    table, which the arm's own error may use up; upwards, how far the tips reach below the top beyond what holds.

    Raises:
        GraspError: it is not known well enough; which way, by how much and mostly from what.
    """
    known, up = grasp.uncertainty, np.array([0.0, 0.0, 1.0])
    faces = np.array([-grasp.jaw_axis[1], grasp.jaw_axis[0], 0.0])
    play_m = (MAX_OPENING_M - grasp.width_m) / 2
    _require("along the jaws' opening", grasp.error_at_jaw_m, play_m, known, grasp.jaw_axis)
    _require("along the jaws' faces", CONFIDENT * known.along_m(faces), _room_along_faces(grasp), known, faces)
    tip_m = max(float(grasp.position_base_m[2]) - FINGER_DEPTH_M, table_z_m + FINGER_FLOOR_M)
    arm = Uncertainty(known.calibration_m2)
    _require("in height", CONFIDENT * arm.along_m(up), tip_m - table_z_m, arm, up)
    hold_m = grasp.height_m - tip_m - MIN_HOLD_M
    if hold_m > 0.0:  # the planner says what is too low for the fingers however well it is known
        _require("in height", CONFIDENT * math.hypot(arm.along_m(up), known.top_m), hold_m, known, up)


def _room_along_faces(grasp: Grasp) -> float:
    """What is flat is held anywhere along its side; what is round, where it touches the pads."""
    if grasp.shape != "box" or grasp.footprint is None:
        return _PAD_M
    c = abs(math.cos(grasp.footprint.yaw_rad - grasp.yaw_rad))
    along, across = grasp.footprint.sides_m
    return max(_PAD_M, (across if c > 0.5 else along) / 2)


def _require(way: str, error_m: float, room_m: float, known: Uncertainty, axis: Array) -> None:
    if error_m > room_m:
        cause = known.main_cause(axis)
        raise GraspError(
            f"grasp: {way} the object is known to {error_m * 1e3:.0f} mm (95 %), the jaws allow {room_m * 1e3:.0f} mm; "
            f"most of it comes from the {cause}: {_ADVICE[cause]}"
        )
