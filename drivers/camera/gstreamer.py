"""A colour camera through a GStreamer pipeline: a CSI camera on a Jetson, a network stream, whatever GStreamer reads.

The pipeline runs in a process of its own, ``gst-launch-1.0``, and its frames come through a pipe. So OpenCV needs no
GStreamer inside (pip's has none), and a driver that crashes or hangs takes neither the robot nor its other cameras
along.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time

import cv2
import numpy as np

from drivers.camera.newest import Newest, Shot
from drivers.errors import DeviceError
from drivers.protocols import Frame, Intrinsics

PROGRAM = "gst-launch-1.0"

START_S = 10.0
"""How long the first frame of a pipeline may take; Argus needs about two seconds."""

SILENCE_S = 3.0
"""A running pipeline that gives nothing for so long hangs, and is started again."""

# A queue of one that drops what is old, then pictures with their size in front (YUV4MPEG2; its 4:2:0 is what CSI
# cameras give anyway, and half as many bytes as RGB).
_TAIL = (
    "! queue leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0 ! videoconvert "
    "! video/x-raw,format=I420,colorimetry=bt601,pixel-aspect-ratio=1/1 ! y4menc ! fdsink sync=false fd="
)


def csi_pipeline(sensor_id: int = 0, width: int = 1280, height: int = 720, fps: int = 30) -> str:
    """The pipeline of a CSI camera on a Jetson, through its image processor (debayering, exposure, white balance)."""
    return (
        f"nvarguscamerasrc sensor-id={sensor_id} "
        f"! video/x-raw(memory:NVMM),width={width},height={height},framerate={fps}/1 "
        "! nvvidconv ! video/x-raw,format=I420"
    )


class GStreamerCamera:
    """The Camera protocol over a pipeline that ends in raw video: elements and caps as ``gst-launch-1.0`` takes them.

    No sink: one is added. A pipeline that ends or hangs is started again, so ``read`` works once more when the camera
    is back. ``Frame.t_s`` is when the frame's first byte arrived, since GStreamer's own timestamps do not come along:
    the frame is older than its age says by what the pipeline takes, some tens of milliseconds for a CSI camera.

    Args:
        pipeline: for example ``csi_pipeline(0)``, or ``v4l2src device=/dev/video0 ! jpegdec``.
        intrinsics: of the camera; every frame must have their size. None: nominal ones, of the first frame's size.
        serial: names the camera; ``gstreamer:PIPELINE`` if left out.
        timeout_s: how long ``read`` waits for a frame.

    Raises:
        DeviceError: there is no GStreamer, the pipeline does not start, or gives frames of another size.
    """

    def __init__(
        self, pipeline: str, intrinsics: Intrinsics | None = None, *, serial: str = "", timeout_s: float = 2.0
    ) -> None:
        self._serial = serial or f"gstreamer:{pipeline}"
        self._timeout_s = timeout_s
        first = _Process(pipeline, self._serial)
        self._intrinsics = intrinsics or Intrinsics.assumed(*first.size_px)
        self._newest = Newest(first, lambda: _Process(pipeline, self._serial), self._serial)

    @property
    def serial(self) -> str:
        return self._serial

    @property
    def intrinsics(self) -> Intrinsics:
        return self._intrinsics

    def read(self) -> Frame:
        """The newest frame, which began to arrive after the call.

        Raises DeviceError when no frame comes, or one of a size other than the intrinsics'.
        """
        shot, t_s = self._newest.wait(self._timeout_s)
        height, width = shot.rgb.shape[:2]
        expected = self._intrinsics
        if (width, height) != (expected.width, expected.height):
            raise DeviceError(
                f"camera {self._serial}: gives {width}x{height} px, its calibration expects "
                f"{expected.width}x{expected.height}"
            )
        return Frame(shot.rgb, None, t_s, expected, self._serial)

    def close(self) -> None:
        """End the pipeline. May be called twice."""
        self._newest.stop()


class _Process:
    """A pipeline that runs (`newest.Device`)."""

    def __init__(self, pipeline: str, name: str) -> None:
        self._name = name
        read_end, write_end = os.pipe()
        self._pipe = read_end
        self._stderr = tempfile.TemporaryFile()
        try:
            words = [*shlex.split(pipeline), *shlex.split(f"{_TAIL}{write_end}")]
            self._process = subprocess.Popen(
                [PROGRAM, "-q", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # Argus talks there
                stderr=self._stderr,
                pass_fds=[write_end],
                start_new_session=True,  # a Ctrl-C is ours to handle
            )
        except (OSError, ValueError) as error:
            self._release()
            if isinstance(error, FileNotFoundError):
                raise self._error(
                    f"{PROGRAM} is not installed; apt install gstreamer1.0-tools gstreamer1.0-plugins-good "
                    "(on a Jetson also nvidia-l4t-gstreamer)"
                ) from None
            raise self._error(f"the pipeline cannot be started ({error})") from None
        finally:
            os.close(write_end)
        try:
            header = self._line(time.monotonic() + START_S)
            found = re.match(rb"YUV4MPEG2 (?:.* )?W(\d+) H(\d+)", header)
            if not found:
                raise self._error(f"the pipeline gives no raw pictures ({header[:40]!r})")
        except DeviceError:
            self.close()
            raise
        self.size_px = (int(found[1]), int(found[2]))
        if self.size_px[0] % 8 or self.size_px[1] % 2:  # what pads such rows, and how, depends on GStreamer's version
            self.close()
            raise self._error(
                f"the pipeline gives {found[1].decode()}x{found[2].decode()} px; expected a width that is a multiple "
                "of 8 and an even height: end it in `! videoscale ! video/x-raw,width=...,height=...`"
            )

    def read(self) -> Shot | None:
        """The next frame. Raises DeviceError when the pipeline has ended, or been silent for SILENCE_S."""
        width, height = self.size_px
        deadline_s = time.monotonic() + SILENCE_S
        if not self._line(deadline_s).startswith(b"FRAME"):
            raise self._error("the pipeline's pictures got out of step")
        yuv = np.frombuffer(self._exactly(width * height * 3 // 2, deadline_s), np.uint8)
        rgb = cv2.cvtColor(yuv.reshape(height * 3 // 2, width), cv2.COLOR_YUV2RGB_I420)
        return Shot(np.asarray(rgb, dtype=np.uint8), None, self._began_s)

    def close(self) -> None:
        """End the process, gently at first: a camera daemon keeps what was not given back."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._release()

    def _release(self) -> None:
        os.close(self._pipe)
        self._stderr.close()

    def _line(self, deadline_s: float) -> bytes:
        """Up to the next newline, which is left out; notes when its first byte came."""
        line = self._exactly(1, deadline_s)
        self._began_s = time.monotonic()
        while line[-1:] != b"\n":
            if len(line) > 1000:
                raise self._error("the pipeline gives no raw pictures")
            line += self._exactly(1, deadline_s)
        return bytes(line[:-1])

    def _exactly(self, size: int, deadline_s: float) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            if not select.select([self._pipe], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
                raise self._error("the pipeline gives no frames")
            count = os.readv(self._pipe, [view[filled:]])
            if count == 0:
                raise self._error(f"the pipeline ended: {self._last_words()}")
            filled += count
        return data

    def _last_words(self) -> str:
        """The error that the process left, in one line."""
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            pass
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().decode("utf-8", "replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR", "WARNING: erroneous"))]
        code = self._process.returncode
        return (errors or lines[-1:] or [f"it said nothing, exit code {code}"])[0]

    def _error(self, what: str) -> DeviceError:
        return DeviceError(f"camera {self._name}: {what}")
