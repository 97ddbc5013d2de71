"""An arm with encoders of 4096 counts and a camera that renders, for tests of whole calibrations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from calib_views import VGA, look_at, render, transform

from calib.board import Board, T_gripper_board_nominal
from drivers.protocols import Frame, JointState

MODEL = Path(__file__).parents[2] / "drivers" / "arm" / "so101.xml"
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
BOARD = Board()
T_GUESS = look_at((0.52, 0.0, 0.42), (0.21, 0.0, 0.02))
T_BASE_CAMERA = T_GUESS @ transform((0.02, -0.03, 0.01), (0.012, -0.008, 0.015))
T_GRIPPER_BOARD = T_gripper_board_nominal(BOARD) @ transform((0.02, 0.01, -0.03), (0.002, -0.003, 0.0005))
# a camera on the wrist that looks along the approach, and a board on the table before the arm, print up
T_GRIPPER_CAMERA = transform((3.0, 0.1, -0.05), (0.0, 0.06, -0.02))
T_BASE_BOARD = transform((np.pi, 0.0, 0.0), (0.29, 0.0, 0.0)) @ transform((0.0, 0.0, 0.2), (-0.06, -0.05, 0.0))
START = np.array([0.0, -1.2, 0.6, 0.6, 0.0, 0.05])
COUNT_RAD = 2 * np.pi / 4096


class Rig:
    """What the arm and the camera below share: where the joints really are, and what carries what."""

    def __init__(self, fk, seed=0, blind=(), restless=(), mount="base"):
        self.fk, self.rng, self.mount = fk, np.random.default_rng(seed), mount
        self.blind, self.restless, self.moves = blind, restless, 0
        self.q = np.zeros(6)

    def move(self, q_rad):
        self.moves += 1
        self.q = q_rad + self.rng.uniform(-0.017, 0.017, 6)  # servos droop; only the encoders know

    @property
    def T_camera_board(self):
        if self.mount == "base":
            return np.linalg.inv(T_BASE_CAMERA) @ self.fk(self.q) @ T_GRIPPER_BOARD
        return np.linalg.inv(self.fk(self.q) @ T_GRIPPER_CAMERA) @ T_BASE_BOARD


class RigArm:
    """Encoders of 4096 counts a turn."""

    joint_names = JOINTS
    torque_on = True

    def __init__(self, rig):
        self.rig = rig

    def read(self):
        if self.rig.moves - 1 in self.rig.restless:
            self.rig.q = self.rig.q + 0.02
        return JointState(np.round(self.rig.q / COUNT_RAD) * COUNT_RAD)


class RigCamera:
    """Sees the board where it really is, from where the camera really is; depth is ``depth_off`` times too large."""

    serial = "rig"
    intrinsics = VGA

    def __init__(self, rig, depth_off=None):
        self.rig, self.depth_off = rig, depth_off

    def read(self):
        T = self.rig.T_camera_board
        rgb = render(BOARD, T, self.rig.rng, oversample=2)
        if self.rig.moves - 1 in self.rig.blind:
            rgb[:] = 90
        depth_m = None
        if self.depth_off is not None:  # the board's plane, as far as the image goes
            u, v = np.meshgrid(np.arange(VGA.width), np.arange(VGA.height))
            rays = np.stack([(u - VGA.cx) / VGA.fx, (v - VGA.cy) / VGA.fy, np.ones(u.shape)], -1)
            plane = (T[:3, 2] @ T[:3, 3]) / (rays @ T[:3, 2])
            noise = 1 + 0.0015 * self.rig.rng.standard_normal(plane.shape)
            depth_m = np.where((plane > 0.1) & (plane < 2.0), plane * noise * self.depth_off, 0.0).astype(np.float32)
        return Frame(rgb, depth_m, 0.0, VGA, "rig")
