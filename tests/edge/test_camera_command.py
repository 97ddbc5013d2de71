"""``vlar1 camera``: lists, views and records, or one line and exit code 2; assumed intrinsics measure nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edge.camera_command
from calib.board import Board
from calib.calibration import Calibration, CameraCalibration
from calib.hand_eye import information
from drivers.camera import realsense, v4l2
from drivers.errors import DeviceError, UserError
from drivers.protocols import Frame, Intrinsics
from drivers.recording import Recording
from edge import cli
from edge.camera_command import Found, cameras
from edge.geometry import deproject

NOMINAL = Intrinsics.assumed(64, 48)


class PlayedCamera:
    """A live camera of 500 frames a second; where a list of errors is left, they come before the next frame."""

    def __init__(self, depth: bool = False) -> None:
        self.serial, self.intrinsics = "played", NOMINAL
        self.settings = {"fourcc": "MJPG", "fps": 30.0}
        self.depth_m = np.full((48, 64), 0.75, np.float32) if depth else None
        self.script: dict[int, list[BaseException]] = {}
        self.count = 0
        self.closed = False

    def read(self) -> Frame:
        time.sleep(0.002)
        self.count += 1
        if errors := self.script.get(self.count):
            raise errors.pop(0)
        rgb = np.full((48, 64, 3), 100, np.uint8)
        rgb[:, ::2] = 255
        return Frame(rgb, self.depth_m, time.monotonic() - 0.01, NOMINAL, "played")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> PlayedCamera:
    played = PlayedCamera()
    monkeypatch.setattr(edge.camera_command, "open_camera", lambda source: played)
    return played


def test_view_tells_what_to_know_of_a_camera_and_writes_a_picture(
    camera: PlayedCamera, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera.depth_m = np.zeros((48, 64), np.float32)
    camera.depth_m[:24] = 0.75
    out = tmp_path / "Bild ü.png"
    assert cli.main(["camera", "view", "opencv:0", "--out", str(out), "--seconds", "0.1"]) == 0
    told = capsys.readouterr().out
    assert "played: 64x48 px, " in told and " a second" in told
    age = next(line for line in told.splitlines() if line.startswith("frame age: "))
    assert 10.0 <= float(age.split()[2]) <= float(age.split()[7]) < 1000.0
    assert "sharpness " in told
    assert "brightness 178 of 255, 50.0 % overexposed" in told
    assert "depth on 50 % of the pixels, 0.750 m in the median" in told
    assert "intrinsics: assumed, not measured" in told
    assert "  fourcc MJPG\n  fps 30\n" in told
    written = cv2.imdecode(np.fromfile(out, np.uint8), cv2.IMREAD_COLOR)
    assert written is not None and written.shape == (48, 64, 3)
    assert camera.closed


def test_a_folder_can_be_viewed_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((48, 64, 3), number, np.uint8))
    assert cli.main(["camera", "view", str(tmp_path), "--seconds", "60"]) == 0
    assert "64x48 px, 3 frames" in capsys.readouterr().out


def test_a_live_camera_that_goes_away_while_viewed_is_an_error(
    camera: PlayedCamera, capsys: pytest.CaptureFixture[str]
) -> None:
    camera.script[5] = [DeviceError("camera 0: is unplugged")]
    assert cli.main(["camera", "view", "opencv:0"]) == 2
    assert capsys.readouterr().err == "vlar1: error: camera 0: is unplugged\n"
    assert camera.closed


def test_record_writes_what_came_and_an_unplugging_meanwhile(
    camera: PlayedCamera, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = "camera 0: is unplugged"
    camera.script = {n: [DeviceError(gone)] for n in (5, 6, 7)}
    out = tmp_path / "run.mcap"
    assert cli.main(["camera", "record", "opencv:0", "--out", str(out), "--seconds", "0.2"]) == 0
    told = capsys.readouterr().out
    assert told.count(gone) == 1
    recording = Recording(out)
    frames = list(recording.frames())
    assert f"{out}: {len(frames)} frames in 0." in told.replace("\n", "")
    assert recording.complete
    assert len(frames) >= 5
    assert frames[0].intrinsics == NOMINAL
    said = [(m.data["name"], m.data["text"]) for m in recording if m.data.get("name") == "camera"]
    assert said == [("camera", gone), ("camera", "is back")]
    assert camera.closed


def test_ctrl_c_ends_a_recording_cleanly(camera: PlayedCamera, tmp_path: Path) -> None:
    camera.script = {20: [KeyboardInterrupt()]}
    out = tmp_path / "run.mcap"
    assert cli.main(["camera", "record", "opencv:0", "--out", str(out)]) == 0
    recording = Recording(out)
    assert recording.complete and len(list(recording.frames())) == 19
    assert camera.closed


def test_a_real_ctrl_c_ends_a_recording_cleanly(tmp_path: Path) -> None:
    """In a process of its own, on a video that the test makes long enough."""
    video, out = tmp_path / "long.avi", tmp_path / "run.mcap"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (640, 480))
    for number in range(300):
        writer.write(np.full((480, 640, 3), number % 255, np.uint8))
    writer.release()
    slow = (  # a video is over at once; a camera is not
        "import sys, time\nfrom drivers.camera.opencv import OpenCVCamera\nread = OpenCVCamera.read\n"
        "OpenCVCamera.read = lambda self: (time.sleep(0.05), read(self))[1]\n"
        "from edge.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", slow, "camera", "record", str(video), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 60.0
    while not (out.exists() and out.stat().st_size > 10_000) and time.monotonic() < deadline_s:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert f"{out}: " in stdout.replace("\n", "")
    recording = Recording(out)
    assert recording.complete and len(list(recording.frames())) >= 1


def test_a_recording_of_a_folder_ends_with_it(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((48, 64, 3), number, np.uint8))
    out = tmp_path / "run.mcap"
    assert cli.main(["camera", "record", str(tmp_path), "--out", str(out)]) == 0
    assert [int(frame.rgb[0, 0, 0]) for frame in Recording(out).frames()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["view", "webcam"], "camera source 'webcam': is neither a camera nor a file"),
        (["view", "opencv:0", "--seconds", "0"], "--seconds 0: expected seconds, more than 0"),
        (["view", "opencv:0", "--out", "nowhere/a.png"], "--out nowhere/a.png: cannot be written"),
        (["view", "opencv:0", "--out", "a.what"], "--out a.what: cannot be written"),
        (["record", "opencv:0", "--out", "a.mcap", "--seconds", "nan"], "--seconds nan: expected seconds"),
        (["record", "webcam", "--out", "a.mcap"], "camera source 'webcam'"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["camera", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vlar1: error: {told}") and error.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_a_recording_is_not_overwritten(
    camera: PlayedCamera, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.mcap"
    out.write_text("dear to somebody")
    assert cli.main(["camera", "record", "opencv:0", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "dear to somebody"
    assert camera.closed


def node(root: Path, number: int, name: str, usb: bool = True) -> None:
    entry = root / "class" / f"video{number}"
    entry.mkdir(parents=True)
    (entry / "name").write_text(f"{name}\n")
    if usb:
        device = root / "usb" / "1-2"
        device.mkdir(parents=True, exist_ok=True)
        (device / "idVendor").write_text("046d\n")
        (entry / "device").symlink_to(device)


def test_list_names_what_there_is_by_what_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node(tmp_path, 0, "vi-output, imx219 9-0010", usb=False)
    node(tmp_path, 1, "HD Webcam [C615]")
    node(tmp_path, 2, "HD Webcam [C615]")  # its metadata
    node(tmp_path, 3, "Locked")
    (tmp_path / "by-id").mkdir()
    (tmp_path / "by-id" / "usb-HD-index0").symlink_to("/dev/video1")
    monkeypatch.setattr(v4l2, "capture_formats", lambda path: ["MJPG", "YUYV"] if path == "/dev/video1" else [])
    monkeypatch.setattr(edge.camera_command.os, "access", lambda path, mode: path != "/dev/video3")
    monkeypatch.setattr(realsense, "connected", lambda: [("Intel RealSense D435", "4711")])
    webcam = Found(f"opencv:{tmp_path}/by-id/usb-HD-index0", "HD Webcam [C615]", "MJPG, YUYV")
    locked = Found("opencv:/dev/video3", "Locked", "in use, or you may not open it")
    places: dict[str, Any] = {"sysfs": tmp_path / "class", "by_id": tmp_path / "by-id"}
    found = list(cameras(**places, tegra=tmp_path))
    assert found[:3] == [Found("csi:0", "vi-output, imx219 9-0010", "/dev/video0"), webcam, locked]
    assert (found[3].source, found[3].name) == ("realsense:4711", "Intel RealSense D435")
    assert list(cameras(**places, tegra=tmp_path / "no"))[:2] == [webcam, locked]  # no Jetson, no Argus

    monkeypatch.setattr(edge.camera_command, "cameras", lambda: iter(found))
    assert cli.main(["camera", "list"]) == 0
    told = capsys.readouterr().out
    assert "HD Webcam [C615]  MJPG, YUYV\n" in told
    assert len(told.splitlines()) == 4

    def missing() -> None:
        raise UserError("realsense: pyrealsense2 is not installed")

    monkeypatch.setattr(realsense, "connected", missing)
    assert len(list(cameras(**places, tegra=tmp_path))) == 3
    monkeypatch.setattr(edge.camera_command, "cameras", lambda: iter([]))
    assert cli.main(["camera", "list"]) == 0
    assert "no camera found" in capsys.readouterr().out


def test_assumed_intrinsics_measure_nothing() -> None:
    with pytest.raises(UserError, match="intrinsics at 64x48 px are assumed, not measured; calibrate the camera"):
        deproject([[1.0, 2.0]], [1.0], NOMINAL)
    board_m = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.1, 0.1, 0.0]])
    with pytest.raises(UserError, match="assumed, not measured"):
        information(np.eye(4), np.eye(4), np.eye(4), board_m, NOMINAL)
    camera = CameraCalibration("", "desk", NOMINAL)
    calibration = Calibration("", "so101", camera, Board(), "base", np.eye(4), np.eye(4), 0.0, 0.0)
    with pytest.raises(UserError, match="assumed, not measured"):
        calibration.check(NOMINAL, "desk", "so101")
