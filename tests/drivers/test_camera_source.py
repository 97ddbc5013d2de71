"""One line of text opens any camera; what it cannot mean is told in one line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import drivers.camera.gstreamer
import drivers.camera.opencv
import drivers.camera.realsense
import drivers.camera.replay
import drivers.camera.sim
from drivers.camera.opencv import Settings
from drivers.camera.source import is_live, open_camera
from drivers.errors import DeviceError, UserError
from drivers.protocols import Frame, Intrinsics
from drivers.recording import Recorder

INTRINSICS = Intrinsics(64, 48, 60.0, 60.0, 31.5, 23.5)


def picture(red: int) -> np.ndarray:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :, 2] = red
    return image


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What cameras are made with, in place of making them."""
    calls: list[Any] = []
    for module, name in (
        (drivers.camera.opencv, "OpenCVCamera"),
        (drivers.camera.gstreamer, "GStreamerCamera"),
        (drivers.camera.realsense, "RealSenseCamera"),
        (drivers.camera.sim, "SimCamera"),
    ):
        monkeypatch.setattr(module, name, lambda *args, name=name, **named: calls.append((name, *args, named)))
    return calls


CSI = "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width={},height={},framerate={}/1 ! nvvidconv ! "


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("opencv:0", ("OpenCVCamera", 0, INTRINSICS, Settings(), {})),
        ("opencv:/dev/v4l/by-id/usb-A", ("OpenCVCamera", "/dev/v4l/by-id/usb-A", INTRINSICS, Settings(), {})),
        (
            "opencv:/dev/video0?fourcc=YUYV&width=64&height=48&fps=7.5&exposure=120&focus=auto&white_balance=4600",
            (
                "OpenCVCamera",
                "/dev/video0",
                INTRINSICS,
                Settings("YUYV", 64, 48, 7.5, exposure=120, focus="auto", white_balance=4600),
                {},
            ),
        ),
        (
            "gstreamer:rtspsrc location=rtsp://a/b?c=d&e=f ! decodebin",
            (
                "GStreamerCamera",
                "rtspsrc location=rtsp://a/b?c=d&e=f ! decodebin",
                INTRINSICS,
                {"serial": "gstreamer:rtspsrc location=rtsp://a/b?c=d&e=f ! decodebin"},
            ),
        ),
        (
            "csi:1?fps=60",
            ("GStreamerCamera", CSI.format(64, 48, 60) + "video/x-raw,format=I420", INTRINSICS, {"serial": "csi:1"}),
        ),
        ("realsense", ("RealSenseCamera", "", 640, 480, 30, {})),
        ("realsense?fps=15", ("RealSenseCamera", "", 640, 480, 15, {})),
        ("realsense:4711?width=1280&height=720", ("RealSenseCamera", "4711", 1280, 720, 30, {})),
        ("sim:/tmp/table.sock", ("SimCamera", "/tmp/table.sock", {})),
    ],
)
def test_every_kind_of_camera_has_a_text(opened: list[Any], source: str, expected: tuple[Any, ...]) -> None:
    open_camera(source, INTRINSICS)
    assert opened == [expected]
    assert is_live(source)


