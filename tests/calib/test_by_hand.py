"""A view is taken when arm and board rest and it shows something new, and at no other time."""

from __future__ import annotations

import numpy as np
import pytest
from calib_rig import BOARD, JOINTS, MODEL, START, Rig, RigArm, RigCamera

from calib.by_hand import STILL_LOOKS, ByHand
from calib.kinematics import GripperKinematics
from calib.routine import Observation


@pytest.fixture
def rig() -> Rig:
    rig = Rig(GripperKinematics(MODEL, JOINTS))
    rig.q = START.copy()
    return rig


def test_one_view_a_place_once_all_is_still(rig: Rig) -> None:
    views = ByHand(RigArm(rig), RigCamera(rig), BOARD, rig.fk)
    first = [views.look() for _ in range(STILL_LOOKS + 3)]
    assert first[:STILL_LOOKS] == ["hold still"] * STILL_LOOKS
    assert isinstance(first[STILL_LOOKS], Observation)
    np.testing.assert_allclose(first[STILL_LOOKS].joints_rad, START, atol=0.001)
    assert set(first[STILL_LOOKS + 1 :]) == {"seen from here already; turn or move it"}
    rig.q = rig.q + np.radians([0, 0, 0, 3, 0, 0])  # too little to be another view
    assert not any(isinstance(views.look(), Observation) for _ in range(STILL_LOOKS + 2))
    rig.q = rig.q + np.radians([0, 0, 0, 8, 0, 0])
    assert sum(isinstance(views.look(), Observation) for _ in range(STILL_LOOKS + 2)) == 1
    assert len(views.taken) == 2


def test_nothing_is_taken_in_motion_or_without_the_board(rig: Rig) -> None:
    views = ByHand(RigArm(rig), RigCamera(rig), BOARD, rig.fk)
    for _ in range(8):
        rig.q = rig.q + np.radians([0, 0, 0, 1.0, 0, 0])
        assert views.look() == "hold still"
    rig.blind = (-1,)
    assert {views.look() for _ in range(6)} == {"the board is not seen"}
    assert not views.taken


def test_a_board_that_slides_in_a_still_gripper_is_not_taken(rig: Rig) -> None:
    camera = RigCamera(rig)
    views = ByHand(RigArm(rig), camera, BOARD, rig.fk)

    class Slid(Rig):
        shift_m = 0.0

        @property
        def T_camera_board(self):
            T = rig.T_camera_board.copy()
            T[0, 3] += self.shift_m
            return T

    camera.rig = slid = Slid(rig.fk)
    for _ in range(8):
        slid.shift_m += 0.004
        assert not isinstance(views.look(), Observation)
