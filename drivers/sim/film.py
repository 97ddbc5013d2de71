"""Pictures of a recorded run from a spectator's place beside the table."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Intrinsics
from drivers.sim.render import look_at, render
from drivers.sim.scene import Scene
from drivers.sim.server import State
from drivers.sim.world import build_model

SPECTATOR = Intrinsics(width=480, height=360, fx=470.0, fy=470.0, cx=239.5, cy=179.5)
_EYE_M, _TARGET_M = np.array([0.52, -0.54, 0.40]), np.array([0.13, 0.0, 0.11])


def film(scene: Scene, states: list[State]) -> Iterator[NDArray[np.uint8]]:
    """One (360, 480, 3) RGB image for each recorded state of ``scene``."""
    model = build_model(scene)
    data = mujoco.MjData(model)
    T = look_at(_EYE_M, _TARGET_M)
    for k, state in enumerate(states):
        data.qpos[:] = state.qpos
        mujoco.mj_kinematics(model, data)
        yield render(model, data, scene.look, T, SPECTATOR, np.random.default_rng(k)).rgb
