"""An Intel RealSense depth camera: depth in metres on the colour image's pixels, and the factory's intrinsics."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from drivers.camera.newest import Newest, Shot, plausible
from drivers.errors import DeviceError, UserError
from drivers.protocols import Frame, Intrinsics

SILENCE_MS = 1000
"""A camera that streams and gives nothing for so long counts as gone."""

MAX_FIT_PX = 0.25
"""How far a lens may be from OpenCV's distortion model, anywhere in the image."""


class RealSenseCamera:
    """The Camera protocol over librealsense: colour, and depth aligned to it.

    Depth is 0 where the camera has none. ``Frame.t_s`` is when the colour image was taken, from the camera's own
    clock where librealsense relates that to the host's, and its arrival otherwise. The camera may be unplugged:
    ``read`` says so, and works again once a camera of the same serial is back.

    Args:
        serial: of the camera; the first one found if left out.
        width, height, fps: of both streams; the depth sensor's must offer them, too.
        timeout_s: how long ``read`` waits for a frame.
        device: a ``pyrealsense2`` device that is in no list of devices, such as a ``software_device``.

    Raises:
        DeviceError: no such camera, or it does not stream at that size and rate.
        UserError: pyrealsense2 is missing, or the lens's distortion model is not one that OpenCV has.
    """

    def __init__(
        self,
        serial: str = "",
        width: int = 640,
        height: int = 480,
        fps: int = 30,
        *,
        timeout_s: float = 2.0,
        device: Any = None,
    ) -> None:
        self._timeout_s = timeout_s
        name = f"realsense{':' if serial else ''}{serial}"
        first = _Streams(load_library(), name, serial, (width, height, fps), device)
        self._serial = f"realsense:{first.serial}"
        self._intrinsics = first.intrinsics
        # From here on it is this very camera, whichever was the first one found.
        again = (self._serial, first.serial, (width, height, fps), device)
        self._newest = Newest(first, lambda: _Streams(load_library(), *again), self._serial)

    @property
    def serial(self) -> str:
        return self._serial

    @property
    def intrinsics(self) -> Intrinsics:
        """Of the colour image, as the factory measured them."""
        return self._intrinsics

    def read(self) -> Frame:
        """The newest frame, taken after the call. Raises DeviceError when none comes."""
        shot, t_s = self._newest.wait(self._timeout_s)
        return Frame(shot.rgb, shot.depth_m, t_s, self._intrinsics, self._serial)

    def close(self) -> None:
        """Stop the streams. May be called twice."""
        self._newest.stop()


def connected() -> list[tuple[str, str]]:
    """Name and serial of every RealSense camera that is plugged in. Raises UserError without pyrealsense2."""
    rs = load_library()
    info = rs.camera_info
    return [(d.get_info(info.name), d.get_info(info.serial_number)) for d in rs.context().query_devices()]


def load_library() -> Any:
    """``pyrealsense2``. Raises UserError saying what to install where it is missing or does not load."""
    try:
        import pyrealsense2 as rs
    except ImportError as error:
        if "libusb" not in str(error):
            why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
            raise UserError(f"realsense: pyrealsense2 {why}; pip install 'vlar1-edge[realsense]'") from None
        try:  # the system has no libusb; the extra brings one, which has to be there before the library asks for it
            import ctypes

            import libusb_package

            ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
            import pyrealsense2 as rs
        except (ImportError, OSError):
            raise UserError(f"realsense: pyrealsense2 does not load ({error}); apt install libusb-1.0-0") from None
    return rs


def opencv_intrinsics(rs: Any, factory: Any) -> Intrinsics:
    """librealsense's intrinsics with OpenCV's distortion (k1, k2, p1, p2, k3).

    Brown-Conrady is OpenCV's own. The inverse one (distorted to straight) and the modified one (tangential shift of
    what is already shifted radially) are fitted, over the image, by coefficients that come within MAX_FIT_PX.

    Raises:
        UserError: another model (a fisheye), or a lens that cannot be fitted so.
    """
    models, model = rs.distortion, factory.model
    coefficients = np.array(factory.coeffs[:5])
    if model in (models.ftheta, models.kannala_brandt4):
        raise UserError(
            f"realsense: the lens has distortion model {model.name}, a fisheye; expected a Brown-Conrady model"
        )
    if model == models.none or not coefficients.any():
        distortion: tuple[float, ...] = ()
    elif model == models.brown_conrady:
        distortion = tuple(coefficients.tolist())
    else:
        distortion = _fitted(rs, factory)
    return Intrinsics(
        factory.width, factory.height, factory.fx, factory.fy, factory.ppx, factory.ppy, distortion=distortion
    )


