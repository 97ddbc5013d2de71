"""What is plugged into USB, and who may open a device file: read from sysfs, nothing is opened."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from edge.doctor.findings import read_text

USB = Path("/sys/bus/usb/devices")
DEV = Path("/dev")


@dataclass(frozen=True)
class UsbDevice:
    """A USB device: its ids (four hex digits each), what it calls itself, its speed, and its serial port if it is one.

    Attributes:
        serial: its serial number, "" for none.
        speed_mbit_s: as negotiated; 480 is USB 2, 5000 USB 3; 0 where the system does not say.
        tty: the name of its serial port, for example ``ttyACM0``; "" for none.
    """

    vendor: str
    product: str
    name: str
    serial: str = ""
    speed_mbit_s: float = 0.0
    tty: str = ""

    @property
    def ids(self) -> str:
        return f"{self.vendor}:{self.product}"


def usb_devices(usb: Path = USB) -> list[UsbDevice]:
    """Every device on USB, hubs too."""
    found = []
    for entry in sorted(usb.glob("*")):
        if not (vendor := read_text(entry / "idVendor")):
            continue  # an interface
        # usb-serial's drivers put their port into the interface, cdc_acm's do not.
        ttys = sorted(path.name for path in [*entry.glob("*:*/tty/tty*"), *entry.glob("*:*/tty[A-Z]*")])
        speed = read_text(entry / "speed")
        found.append(
            UsbDevice(
                vendor,
                read_text(entry / "idProduct"),
                read_text(entry / "product"),
                read_text(entry / "serial"),
                float(speed) if speed.replace(".", "", 1).isdigit() else 0.0,
                ttys[0] if ttys else "",
            )
        )
    return found


@dataclass(frozen=True)
class Login:
    """Who runs this: ``groups`` that count for the running login, ``listed`` that the user is put down for."""

    user: str
    groups: frozenset[str]
    listed: frozenset[str]


def this_login() -> Login:
    """The user of this process."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a number without a name, in a container
        user = str(os.geteuid())
    every = grp.getgrall()
    ids = {os.getegid(), *os.getgroups()}
    return Login(
        user,
        frozenset(group.gr_name for group in every if group.gr_gid in ids),
        frozenset(group.gr_name for group in every if user in group.gr_mem),
    )


def how_to_open(path: Path, login: Login, usual_group: str, udev_match: str) -> tuple[str, str]:
    """Why this login may not open ``path``, and what to type: join its group, log in again, or a udev rule.

    Args:
        usual_group: for the rule, where the file belongs to no group but root's.
        udev_match: what tells the device in a udev rule.
    """
    gid = path.stat().st_gid
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    if group == "root" or not path.stat().st_mode & 0o060:
        rule = f'{udev_match}, MODE="0660", GROUP="{usual_group}"'
        again = "sudo udevadm control --reload && sudo udevadm trigger"
        return (
            f"no permission: it is open to {group} alone",
            f"echo '{rule}' | sudo tee /etc/udev/rules.d/70-vlar1.rules && {again}",
        )
    if group in login.listed and group not in login.groups:
        return f"no permission: you are in the group {group}, but this login is older", f"newgrp {group}"
    return (
        f"no permission: it belongs to the group {group}",
        f"sudo usermod -aG {group} $USER  # then log in again",
    )
