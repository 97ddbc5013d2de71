"""``vlar1 camera``: which cameras there are, what one sees and how well, and a recording of it."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.markup import escape

from drivers.camera import v4l2
from drivers.camera.source import KINDS, is_live, open_camera
from drivers.errors import DeviceError, UserError
from drivers.protocols import Camera, Frame

TEGRA = Path("/etc/nv_tegra_release")
"""There on a Jetson."""

WINDOW = "vlar1 camera (q: quit)"


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("camera", help="list, view and record cameras")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the cameras of this machine")
    listing.set_defaults(func=run_list)
    source = f"which camera: {KINDS}".replace("%", "%%")
    view = commands.add_parser("view", help="what a camera sees: rate, age, sharpness, brightness and a picture")
    view.add_argument("source", metavar="SOURCE", help=source)
    view.add_argument("--out", type=Path, metavar="FILE", help="write the last frame, for example as a .png")
    view.add_argument("--seconds", type=float, default=3.0, metavar="S", help="look for so long (default: 3)")
    view.set_defaults(func=run_view)
    record = commands.add_parser("record", help="record a camera to an MCAP file, until Ctrl-C")
    record.add_argument("source", metavar="SOURCE", help=source)
    record.add_argument("--out", type=Path, required=True, metavar="FILE", help="the new file, ending in .mcap")
    record.add_argument("--seconds", type=float, metavar="S", help="stop after so long (default: at Ctrl-C)")
    record.set_defaults(func=run_record)


@dataclass(frozen=True)
class Found:
    """A camera of this machine: the source text that opens it, its name, and a remark."""

    source: str
    name: str
    remark: str = ""


def run_list(args: argparse.Namespace) -> int:
    """Print a line for each camera; 0."""
    console = Console(soft_wrap=True, highlight=False)
    found = list(cameras())
    for camera in found:
        remark = f"  [dim]{escape(camera.remark)}[/dim]" if camera.remark else ""
        console.print(f"[bold]{escape(camera.source)}[/bold]  {escape(camera.name)}{remark}")
    if not found:
        console.print("no camera found; plug one in, and see that you are in the group video (`groups`)")
    return 0


def cameras(sysfs: Path = v4l2.SYSFS, by_id: Path = v4l2.BY_ID, tegra: Path = TEGRA) -> Iterator[Found]:
    """V4L2 devices that capture, RealSense cameras where pyrealsense2 is installed, CSI cameras of a Jetson."""
    sensors = 0
    for device in v4l2.video_devices(sysfs, by_id):
        if device.identity is None and tegra.exists():  # raw sensor data: only Argus makes pictures of it
            yield Found(f"csi:{sensors}", device.name, device.path)
            sensors += 1
            continue
        formats = v4l2.capture_formats(device.path)
        if not formats and os.access(device.path, os.R_OK | os.W_OK):
            continue  # a node for metadata, or an encoder
        unread = "" if formats else "in use, or you may not open it"
        yield Found(f"opencv:{device.by_id or device.path}", device.name, ", ".join(formats) or unread)
    try:
        from drivers.camera.realsense import connected

        for name, serial in connected():
            yield Found(f"realsense:{serial}", name, "depth; its opencv: entries are the same camera without")
    except (UserError, RuntimeError):  # not installed, or USB is out of reach: then the cameras are in the list above
        return


def run_view(args: argparse.Namespace) -> int:
    """Look for a while and print what came; 0."""
    _check_seconds(args.seconds)
    out: Path | None = args.out
    if out and not (out.parent.is_dir() and cv2.haveImageWriter(str(out))):
        raise _unwritable(out)
    camera = open_camera(args.source)
    try:
        seen = _look(camera, args.seconds, is_live(args.source), has_window())
    finally:
        camera.close()
    console = Console(soft_wrap=True, highlight=False)
    for line in seen.lines():
        console.print(line, markup=False)
    for name, value in getattr(camera, "settings", {}).items():
        console.print(f"  {name} {value if isinstance(value, str) else format(value, 'g')}", markup=False)
    if out:
        _write(out, seen.last)
        console.print(f"picture: {out}", markup=False)
    return 0


@dataclass
class Seen:
    """Frames looked at: ``ages_s`` of each when it was handed over, over ``took_s`` in all, and the last one."""

    ages_s: list[float]
    took_s: float
    last: Frame

    def lines(self) -> list[str]:
        """What to know of a camera before it is trusted."""
        frame, ages_ms = self.last, 1e3 * np.array(self.ages_s)
        grey = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY)
        height, width = grey.shape
        rate = f", {(len(ages_ms) - 1) / self.took_s:.1f} a second" if len(ages_ms) > 1 and self.took_s > 0 else ""
        p50, p99 = np.percentile(ages_ms, [50, 99])
        clipped = 100 * float(np.mean(grey >= 250))
        lines = [
            f"{frame.serial}: {width}x{height} px, {len(ages_ms)} frames{rate}",
            f"frame age: {p50:.1f} ms in the median, {p99:.1f} ms at the 99th percentile",
            f"sharpness {cv2.Laplacian(grey, cv2.CV_64F).var():.0f} (variance of the Laplacian; turn the focus until "
            "it is largest)",
            f"brightness {grey.mean():.0f} of 255, {clipped:.1f} % overexposed",
        ]
        if frame.depth_m is not None:
            known = frame.depth_m[frame.depth_m > 0]
            median = f", {np.median(known):.3f} m in the median" if known.size else ""
            lines.append(f"depth on {100 * known.size / frame.depth_m.size:.0f} % of the pixels{median}")
        if frame.intrinsics.nominal:
            lines.append("intrinsics: assumed, not measured; calibrate before anything is measured or grasped with it")
        return lines


def _look(camera: Camera, seconds: float, live: bool, window: bool) -> Seen:
    ages_s: list[float] = []
    frame = camera.read()
    began_s = last_s = time.monotonic()
    while True:
        ages_s.append(frame.age_s)
        if window:
            cv2.imshow(WINDOW, frame.rgb[:, :, ::-1])
            if cv2.waitKey(1) & 0xFF == ord("q"):
                break
        if time.monotonic() - began_s >= seconds:
            break
        try:
            frame = camera.read()
        except DeviceError:
            if live:
                raise
            break  # the recording is over
        last_s = time.monotonic()
    return Seen(ages_s, last_s - began_s, frame)


def run_record(args: argparse.Namespace) -> int:
    """Record until the time is up, the source ends or Ctrl-C comes; 0.

    A camera that is unplugged meanwhile is waited for, and the recording says so (event ``camera``).
    """
    from drivers.recording import Recorder

    seconds: float | None = args.seconds
    if seconds is not None:
        _check_seconds(seconds)
    console = Console(soft_wrap=True, highlight=False)
    live = is_live(args.source)
    camera = open_camera(args.source)
    frames = 0
    try:
        first = camera.read()  # before there is a file
        with Recorder(args.out) as recorder, console.status("recording") as status:
            began_s = time.monotonic()
            try:
                for frame in _frames(camera, first, live, recorder, console):
                    recorder.frame(frame)
                    frames += 1
                    took_s = time.monotonic() - began_s
                    status.update(f"recording: {took_s:.1f} s, {frames} frames; Ctrl-C ends it")
                    if recorder.problem or (seconds is not None and took_s >= seconds):
                        break
            except KeyboardInterrupt:
                pass  # that is how a recording ends
            took_s = time.monotonic() - began_s
    finally:
        camera.close()
    if recorder.problem:
        raise UserError(recorder.problem)
    dropped = f", {recorder.dropped_frames} more dropped: the disk is too slow" if recorder.dropped_frames else ""
    console.print(f"{args.out}: {frames - recorder.dropped_frames} frames in {took_s:.1f} s{dropped}", markup=False)
    return 0


def _frames(camera: Camera, first: Frame, live: bool, recorder: Any, console: Console) -> Iterator[Frame]:
    """The frames of ``camera``; told of in the recording, and past, every time it is gone for a while."""
    yield first
    gone = False
    while True:
        try:
            frame = camera.read()
        except DeviceError as error:
            if not live:
                return
            if not gone:
                recorder.event(time.monotonic(), "camera", str(error))
                console.print(str(error), style="yellow", markup=False)
            gone = True
            continue
        if gone:
            recorder.event(frame.t_s, "camera", "is back")
            gone = False
        yield frame


def has_window() -> bool:
    """Whether there is a display, and an OpenCV that can show something on it (the headless one cannot)."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    gui = next((line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")), "NONE")
    return bool(display) and "NONE" not in gui


def _check_seconds(seconds: float) -> None:
    if not 0.0 < seconds < math.inf:
        raise UserError(f"--seconds {seconds:g}: expected seconds, more than 0")


def _write(out: Path, frame: Frame) -> None:
    try:
        written = cv2.imwrite(str(out), frame.rgb[:, :, ::-1])
    except cv2.error:
        written = False
    if not written:
        raise _unwritable(out)


def _unwritable(out: Path) -> UserError:
    return UserError(f"--out {out}: cannot be written; name a .png file in a folder that exists")