def _fitted(rs: Any, factory: Any) -> tuple[float, ...]:
    """OpenCV's coefficients, least squares over the image: they enter the shift of a straight point linearly."""
    scale = np.array([factory.fx, factory.fy])
    centre = np.array([factory.ppx, factory.ppy])
    grid = np.meshgrid(np.linspace(0, factory.width - 1, 17), np.linspace(0, factory.height - 1, 13))
    bent = (np.stack(grid, axis=-1).reshape(-1, 2) - centre) / scale
    if factory.model == rs.distortion.inverse_brown_conrady:
        pixels = (bent * scale + centre).tolist()
        straight = np.array([rs.rs2_deproject_pixel_to_point(factory, pixel, 1.0)[:2] for pixel in pixels])
    else:
        straight = bent
        rays = np.column_stack([straight, np.ones(len(straight))]).tolist()
        bent = (np.array([rs.rs2_project_point_to_pixel(factory, ray) for ray in rays]) - centre) / scale
    x, y = straight.T
    r2 = x * x + y * y
    along_x = np.column_stack([x * r2, x * r2**2, 2 * x * y, r2 + 2 * x * x, x * r2**3])
    along_y = np.column_stack([y * r2, y * r2**2, r2 + 2 * y * y, 2 * x * y, y * r2**3])
    shift_px = ((bent - straight) * scale).T.ravel()
    A_px = np.concatenate([along_x * scale[0], along_y * scale[1]])
    worst_px = math.inf
    if np.isfinite(A_px).all() and np.isfinite(shift_px).all():  # else the lens folds the image over
        found = np.linalg.lstsq(A_px, shift_px, rcond=None)[0]
        worst_px = float(np.abs(A_px @ found - shift_px).max())
    if not worst_px <= MAX_FIT_PX:
        raise UserError(
            f"realsense: the lens's distortion ({factory.model.name}) is {worst_px:.1f} px off OpenCV's model; "
            "calibrate the colour camera as a plain one (opencv:...)"
        )
    return tuple(found.tolist())


class _Streams:
    """A camera that streams (`newest.Device`)."""

    def __init__(self, rs: Any, name: str, serial: str, size: tuple[int, int, int], device: Any) -> None:
        self._rs, self._name = rs, name
        width, height, fps = size
        config = rs.config()
        config.enable_stream(rs.stream.depth, width, height, rs.format.z16, fps)
        config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, fps)
        self._pipeline = rs.pipeline()
        try:
            if device is not None:
                self._pipeline.set_device(device)
            elif not (serials := [found[1] for found in connected()]):
                raise self._error("no camera is plugged in; see `vlar1 camera list`, and use a USB 3 port and cable")
            elif serial and serial not in serials:
                raise self._error(f"is not plugged in; there is {', '.join(serials)}")
            else:
                config.enable_device(serial or serials[0])
            profile = self._pipeline.start(config)
        except RuntimeError as error:
            raise self._error(
                f"does not stream {width}x{height} px at {fps} Hz ({_one_line(error)}); on USB 2 it offers less, and "
                "another program may hold it"
            ) from None
        try:
            self._device = profile.get_device()
            self.serial = str(self._device.get_info(rs.camera_info.serial_number))
            self._metres = float(self._device.first_depth_sensor().get_depth_scale())
            colour = profile.get_stream(rs.stream.color).as_video_stream_profile()
            self.intrinsics = opencv_intrinsics(rs, colour.get_intrinsics())
        except Exception:
            self._pipeline.stop()
            raise
        self._align = rs.align(rs.stream.color)

    def read(self) -> Shot | None:
        """The next pair of images. Raises DeviceError after SILENCE_MS without one."""
        try:
            there, both = self._pipeline.try_wait_for_frames(SILENCE_MS)
            if not there:
                raise self._error("gives no frames")
            both = self._align.process(both)
        except RuntimeError as error:
            raise self._error(_one_line(error)) from None
        depth, colour = both.get_depth_frame(), both.get_color_frame()
        if not depth or not colour:
            return None
        # Copies: the library uses the frames' memory again.
        rgb = np.array(colour.get_data(), dtype=np.uint8)
        depth_m = np.asarray(depth.get_data()).astype(np.float32) * np.float32(self._metres)
        return Shot(rgb, depth_m, self._taken_s(colour))

    def close(self) -> None:
        try:
            self._pipeline.stop()
        except RuntimeError:  # it went away by itself
            pass

    def _taken_s(self, frame: Any) -> float | None:
        """Its timestamp, moved from the host's wall clock to the monotonic one; None if it is on the camera's own."""
        if frame.get_frame_timestamp_domain() == self._rs.timestamp_domain.hardware_clock:
            return None
        now_s = time.monotonic()
        return plausible(now_s - (time.time() - frame.get_timestamp() / 1e3), now_s)

    def _error(self, what: str) -> DeviceError:
        return DeviceError(f"camera {self._name}: {what}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
