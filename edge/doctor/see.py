"""Cameras, for ``vlar1 doctor``: V4L2 and RealSense ones, and whether a calibration can be checked here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from drivers.camera import v4l2
from edge.doctor.apart import NoAnswer, ask_apart
from edge.doctor.findings import Finding, State
from edge.doctor.machine import L4T_RELEASE
from edge.doctor.usb import Login, UsbDevice, how_to_open, this_login, usb_devices

_INTEL = "8086"
_USB3_MBIT_S = 5000.0
Access = Callable[[str, int], bool]


def cameras(
    sysfs: Path = v4l2.SYSFS,
    by_id: Path = v4l2.BY_ID,
    release: Path = L4T_RELEASE,
    *,
    dev: Path = Path("/dev"),
    login: Login | None = None,
    access: Access = os.access,
    which: Callable[[str], str | None] = shutil.which,
) -> list[Finding]:
    """One a camera: the source text that opens it, or what to type before it can be opened."""
    found, sensors = [], 0
    for device in v4l2.video_devices(sysfs, by_id):
        if device.identity is not None and device.identity.node not in ("", "0"):
            continue  # a USB camera's nodes after the first are for metadata
        source = f"opencv:{device.by_id or device.path}"
        if device.identity is None and release.exists():  # raw sensor data: only Argus makes pictures of it
            source, sensors = f"csi:{sensors}", sensors + 1
            if which("gst-launch-1.0") is None:
                told = f"{device.name} needs GStreamer's programs, which are not installed"
                found.append(Finding(source, "warning", told, "sudo apt install gstreamer1.0-tools"))
                continue
        path = dev / Path(device.path).name
        if path.exists() and not access(str(path), os.R_OK | os.W_OK):
            match = f'SUBSYSTEM=="video4linux", KERNEL=="{path.name}"'
            why, type_ = how_to_open(path, login or this_login(), "video", match)
            found.append(Finding(source, "warning", f"{device.name}: {why}", type_))
        else:
            found.append(Finding(source, "fine", device.name))
    return found or [Finding("camera", "absent", "no video device; plug a camera in, then: vlar1 camera list")]


def realsense(devices: Sequence[UsbDevice] | None = None, ask: Callable[..., Any] = ask_apart) -> list[Finding]:
    """Depth cameras by their USB ids (librealsense itself would open them), and whether its Python package loads."""
    on_usb = usb_devices() if devices is None else devices
    plugged = [device for device in on_usb if device.vendor == _INTEL and "realsense" in device.name.lower()]
    try:
        library = Finding("pyrealsense2", "fine", str(ask("edge.doctor.see:realsense_version")))
    except NoAnswer as error:
        message = str(error).removeprefix("realsense: ")
        state: State = "absent" if "is not installed" in message and not plugged else "warning"
        why, _, type_ = message.rpartition("; ")
        library = Finding("pyrealsense2", state, why or message, type_ if why else "")
    found = [library]
    for device in plugged:
        if 0.0 < device.speed_mbit_s < _USB3_MBIT_S:
            told = (
                f"{device.name}: on USB 2, too slow for colour and depth at full size; use a USB 3 port and its cable"
            )
            found.append(Finding("RealSense", "warning", told, "lsusb -t"))
        else:
            found.append(Finding("RealSense", "fine", device.name))
    return found if plugged else [*found, Finding("RealSense", "absent", "none plugged in")]


def realsense_version() -> str:
    """Of pyrealsense2. Raises UserError where it does not load."""
    from drivers.camera.realsense import load_library

    return str(getattr(load_library(), "__version__", "loads"))


def calibration_check(ask: Callable[..., Any] = ask_apart) -> Finding:
    """Whether `vlar1 calibrate check` can run here: OpenCV finds the corners of the project's board."""
    try:
        corners = ask("edge.doctor.see:board_corners")
    except NoAnswer as error:
        return Finding("calibration check", "warning", str(error), "pip install 'vlar1-edge'")
    told = f"{corners} corners of the printed board found; vlar1 calibrate check CALIBRATION --camera SOURCE"
    return Finding("calibration check", "fine", told)


def board_corners() -> int:
    """How many corners OpenCV finds on a picture of the board. Raises RuntimeError where they are not all."""
    from importlib import import_module

    from calib.board import Board

    import_module("edge.still_valid")  # the command, with all that it needs
    board = Board()
    found = board.detect(board.image(2000.0))
    if found is None or len(found.ids) < len(board.corners_m()):
        raise RuntimeError("OpenCV does not find the printed board's corners; expected opencv-python-headless 5")
    return len(found.ids)