def test_a_csi_camera_has_a_size_of_its_own(opened: list[Any]) -> None:
    open_camera("csi:1")
    open_camera("csi:1?width=1920&height=1080")
    assert [call[1] for call in opened] == [
        CSI.format(*size, 30) + "video/x-raw,format=I420" for size in ((1280, 720), (1920, 1080))
    ]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("webcam", "is neither a camera nor a file that exists"),
        ("webcam:0", "is neither a camera nor a file that exists"),
        ("opencv", "is neither a camera nor a file that exists"),
        ("", "is neither a camera nor a file that exists"),
        ("missing.mp4", "is neither a camera nor a file that exists"),
        ("opencv:", "names no device"),
        ("opencv:run.avi", "names no device"),
        ("opencv:0?exposure", "has settings that cannot be read: 'exposure'"),
        ("opencv:0?gain=3", "has the unknown setting gain"),
        ("opencv:0?exposure=long", "has exposure=long, expected a whole number or auto"),
        ("opencv:0?fourcc=JPEG2000", "has fourcc=JPEG2000, expected four letters"),
        ("opencv:0?fps=nan", "has fps=nan, expected a number above 0"),
        ("opencv:0?width=640", "gives half a size"),
        ("opencv:0?width=0&height=0", "has width=0, expected a whole number above 0"),
        ("gstreamer:", "names no pipeline"),
        ("csi:front", "names no sensor"),
        ("realsense:4711?exposure=3", "has the unknown setting exposure"),
    ],
)
def test_a_text_that_means_no_camera_is_told_with_the_kinds_there_are(
    opened: list[Any], source: str, told: str
) -> None:
    with pytest.raises(UserError) as error:
        open_camera(source)
    text = str(error.value)
    assert text.startswith(f"camera source '{source}': {told}")
    assert "\n" not in text
    for kind in ("opencv:", "gstreamer:", "csi:", "realsense", "replay:", "sim:", "a video"):
        assert kind in text
    assert not opened


def test_a_video_and_numbered_pictures_are_cameras_too(tmp_path: Path) -> None:
    video = tmp_path / "run.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (64, 48))
    for number, red in enumerate((40, 120)):
        writer.write(picture(red))
        cv2.imwrite(str(tmp_path / f"frame_{number:03d}.png"), picture(red))
    writer.release()
    for source in (str(video), str(tmp_path / "frame_%03d.png")):
        camera = open_camera(source)
        assert camera.intrinsics == Intrinsics.assumed(64, 48)
        assert abs(int(camera.read().rgb[24, 32, 0]) - 40) <= 8
        camera.close()
        assert not is_live(source)
        camera = open_camera(source, INTRINSICS)
        assert camera.read().intrinsics == INTRINSICS
        camera.close()


def test_a_folder_of_pictures_comes_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        cv2.imwrite(str(tmp_path / f"look {number} ü.png"), picture(number))
    (tmp_path / "notes.txt").write_text("no picture")
    camera = open_camera(str(tmp_path))
    frames = [camera.read() for _ in range(3)]
    assert [int(frame.rgb[0, 0, 0]) for frame in frames] == [9, 10, 100]
    assert frames[0].intrinsics == Intrinsics.assumed(64, 48)
    assert 0.0 <= frames[-1].age_s < 10.0
    with pytest.raises(DeviceError, match="has no more frames"):
        camera.read()
    camera.close()
    assert not is_live(str(tmp_path))


def test_a_folder_that_is_no_camera_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="the folder holds no pictures"):
        open_camera(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"damaged")
    with pytest.raises(DeviceError, match=r"a\.png: is not a picture"):
        open_camera(str(tmp_path))
    cv2.imwrite(str(tmp_path / "a.png"), picture(1))
    camera = open_camera(str(tmp_path), Intrinsics(640, 480, 600.0, 600.0, 319.5, 239.5))
    with pytest.raises(DeviceError, match="has 64x48 px, its calibration expects 640x480"):
        camera.read()


def test_a_recording_plays_at_its_pace_with_what_it_knows(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    with Recorder(path) as recorder:
        for number in (1, 2):
            depth_m = np.full((48, 64), 0.5, np.float32)
            recorder.frame(Frame(picture(number)[:, :, ::-1].copy(), depth_m, 100.0 + 0.2 * number, INTRINSICS, "desk"))
    for source in (f"replay:{path}", str(path)):
        camera = open_camera(source)
        first, second = camera.read(), camera.read()
        assert (first.serial, first.intrinsics) == ("desk", INTRINSICS)
        assert first.depth_m is not None and first.depth_m[0, 0] == 0.5
        assert second.t_s - first.t_s == pytest.approx(0.2, abs=0.15)
        assert second.t_s <= time.monotonic()
        camera.close()
        assert not is_live(source)
