"""What ``vlar1 calibrate hand-eye`` does: views taken with the arm or by hand, solved, told, drawn and saved."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from calib.board import HOLDING_GRIPPER_RAD, Board, printed_board
from calib.by_hand import ByHand
from calib.calibration import Calibration, CameraCalibration, Reference, now_iso
from calib.camera import CalibratedCamera
from calib.diagnosis import Diagnosis
from calib.explore import exploring_poses, rough_guess
from calib.file import load_calibration, load_file, rejected_path, save_calibration
from calib.kinematics import GripperKinematics
from calib.observability import views_tell
from calib.poses import choose_poses
from calib.routine import MIN_GOOD_VIEWS, Observation, observations_of, observe, solve, take_reference
from drivers.arm.servo_arm import open_arm
from drivers.camera.source import open_camera
from drivers.errors import DeviceError, UserError
from drivers.protocols import Camera
from drivers.robot import Robot, load_robot
from edge.arm_keys import CLOSED, Keys
from edge.hand_eye_picture import draw_hand_eye
from edge.picture_file import write_picture
from edge.stop_input import open_stop_inputs

if TYPE_CHECKING:
    from edge.control import Controller

Array = NDArray[np.float64]

OPEN_GRIPPER_RAD = 0.6
_TICK_S = 0.02


def run(args: argparse.Namespace) -> int:
    """Take views, solve, say what came of it and save; 0."""
    console = Console(highlight=False, soft_wrap=True)
    robot = load_robot(args.robot)
    fk = GripperKinematics(robot.model, robot.joint_names)
    if args.again:
        before = load_calibration(args.out)
        if before.arm_name != robot.name:
            raise UserError(f"{args.out}: is of arm '{before.arm_name}', not '{robot.name}'; name its --robot")
        board = before.board if args.square_mm is None else printed_board("hand-eye", args.square_mm)
        solved = solve(
            *(observations_of(before), fk, board, before.camera, robot.name),
            mount=before.mount,
            joint_names=robot.joint_names,
            date=before.date,
        )
        return _finish(*solved, before.reference, args, fk, console)
    if args.source is None:
        raise UserError("calibrate hand-eye: names no camera; give its SOURCE, or --again to solve FILE's views again")
    if args.views < MIN_GOOD_VIEWS:
        raise UserError(f"--views {args.views}: expected at least {MIN_GOOD_VIEWS}")
    if args.camera_at and args.mount == "gripper":
        raise UserError("--camera-at: is for a camera that stands still; one in the gripper finds the board itself")
    board = printed_board("hand-eye", args.square_mm)
    seen: list[Observation] = []
    known: CameraCalibration | None = None
    try:
        with closing(open_camera(args.source)) as opened:
            camera, known = _calibrated(opened, args.out, robot)
            take = _by_hand if args.by_hand else _driven
            reference = take(args, robot, camera, board, fk, console, seen)
    except (DeviceError, KeyboardInterrupt):
        if known is not None and seen:
            beside = rejected_path(args.out)
            kept, _ = solve(seen, fk, board, known, robot.name, mount=args.mount, joint_names=robot.joint_names)
            save_calibration(kept, beside)
            console.print(f"{len(seen)} views were taken; they are in {beside}", markup=False)
        raise
    solved = solve(seen, fk, board, known, robot.name, mount=args.mount, joint_names=robot.joint_names)
    return _finish(*solved, reference, args, fk, console)


def _calibrated(camera: Camera, out: Path, robot: Robot) -> tuple[Camera, CameraCalibration]:
    """The camera with the intrinsics that the file has; where there is no file yet, with its own.

    Raises UserError when there are none that were measured, or the file is of another camera or arm.
    """
    if out.exists():
        known, before = load_file(out)
        if before is not None and before.arm_name != robot.name:
            raise UserError(f"{out}: is of arm '{before.arm_name}', not '{robot.name}'; choose another path")
        return CalibratedCamera(camera, known), known
    if camera.intrinsics.nominal:
        raise UserError(
            f"{out}: no such file, and camera '{camera.serial}' does not know its intrinsics; measure them with "
            f"`vlar1 calibrate camera SOURCE --out {out}` first"
        )
    return camera, CameraCalibration(now_iso(), camera.serial, camera.intrinsics)


# The arm drives itself


def _driven(
    args: argparse.Namespace,
    robot: Robot,
    camera: Camera,
    board: Board,
    fk: GripperKinematics,
    console: Console,
    seen: list[Observation],
) -> Reference:
    """Views from poses that are chosen, into ``seen``; then the picture that later ones are compared with."""
    from edge.control import Controller

    console.print(
        f"{robot.name}: to its ready pose, through {args.views} poses, to rest. The arm moves: clear its way.",
        markup=False,
    )
    with ExitStack() as held:
        keys = None if args.yes else held.enter_context(Keys("calibrate hand-eye"))
        if keys and not _agreed(keys, console, "go"):
            raise UserError("calibrate hand-eye: stopped; nothing moved")
        # The keyboard is ours: its space bar stops, as everywhere.
        names = [name for name in robot.safety.stop_inputs if name != "keyboard" or not keys]
        controller = held.enter_context(Controller(robot, args.port, stop_inputs=open_stop_inputs(names)))
        for message in controller.messages:
            console.print(message, style="dim", markup=False)
        with _space_stops(keys, controller):
            controller.move_to(robot.ready_rad)
        if args.mount == "base":
            _hold_board(robot, controller, keys, console)
        start_rad = controller.setpoint_rad
        T_camera, T_board = _guess(args, robot, controller, camera, board, fk, keys, console)
        poses = choose_poses(
            robot.model,
            robot.joint_names,
            board,
            camera.intrinsics,
            T_camera,
            controller.setpoint_rad,
            mount=args.mount,
            T_other_board=T_board,
            count=args.views,
            gripper_rad=float(start_rad[-1]),
        )
        with _space_stops(keys, controller):
            _visit(poses, controller, camera, board, console, "calibrating", seen)
            controller.move_to(start_rad)
        if args.mount == "base" and keys:
            _opened(robot, controller, start_rad)
            _agreed(keys, console, "the board is out of the jaws")
            controller.move_to(start_rad)
        return take_reference(controller.arm, camera)


@contextmanager
def _space_stops(keys: Keys | None, controller: Controller) -> Iterator[None]:
    """The space bar stops the arm while the body moves it; other keys do nothing."""
    if keys is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if keys.key(_TICK_S) == "space":
                controller.stop("the space bar was pressed")

    watcher = threading.Thread(target=watch, name="space bar", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _agreed(keys: Keys, console: Console, what: str) -> bool:
    """Ask; whether the answer is yes. The terminal's end is a no."""
    console.print(f"y: {what}, any other key: stop", markup=False)
    return keys.key(float(10**6)) in ("y", "Y")


