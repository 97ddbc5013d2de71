"""The RealSense camera on librealsense's own software device: alignment, metres, intrinsics, time, unplugging."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import cv2
import numpy as np
import pytest

from drivers.camera import newest, realsense
from drivers.camera.realsense import RealSenseCamera, load_library, opencv_intrinsics
from drivers.errors import DeviceError, UserError
from drivers.protocols import Camera, Intrinsics

try:
    rs = load_library()
except UserError as missing:
    pytest.skip(str(missing), allow_module_level=True)

WIDTH, HEIGHT = 64, 48
COLOUR_PX = (60.0, 60.0, 31.5, 23.5)  # fx, fy, cx, cy
DEPTH_PX = (40.0, 40.0, 30.5, 22.5)
BASELINE_M = 0.05
UNIT_M = 0.0005


def factory(fx: float, fy: float, cx: float, cy: float, model: Any = None, coefficients: Any = (0.0,) * 5) -> Any:
    intrinsics = rs.intrinsics()
    intrinsics.width, intrinsics.height = WIDTH, HEIGHT
    intrinsics.fx, intrinsics.fy, intrinsics.ppx, intrinsics.ppy = fx, fy, cx, cy
    intrinsics.model = model or rs.distortion.none
    intrinsics.coeffs = list(coefficients)
    return intrinsics


class SoftCamera:
    """A camera without hardware: a depth sensor, and a colour sensor 50 mm beside it with a longer lens."""

    def __init__(self) -> None:
        self.device = rs.software_device()
        self.device.register_info(rs.camera_info.serial_number, "4711")
        self.device.register_info(rs.camera_info.name, "Soft")
        self._depth = self.device.add_sensor("Stereo Module")
        self._depth.add_read_only_option(rs.option.depth_units, UNIT_M)
        self._colour = self.device.add_sensor("RGB Camera")
        self._depth_profile = self._stream(self._depth, rs.stream.depth, rs.format.z16, 2, DEPTH_PX)
        self._colour_profile = self._stream(self._colour, rs.stream.color, rs.format.rgb8, 3, COLOUR_PX)
        placed = rs.extrinsics()
        placed.rotation, placed.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [-BASELINE_M, 0, 0]
        self._depth_profile.register_extrinsics_to(self._colour_profile, placed)
        self.device.create_matcher(rs.matchers.default)
        self.depth = np.full((HEIGHT, WIDTH), 2000, np.uint16)
        self.age_s, self.domain = 0.0, rs.timestamp_domain.system_time
        self.playing = threading.Event()
        self.playing.set()
        self._stop = False
        self._thread = threading.Thread(target=self._play)
        self._thread.start()

    def close(self) -> None:
        self._stop = True
        self._thread.join()

    def _stream(self, sensor: Any, kind: Any, form: Any, size: int, px: tuple[float, ...]) -> Any:
        stream = rs.video_stream()
        stream.type, stream.index, stream.uid, stream.fmt = kind, 0, size, form
        stream.width, stream.height, stream.fps, stream.bpp = WIDTH, HEIGHT, 30, size
        stream.intrinsics = factory(*px)
        return sensor.add_video_stream(stream, True)

    def _play(self) -> None:
        number = 0
        while not self._stop:
            if self.playing.is_set():
                number += 1
                stamp_ms = 1e3 * (time.time() - self.age_s)
                picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
                picture[:] = (min(number, 255), 100, 50)
                self._send(self._depth, self._depth_profile, self.depth, 2, stamp_ms, number)
                self._send(self._colour, self._colour_profile, picture, 3, stamp_ms, number)
            time.sleep(0.01)

    def _send(self, sensor: Any, profile: Any, pixels: Any, size: int, stamp_ms: float, number: int) -> None:
        frame = rs.software_video_frame()
        frame.pixels, frame.stride, frame.bpp = pixels, WIDTH * size, size
        frame.timestamp, frame.domain, frame.frame_number = stamp_ms, self.domain, number
        frame.profile = profile.as_video_stream_profile()
        if size == 2:
            frame.depth_units = UNIT_M
        sensor.on_video_frame(frame)


@pytest.fixture
def soft(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(newest, "LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr(realsense, "SILENCE_MS", 200)
    camera = SoftCamera()
    yield camera
    camera.close()


def test_depth_lies_on_the_colour_image_in_metres(soft: SoftCamera) -> None:
    near = (slice(14, 30), slice(34, 48))  # rows, columns of the depth image: a box at 0.5 m before a wall at 1 m
    soft.depth[near] = 1000
    camera: Camera = RealSenseCamera(width=WIDTH, height=HEIGHT, timeout_s=10.0, device=soft.device)
    frame = camera.read()
    camera.close()
    camera.close()
    assert camera.serial == frame.serial == "realsense:4711"
    assert camera.intrinsics == frame.intrinsics == Intrinsics(WIDTH, HEIGHT, *COLOUR_PX)
    assert not frame.intrinsics.nominal
    assert frame.rgb.dtype == np.uint8 and frame.rgb.shape == (HEIGHT, WIDTH, 3)
    assert frame.rgb[5, 5, 1:].tolist() == [100, 50]
    depth_m = frame.depth_m
    assert depth_m is not None and depth_m.dtype == np.float32 and depth_m.shape == (HEIGHT, WIDTH)
    assert set(np.unique(depth_m).round(4).tolist()) <= {0.0, 0.5, 1.0}

    # Where the box's edges must appear: out of the depth camera, 50 mm over, into the colour camera.
    def column(px: float, z_m: float) -> float:
        return COLOUR_PX[0] * ((px - DEPTH_PX[2]) / DEPTH_PX[0] - BASELINE_M / z_m) + COLOUR_PX[2]

    def row(px: float) -> float:
        return COLOUR_PX[1] * (px - DEPTH_PX[3]) / DEPTH_PX[1] + COLOUR_PX[3]

    rows, columns = np.nonzero(np.isclose(depth_m, 0.5))
    assert abs(rows.min() - 0.5 - row(13.5)) <= 1 and abs(rows.max() + 0.5 - row(29.5)) <= 1
    assert abs(columns.min() - 0.5 - column(33.5, 0.5)) <= 1 and abs(columns.max() + 0.5 - column(47.5, 0.5)) <= 1
    wall = np.nonzero(np.isclose(depth_m[4], 1.0))[0]  # ends where the depth camera's view does
    assert abs(wall.max() + 0.5 - min(column(63.5, 1.0), WIDTH - 0.5)) <= 1


def test_frames_are_new_and_as_old_as_the_camera_says(soft: SoftCamera) -> None:
    soft.age_s = 0.1
    camera = RealSenseCamera("4711", WIDTH, HEIGHT, timeout_s=10.0, device=soft.device)
    time.sleep(0.3)  # frames that nobody reads
    called_s = time.monotonic()
    frame = camera.read()
    assert called_s < frame.t_s
    assert 0.1 <= frame.age_s < 5.0
    soft.domain = rs.timestamp_domain.hardware_clock  # a clock of its own: the arrival counts
    time.sleep(0.5)
    called_s = time.monotonic()
    assert called_s < camera.read().t_s <= time.monotonic()
    camera.close()


def test_a_frame_keeps_its_pixels_when_others_follow(soft: SoftCamera) -> None:
    camera = RealSenseCamera(width=WIDTH, height=HEIGHT, timeout_s=10.0, device=soft.device)
    frame = camera.read()
    red = int(frame.rgb[0, 0, 0])
    for _ in range(10):
        later = camera.read()
    camera.close()
    assert (frame.rgb[:, :, 0] == red).all()
    assert int(later.rgb[0, 0, 0]) > red


def test_a_camera_that_falls_silent_is_reported_and_found_again(soft: SoftCamera) -> None:
    camera = RealSenseCamera(width=WIDTH, height=HEIGHT, timeout_s=1.0, device=soft.device)
    camera.read()
    soft.playing.clear()
    time.sleep(0.5)
    with pytest.raises(DeviceError, match="^camera realsense:4711: is unplugged or dead .*; plug it in again") as told:
        camera.read()
    assert "\n" not in str(told.value)
    soft.playing.set()
    assert camera.read().age_s < 5.0
    camera.close()


def test_a_size_it_does_not_have_is_told(soft: SoftCamera) -> None:
    with pytest.raises(DeviceError, match=r"camera realsense: does not stream 640x480 px at 30 Hz \(.*\); on USB 2"):
        RealSenseCamera(device=soft.device)


def test_without_a_camera_it_says_so() -> None:
    if realsense.connected():
        pytest.skip("a RealSense camera is plugged in")
    with pytest.raises(DeviceError, match="camera realsense: no camera is plugged in"):
        RealSenseCamera()
    with pytest.raises(DeviceError, match="camera realsense:4711: no camera is plugged in"):
        RealSenseCamera("4711")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(UserError, match=r"^realsense: pyrealsense2 .*; pip install 'vlar1-edge\[realsense\]'"):
        RealSenseCamera()


D455 = (-0.055, 0.066, -0.0003, 0.0004, -0.021)  # the like of what a wide colour lens has


def test_undistorted_and_brown_conrady_are_taken_as_they_are() -> None:
    for model in (rs.distortion.none, rs.distortion.brown_conrady, rs.distortion.inverse_brown_conrady):
        assert opencv_intrinsics(rs, factory(*COLOUR_PX, model)) == Intrinsics(WIDTH, HEIGHT, *COLOUR_PX)
    taken = opencv_intrinsics(rs, factory(*COLOUR_PX, rs.distortion.brown_conrady, D455))
    assert taken.distortion == pytest.approx(D455, rel=1e-6)


@pytest.mark.parametrize("name", ["inverse_brown_conrady", "modified_brown_conrady"])
def test_other_brown_conradys_are_fitted_so_that_opencv_agrees_with_librealsense(name: str) -> None:
    given = factory(*COLOUR_PX, getattr(rs.distortion, name), D455)
    found = opencv_intrinsics(rs, given)
    pixels = np.array([[0, 0], [63, 0], [5, 40], [31, 23], [63, 47]], dtype=float)
    if name == "inverse_brown_conrady":
        rays = np.array([rs.rs2_deproject_pixel_to_point(given, pixel, 1.0) for pixel in pixels.tolist()])
    else:
        rays = np.column_stack([(pixels - COLOUR_PX[2:]) / COLOUR_PX[:2], np.ones(5)])
        pixels = np.array([rs.rs2_project_point_to_pixel(given, ray) for ray in rays.tolist()])
    seen, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), found.matrix, np.array(found.distortion))
    assert np.abs(seen.reshape(-1, 2) - pixels).max() < 0.05
    undistorted_px = rays[:, :2] * COLOUR_PX[:2] + COLOUR_PX[2:]
    assert np.abs(undistorted_px - pixels).max() > 0.2  # there was something to fit


@pytest.mark.parametrize("name", ["ftheta", "kannala_brandt4"])
def test_a_fisheye_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=f"distortion model {name}, a fisheye"):
        opencv_intrinsics(rs, factory(*COLOUR_PX, getattr(rs.distortion, name), (0.1, 0.0, 0.0, 0.0, 0.0)))


def test_a_lens_that_cannot_be_fitted_is_refused() -> None:
    for wild in ((3.0, -9.0, 0.2, 0.2, 20.0), (0.5, -0.9, 0.2, 0.2, 2.0)):
        lens = factory(*COLOUR_PX, rs.distortion.modified_brown_conrady, wild)
        with pytest.raises(UserError, match=r"distortion \(modified_brown_conrady\) is .* px off OpenCV's model"):
            opencv_intrinsics(rs, lens)
    folded = factory(*COLOUR_PX, rs.distortion.inverse_brown_conrady, (3.0, -9.0, 0.2, 0.2, 20.0))
    with pytest.raises(UserError, match=r"distortion \(inverse_brown_conrady\) is .* px off OpenCV's model"):
        opencv_intrinsics(rs, folded)
