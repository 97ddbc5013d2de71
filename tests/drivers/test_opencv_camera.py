"""The OpenCV camera, on recordings and on a device that the test plays."""

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from drivers.camera.opencv import OpenCVCamera
from drivers.errors import DeviceError
from drivers.protocols import Camera, Intrinsics

INTRINSICS = Intrinsics(64, 48, 60.0, 60.0, 31.5, 23.5)
RED_LEVELS = [40, 120, 200]


def picture(red: int) -> np.ndarray:
    """(48, 64, 3) BGR, dark but for the red channel."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :, 2] = red
    return image


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "run.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (64, 48))
    assert writer.isOpened()
    for red in RED_LEVELS:
        writer.write(picture(red))
    writer.release()
    return path


def test_a_video_gives_its_frames_in_order_red_first(video: Path) -> None:
    camera: Camera = OpenCVCamera(video, INTRINSICS)
    frames = [camera.read() for _ in RED_LEVELS]
    for frame, red in zip(frames, RED_LEVELS, strict=True):
        assert frame.rgb.shape == (48, 64, 3)
        assert frame.rgb.dtype == np.uint8
        assert frame.rgb.flags.c_contiguous
        assert abs(int(frame.rgb[24, 32, 0]) - red) <= 8
        assert frame.rgb[24, 32, 2] <= 8
        assert frame.depth_m is None
        assert frame.intrinsics == INTRINSICS
        assert frame.serial == f"opencv:{video}"
    assert frames[0].t_s <= frames[1].t_s <= frames[2].t_s <= time.monotonic()
    with pytest.raises(DeviceError, match=r"run\.avi: has no more frames"):
        camera.read()
    camera.close()
    camera.close()


def test_numbered_pictures_are_a_recording_too(tmp_path: Path) -> None:
    for number, red in enumerate(RED_LEVELS):
        cv2.imwrite(str(tmp_path / f"frame_{number:03d}.png"), picture(red))
    camera = OpenCVCamera(tmp_path / "frame_%03d.png", INTRINSICS, serial="desk")
    assert [int(camera.read().rgb[0, 0, 0]) for _ in RED_LEVELS] == RED_LEVELS
    assert camera.serial == "desk"
    camera.close()


def test_a_source_that_does_not_open_is_named(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing.avi", "/dev/video-nothing"):
        with pytest.raises(DeviceError, match=f"camera {source}: cannot be opened"):
            OpenCVCamera(source, INTRINSICS)


def test_frames_of_another_size_are_refused(video: Path) -> None:
    camera = OpenCVCamera(video, Intrinsics(640, 480, 600.0, 600.0, 319.5, 239.5))
    with pytest.raises(DeviceError, match="gives 64x48 px, its calibration expects 640x480"):
        camera.read()
    camera.close()


class PlayedDevice:
    """Stands in for cv2.VideoCapture on a device: gives a frame when the test puts one, ends on None."""

    def __init__(self) -> None:
        self.frames: queue.Queue[np.ndarray | None] = queue.Queue()
        self.asked = threading.Semaphore(0)
        self.settings: dict[int, float] = {}
        self.released = False

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def set(self, key: int, value: float) -> bool:
        self.settings[key] = value
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.asked.release()
        frame = self.frames.get()
        return frame is not None, frame

    def release(self) -> None:
        self.released = True


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedDevice]:
    device = PlayedDevice()
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: device)
    yield device
    device.frames.put(None)


def test_a_device_is_emptied_and_a_frame_is_newer_than_the_call(device: PlayedDevice) -> None:
    camera = OpenCVCamera(0, INTRINSICS)
    assert device.settings == {cv2.CAP_PROP_FRAME_WIDTH: 64, cv2.CAP_PROP_FRAME_HEIGHT: 48}
    for red in (1, 2, 3):  # frames that nobody reads
        device.frames.put(picture(red))
    for _ in range(4):
        assert device.asked.acquire(timeout=10)  # the fourth request waits: the three were taken

    stop = threading.Event()

    def play() -> None:
        red = 10
        while not stop.wait(0.002):
            red = min(red + 1, 250)
            device.frames.put(picture(red))

    player = threading.Thread(target=play)
    player.start()
    called_s = time.monotonic()
    frame = camera.read()
    stop.set()
    player.join()
    assert frame.rgb[0, 0, 0] > 10
    assert frame.t_s > called_s
    device.frames.put(None)
    camera.close()
    assert device.released


def test_a_device_that_goes_away_is_reported(device: PlayedDevice) -> None:
    camera = OpenCVCamera("/dev/video7", INTRINSICS, timeout_s=10.0)
    device.frames.put(None)
    with pytest.raises(DeviceError, match="camera /dev/video7: delivers no frames; check its cable"):
        camera.read()
    camera.close()


def test_a_device_that_hangs_is_reported(device: PlayedDevice) -> None:
    camera = OpenCVCamera(3, INTRINSICS, timeout_s=0.01)
    with pytest.raises(DeviceError, match="camera 3: delivers no frames"):
        camera.read()
    device.frames.put(None)
    camera.close()