def _opened(robot: Robot, controller: Controller, at_rad: Array) -> None:
    wide = at_rad.copy()
    wide[-1] = min(OPEN_GRIPPER_RAD, float(robot.upper_rad[-1]))
    controller.move_to(wide)


def _hold_board(robot: Robot, controller: Controller, keys: Keys | None, console: Console) -> None:
    """The jaws closed on the board."""
    at = controller.setpoint_rad.copy()
    if keys:
        _opened(robot, controller, at)
        if not _agreed(keys, console, "the board is between the jaws, its print away from the fixed one; they close"):
            raise UserError("calibrate hand-eye: stopped before the board was held; nothing was saved")
    at[-1] = HOLDING_GRIPPER_RAD
    controller.move_to(at)


def _guess(
    args: argparse.Namespace,
    robot: Robot,
    controller: Controller,
    camera: Camera,
    board: Board,
    fk: GripperKinematics,
    keys: Keys | None,
    console: Console,
) -> tuple[Array, Array | None]:
    """Roughly T_mount_camera, and T_other_board where it is known: said by the user, or found by small turns."""
    if args.camera_at:
        return _looking(*args.camera_at), None
    seen = observe(controller.arm, camera, board)
    if isinstance(seen, str) and keys:
        from edge.arm_jog import Jog

        console.print("The camera must see the board: bring the arm there with the keys, then q.")
        Jog(robot, controller, keys, console).run()
        seen = observe(controller.arm, camera, board)
    if isinstance(seen, str):
        raise UserError(
            f"calibrate hand-eye: {seen} from where the arm stands; say where the camera is (--camera-at), or leave "
            "out --yes and bring the arm there with the keys"
        )
    start_rad = controller.setpoint_rad
    limits_rad = np.stack([robot.lower_rad, robot.upper_rad], axis=1)
    views: list[Observation] = []
    with _space_stops(keys, controller):
        poses = exploring_poses(start_rad, limits_rad)
        _visit(poses, controller, camera, board, console, "looking round", views)
        controller.move_to(start_rad)
    joints, detections = [one.joints_rad for one in views], [one.detection for one in views]
    return rough_guess(joints, detections, fk, board, camera.intrinsics, args.mount)


def _looking(eye_m: Array, target_m: Array) -> Array:
    """T_base_camera of an upright camera at ``eye_m`` that looks at ``target_m``."""
    z = target_m - eye_m
    x = np.cross(z, [0.0, 0.0, 1.0])
    if np.linalg.norm(x) < 1e-6:
        raise UserError("--camera-at: looks straight up or down, so which way is up in its image is open; look aslant")
    T = np.eye(4)
    z, x = z / np.linalg.norm(z), x / np.linalg.norm(x)
    T[:3, :3], T[:3, 3] = np.column_stack([x, np.cross(z, x), z]), eye_m
    return T


