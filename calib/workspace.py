"""Arm poses that reach for things on the table: where a calibration's error is told.

Frames: base z up, the table at base z = 0; body gripper, approach along -z (see ``calib.board``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TIP_GRIPPER_M = (-0.0079, -0.000218121, -0.0981274)
"""The SO-101's tool point between the jaw tips, in the gripper's frame."""

LOWER_M, UPPER_M = (0.13, -0.16, 0.0), (0.33, 0.16, 0.10)
"""Box, in the base frame, that the tip is in."""

MAX_SLANT_RAD = float(np.radians(45.0))
JOINT_SPAN_RAD = 1.6
"""Joints are drawn within this of zero: inside every limit of an SO-101."""

_MAX_SAMPLES = 20_000


def workspace_poses(
    fk: Callable[[Array], Array],
    joints: int,
    *,
    count: int = 40,
    seed: int = 0,
    tip_m: tuple[float, float, float] = TIP_GRIPPER_M,
) -> Array:
    """(m, joints) random joint poses, rad, m up to ``count``: tip in the box, gripper slanted at most 45 degrees.

    ``fk`` maps ``joints`` angles to T_base_gripper (4, 4). An arm of another build may have few or none.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(_MAX_SAMPLES):
        q = rng.uniform(-JOINT_SPAN_RAD, JOINT_SPAN_RAD, joints)
        T = fk(q)
        tip = T[:3, :3] @ tip_m + T[:3, 3]
        if T[2, 2] > np.cos(MAX_SLANT_RAD) and (tip > LOWER_M).all() and (tip < UPPER_M).all():
            found.append(q)
            if len(found) == count:
                break
    return np.array(found).reshape(-1, joints)
