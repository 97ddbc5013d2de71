"""Cameras of machines that are only files: a USB camera, a CSI sensor, one that is not open to us, a RealSense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.doctor.apart import NoAnswer
from edge.doctor.see import board_corners, calibration_check, cameras, realsense
from edge.doctor.usb import Login, UsbDevice

D435 = UsbDevice("8086", "0b07", "Intel(R) RealSense(TM) Depth Camera 435", "8513", 5000.0)
NOBODY = Login("someone", frozenset(), frozenset())


def video(root: Path, number: int, name: str, usb: bool, node: str = "0") -> None:
    entry = root / "sys" / f"video{number}"
    entry.mkdir(parents=True)
    (entry / "name").write_text(name)
    (entry / "index").write_text(node)
    device = root / "devices" / f"dev{number}"
    device.mkdir(parents=True)
    if usb:
        (device / "idVendor").write_text("046d")
        (device / "idProduct").write_text("0825")
    (entry / "device").symlink_to(device)
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev" / f"video{number}").touch()


def look(root: Path, jetson: bool = False, **options: Any) -> list[tuple[str, str, str, str]]:
    release = root / "nv_tegra_release"
    if jetson:
        release.touch()
    found = cameras(root / "sys", root / "by-id", release, dev=root / "dev", login=NOBODY, **options)
    return [(finding.name, finding.state, finding.told, finding.to_type) for finding in found]


def test_a_usb_camera_is_one_camera_though_it_has_two_nodes(tmp_path: Path) -> None:
    video(tmp_path, 0, "UVC Camera", usb=True)
    video(tmp_path, 1, "UVC Camera", usb=True, node="1")
    assert look(tmp_path) == [("opencv:/dev/video0", "fine", "UVC Camera", "")]


def test_a_csi_sensor_needs_gstreamer_and_a_camera_needs_permission(tmp_path: Path) -> None:
    video(tmp_path, 0, "vi-output, imx219 9-0010", usb=False)
    video(tmp_path, 1, "UVC Camera", usb=True)
    (tmp_path / "dev" / "video1").chmod(0o600)
    csi, uvc = look(tmp_path, jetson=True, which=lambda program: None, access=lambda path, mode: False)
    assert csi[:2] == ("csi:0", "warning") and csi[3] == "sudo apt install gstreamer1.0-tools"
    assert uvc[:2] == ("opencv:/dev/video1", "warning")
    assert 'SUBSYSTEM=="video4linux", KERNEL=="video1", MODE="0660", GROUP="video"' in uvc[3]
    csi, _ = look(tmp_path, jetson=True, which=lambda program: f"/usr/bin/{program}")
    assert csi[:2] == ("csi:0", "fine")


def test_no_camera_is_nothing_to_mend(tmp_path: Path) -> None:
    ((_, state, _, type_),) = look(tmp_path)
    assert (state, type_) == ("absent", "")


@pytest.mark.parametrize("speed,state", [(5000.0, "fine"), (480.0, "warning"), (0.0, "fine")])
def test_a_realsense_on_usb_2_is_told(speed: float, state: str) -> None:
    camera = UsbDevice(D435.vendor, D435.product, D435.name, D435.serial, speed)
    library, found = realsense([camera, UsbDevice("8086", "0001", "Hub")], lambda name: "2.56.0")
    assert (library.state, library.told, found.state) == ("fine", "2.56.0", state)


def test_a_missing_pyrealsense2_matters_where_a_realsense_is_plugged_in() -> None:
    def ask(name: str) -> str:
        raise NoAnswer("realsense: pyrealsense2 is not installed; pip install 'vlar1-edge[realsense]'")

    assert [(f.state, f.to_type) for f in realsense([D435], ask)][0] == (
        "warning",
        "pip install 'vlar1-edge[realsense]'",
    )
    assert [finding.state for finding in realsense([], ask)] == ["absent", "absent"]


def test_the_calibration_check_finds_the_whole_board_or_says_why_not() -> None:
    assert board_corners() == 12
    assert calibration_check(lambda name: 12).state == "fine"

    def ask(name: str) -> int:
        raise NoAnswer("ImportError: libGL.so.1: cannot open shared object file")

    assert calibration_check(ask).state == "warning"
