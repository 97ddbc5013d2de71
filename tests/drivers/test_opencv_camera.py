"""The OpenCV camera, on recordings and on a device that the test plays."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from drivers.camera import newest, v4l2
from drivers.camera.opencv import OpenCVCamera, Settings
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
    """Stands in for cv2.VideoCapture on a device: gives a frame when the test puts one, is gone after a None."""

    def __init__(self) -> None:
        self.frames: queue.Queue[np.ndarray | None] = queue.Queue()
        self.asked = threading.Semaphore(0)
        self.settings: dict[int, float] = {}
        self.order: list[int] = []
        self.refused: dict[int, float] = {}  # what the device has, whatever it is told
        self.stamp_s: Callable[[], float] | None = None
        self.gone = self.released = False

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def set(self, key: int, value: float) -> bool:
        self.order.append(key)
        self.settings[key] = value
        return key not in self.refused

    def get(self, key: int) -> float:
        if key == cv2.CAP_PROP_POS_MSEC:
            return 1e3 * self.stamp_s() if self.stamp_s else 0.0
        size = {cv2.CAP_PROP_FRAME_WIDTH: 64.0, cv2.CAP_PROP_FRAME_HEIGHT: 48.0}
        return float({**size, **self.settings, **self.refused}.get(key, -1.0))

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.asked.release()
        frame = None if self.gone else self.frames.get()
        self.gone = frame is None
        return frame is not None, frame

    def release(self) -> None:
        self.released = True


class Sockets:
    """Opens played devices in place of cv2.VideoCapture: the next in ``plugged``, or one that is not open."""

    def __init__(self) -> None:
        self.plugged: queue.Queue[PlayedDevice] = queue.Queue()
        self.opened: list[int | str] = []

    def __call__(self, source: int | str, api: int) -> object:
        assert api == cv2.CAP_V4L2
        self.opened.append(source)
        try:
            return self.plugged.get_nowait()
        except queue.Empty:
            return Closed()


class Closed:
    def isOpened(self) -> bool:  # noqa: N802
        return False

    def release(self) -> None:
        pass


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Sockets:
    sockets = Sockets()
    monkeypatch.setattr(cv2, "VideoCapture", sockets)
    monkeypatch.setattr(newest, "LOOK_AGAIN_S", 0.005)
    return sockets


@pytest.fixture
def device(sockets: Sockets) -> Iterator[PlayedDevice]:
    device = PlayedDevice()
    sockets.plugged.put(device)
    yield device
    device.frames.put(None)


class Player:
    """Feeds a device a frame every 2 ms, redder and redder from ``red`` on."""

    def __init__(self, device: PlayedDevice, red: int) -> None:
        self._device, self._red = device, red
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _play(self) -> None:
        while not self._stop.wait(0.002):
            self._red = min(self._red + 1, 250)
            self._device.frames.put(picture(self._red))


def test_a_device_is_emptied_and_a_frame_is_newer_than_the_call(device: PlayedDevice) -> None:
    camera = OpenCVCamera(0, INTRINSICS)
    for red in (1, 2, 3):  # frames that nobody reads
        device.frames.put(picture(red))
    for _ in range(4):
        assert device.asked.acquire(timeout=10)  # the fourth request waits: the three were taken
    with Player(device, 10):
        called_s = time.monotonic()
        frame = camera.read()
    assert frame.rgb[0, 0, 0] > 10
    assert frame.t_s > called_s
    assert 0.0 <= frame.age_s < 10.0
    device.frames.put(None)
    camera.close()
    assert device.released


def test_a_frame_is_as_old_as_the_device_says_where_that_is_on_our_clock(device: PlayedDevice) -> None:
    device.stamp_s = lambda: time.monotonic() - 0.2
    camera = OpenCVCamera(0, INTRINSICS)
    with Player(device, 10):
        called_s = time.monotonic()
        frame = camera.read()
        assert time.monotonic() - called_s > 0.2  # what was taken before the call is not given
        assert frame.t_s > called_s
        assert frame.age_s >= 0.2
        for strange_s in (0.0, time.time(), time.monotonic() + 5.0):  # unset, wall clock, ahead of us
            device.stamp_s = lambda strange_s=strange_s: strange_s
            time.sleep(0.3)  # until frames of the old clock are through
            called_s = time.monotonic()
            assert called_s < camera.read().t_s <= time.monotonic()
    device.frames.put(None)
    camera.close()


def test_a_device_that_goes_away_is_reported_and_back_when_it_is_plugged_in_again(
    device: PlayedDevice, sockets: Sockets
) -> None:
    camera = OpenCVCamera("/dev/video7", INTRINSICS, Settings(exposure=120), timeout_s=0.3)
    with Player(device, 10):
        camera.read()
    device.frames.put(None)
    for _ in range(2):
        with pytest.raises(DeviceError, match="^camera /dev/video7: is unplugged or dead .*; plug it in again") as told:
            camera.read()
        assert "\n" not in str(told.value)
    assert device.released

    back = PlayedDevice()
    sockets.plugged.put(back)
    with Player(back, 100):
        assert camera.read().rgb[0, 0, 0] > 100
    assert back.settings[cv2.CAP_PROP_EXPOSURE] == 120  # set up as it was
    back.frames.put(None)
    camera.close()
    with pytest.raises(DeviceError, match="is closed"):
        camera.read()


def test_one_damaged_frame_is_no_unplugging(device: PlayedDevice, sockets: Sockets) -> None:
    camera = OpenCVCamera(0, INTRINSICS, timeout_s=10.0)
    read, damaged = device.read, iter([True, True])
    device.read = lambda: (False, None) if next(damaged, False) else read()  # type: ignore[method-assign]
    with Player(device, 10):
        camera.read()
    assert sockets.opened == [0]
    device.frames.put(None)
    camera.close()


def test_a_device_that_hangs_is_reported(device: PlayedDevice) -> None:
    camera = OpenCVCamera(3, INTRINSICS, timeout_s=0.01)
    with pytest.raises(DeviceError, match="camera 3: delivers no frames within 0.01 s; check its cable"):
        camera.read()
    device.frames.put(None)
    camera.close()


def usb_video(root: Path, number: int, port: str, serial: str, node: int = 0, product: str = "0825") -> None:
    """A video node in a fake /sys: ``root``/class/video4linux/videoN over a USB device at ``port``."""
    usb = root / "devices" / port
    interface = usb / f"{port}:1.0"
    interface.mkdir(parents=True, exist_ok=True)
    (usb / "idVendor").write_text("046d\n")
    (usb / "idProduct").write_text(f"{product}\n")
    if serial:
        (usb / "serial").write_text(f"{serial}\n")
    entry = root / "class" / f"video{number}"
    entry.mkdir(parents=True)
    (entry / "name").write_text("HD Webcam\n")
    (entry / "index").write_text(f"{node}\n")
    (entry / "device").symlink_to(interface)


def unplug(root: Path, number: int) -> None:
    entry = root / "class" / f"video{number}"
    for file in entry.iterdir():
        file.unlink()
    entry.rmdir()


@pytest.mark.parametrize(("serial", "port"), [("A1B2", "3-4"), ("", "1-2")])
def test_a_camera_is_found_again_at_another_index_and_no_other_one_is_taken_for_it(
    device: PlayedDevice, sockets: Sockets, tmp_path: Path, serial: str, port: str
) -> None:
    usb_video(tmp_path, 0, "1-2", serial)
    usb_video(tmp_path, 1, "1-2", serial, node=1)
    camera = OpenCVCamera(0, INTRINSICS, timeout_s=0.1, sysfs=tmp_path / "class")
    unplug(tmp_path, 0)
    unplug(tmp_path, 1)
    usb_video(tmp_path, 0, "2-1", "C3D4" if serial else "")  # another camera has got the index
    device.frames.put(None)
    with pytest.raises(DeviceError, match="camera 0: is unplugged"):
        camera.read()
    assert sockets.opened == [0]

    back = PlayedDevice()
    sockets.plugged.put(back)
    usb_video(tmp_path, 2, port, serial, node=1)  # its node for metadata
    usb_video(tmp_path, 3, port, serial)
    with Player(back, 100):
        time.sleep(0.1)
        assert camera.read().rgb[0, 0, 0] > 100
    assert sockets.opened == [0, "/dev/video3"]
    back.frames.put(None)
    camera.close()


def test_the_system_s_devices_have_names_and_lasting_links(tmp_path: Path) -> None:
    usb_video(tmp_path, 10, "1-2", "A1B2")
    usb_video(tmp_path, 2, "1-3", "")
    platform = tmp_path / "class" / "video0"
    platform.mkdir()
    (platform / "name").write_text("vi-output, imx219 9-0010\n")
    links = tmp_path / "by-id"
    links.mkdir()
    (links / "usb-046d_HD_Webcam_A1B2-video-index0").symlink_to("/dev/video10")
    found = v4l2.video_devices(tmp_path / "class", links)
    assert [device.path for device in found] == ["/dev/video0", "/dev/video2", "/dev/video10"]
    assert found[0] == v4l2.VideoDevice("/dev/video0", "vi-output, imx219 9-0010", None)
    assert found[1].identity == v4l2.Identity("046d", "0825", "", "1-3", "0")
    assert found[2].identity == v4l2.Identity("046d", "0825", "A1B2", "", "0")
    assert found[2].by_id == str(links / "usb-046d_HD_Webcam_A1B2-video-index0")
    assert v4l2.video_device(found[2].by_id, tmp_path / "class") == v4l2.VideoDevice(
        "/dev/video10", "HD Webcam", found[2].identity
    )
    assert v4l2.video_devices(tmp_path / "nothing", links) == []


def test_formats_are_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = tmp_path / "video0"
    node.touch()

    def ioctl(file: int, request: int, question: bytearray) -> int:
        assert request == 0xC0405602 and len(question) == 64  # VIDIOC_ENUM_FMT of linux/videodev2.h
        index, kind = question[0], question[4]
        if index == 2:
            raise OSError(22, "Invalid argument")
        assert kind == 1
        question[44:48] = (b"MJPG", b"YUYV")[index]
        return 0

    monkeypatch.setattr(v4l2.fcntl, "ioctl", ioctl)
    assert v4l2.capture_formats(str(node)) == ["MJPG", "YUYV"]
    assert v4l2.capture_formats(str(tmp_path / "video1")) == []


def test_settings_reach_the_device_format_first(device: PlayedDevice) -> None:
    settings = Settings(fps=30.0, exposure=120, focus="auto", white_balance=4600)
    camera = OpenCVCamera("/dev/video0", INTRINSICS, settings)
    mjpg = cv2.VideoWriter.fourcc(*"MJPG")
    assert device.settings == {
        cv2.CAP_PROP_FOURCC: mjpg,
        cv2.CAP_PROP_FRAME_WIDTH: 64,
        cv2.CAP_PROP_FRAME_HEIGHT: 48,
        cv2.CAP_PROP_FPS: 30.0,
        cv2.CAP_PROP_AUTO_EXPOSURE: 1,
        cv2.CAP_PROP_EXPOSURE: 120,
        cv2.CAP_PROP_AUTOFOCUS: 1,
        cv2.CAP_PROP_AUTO_WB: 0,
        cv2.CAP_PROP_WB_TEMPERATURE: 4600,
    }
    assert device.order[:3] == [cv2.CAP_PROP_FOURCC, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT]
    assert camera.settings == {"fourcc": "MJPG", "fps": 30.0, "exposure": 120, "focus": "auto", "white_balance": 4600}
    device.frames.put(None)
    camera.close()


YUYV = float(cv2.VideoWriter.fourcc(*"YUYV"))


@pytest.mark.parametrize(
    ("settings", "refused", "told"),
    [
        (Settings(fourcc="MJPG"), {cv2.CAP_PROP_FOURCC: YUYV}, "refuses fourcc=MJPG, it has YUYV"),
        (Settings(fps=60.0), {cv2.CAP_PROP_FPS: 30.0}, "refuses fps=60, it has 30"),
        (Settings(exposure=120), {cv2.CAP_PROP_EXPOSURE: 157.0}, "refuses exposure=120, it has 157"),
        (Settings(exposure=120), {cv2.CAP_PROP_AUTO_EXPOSURE: 3.0}, "refuses exposure=120, it has auto"),
        (Settings(focus=30), {cv2.CAP_PROP_FOCUS: -1.0}, "refuses focus=30"),
        (Settings(focus="auto"), {cv2.CAP_PROP_AUTOFOCUS: -1.0}, "refuses focus=auto"),
        (Settings(), {cv2.CAP_PROP_FRAME_WIDTH: 80.0}, "refuses size=64x48, it has 80x48"),
    ],
)
def test_a_setting_that_the_device_refuses_is_named(
    device: PlayedDevice, settings: Settings, refused: dict[int, float], told: str
) -> None:
    device.refused = refused
    with pytest.raises(DeviceError, match=f"^camera 0: {told}.*; leave it out, or see what it takes"):
        OpenCVCamera(0, INTRINSICS, settings)
    assert device.released


def test_a_device_without_mjpg_gives_what_it_has_unless_mjpg_was_asked_for(device: PlayedDevice) -> None:
    device.refused = {cv2.CAP_PROP_FOURCC: YUYV}
    camera = OpenCVCamera(0, INTRINSICS)
    assert camera.settings["fourcc"] == "YUYV"
    device.frames.put(None)
    camera.close()


def test_without_a_calibration_intrinsics_are_nominal_and_of_the_device_s_size(device: PlayedDevice) -> None:
    camera = OpenCVCamera(0)
    assert camera.intrinsics == Intrinsics.assumed(64, 48)
    assert camera.intrinsics.nominal
    assert camera.intrinsics.fx == pytest.approx(32 / np.tan(np.radians(30.0)))
    assert cv2.CAP_PROP_FRAME_WIDTH not in device.settings
    device.frames.put(None)
    camera.close()
