"""The command on an arm whose camera and board are where nobody has said: what it finds, draws, keeps and refuses."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "calib"))
from calib_rig import BOARD, T_BASE_BOARD, T_BASE_CAMERA, T_GRIPPER_CAMERA, Rig, RigArm, RigCamera
from calib_views import VGA

import edge.control
from calib import routine
from calib.calibration import CameraCalibration
from calib.file import load_calibration, save_calibration
from drivers.errors import UserError
from drivers.protocols import Frame, Intrinsics, JointState
from drivers.robot import load_robot
from edge import hand_eye
from edge.arm_keys import CLOSED
from edge.calibrate_hand_eye import register
from edge.control import MotionError

AT = ["--camera-at", "0.52,0,0.42", "0.21,0,0.02"]
NO_ZEROS = np.zeros(6)
LOOK_DOWN = np.array([0.0, -0.76, 0.43, 1.45, 0.0, 0.3])


class Serving(RigCamera):
    """A camera that is opened and closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


class Driven:
    """A controller whose arm is the rig's."""

    def __init__(self, rig, zeros_rad=NO_ZEROS):
        self.rig, self.messages, self.arm, self.setpoint_rad = rig, [], RigArm(rig), rig.q.copy()
        read = self.arm.read
        self.arm.read = lambda: JointState(read().position_rad - zeros_rad)
        self.zeros_rad, self.gripper_rad = zeros_rad, []

    def __call__(self, robot, port, **options):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def move_to(self, q_rad):
        self.setpoint_rad = np.array(q_rad)
        self.gripper_rad.append(q_rad[-1])
        self.rig.move(q_rad + self.zeros_rad)


class Answers:
    """A keyboard at which questions are answered, and nothing else is typed."""

    def __init__(self, *keys):
        self.keys = list(keys)

    def __call__(self, what):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def key(self, timeout_s):
        if timeout_s > 100:
            return self.keys.pop(0)
        time.sleep(timeout_s)
        return ""


@pytest.fixture
def bench(monkeypatch):
    """(rig, camera, controller) in the places of the real ones."""
    monkeypatch.setattr(routine, "SETTLE_INTERVAL_S", 0.0)
    monkeypatch.setattr("calib.poses._CANDIDATES", 60)

    def make(mount="base", zeros_rad=NO_ZEROS, camera_type=Serving):
        robot = load_robot()
        rig = Rig(hand_eye.GripperKinematics(robot.model, robot.joint_names), mount=mount)
        camera, controller = camera_type(rig), Driven(rig, zeros_rad)
        monkeypatch.setattr(hand_eye, "open_camera", lambda source: camera)
        monkeypatch.setattr(edge.control, "Controller", controller)
        return rig, camera, controller

    return make


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    args = parser.parse_args(["hand-eye", *words])
    return int(args.func(args))


def distance_mm(A, B):
    return 1e3 * float(np.linalg.norm(A[:3, 3] - B[:3, 3]))


def test_a_camera_that_stands_still(bench, tmp_path, capsys):
    zeros_rad = np.radians([0, 1.2, -1.0, 1.5, 0, 0])
    _, camera, _ = bench(zeros_rad=zeros_rad)
    out = tmp_path / "c.yaml"
    assert command("opencv:0", "--out", str(out), "--yes", "--views", "12", *AT) == 0
    found = load_calibration(out)
    assert distance_mm(found.T_base_camera(), T_BASE_CAMERA) < 4.0 and camera.closed
    np.testing.assert_allclose(found.joint_zeros_rad, zeros_rad, atol=np.radians(0.4))
    assert found.mount == "base" and found.camera.serial == "rig" and found.reference is not None
    assert found.reference.rgb.shape == (480, 640, 3)
    printed = capsys.readouterr().out
    assert "joint zeros, found and corrected" in printed and "the tip will miss by" in printed
    assert found.diagnosis and all(" ".join(s.split()) in " ".join(printed.split()) for s in found.diagnosis)
    picture = cv2.imread(str(tmp_path / "c.png"))
    assert picture.shape[0] == 480 and (picture != picture[0, 0]).any()

    # once more from its own views: the same answer, and the reference picture stays
    assert command("--again", "--out", str(out)) == 0
    again = load_calibration(out)
    np.testing.assert_allclose(again.T_mount_camera, found.T_mount_camera, atol=1e-12)
    np.testing.assert_array_equal(again.reference.joints_rad, found.reference.joints_rad)
    assert again.date == found.date

    # squares that are not as large as believed are told, and the good file is left alone
    before = out.read_bytes()
    with pytest.raises(UserError, match="square"):
        command("--again", "--out", str(out), "--square-mm", "25.0")
    assert out.read_bytes() == before
    kept = load_calibration(tmp_path / "c.rejected.yaml")
    assert len(kept.views) == len(found.views) and kept.board.square_m == pytest.approx(0.025)
    assert command("--again", "--out", str(out), "--square-mm", "25.0", "--force") == 0
    assert load_calibration(out).board.square_m == pytest.approx(0.025)


