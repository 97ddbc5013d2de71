"""What ``vlar1 calibrate camera`` does: views with guidance, then intrinsics solved or checked, drawn and saved."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
from rich.console import Console
from rich.live import Live
from rich.table import Table

from calib.board import Board, Detection, printed_board
from calib.calibration import BoardView, Calibration, CameraCalibration, now_iso
from calib.file import load_calibration, load_camera, rejected_path, save_calibration
from calib.guidance import Coverage, Stillness, spread
from calib.intrinsics import MIN_VIEWS, FactoryCheck, Solution, check_intrinsics, poor, solve_intrinsics
from calib.kinematics import GripperKinematics
from calib.routine import observations_of, solve
from drivers.camera.source import is_live, open_camera
from drivers.errors import DeviceError, UserError
from drivers.protocols import Camera
from drivers.robot import load_robot
from edge.arm_keys import Keys
from edge.board_guide import draw_guide, show_guide
from edge.camera_command import has_window
from edge.lens_plot import plot_lens
from edge.picture_file import write_picture

MAX_VIEWS = 40
"""Of a folder with more pictures, this many are used, spread as far as they go."""

WINDOW = "vlar1 calibrate camera (q: done)"
_STILL_SHARE = 1e-3  # of the image's width, that the corners of a board may move that counts as still


def run(args: argparse.Namespace) -> int:
    """Collect views, solve or check, show, save; 0."""
    out: Path = args.out
    console = Console(soft_wrap=True, highlight=False)
    board = printed_board(args.board, args.square_mm)
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: expected a file that ends in .yaml")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it, or choose another")
    camera = open_camera(args.source)
    try:
        hand_eye = _before(
            out, camera, args.robot
        )  # what would be refused in the end is refused before the board is waved
        if args.check:
            camera.intrinsics.require_measured()
        detections = (
            _pictures(camera, board) if _is_pictures(args.source) else _watch(camera, args.source, board, console)
        )
    finally:
        camera.close()
    console.print(
        f"{camera.serial}: {camera.intrinsics.width}x{camera.intrinsics.height} px, {len(detections)} views",
        markup=False,
    )
    said = _check if args.check else _solve
    calibration, problem = said(detections, board, camera, out, console)
    if problem and not args.force:
        rejected = rejected_path(out)
        save_calibration(calibration, rejected)
        raise UserError(
            f"camera calibration: {problem}. Not saved as {out}; all that was seen is in {rejected} (--force saves it "
            "as it is)"
        )
    if problem:
        console.print(f"bad, and saved all the same: {problem}", style="yellow", markup=False)
    if hand_eye is None:
        save_calibration(calibration, out)
    else:
        save_calibration(_renewed(hand_eye, calibration, args, console), out)
    console.print(f"saved: {out}", markup=False)
    return 0


def _solve(
    detections: list[Detection], board: Board, camera: Camera, out: Path, console: Console
) -> tuple[CameraCalibration, str]:
    """Solved intrinsics, shown and drawn, and what is wrong with them; "" for good ones."""
    solution = solve_intrinsics(detections, board, camera.intrinsics.width, camera.intrinsics.height)
    _show_solution(solution, detections, console)
    picture = out.with_suffix(".lens.png")
    write_picture(picture, plot_lens(solution.intrinsics, [d.corners_px for d in detections], solution.residuals_px))
    console.print(f"picture of the lens: {picture}", markup=False)
    calibration = CameraCalibration(
        now_iso(),
        camera.serial,
        solution.intrinsics,
        "board",
        board,
        solution.reprojection_px,
        solution.holdout_px,
        tuple(solution.sigma_px.tolist()),
        _views(detections, solution.view_px.tolist(), solution),
    )
    return calibration, poor(solution, detections, board)


def _check(
    detections: list[Detection], board: Board, camera: Camera, out: Path, console: Console
) -> tuple[CameraCalibration, str]:
    """The camera's own intrinsics with what the views say of them, and what is wrong with them; "" for good ones."""
    check = check_intrinsics(detections, board, camera.intrinsics)
    _show_check(check, detections, console)
    calibration = CameraCalibration(
        now_iso(),
        camera.serial,
        camera.intrinsics,
        "factory",
        board,
        check.reprojection_px,
        check.reprojection_px,  # none of the views went into these intrinsics
        (),
        _views(detections, check.view_px.tolist(), check.free),
    )
    return calibration, "" if check.good else f"the camera's own intrinsics: {check.verdict}"


