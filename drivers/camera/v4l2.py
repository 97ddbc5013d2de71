"""The video devices that Linux knows: their names, what they are plugged into, and the formats they give."""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys/class/video4linux")
BY_ID = Path("/dev/v4l/by-id")

# linux/videodev2.h: VIDIOC_ENUM_FMT on struct v4l2_fmtdesc: index, type, flags, description, pixel format, code, rest.
_ENUM_FMT = 0xC0405602
_FMTDESC = struct.Struct("=III32s4sI12x")
_VIDEO_CAPTURE = 1


@dataclass(frozen=True)
class Identity:
    """What stays the same when a USB camera gets another index: ids, serial, its number among the device's nodes.

    ``port`` tells cameras apart that have no serial, and is empty for those that have one.
    """

    vendor: str
    product: str
    serial: str
    port: str
    node: str


@dataclass(frozen=True)
class VideoDevice:
    """One ``/dev/videoN``. ``identity`` is None where it is not on USB; ``by_id`` is the lasting name, or empty."""

    path: str
    name: str
    identity: Identity | None
    by_id: str = ""


def video_devices(sysfs: Path = SYSFS, by_id: Path = BY_ID) -> list[VideoDevice]:
    """Every video device, by number; empty where the system has none."""
    lasting = {os.path.realpath(link): str(link) for link in (sorted(by_id.iterdir()) if by_id.is_dir() else [])}
    found = []
    for entry in sorted(sysfs.glob("video*"), key=lambda path: (len(path.name), path.name)):
        path = f"/dev/{entry.name}"
        found.append(VideoDevice(path, _text(entry / "name"), _identity(entry), lasting.get(path, "")))
    return found


def video_device(source: int | str, sysfs: Path = SYSFS) -> VideoDevice | None:
    """The device that an index or a path (a link, too) means; None where sysfs knows no such."""
    path = f"/dev/video{source}" if isinstance(source, int) else os.path.realpath(source)
    return next((device for device in video_devices(sysfs) if device.path == path), None)


def capture_formats(path: str) -> list[str]:
    """The four-letter codes of the formats it captures in; empty where it captures none or cannot be asked."""
    formats: list[str] = []
    try:
        file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        while True:
            question = bytearray(_FMTDESC.pack(len(formats), _VIDEO_CAPTURE, 0, b"", b"", 0))
            fcntl.ioctl(file, _ENUM_FMT, question)
            formats.append(_FMTDESC.unpack(question)[4].decode("ascii", "replace").strip())
    except OSError:  # the end of the list is told so
        return formats
    finally:
        os.close(file)


def _identity(entry: Path) -> Identity | None:
    interface = Path(os.path.realpath(entry / "device"))
    for usb in (interface, interface.parent):
        if vendor := _text(usb / "idVendor"):
            serial = _text(usb / "serial")
            port = "" if serial else usb.name
            return Identity(vendor, _text(usb / "idProduct"), serial, port, _text(entry / "index"))
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
