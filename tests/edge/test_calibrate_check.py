"""`vlar1 calibrate check` on an emulated arm over a pseudo-terminal, with a camera that renders where it stands."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import mujoco
import numpy as np
import pytest
from arm_terminal import Terminal, person, terminal, wait_for  # noqa: F401

import edge.control
import edge.still_valid
from calib.board import Board
from calib.calibration import Calibration, CameraCalibration, Reference
from calib.file import save_calibration
from calib.kinematics import GripperKinematics
from calib.rigid import apply, invert, retract, rigid, rotation
from calib.touch import corners_to_touch
from drivers.arm import tables
from drivers.arm.packets import SYNC_READ, Packet
from drivers.errors import DeviceError, UserError
from drivers.protocols import Frame, JointState
from drivers.robot import load_robot
from drivers.sim.following_arm import FollowingBank
from drivers.sim.render import CAMERA, camera_pose, render, scaled
from drivers.sim.scene import draw_look, draw_scene
from drivers.sim.servo_bus import ServoBus
from drivers.sim.world import build_model, set_arm
from edge.arm_outline import ArmModel, draw_arm
from edge.calibrate_check import register
from edge.kinematics import Kinematics

ROBOT = load_robot()
FK = GripperKinematics(ROBOT.model, ROBOT.joint_names)
QVGA = scaled(CAMERA, 320, 240)
BOARD = Board()
_LOOK = replace(draw_look(np.random.default_rng(3)), table="speckle")
SCENE = draw_scene(np.random.default_rng(3), look=_LOOK)
T_CALIBRATED = camera_pose(_LOOK)
KNOCK = retract(np.array([0.012, -0.012, 0.010, 0.006, -0.004, 0.007]))
# print up; the plate's body has z out of the print and y up the board
T_BASE_BOARD = rigid(rotation((np.pi, 0.0, 0.0)), (0.16, 0.05, 0.003))
T_BOARD_PLATE = rigid(np.diag([1.0, -1.0, -1.0]), BOARD.centre_m + (0.0, 0.0, 0.0015))


class CountingBank(FollowingBank):
    """Counts how often all joints were read at once."""

    joint_reads = 0

    def handle(self, packet: Packet) -> list[Packet]:
        answers = super().handle(packet)
        self.joint_reads += packet.code == SYNC_READ
        return answers


class World:
    """A camera before the arm on the bus; ``T_base_camera`` is where it really stands."""

    serial, intrinsics = "rendered", QVGA

    def __init__(self, bank: FollowingBank) -> None:
        self.bank, self.T_base_camera, self.scene = bank, T_CALIBRATED, SCENE
        self.with_board, self.lens = False, QVGA
        self.left: float = np.inf
        self.rng = np.random.default_rng(0)
        then = self.frame(ROBOT.ready_rad)
        self.reference = Reference(ROBOT.ready_rad, then.rgb, then.depth_m)

    def read(self) -> Frame:
        if self.left <= 0:
            raise DeviceError("the recording is over")
        self.left -= 1
        return self.frame()

    def frame(self, q: np.ndarray | None = None) -> Frame:
        q = self.bank.position_rad if q is None else q
        board, face = None, None
        if self.with_board:  # on the table, whatever the arm does; the arm itself is out of the way
            q = ROBOT.ready_rad
            half = (BOARD.plate_size_m[0] / 2, BOARD.plate_size_m[1] / 2, 0.0015)
            T_gripper_plate = invert(FK(q)) @ T_BASE_BOARD @ T_BOARD_PLATE
            board, face = np.concatenate([half, T_gripper_plate.ravel()]), BOARD.image(5000.0)
        model = build_model(self.scene, board)
        data = mujoco.MjData(model)
        set_arm(model, data, q)
        mujoco.mj_kinematics(model, data)
        seen = render(model, data, self.scene.look, self.T_base_camera, self.lens, self.rng, face)
        return Frame(seen.rgb, seen.depth_m, time.monotonic(), self.lens, self.serial)

    def close(self) -> None:
        pass


@pytest.fixture
def bank() -> CountingBank:
    return CountingBank(ROBOT, ROBOT.rest_rad)


@pytest.fixture
def bus(bank: FollowingBank) -> Iterator[ServoBus]:
    with ServoBus(bank) as one:
        yield one


@pytest.fixture
def world(bank: FollowingBank, monkeypatch: pytest.MonkeyPatch) -> World:
    one = World(bank)
    monkeypatch.setattr(edge.still_valid, "open_camera", lambda source: one)
    monkeypatch.setattr(edge.still_valid, "is_live", lambda source: False)
    return one


def calibration(world: World, **changes) -> Calibration:
    made = Calibration(
        date="2025-11-27T06:30:00+00:00",
        arm_name=ROBOT.name,
        camera=CameraCalibration("2025-11-27T06:00:00+00:00", world.serial, QVGA),
        board=BOARD,
        mount="base",
        T_mount_camera=T_CALIBRATED,
        T_other_board=np.eye(4),
        reprojection_px=0.2,
        leave_one_out_mm=0.8,
        expected_reach_mm=1.0,
        reference=world.reference,
    )
    return replace(made, **changes)


@pytest.fixture
def check(world: World, bus: ServoBus, tmp_path: Path):
    """Runs the command on a calibration, saved first."""

    def run(*arguments: str, **changes) -> int:
        path = tmp_path / "calibration.yaml"
        save_calibration(calibration(world, **changes), path)
        parser = argparse.ArgumentParser()
        register(parser.add_subparsers())
        args = parser.parse_args(["check", str(path), "--camera", "sim:x", "--port", bus.port, *arguments])
        return args.func(args)

    return run


def test_a_camera_that_stands_is_still_valid_and_nothing_is_written(
    check, world: World, bank: FollowingBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "check.png"
    assert check("--overlay", str(picture)) == 0
    told = capsys.readouterr().out
    assert "still valid: the camera is where it was" in told and str(picture) in told
    assert cv2.imread(str(picture)).shape == (240, 320, 3)
    assert not bank.writes and not bank.values(tables.TORQUE_ENABLE).any()


def test_a_knocked_camera_is_told_by_how_much(check, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.T_base_camera = T_CALIBRATED @ KNOCK
    assert check() == 1
    told = capsys.readouterr().out
    assert told.startswith("the camera has moved by ") and "calibrate again" in told
    points = np.array(list(itertools.product((0.13, 0.33), (-0.16, 0.16), (0.0, 0.1))))
    truth_mm = 1e3 * np.linalg.norm(apply(T_CALIBRATED @ invert(world.T_base_camera), points) - points, axis=1).mean()
    assert float(told.split()[5]) == pytest.approx(truth_mm, abs=1.5)


def test_another_size_of_the_same_camera_will_do(check, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.lens = CAMERA
    assert check() == 0
    world.T_base_camera = T_CALIBRATED @ KNOCK
    assert check() == 1
    assert "the camera has moved by" in capsys.readouterr().out
    world.lens = replace(CAMERA, width=480)
    with pytest.raises(UserError, match="another aspect"):
        check()


def test_what_cannot_be_told_is_no_still_valid(check, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody laid another cloth under all of it, and the camera has no depth."""
    world.scene = replace(SCENE, items=(), look=replace(_LOOK, table="wood", table_rgb=(0.2, 0.2, 0.2)))
    other = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    other = np.asarray(cv2.resize(other, (320, 240), interpolation=cv2.INTER_CUBIC))
    assert check(reference=Reference(ROBOT.ready_rad, other)) == 1
    told = capsys.readouterr().out
    assert told.startswith("cannot tell") and "add --go" in told and "calibrate again" in told