def _visit(
    poses_rad: Array,
    controller: Controller,
    camera: Camera,
    board: Board,
    console: Console,
    title: str,
    seen: list[Observation],
) -> None:
    """Go to each pose and look, into ``seen``; the poses that showed nothing are said and skipped."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        line = progress.add_task(title, total=len(poses_rad))
        for i, pose in enumerate(poses_rad):
            controller.move_to(pose)
            one = observe(controller.arm, camera, board)
            if isinstance(one, Observation):
                seen.append(one)
            said = f"{len(one.detection.ids)} corners" if isinstance(one, Observation) else one
            progress.update(line, advance=1, description=f"{title}: view {i + 1} of {len(poses_rad)}, {said}")
            if isinstance(one, str):
                progress.console.print(f"view {i + 1} of {len(poses_rad)}: {one}, skipped", style="yellow")


# A person moves the arm


def _by_hand(
    args: argparse.Namespace,
    robot: Robot,
    camera: Camera,
    board: Board,
    fk: GripperKinematics,
    console: Console,
    seen: list[Observation],
) -> Reference | None:
    """Views until there are enough, or q, into ``seen``; then the picture that later ones are compared with."""
    with closing(open_arm(robot, args.port)) as arm, Keys("calibrate hand-eye --by-hand") as keys:
        if arm.torque_on:
            raise UserError(
                f"arm {robot.name}: torque is on, it cannot be moved by hand; `vlar1 arm park` first, then "
                "take hold of it"
            )
        views = ByHand(arm, camera, board, fk, seen)
        what = "the board, fixed to the gripper," if args.mount == "base" else "the camera"
        console.print(
            f"Move {what} from view to view: other distances, other places in the image, tilted every way by 20 to 40 "
            "degrees. Each is taken when all is still. q: enough."
        )
        with console.status("looking") as status:
            while len(seen) < args.views and keys.key(_TICK_S) not in ("q", "Q", CLOSED):
                found = views.look()
                if isinstance(found, Observation):
                    told = _told(seen, fk, board, camera, args.mount)
                    corners = len(found.detection.ids)
                    console.print(f"view {len(seen)} of {args.views}: {corners} corners{told}\a")
                else:
                    status.update(found)
        console.print(
            "Let the arm lie where it will rest, the board out of it, your hands out of the picture; any key."
        )
        return take_reference(arm, camera) if keys.key(float(10**6)) != CLOSED else None


def _told(seen: list[Observation], fk: GripperKinematics, board: Board, camera: Camera, mount: str) -> str:
    """What the views so far tell the least, once there are enough to say."""
    given = ([one.joints_rad for one in seen], [one.detection for one in seen], fk, board, camera.intrinsics, mount)
    try:
        value, weakest = views_tell(*given, *rough_guess(*given))
    except UserError:  # too few, or turned too little
        return ""
    return f"; least told is {weakest}: {value:.3f} px a mrad or mm (smallest singular value)"


# What came of it


def _finish(
    calibration: Calibration,
    diagnosis: Diagnosis,
    reference: Reference | None,
    args: argparse.Namespace,
    fk: GripperKinematics,
    console: Console,
) -> int:
    """Say it, draw it, save it. A bad one is kept beside, under another name, unless ``--force``."""
    calibration = replace(calibration, reference=reference)
    _tell(calibration, console)
    out: Path = args.out
    refused = diagnosis.bad and not args.force
    if refused:
        out = rejected_path(out)
    save_calibration(calibration, out)
    picture = out.with_suffix(".png")
    write_picture(picture, draw_hand_eye(calibration, fk))
    if refused:
        raise UserError(
            f"{diagnosis.sentences[0]} Not saved as {args.out}; all that was seen is in {out} (--again solves it "
            "again, and --force saves it as it is)"
        )
    console.print(f"saved: {out}; what each view says: {picture}", markup=False)
    return 0


def _tell(calibration: Calibration, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    where = "T_base_camera" if calibration.mount == "base" else "T_gripper_camera"
    x, y, z = 1e3 * calibration.T_mount_camera[:3, 3]
    table.add_row(f"{where}, position", f"{x:.1f}, {y:.1f}, {z:.1f} mm")
    table.add_row("corners are missed by", f"{calibration.reprojection_px:.2f} px rms")
    table.add_row("left-out views are missed by", f"{calibration.leave_one_out_mm:.2f} mm rms at the board")
    if calibration.expected_mm is not None and calibration.expected_reach_mm is not None:
        table.add_row(
            "the tip will miss by",
            f"[bold]{calibration.expected_mm:.2f} mm[/bold] rms in the workspace; with the encoders' noise "
            f"{calibration.expected_reach_mm:.2f}",
        )
    if calibration.joint_zeros_rad:
        degrees = " ".join(f"{value:+.2f}" for value in np.degrees(calibration.joint_zeros_rad))
        table.add_row("joint zeros, found and corrected", f"{degrees} deg")
    if calibration.depth_scale != 1.0:
        table.add_row("depth image", f"off by a factor of {1 / calibration.depth_scale:.4f}, corrected")
    if calibration.outliers:
        named = ", ".join(str(i + 1) for i in calibration.outliers)
        table.add_row("views left out", f"{named} of {len(calibration.views)}: they contradict the others")
    console.print(table)
    for sentence in calibration.diagnosis:
        console.print(f"- {sentence}", markup=False)
