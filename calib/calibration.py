"""What a calibration says: a camera's intrinsics, its place on the robot, how well both are known and from what."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from calib.board import Board
from drivers.errors import UserError
from drivers.protocols import Intrinsics

Array = NDArray[np.float64]

MOUNTS = ("base", "gripper")
SOURCES = ("board", "factory")

_INTRINSICS_PX = 1.0  # intrinsics further apart are not the same camera setting
_DISTORTION = 1e-3
_ASPECT = 2e-3


def now_iso() -> str:
    """The present as calibrations are dated: ISO 8601, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, eq=False)
class BoardView:
    """The board in one image of an intrinsics calibration.

    Attributes:
        ids, corners_px: (m,) corners seen and (m, 2) where; pixel centres at integers.
        reprojection_px: rms distance of the seen corners from the predicted ones.
        used: whether it counted; outliers do not.
    """

    ids: NDArray[np.int64]
    corners_px: Array
    reprojection_px: float
    used: bool = True


@dataclass(frozen=True, eq=False)
class CameraCalibration:
    """A camera's intrinsics and how they are known.

    Attributes:
        date: when, ISO 8601.
        serial: of the camera.
        source: "board", solved from views of a board, or "factory", read from the device.
        board: what the views show; None without views.
        reprojection_px: rms over the corners of the views that count.
        holdout_px: the same over views that the solve did not have.
        sigma_px: standard deviations of fx, fy, cx, cy; empty where unknown.
        views: raw observations.
    """

    date: str
    serial: str
    intrinsics: Intrinsics
    source: str = "factory"
    board: Board | None = None
    reprojection_px: float | None = None
    holdout_px: float | None = None
    sigma_px: tuple[float, ...] = ()
    views: tuple[BoardView, ...] = ()

    def intrinsics_at(self, width: int, height: int) -> Intrinsics:
        """The intrinsics of the same camera read out at another size of the same aspect. Raises UserError otherwise.

        The whole sensor is taken to be in both images: fx, fy, cx and cy scale, pixel centres at integers.
        """
        mine = self.intrinsics
        sx, sy = width / mine.width, height / mine.height
        if abs(sx / sy - 1) > _ASPECT:
            raise UserError(
                f"calibration is for images of {mine.width}x{mine.height}, camera '{self.serial}' gives "
                f"{width}x{height}, another aspect; set the camera to a size of the same aspect or calibrate again"
            )
        if (width, height) == (mine.width, mine.height):
            return mine
        return replace(
            mine,
            width=width,
            height=height,
            fx=mine.fx * sx,
            fy=mine.fy * sy,
            cx=(mine.cx + 0.5) * sx - 0.5,
            cy=(mine.cy + 0.5) * sy - 0.5,
        )

    def check(self, intrinsics: Intrinsics, serial: str) -> None:
        """Raise UserError unless these are the intrinsics of this camera, at this size or one of the same aspect."""
        intrinsics.require_measured()
        again = "; calibrate this pair, or name its calibration file"
        if serial != self.serial:
            raise UserError(f"calibration is of camera '{self.serial}', this one is '{serial}'{again}")
        mine = self.intrinsics_at(intrinsics.width, intrinsics.height)
        for name in ("fx", "fy", "cx", "cy"):
            now_px, then_px = float(getattr(intrinsics, name)), float(getattr(mine, name))
            if not abs(now_px - then_px) <= _INTRINSICS_PX:
                raise UserError(
                    f"calibration was made with {name} = {then_px:.1f} px, camera '{serial}' now has {now_px:.1f}; "
                    "calibrate again"
                )
        size = max(len(mine.distortion), len(intrinsics.distortion))
        then, now = (np.array([*d, *[0.0] * (size - len(d))]) for d in (mine.distortion, intrinsics.distortion))
        if not np.allclose(now, then, rtol=0.0, atol=_DISTORTION):
            raise UserError(f"calibration was made with another lens distortion of camera '{serial}'; calibrate again")