def test_zeros_of_the_calibration_are_in_the_picture(check, world: World, bank: FollowingBank, tmp_path: Path) -> None:
    """An arm whose encoders are off, and a calibration that knows: the outline is where the arm is."""
    zeros = np.array([0.0, 0.05, -0.04, 0.03, 0.0, 0.0])
    bank.counts = np.rint(FollowingBank(ROBOT, [0.3, -0.3, 0.7, 1.0, 0.2, 0.3]).counts)
    true_rad = bank.position_rad + zeros
    frame = world.frame(true_rad)
    world.read = lambda: frame
    picture = tmp_path / "check.png"
    check("--overlay", str(picture), joint_zeros_rad=tuple(zeros))
    drawn = cv2.imread(str(picture))[:, :, ::-1]
    np.testing.assert_array_equal(drawn, draw_arm(frame.rgb, ArmModel(ROBOT), true_rad, T_CALIBRATED, QVGA))


class QuickController:
    """Moves and parks the servos of a bank at once: how motions go is the business of the controller's own tests."""

    def __init__(self, bank: FollowingBank, motions: list[np.ndarray]) -> None:
        self.bank, self.motions = bank, motions
        self.arm = self

    def move_to(self, q_rad: np.ndarray) -> None:
        self.motions.append(np.array(q_rad))
        self.bank.counts = FollowingBank(ROBOT, q_rad).counts

    def read(self) -> JointState:
        return JointState(self.bank.position_rad)

    def __enter__(self) -> QuickController:
        return self

    def __exit__(self, *_: object) -> None:
        self.move_to(ROBOT.rest_rad)


