"""The GStreamer camera on a `gst-launch-1.0` that the test plays: pictures, death, silence, and no GStreamer at all."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drivers.camera import gstreamer, newest
from drivers.camera.gstreamer import GStreamerCamera, csi_pipeline
from drivers.errors import DeviceError
from drivers.protocols import Camera, Intrinsics

INTRINSICS = Intrinsics(64, 48, 60.0, 60.0, 31.5, 23.5)

# Reads what to do from the folder it lies in: `size`, and `mode` (play, hang, end, fail, mute, text), over and over.
FAKE = """#!{python}
import os, pathlib, re, signal, sys, time
folder = pathlib.Path({folder!r})
signal.signal(signal.SIGINT, lambda *_: (folder.joinpath("ended").touch(), os._exit(0)))
with folder.joinpath("runs").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
fd = int(re.fullmatch("fd=([0-9]+)", sys.argv[-1])[1])
mode = lambda: folder.joinpath("mode").read_text()
if mode() == "fail":
    sys.exit("noise\\nERROR: from element /GstPipeline:pipeline0: No cameras available\\nAdditional debug info:")
if mode() == "text":
    os.write(fd, b"this is no picture\\n")
width, height = map(int, folder.joinpath("size").read_text().split("x"))
if mode() != "mute":
    os.write(fd, b"YUV4MPEG2 C420 W%d H%d Ip F30:1 A1:1\\n" % (width, height))
number = 0
while mode() != "end":
    if mode() == "play":
        number += 1
        luma, quarter = 16 + min(number, 200), width * height // 4
        frame = b"FRAME\\n" + bytes([luma]) * width * height + bytes([128]) * (2 * quarter)
        while frame:
            frame = frame[os.write(fd, frame):]
    time.sleep(0.005)
