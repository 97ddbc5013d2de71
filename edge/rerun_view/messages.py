"""What the run sends to the process that draws: plain values and arrays, so that neither imports the other's world.

All times are ``time.monotonic()`` seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Intrinsics
from drivers.robot import Robot

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Begin:
    """The first message: the arm, and the camera's place on its ``mount`` (`calib.calibration.Calibration`)."""

    robot: Robot
    mount: str
    T_mount_camera: Array


@dataclass(frozen=True)
class Told:
    """Something happened: a method of `edge.rerun_view.drawing.Drawing` and its arguments."""

    t_s: float
    what: str
    args: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class Picture:
    """An image (h, w, 3), its calibrated intrinsics, and depth in mm of every `step`-th pixel, 0 where unknown."""

    t_s: float
    rgb: NDArray[np.uint8]
    intrinsics: Intrinsics
    depth_mm: NDArray[np.uint16] | None = None
    step: int = 1


@dataclass(frozen=True, eq=False)
class Servos:
    """The latest state of the servos, (n,) each.

    ``cycles``: those since the last message that had some: their times (m,), setpoints and positions (m, n) in radians.
    """

    t_s: float
    state: str
    position_rad: Array
    load: Array
    temperature_c: Array
    voltage_v: Array
    cycles: tuple[Array, NDArray[np.float32], NDArray[np.float32]] | None


@dataclass(frozen=True, eq=False)
class Batch:
    """What one message holds. ``passes``: of the stages, by name: when each ended and how long it took, s."""

    told: list[Told] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    servos: Servos | None = None
    passes: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