def test_a_camera_in_the_gripper_that_finds_the_board_by_itself(bench, tmp_path, monkeypatch):
    bench(mount="gripper")
    monkeypatch.setattr(hand_eye, "load_robot", lambda path: dataclasses.replace(load_robot(path), ready_rad=LOOK_DOWN))
    out = tmp_path / "c.yaml"
    assert command("opencv:0", "--out", str(out), "--yes", "--views", "12", "--mount", "gripper") == 0
    found = load_calibration(out)
    assert found.mount == "gripper"
    assert distance_mm(found.T_mount_camera, T_GRIPPER_CAMERA) < 2.5
    assert distance_mm(found.T_other_board, T_BASE_BOARD) < 3.5


def test_a_file_of_another_arm_is_refused_before_anything_moves(bench, tmp_path):
    rig, _, _ = bench()
    out = tmp_path / "c.yaml"
    assert command("opencv:0", "--out", str(out), "--yes", "--views", "8", *AT) == 0
    save_calibration(dataclasses.replace(load_calibration(out), arm_name="koch"), tmp_path / "koch.yaml")
    moves = rig.moves
    with pytest.raises(UserError, match="koch.yaml: is of arm 'koch', not 'so101'"):
        command("opencv:0", "--out", str(tmp_path / "koch.yaml"), "--yes", *AT)
    assert rig.moves == moves


def test_nothing_moves_before_a_yes(bench, tmp_path, monkeypatch):
    rig, _, controller = bench()
    monkeypatch.setattr(hand_eye, "Keys", Answers("n"))
    with pytest.raises(UserError, match="nothing moved"):
        command("opencv:0", "--out", str(tmp_path / "c.yaml"), *AT)
    assert rig.moves == 0 and not (tmp_path / "c.yaml").exists()


def test_the_jaws_open_for_the_board_and_close_on_it(bench, tmp_path, monkeypatch):
    rig, _, controller = bench()
    monkeypatch.setattr(hand_eye, "Keys", Answers("y", "y", "y"))
    assert command("opencv:0", "--out", str(tmp_path / "c.yaml"), "--views", "8", *AT) == 0
    ready, opened, closed, *rest = controller.gripper_rad
    assert opened > ready > closed and set(rest[:8]) == {closed}
    assert opened in rest[8:]  # the board is taken out before the reference is


def test_the_space_bar_stops_the_arm_on_its_way(bench, tmp_path, monkeypatch):
    rig, _, controller = bench()
    pressed = threading.Event()
    stopped = []

    class Pressing(Answers):
        def key(self, timeout_s):
            if timeout_s < 100 and rig.moves > 11 and not pressed.is_set():
                pressed.set()
                return "space"
            return super().key(timeout_s)

    move_to = controller.move_to

    def until_stopped(q_rad):
        if rig.moves > 11:
            assert pressed.wait(10.0)
            while not stopped:
                time.sleep(0.01)
            raise MotionError("arm: stopped")
        move_to(q_rad)

    controller.stop, controller.move_to = stopped.append, until_stopped
    monkeypatch.setattr(hand_eye, "Keys", Pressing("y", "y", "y"))
    with pytest.raises(MotionError, match="stopped"):
        command("opencv:0", "--out", str(tmp_path / "c.yaml"), "--views", "12", *AT)
    assert stopped == ["the space bar was pressed"] and not (tmp_path / "c.yaml").exists()
    kept = load_calibration(tmp_path / "c.rejected.yaml")  # what was seen until then is not lost
    assert len(kept.views) == 9


def test_a_board_that_is_not_seen_from_where_the_arm_stands(bench, tmp_path):
    bench(mount="gripper")  # at the ready pose the camera in the gripper looks elsewhere
    with pytest.raises(UserError, match="the board is not seen from where the arm stands; say where the camera is"):
        command("opencv:0", "--out", str(tmp_path / "c.yaml"), "--yes", "--mount", "gripper")