def test_it_goes_to_the_pose_of_then_and_parks_unless_it_is_there(
    check,
    bank: FollowingBank,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    motions: list[np.ndarray] = []
    monkeypatch.setattr(edge.control, "Controller", lambda robot, port: QuickController(bank, motions))
    assert check("--go") == 0
    assert "The arm moves: clear its way." in capsys.readouterr().out
    np.testing.assert_array_equal(motions, [ROBOT.ready_rad, ROBOT.rest_rad])
    bank.counts = FollowingBank(ROBOT, ROBOT.ready_rad).counts
    assert check("--go") == 0
    assert "moves" not in capsys.readouterr().out and len(motions) == 2


def test_live_draws_until_the_recording_ends(
    check, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge.still_valid, "has_window", lambda: False)
    world.left, picture = 2, tmp_path / "live.png"
    assert check("--live", "--overlay", str(picture)) == 0
    assert world.left == 0 and cv2.imread(str(picture)) is not None
    assert [file.name for file in tmp_path.iterdir() if ".part" in file.name] == []


def test_touching_measures_the_error_at_each_corner(
    check,
    world: World,
    bank: CountingBank,
    terminal: Terminal,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The calibration has the camera 6 mm too far along base x: so is the board, and the tip is short of it."""
    world.with_board, world.lens, world.scene = True, CAMERA, replace(SCENE, items=())
    kinematics = Kinematics(ROBOT)
    corners = apply(T_BASE_BOARD, BOARD.corners_m(corners_to_touch(BOARD)))
    poses = [kinematics.solve(corner, None, ROBOT.ready_rad, depth_m=0.0) for corner in corners]
    assert max(pose.position_error_m for pose in poses) < 0.002
    picture = tmp_path / "touch.png"

    def touch() -> None:
        terminal.press("\n")
        wait_for(picture.exists)
        for k, pose in enumerate(poses[:4]):
            bank.counts = FollowingBank(ROBOT, [*pose.position_rad, 0.0]).counts
            terminal.press("\n")
            wait_for(lambda want=1 + 5 * (k + 1): bank.joint_reads >= want)  # one when it looked, five a touch
        terminal.press("s", "\n")

    wrong = T_CALIBRATED.copy()
    wrong[0, 3] += 0.006
    with person(touch):
        assert check("--touch", "--overlay", str(picture), T_mount_camera=wrong) == 1
    told = capsys.readouterr().out
    assert "rms 6" in told or "rms 5" in told
    assert "all the same way" in told and "x -" in told
    assert not bank.writes and terminal.restored
    assert cv2.imread(str(picture)).shape == (480, 640, 3)


def test_touching_needs_the_torque_off(check, world: World, bank: FollowingBank) -> None:
    for servo in ROBOT.arm.joints:
        bank._write(servo.id, tables.TORQUE_ENABLE.address, b"\x01")
    with pytest.raises(UserError, match="torque is on .*vlar1 arm park"):
        check("--touch")


def test_what_does_not_fit_is_said(check, world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of arm 'another'"):
        check(arm_name="another")
    (tmp_path / "calibration.yaml").unlink()
    with pytest.raises(UserError, match="holds no picture"):
        check(reference=None)
    with pytest.raises(UserError, match="no pose to go to"):
        check("--go", reference=None)
    with pytest.raises(UserError, match="there is no folder"):
        check("--overlay", str(tmp_path / "nowhere" / "x.png"))
    world.serial = "other"
    (tmp_path / "calibration.yaml").unlink()
    with pytest.raises(UserError, match="calibration is of camera 'rendered'"):
        check(camera=CameraCalibration("2025-11-27T06:00:00+00:00", "rendered", QVGA))