def _renewed(
    hand_eye: Calibration, camera: CameraCalibration, args: argparse.Namespace, console: Console
) -> Calibration:
    """The hand-eye calibration solved again from its own views with new intrinsics.

    Raises:
        UserError: it comes out bad and ``--force`` is not given; the intrinsics are then kept in a file of their own.
    """
    robot = load_robot(args.robot)
    renewed, diagnosis = solve(
        observations_of(hand_eye),
        GripperKinematics(robot.model, robot.joint_names),
        hand_eye.board,
        camera,
        hand_eye.arm_name,
        mount=hand_eye.mount,
        joint_names=robot.joint_names,
        date=hand_eye.date,
    )
    table = Table("hand-eye, solved again from its own views", "before", "now", box=None)
    for name, before, after in (
        ("the tip will miss by, mm", hand_eye.expected_mm, renewed.expected_mm),
        ("left-out views are missed by, mm", hand_eye.leave_one_out_mm, renewed.leave_one_out_mm),
        ("corners are missed by, px", hand_eye.reprojection_px, renewed.reprojection_px),
    ):
        table.add_row(name, *("unknown" if value is None else f"{value:.2f}" for value in (before, after)))
    console.print(table)
    if diagnosis.bad and not args.force:
        alone = args.out.with_suffix(".camera.yaml")
        alone.unlink(missing_ok=True)
        save_calibration(camera, alone)
        raise UserError(
            f"hand-eye calibration with the new intrinsics: {diagnosis.sentences[0]} {args.out} is left as it was; the "
            f"intrinsics alone are in {alone} (--force saves both)"
        )
    return replace(renewed, reference=hand_eye.reference)


def _before(out: Path, camera: Camera, robot_file: Path) -> Calibration | None:
    """The hand-eye calibration that is in ``out``; None without. Raises UserError where it cannot be renewed."""
    if not out.exists():
        return None
    old = load_camera(out)
    if old.serial != camera.serial:
        raise UserError(
            f"{out} is of camera '{old.serial}', this one is '{camera.serial}'; choose another file or delete it"
        )
    try:
        hand_eye = load_calibration(out)
    except UserError:  # it was read whole just now: it has intrinsics only
        return None
    then, now = hand_eye.camera.intrinsics, camera.intrinsics
    if (then.width, then.height) != (now.width, now.height):
        raise UserError(
            f"{out} has a hand-eye calibration from images of {then.width}x{then.height} px, this camera gives "
            f"{now.width}x{now.height}; set it to that size, or choose another file"
        )
    robot = load_robot(robot_file)
    if robot.name != hand_eye.arm_name:
        raise UserError(
            f"{out}: its hand-eye calibration is of arm '{hand_eye.arm_name}', {robot_file} is of '{robot.name}'; name "
            "that arm's robot file with --robot, or choose another --out"
        )
    return hand_eye


def _is_pictures(source: str) -> bool:
    """Whether each image is a picture of its own, for which a board need not be seen to rest."""
    path = Path(source)
    return path.is_dir() or ("%" in path.name and not is_live(source))


def _pictures(camera: Camera, board: Board) -> list[Detection]:
    """The board in every picture; the best spread ones where there are more than MAX_VIEWS."""
    frames, detections = 0, []
    while True:
        try:
            frame = camera.read()
        except DeviceError as error:
            if not str(error).endswith("has no more frames"):
                raise  # a picture to take out of the folder
            break
        frames += 1
        if (detection := board.detect(frame.rgb)) is not None:
            detections.append(detection)
    if len(detections) < MIN_VIEWS:
        raise _unseen(len(detections), f"the board was seen in {len(detections)} of {frames} pictures")
    return [detections[i] for i in spread(detections, board, MAX_VIEWS)]


@dataclass
class _Counts:
    """Frames looked at, those with the board, those in which it was still."""

    frames: int = 0
    seen: int = 0
    still: int = 0


