"""What the rest of the project asks of hardware: a Camera, an Arm, and the values they exchange.

Frames: ``camera`` is the OpenCV optical frame (x right, y down, z forward). ``base`` is the arm's base frame
(z up). Transforms read ``T_base_camera``: a (4, 4) float64 array that maps camera coordinates to base coordinates.
Time is ``time.monotonic()`` in seconds.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError

NOMINAL_FIELD_OF_VIEW_RAD = math.radians(60.0)
"""Horizontal, of a camera that nobody has calibrated: what most webcams are near."""


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera with OpenCV's distortion model.

    Attributes:
        width, height: image size in pixels.
        fx, fy, cx, cy: focal lengths and principal point in pixels; pixel centres lie at integer coordinates.
        distortion: OpenCV coefficients (k1, k2, p1, p2, k3); empty for none.
        nominal: assumed, not measured: good enough to look and to record, refused wherever pixels become metres.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    nominal: bool = False

    @classmethod
    def assumed(cls, width: int, height: int) -> Intrinsics:
        """Nominal ones: square pixels, the principal point in the middle, NOMINAL_FIELD_OF_VIEW_RAD across."""
        focal_px = 0.5 * width / math.tan(0.5 * NOMINAL_FIELD_OF_VIEW_RAD)
        return cls(width, height, focal_px, focal_px, (width - 1) / 2, (height - 1) / 2, nominal=True)

    def require_measured(self) -> None:
        """Raise UserError where these are nominal: a point computed with them could lie anywhere."""
        if self.nominal:
            raise UserError(
                f"camera: its intrinsics at {self.width}x{self.height} px are assumed, not measured; calibrate the "
                "camera before anything is measured or grasped with it"
            )

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The 3x3 camera matrix K."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Frame:
    """One camera image.

    Attributes:
        rgb: (height, width, 3) uint8, red first.
        depth_m: (height, width) float32, distance along the optical axis in metres, 0 where unknown; or None.
        t_s: when it was taken, ``time.monotonic()`` seconds.
        intrinsics: of the camera that took it.
        serial: which camera took it.
    """

    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32] | None
    t_s: float
    intrinsics: Intrinsics
    serial: str = ""

    @property
    def age_s(self) -> float:
        """How long ago it was taken."""
        return time.monotonic() - self.t_s


@dataclass(frozen=True)
class JointState:
    """Measured joints: ``position_rad`` (n,) float64 in the order of ``Arm.joint_names``, read at ``t_s``."""

    position_rad: NDArray[np.float64]
    t_s: float = field(default=0.0)


class Camera(Protocol):
    """A source of frames."""

    @property
    def serial(self) -> str: ...

    @property
    def intrinsics(self) -> Intrinsics: ...

    def read(self) -> Frame:
        """The newest frame, taken after the call. Raises DeviceError when none comes."""
        ...

    def close(self) -> None: ...


class Arm(Protocol):
    """An arm, joints in radians, in the order of ``joint_names``, the gripper last. Setpoints are the servo loop's."""

    @property
    def joint_names(self) -> tuple[str, ...]: ...

    @property
    def torque_on(self) -> bool: ...

    def read(self) -> JointState:
        """Measured positions. Raises DeviceError when the arm does not answer within its bounded retries."""
        ...

    def enable(self) -> JointState:
        """Write the present positions as goals, then switch torque on. The arm does not move.

        Raises DeviceError when that fails; torque is then as it was found.
        """
        ...

    def disable(self) -> None:
        """Switch torque off. The caller parks first: an unsupported arm drops."""
        ...

    def close(self) -> None: ...