@dataclass(frozen=True, eq=False)
class View:
    """What one arm pose gave.

    Attributes:
        joints_rad: (n,) measured, in the arm's order, gripper last.
        ids, corners_px: (m,) corners seen and (m, 2) where; pixel centres at integers.
        reprojection_px: rms distance of the seen corners from the predicted ones.
        leave_one_out_mm: rms error at the board when solved without this view.
        depth_m: (m,) what the depth image says at the corners, 0 where it says nothing; None without depth.
    """

    joints_rad: Array
    ids: NDArray[np.int64]
    corners_px: Array
    reprojection_px: float
    leave_one_out_mm: float
    depth_m: Array | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """What the camera saw right after the calibration: what it should see still when nothing has moved.

    Attributes:
        joints_rad: (n,) where the arm stood, measured.
        rgb: (h, w, 3) uint8.
        depth_m: (h, w) float32, 0 where unknown; or None.
    """

    joints_rad: Array
    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Calibration:
    """A camera placed on a robot.

    Attributes:
        date: when, ISO 8601.
        arm_name, camera: what it holds for.
        board: that was used.
        mount: what carries the camera: "base" for one that stands still (eye-to-hand), "gripper" (eye-in-hand).
        T_mount_camera: (4, 4) camera coordinates to those of the mount, metres: T_base_camera or T_gripper_camera.
        T_other_board: (4, 4) where the board was on the other side: T_gripper_board, or T_base_board.
        reprojection_px: rms over all corners.
        leave_one_out_mm: rms over the views of the error at the board when solved without the view in question.
        views: raw observations; ``calib.routine.solve_again`` computes the rest from them.
        joint_zeros_rad: true joint = measured + zero, in the arm's order, or empty where the zeros were taken as good.
            The transforms hold for an arm that is corrected by them.
        outliers: views (from 0) that contradict the others and do not count.
        expected_mm: expected rms distance of the tip from a point the camera saw, from the calibration alone.
        expected_reach_mm: the same for an arm with encoders as noisy as assumed.
        covariance: (6, 6) of the twist (rotation rad, translation m; camera frame) from T_mount_camera to the truth,
            T_mount_camera @ exp(twist).
        point_covariance_m2: (3, 3) of where the tip ends up in the middle of the workspace, base frame.
        depth_scale: true depth = the camera's depth times this.
        diagnosis: what the error is made of, in sentences.
        reference: for ``vlar1 calibrate check``.
    """

    date: str
    arm_name: str
    camera: CameraCalibration
    board: Board
    mount: str
    T_mount_camera: Array
    T_other_board: Array
    reprojection_px: float
    leave_one_out_mm: float
    views: tuple[View, ...] = ()
    joint_zeros_rad: tuple[float, ...] = ()
    outliers: tuple[int, ...] = ()
    expected_mm: float | None = None
    expected_reach_mm: float | None = None
    covariance: Array | None = None
    point_covariance_m2: Array | None = None
    depth_scale: float = 1.0
    diagnosis: tuple[str, ...] = ()
    reference: Reference | None = field(default=None, repr=False)

    def T_base_camera(self, T_base_gripper: Array | None = None) -> Array:
        """(4, 4). A camera in the gripper is where T_base_gripper (4, 4) says, of the same moment as its image."""
        if self.mount == "base":
            return self.T_mount_camera
        if T_base_gripper is None:
            raise ValueError("the camera is in the gripper: its place needs T_base_gripper")
        return T_base_gripper @ self.T_mount_camera

    def check(self, intrinsics: Intrinsics, serial: str, arm_name: str) -> None:
        """Raise UserError unless this is of this camera, at this or a proportional image size, and of this arm."""
        self.camera.check(intrinsics, serial)
        if arm_name != self.arm_name:
            raise UserError(
                f"calibration is of arm '{self.arm_name}', this one is '{arm_name}'; calibrate this pair, or name its "
                "calibration file"
            )

    def reach_covariance_m2(self) -> Array | None:
        """(3, 3) of where the tip ends up for a point that the camera saw, noisy encoders included; None if unknown."""
        if self.point_covariance_m2 is None:
            return None
        wobble_mm = 0.0
        if self.expected_mm is not None and self.expected_reach_mm is not None:
            wobble_mm = max(self.expected_reach_mm**2 - self.expected_mm**2, 0.0) ** 0.5
        return self.point_covariance_m2 + np.eye(3) * (1e-3 * wobble_mm) ** 2 / 3