def _watch(camera: Camera, source: str, board: Board, console: Console) -> list[Detection]:
    """Views as they come: guide, and keep each that is still and new, until nothing is missing, q or Ctrl-C."""
    coverage = Coverage(board, camera.intrinsics)
    stillness = Stillness(max(_STILL_SHARE * camera.intrinsics.width, 0.5))
    live, window, counts = is_live(source), has_window(), _Counts()
    console.print("show the board all over the picture and tilted to every side; hold it still; q or Ctrl-C: done")
    with _keys() as keys, Live(console=console, auto_refresh=False, transient=True) as display:
        try:
            while not coverage.complete:
                try:
                    frame = camera.read()
                except DeviceError as error:
                    if live:  # it may come back, and what there is is kept
                        display.update(show_guide(coverage, str(error)), refresh=True)
                        continue
                    if not str(error).endswith("has no more frames"):
                        raise
                    break
                detection = board.detect(frame.rgb)
                still = stillness.see(detection)
                counts.frames += 1
                counts.seen += detection is not None
                counts.still += still
                advice = coverage.advice(detection)
                if detection is not None and still and coverage.adds(detection):
                    coverage.keep(detection)
                    advice = f"taken ({len(coverage.kept)}); {coverage.advice(detection)}"
                display.update(show_guide(coverage, advice), refresh=True)
                if window:
                    cv2.imshow(WINDOW, draw_guide(frame.rgb, coverage, detection, advice)[:, :, ::-1])
                    if cv2.waitKey(1) & 0xFF == ord("q"):
                        break
                if keys is not None and keys.key(0.0) == "q":
                    break
        except KeyboardInterrupt:
            pass  # done, with what there is
    if len(coverage.kept) < MIN_VIEWS:
        raise _unseen(
            len(coverage.kept),
            f"of {counts.frames} frames, {counts.seen} showed the board and in {counts.still} it was still",
        )
    if not coverage.complete:
        said = f"{100 * coverage.share:.0f} % covered: where the board was not seen, the lens is known less well"
        console.print(said, style="yellow")
    return coverage.kept


@contextlib.contextmanager
def _keys() -> Iterator[Keys | None]:
    """The keyboard, where there is one."""
    if not sys.stdin or not sys.stdin.isatty():
        yield None
        return
    with Keys("vlar1 calibrate camera") as keys:
        yield keys


def _unseen(count: int, how: str) -> UserError:
    return UserError(
        f"camera calibration: {count} views of the board, {MIN_VIEWS} are needed; {how}; see that it is the board of "
        "`vlar1 calibrate board`, whole, flat, evenly lit and in focus"
    )


def _views(detections: list[Detection], view_px: list[float], solution: Solution) -> tuple[BoardView, ...]:
    return tuple(
        BoardView(detection.ids, detection.corners_px, px, bool(used))
        for detection, px, used in zip(detections, view_px, solution.used, strict=True)
    )


def _show_solution(solution: Solution, detections: list[Detection], console: Console) -> None:
    table = Table("view", "corners", "rms px", "", box=None)
    for i, (detection, px) in enumerate(zip(detections, solution.view_px, strict=True)):
        outlier = "" if solution.used[i] else "[yellow]contradicts the others, left out[/yellow]"
        table.add_row(str(i + 1), str(len(detection.ids)), f"{px:.3f}", outlier)
    console.print(table)
    intrinsics = solution.intrinsics
    for name, sigma_px in zip(("fx", "fy", "cx", "cy"), solution.sigma_px, strict=True):
        console.print(f"{name} {getattr(intrinsics, name):.2f} ± {sigma_px:.2f} px")
    lens = zip(("k1", "k2", "p1", "p2", "k3"), intrinsics.distortion, strict=False)
    told = ", ".join(f"{name} {value:.5f}" for name, value in lens if value) or "none that the views would show"
    console.print(f"distortion: {told}")
    console.print(
        f"reprojection {solution.reprojection_px:.3f} px rms, {solution.holdout_px:.3f} px on views left out of the fit"
    )
    if solution.warning:
        console.print(solution.warning, style="yellow", markup=False)


def _show_check(check: FactoryCheck, detections: list[Detection], console: Console) -> None:
    table = Table("view", "corners", "camera's own, rms px", "solved, rms px", "", box=None)
    for i, detection in enumerate(detections):
        outlier = "" if check.free.used[i] else "[yellow]contradicts the others, left out[/yellow]"
        own, solved = f"{check.view_px[i]:.3f}", f"{check.free.view_px[i]:.3f}"
        table.add_row(str(i + 1), str(len(detection.ids)), own, solved, outlier)
    console.print(table)
    console.print(
        f"reprojection {check.reprojection_px:.3f} px rms with the camera's own intrinsics, "
        f"{check.free.reprojection_px:.3f} px with solved ones"
    )
    console.print(f"the camera's own intrinsics: {check.verdict}", style="bold", markup=False)