def test_by_hand(bench, tmp_path, monkeypatch, capsys):
    rig, _, _ = bench()
    start = np.array([0, -1.2, 0.6, 0.6, 0, 0.05])
    robot = load_robot()
    poses = hand_eye.choose_poses(robot.model, robot.joint_names, BOARD, VGA, T_BASE_CAMERA, start, count=9)
    rig.q = poses[0].copy()

    class Held(RigArm):
        torque_on = False

        def close(self):
            pass

    class Hand(Answers):
        """Somebody who moves the arm on after each view."""

        looks = 0

        def key(self, timeout_s):
            if timeout_s > 100:
                return "enter"  # the arm lies there
            self.looks += 1
            k = self.looks // 5
            rig.q = poses[min(k, len(poses) - 1)].copy()
            return CLOSED if k >= len(poses) else ""

    arm = Held(rig)
    monkeypatch.setattr(hand_eye, "open_arm", lambda robot, port: arm)
    monkeypatch.setattr(hand_eye, "Keys", Hand())
    out = tmp_path / "c.yaml"
    assert command("opencv:0", "--out", str(out), "--by-hand", "--views", "8") == 0
    assert distance_mm(load_calibration(out).T_base_camera(), T_BASE_CAMERA) < 2.5
    printed = capsys.readouterr().out
    assert len(load_calibration(out).views) == 8 and "view 8 of 8" in printed
    assert load_calibration(out).reference is not None
    told = [float(v) for v in re.findall(r"least told is .*: (0\.\d+) px a mrad or mm", printed)]
    assert len(told) >= 2 and told[-1] > 0.005
    arm.torque_on = True
    with pytest.raises(UserError, match="torque is on, it cannot be moved by hand"):
        command("opencv:0", "--out", str(out), "--by-hand")


def test_views_that_say_too_little_are_kept_beside(bench, tmp_path, monkeypatch):
    bench()
    monkeypatch.setattr(Rig, "move", lambda self, q_rad: None)  # an arm that does not move: one view, many times
    out = tmp_path / "c.yaml"
    with pytest.raises(UserError, match="turned .* Not saved"):
        _still(tmp_path, monkeypatch)
    assert not out.exists() and len(load_calibration(tmp_path / "c.rejected.yaml").views) == 8


def _still(tmp_path, monkeypatch):
    start = Rig.__init__

    def at_start(self, *args, **options):
        start(self, *args, **options)
        self.q = np.array([0, -1.2, 0.6, 0.6, 0, 0.05])

    monkeypatch.setattr(Rig, "__init__", at_start)
    rig = Rig(hand_eye.GripperKinematics(load_robot().model, load_robot().joint_names))
    camera = Serving(rig)
    monkeypatch.setattr(hand_eye, "open_camera", lambda source: camera)
    monkeypatch.setattr(edge.control, "Controller", Driven(rig))
    command("opencv:0", "--out", str(tmp_path / "c.yaml"), "--yes", "--views", "8", *AT)


class Nominal(Serving):
    """A webcam: it does not know its intrinsics."""

    intrinsics = Intrinsics.assumed(640, 480)

    def read(self) -> Frame:
        return dataclasses.replace(super().read(), intrinsics=self.intrinsics)


def test_a_webcam_needs_its_intrinsics_first_and_takes_them_from_the_file(bench, tmp_path):
    bench(camera_type=Nominal)
    out = tmp_path / "c.yaml"
    with pytest.raises(UserError, match="measure them with `vlar1 calibrate camera SOURCE --out .*c.yaml` first"):
        command("opencv:0", "--out", str(out), "--yes", *AT)
    save_calibration(CameraCalibration("2026-01-01", "rig", VGA, "board", BOARD), out)
    assert command("opencv:0", "--out", str(out), "--yes", "--views", "8", *AT) == 0
    found = load_calibration(out)
    assert found.camera.source == "board" and distance_mm(found.T_base_camera(), T_BASE_CAMERA) < 3.0
    save_calibration(CameraCalibration("2026-01-01", "other", VGA), tmp_path / "other.yaml")
    with pytest.raises(UserError, match="of camera 'other', this one is 'rig'"):
        command("opencv:0", "--out", str(tmp_path / "other.yaml"), "--yes", *AT)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "c.yaml"], "names no camera"),
        (["opencv:0", "--out", "c.yaml", "--views", "3"], "--views 3: expected at least 8"),
        (["opencv:0", "--out", "c.yaml", "--mount", "gripper", *AT], "--camera-at: is for a camera that stands still"),
        (["opencv:0", "--out", "c.yaml", "--square-mm", "0.024"], "hand-eye board has squares of 24 mm"),
        (["--again", "--out", "none.yaml"], "none.yaml: no such calibration file"),
        (["opencv:0", "--out", "c.yaml", "--yes", "--camera-at", "0,0,0.5", "0,0,0"], "straight up"),
    ],
)
def test_what_cannot_be_meant_is_said_in_a_line(bench, tmp_path, monkeypatch, words, says):
    bench()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        command(*words)
    assert "\n" not in str(caught.value)


def test_a_place_that_is_no_place_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit):
        command("opencv:0", "--out", "c.yaml", "--camera-at", "here", "0,0,0")
    assert "expected three numbers" in capsys.readouterr().err
