"""What ``vlar1 calibrate check`` does: look once, compare with then, draw the arm's model on the picture."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from calib.calibration import Calibration
from calib.camera import CalibratedCamera
from calib.file import load_calibration
from calib.moved import LIMIT_MM, Motion, camera_motion, workspace_points
from calib.rigid import apply, invert
from calib.seen_twice import Snapshot
from drivers.arm.servo_arm import open_arm
from drivers.camera.source import is_live, open_camera
from drivers.errors import DeviceError, UserError
from drivers.protocols import Arm, Camera, Frame, Intrinsics
from drivers.robot import Robot, load_robot
from edge.arm_outline import ArmModel, draw_arm
from edge.camera_command import has_window
from edge.picture_file import write_picture
from edge.rays import pixel_rays
from edge.touch_guide import run_touch

Array = NDArray[np.float64]

NOT_VALID = 1
WINDOW = "vlar1 calibrate check (q: quit)"
LIVE_PNG = Path("check.png")
_LIVE_S = 0.2  # between two pictures that are written to a file
_SAME_POSE_RAD = float(np.radians(2.0))


@dataclass(frozen=True, eq=False)
class Checked:
    """A calibration and what it is checked with; ``zeros_rad`` (n,) corrects measured joints."""

    calibration: Calibration
    robot: Robot
    arm: ArmModel
    zeros_rad: Array

    def T_base_camera(self, joints_rad: Array) -> Array:
        """(4, 4) as calibrated, at measured joints (n,)."""
        return self.calibration.T_base_camera(self.arm.fk(joints_rad + self.zeros_rad))

    def draw(self, frame: Frame, joints_rad: Array) -> NDArray[np.uint8]:
        """The frame with the arm's model on it, where the calibration has it."""
        true_rad = joints_rad + self.zeros_rad
        return draw_arm(frame.rgb, self.arm, true_rad, self.T_base_camera(joints_rad), frame.intrinsics)


def checked(calibration: Calibration, robot: Robot) -> Checked:
    """Raises UserError unless the calibration is of this arm, with a zero for each of its joints or none."""
    if calibration.arm_name != robot.name:
        raise UserError(f"calibration is of arm '{calibration.arm_name}', not '{robot.name}'; name its --robot")
    count = len(robot.joint_names)
    zeros = np.array(calibration.joint_zeros_rad or [0.0] * count)
    if len(zeros) != count:
        raise UserError(
            f"calibration: has {len(zeros)} joint_zeros_rad, arm '{robot.name}' has {count} joints; calibrate again"
        )
    return Checked(calibration, robot, ArmModel(robot), zeros)


def compare(what: Checked, frame: Frame, joints_rad: Array) -> Motion:
    """How the camera has moved on its mount since the calibration.

    Args:
        frame: of now, calibrated (``calib.camera``); the arm at rest.
        joints_rad: (n,) measured meanwhile.

    Raises UserError when the calibration has no picture to compare with, or one of another arm or aspect.
    """
    calibration, reference = what.calibration, what.calibration.reference
    if reference is None:
        raise UserError(
            "calibration: holds no picture of how things were (none was taken), so only --live and --touch can "
            "check it; `vlar1 calibrate hand-eye` takes one at its end"
        )
    if len(reference.joints_rad) != len(what.zeros_rad):
        raise UserError("calibration: its reference has not one angle a joint of this arm; calibrate again")
    height, width = reference.rgb.shape[:2]
    intrinsics = calibration.camera.intrinsics_at(width, height)
    depth_m = None if reference.depth_m is None else reference.depth_m * np.float32(calibration.depth_scale)
    then = _snapshot(what, reference.rgb, depth_m, reference.joints_rad, intrinsics)
    rgb, depth_now = frame.rgb, frame.depth_m
    if rgb.shape != reference.rgb.shape:
        calibration.camera.intrinsics_at(rgb.shape[1], rgb.shape[0])  # of the same aspect, or an error
        rgb = np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        if depth_now is not None:
            depth_now = np.asarray(cv2.resize(depth_now, (width, height), interpolation=cv2.INTER_NEAREST))
    now = _snapshot(what, rgb, depth_now, joints_rad, intrinsics)
    workspace = workspace_points()
    if calibration.mount == "gripper":
        workspace = apply(invert(what.arm.fk(reference.joints_rad + what.zeros_rad)), workspace)
    limit_mm = max(LIMIT_MM, 2 * (calibration.expected_reach_mm or 0.0))
    return camera_motion(then, now, calibration.T_mount_camera, intrinsics, workspace, limit_mm)


def _snapshot(
    what: Checked,
    rgb: NDArray[np.uint8],
    depth_m: NDArray[np.float32] | None,
    joints_rad: Array,
    intrinsics: Intrinsics,
) -> Snapshot:
    """A picture with what the arm's model and the table are in it."""
    T_base_gripper = what.arm.fk(joints_rad + what.zeros_rad)
    T_base_camera = what.calibration.T_base_camera(T_base_gripper)
    seen = what.arm.look(joints_rad + what.zeros_rad, T_base_camera, intrinsics)
    surface = np.where(seen.body > 0, seen.depth_m, _table_depth(what.robot, T_base_camera, intrinsics))
    T_mount_body = seen.T_base_body
    if what.calibration.mount == "gripper":
        T_mount_body = invert(T_base_gripper) @ T_mount_body
    return Snapshot(rgb, depth_m, seen.body, surface.astype(np.float32), T_mount_body)