"""


class Pipeline:
    """The played program's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        program = folder / "gst-launch-1.0"
        program.write_text(FAKE.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)
        self.play()
        (folder / "size").write_text("64x48")

    def play(self, mode: str = "play") -> None:
        part = self._folder / "mode.part"
        part.write_text(mode)
        os.replace(part, self._folder / "mode")

    def size(self, size: str) -> None:
        (self._folder / "size").write_text(size)

    @property
    def runs(self) -> list[str]:
        return (self._folder / "runs").read_text().splitlines()

    @property
    def ended_gently(self) -> bool:
        return (self._folder / "ended").exists()


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(newest, "LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr(gstreamer, "SILENCE_S", 0.5)
    return Pipeline(tmp_path)


def test_a_pipeline_s_newest_picture_comes_through_its_pipe(pipeline: Pipeline) -> None:
    camera: Camera = GStreamerCamera('v4l2src device="/dev/my video" ! jpegdec', INTRINSICS, timeout_s=10.0)
    first = camera.read()
    time.sleep(0.3)  # frames that nobody reads
    called_s = time.monotonic()
    frame = camera.read()
    camera.close()
    camera.close()
    assert frame.rgb.shape == (48, 64, 3) and frame.rgb.dtype == np.uint8
    assert called_s < frame.t_s <= time.monotonic()
    assert frame.rgb.min() == frame.rgb.max()  # grey: luma alone differs
    assert int(frame.rgb[0, 0, 0]) > int(first.rgb[0, 0, 0]) + 10
    assert frame.intrinsics == INTRINSICS
    assert camera.serial == 'gstreamer:v4l2src device="/dev/my video" ! jpegdec'
    assert pipeline.ended_gently
    (run,) = pipeline.runs
    assert run.startswith("-q v4l2src device=/dev/my video ! jpegdec ! queue leaky=downstream max-size-buffers=1 ")
    assert "format=I420" in run and " ! y4menc ! fdsink sync=false fd=" in run


def test_colours_are_bt_601(pipeline: Pipeline) -> None:
    """Every grey level the player sends is what BT.601's narrow range means by it."""
    camera = GStreamerCamera("src", INTRINSICS, timeout_s=10.0)
    levels = {int(camera.read().rgb[0, 0, 1]) for _ in range(5)}
    camera.close()
    possible = {round((luma - 16) * 255 / 219) for luma in range(16, 217)}
    assert all(min(abs(level - expected) for expected in possible) <= 1 for level in levels)


def test_without_a_calibration_the_size_is_the_pipeline_s(pipeline: Pipeline) -> None:
    pipeline.size("128x96")
    camera = GStreamerCamera("src", timeout_s=10.0)
    assert camera.read().intrinsics == Intrinsics.assumed(128, 96)
    camera.close()


def test_a_pipeline_that_ends_is_reported_and_started_again(pipeline: Pipeline) -> None:
    camera = GStreamerCamera("src", INTRINSICS, timeout_s=0.5)
    camera.read()
    pipeline.play("fail")
    time.sleep(0.1)
    pipeline.play("end")
    time.sleep(0.2)
    pipeline.play("fail")
    with pytest.raises(DeviceError, match="^camera gstreamer:src: is unplugged or dead .*; plug it in again") as told:
        camera.read()
    assert "\n" not in str(told.value)
    pipeline.play()
    deadline_s = time.monotonic() + 20.0
    while True:
        try:
            frame = camera.read()
            break
        except DeviceError:
            assert time.monotonic() < deadline_s
    assert frame.age_s < 5.0
    camera.close()
    assert len(pipeline.runs) >= 3


def test_a_pipeline_that_hangs_is_started_again(pipeline: Pipeline) -> None:
    camera = GStreamerCamera("src", INTRINSICS, timeout_s=10.0)
    camera.read()
    pipeline.play("hang")
    time.sleep(0.8)
    pipeline.play()
    camera.read()
    camera.close()
    assert len(pipeline.runs) >= 2


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("fail", "the pipeline ended: ERROR: from element /GstPipeline:pipeline0: No cameras available"),
        ("text", "the pipeline gives no raw pictures"),
        ("mute", "the pipeline gives no frames"),
        ("end", r"is unplugged or dead \(the pipeline ended: it said nothing, exit code 0\)"),
    ],
)
def test_a_pipeline_that_does_not_start_is_told_in_one_line(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, mode: str, told: str
) -> None:
    monkeypatch.setattr(gstreamer, "START_S", 2.0)
    pipeline.play(mode)
    with pytest.raises(DeviceError, match=f"^camera gstreamer:src: {told}") as error:
        GStreamerCamera("src", INTRINSICS, timeout_s=5.0).read()
    assert "\n" not in str(error.value)
    if mode == "mute":
        assert pipeline.ended_gently


def test_sizes_that_do_not_fit_are_refused(pipeline: Pipeline) -> None:
    camera = GStreamerCamera("src", Intrinsics(640, 480, 600.0, 600.0, 319.5, 239.5), timeout_s=10.0)
    with pytest.raises(DeviceError, match="gives 64x48 px, its calibration expects 640x480"):
        camera.read()
    camera.close()
    pipeline.size("60x48")
    with pytest.raises(DeviceError, match="gives 60x48 px; expected a width that is a multiple of 8"):
        GStreamerCamera("src")


def test_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceError, match=r"gst-launch-1\.0 is not installed; apt install gstreamer1\.0-tools"):
        GStreamerCamera("src", INTRINSICS)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(DeviceError, match="camera gstreamer:src name='a: the pipeline cannot be started"):
        GStreamerCamera("src name='a", INTRINSICS)


def test_the_pipeline_of_a_csi_camera() -> None:
    assert csi_pipeline(1, 1920, 1080, 60) == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=60/1 "
        "! nvvidconv ! video/x-raw,format=I420"
    )


@pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="needs GStreamer: apt install gstreamer1.0-tools")
def test_the_real_program_gives_its_test_picture() -> None:
    source = "videotestsrc is-live=true pattern={} ! video/x-raw,width=64,height=48,framerate=30/1"
    for pattern, colour in (("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255))):
        camera = GStreamerCamera(source.format(pattern), INTRINSICS, timeout_s=10.0)
        frame = camera.read()
        camera.close()
        assert np.abs(frame.rgb[24, 32].astype(int) - colour).max() <= 6
