"""USB devices from a sysfs that is only files, and the exact command that opens a device file to a user."""

from __future__ import annotations

import grp
import os
from pathlib import Path

from edge.doctor.usb import Login, UsbDevice, how_to_open, this_login, usb_devices

NOBODY = Login("someone", frozenset({"someone"}), frozenset({"someone"}))


def plug(usb: Path, place: str, tty: str = "", **fields: str) -> None:
    """A device at ``place``, for example "1-2"; ``tty`` is a path under its interface."""
    for name, text in fields.items():
        (usb / place).mkdir(parents=True, exist_ok=True)
        (usb / place / name).write_text(f"{text}\n")
    interface = usb / place / f"{place}:1.0"
    interface.mkdir()
    if tty:
        (interface / tty).mkdir(parents=True)


def test_ports_of_both_kinds_of_driver_are_found(tmp_path: Path) -> None:
    plug(tmp_path, "1-1", "tty/ttyACM0", idVendor="1a86", idProduct="55d3", product="USB Single Serial", serial="58FA")
    plug(tmp_path, "1-2", "ttyUSB0/tty/ttyUSB0", idVendor="0403", idProduct="6014", product="U2D2", serial="FT4TFN")
    plug(tmp_path, "2-1", idVendor="8086", idProduct="0b07", product="Intel RealSense D435", speed="5000")
    (tmp_path / "1-1:1.0").mkdir()  # sysfs lists interfaces beside the devices
    assert usb_devices(tmp_path) == [
        UsbDevice("1a86", "55d3", "USB Single Serial", "58FA", 0.0, "ttyACM0"),
        UsbDevice("0403", "6014", "U2D2", "FT4TFN", 0.0, "ttyUSB0"),
        UsbDevice("8086", "0b07", "Intel RealSense D435", "", 5000.0, ""),
    ]
    assert usb_devices(tmp_path / "none") == []


def test_a_group_is_joined_by_usermod_or_by_logging_in_again(tmp_path: Path) -> None:
    port = tmp_path / "ttyACM0"
    port.touch()
    port.chmod(0o660)
    os.chown(port, -1, gid := grp.getgrnam("dialout").gr_gid) if os.geteuid() == 0 else None
    group = grp.getgrgid(port.stat().st_gid).gr_name
    assert os.geteuid() != 0 or port.stat().st_gid == gid
    why, type_ = how_to_open(port, NOBODY, "dialout", "MATCH")
    assert why == f"no permission: it belongs to the group {group}"
    assert type_ == f"sudo usermod -aG {group} $USER  # then log in again"
    joined = Login("someone", frozenset({"someone"}), frozenset({"someone", group}))
    why, type_ = how_to_open(port, joined, "dialout", "MATCH")
    assert "this login is older" in why and type_ == f"newgrp {group}"


def test_a_device_of_no_group_gets_a_udev_rule(tmp_path: Path) -> None:
    port = tmp_path / "ttyACM0"
    port.touch()
    port.chmod(0o600)
    _, type_ = how_to_open(port, NOBODY, "dialout", 'SUBSYSTEM=="tty", ATTRS{idVendor}=="1a86"')
    rule = 'SUBSYSTEM=="tty", ATTRS{idVendor}=="1a86", MODE="0660", GROUP="dialout"'
    assert type_.startswith(f"echo '{rule}' | sudo tee /etc/udev/rules.d/70-vlar1.rules && ")


def test_this_login_has_the_groups_of_this_process() -> None:
    login = this_login()
    assert grp.getgrgid(os.getegid()).gr_name in login.groups