def _table_depth(robot: Robot, T_base_camera: Array, intrinsics: Intrinsics) -> Array:
    """(h, w) depth of the table, 0 where a pixel does not meet it before the camera."""
    v, u = np.mgrid[: intrinsics.height, : intrinsics.width].astype(float)
    sink = pixel_rays(np.stack([u, v], -1), intrinsics) @ T_base_camera[2, :3]  # a ray's way down, per metre of depth
    drop_m = robot.safety.table_z_m - T_base_camera[2, 3]
    with np.errstate(divide="ignore"):
        depth = drop_m / sink
    return np.where((depth > 0) & (depth < 2.0), depth, 0.0).reshape(u.shape)


# The command


def run(args: argparse.Namespace) -> int:
    """Say whether the calibration still holds; 0 when it does, 1 when it does not or that cannot be told."""
    console = Console(highlight=False, soft_wrap=True)
    calibration = load_calibration(args.calibration)
    what = checked(calibration, load_robot(args.robot))
    if args.overlay is not None and not args.overlay.parent.is_dir():
        raise UserError(f"--overlay {args.overlay}: there is no folder {args.overlay.parent}; create it first")
    with closing(open_camera(args.camera)) as opened:
        camera = CalibratedCamera(opened, calibration.camera, calibration.depth_scale)
        if args.go:
            return _go(args, what, camera, console)
        with closing(open_arm(what.robot, args.port)) as arm:  # only ever read
            if args.touch:
                return run_touch(args, what, arm, camera, console)
            if args.live:
                return _live(args, what, arm, camera, console)
            return _once(args, what, arm, camera, console)


def _go(args: argparse.Namespace, what: Checked, camera: Camera, console: Console) -> int:
    from edge.control import Controller

    reference = what.calibration.reference
    if reference is None:
        raise UserError("--go: the calibration holds no picture of how things were, and so no pose to go to")
    with closing(open_arm(what.robot, args.port)) as arm:
        if np.abs(arm.read().position_rad - reference.joints_rad).max() <= _SAME_POSE_RAD:
            return _once(args, what, arm, camera, console)  # it is there
    console.print(
        f"{what.robot.name}: to the pose of the calibration's picture, then to rest. The arm moves: clear its way.",
        markup=False,
    )
    with Controller(what.robot, args.port) as controller:
        controller.move_to(reference.joints_rad)
        return _once(args, what, controller.arm, camera, console)


def _once(args: argparse.Namespace, what: Checked, arm: Arm, camera: Camera, console: Console) -> int:
    frame = camera.read()
    joints_rad = arm.read().position_rad
    if args.overlay is not None:
        write_picture(args.overlay, what.draw(frame, joints_rad))
        console.print(f"the arm's model on the picture: {args.overlay}", markup=False)
    motion = compare(what, frame, joints_rad)
    console.print(motion.verdict(), markup=False)
    if motion.is_valid:
        return 0
    if not motion.has_moved:
        for line in _advice(what, joints_rad):
            console.print(line, markup=False)
    return NOT_VALID


def _advice(what: Checked, joints_rad: Array) -> list[str]:
    """What would make it plainer."""
    reference = what.calibration.reference
    assert reference is not None  # compare() has used it
    off = np.abs(joints_rad - reference.joints_rad)
    lines = []
    if off[:-1].max() > _SAME_POSE_RAD:
        joint = int(off[:-1].argmax())
        where = f"{what.robot.joint_names[joint]} by {np.degrees(off[joint]):.0f} deg"
        lines.append(f"the arm stands elsewhere than then ({where}): add --go, and it goes there")
    lines.append("clear what was put on the table since, light it as then, or calibrate again")
    return lines


def _live(args: argparse.Namespace, what: Checked, arm: Arm, camera: Camera, console: Console) -> int:
    """Until q in the window, Ctrl-C, or the end of a recording; 0."""
    window = has_window()
    path = args.overlay or (None if window else LIVE_PNG)
    show = _shower(path, window)
    console.print(f"{WINDOW if window else f'rewriting {path}; Ctrl-C ends it'}", markup=False)
    drawn = 0
    try:
        while True:
            try:
                frame = camera.read()
            except DeviceError:
                if is_live(args.camera) or not drawn:
                    raise
                return 0
            drawn += 1
            if not show(what.draw(frame, arm.read().position_rad)):
                return 0
    except KeyboardInterrupt:
        return 0  # that is how it ends
    finally:
        if window:
            cv2.destroyAllWindows()


def _shower(path: Path | None, window: bool) -> Callable[[NDArray[np.uint8]], bool]:
    """Shows a picture in the window and in the file, there five times a second; false when it is to end."""
    written_s = -_LIVE_S

    def show(rgb: NDArray[np.uint8]) -> bool:
        nonlocal written_s
        if path is not None and time.monotonic() - written_s >= _LIVE_S:
            written_s = time.monotonic()
            part = path.with_name(f".{path.name}.part{path.suffix}")  # a viewer never sees half a picture
            write_picture(part, rgb)
            part.replace(path)
        if not window:
            return True
        cv2.imshow(WINDOW, rgb[:, :, ::-1])
        return cv2.waitKey(1) & 0xFF != ord("q")

    return show
