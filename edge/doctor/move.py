"""The way to the arm, for ``vlar1 doctor``: the native extension, the servo process, serial adapters, the robot's port.

Nothing is sent to a servo and no port is opened: permissions are asked of the file system.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge.doctor.apart import NoAnswer, ask_apart, unanswered
from edge.doctor.findings import Finding
from edge.doctor.usb import DEV, Login, UsbDevice, how_to_open, this_login, usb_devices

REINSTALL = "pip install --force-reinstall --no-deps vlar1-edge  # from a checkout: pip install -e ."
BRLTTY_RULES = (Path("/usr/lib/udev/rules.d/85-brltty.rules"), Path("/lib/udev/rules.d/85-brltty.rules"))
Access = Callable[[str, int], bool]

# Adapters that servos of the supported makes hang on: USB ids -> name, and the kernel's driver for it.
ADAPTERS = {
    "1a86:7523": ("CH340 (Feetech)", "ch341"),
    "1a86:55d3": ("CH343 (Feetech, SO-101)", "cdc_acm"),
    "1a86:55d4": ("CH9102 (Feetech)", "cdc_acm"),
    "0403:6014": ("FTDI FT232H (Dynamixel U2D2)", "ftdi_sio"),
    "2f5d:2202": ("OpenRB-150 (Dynamixel)", "cdc_acm"),
}


def native(ask: Callable[..., Any] = ask_apart) -> list[Finding]:
    """The C++ extension loads, and the servo loop's process beside it starts."""
    try:
        path = Path(ask("edge.doctor.move:extension_path"))
    except NoAnswer as error:
        return [unanswered("native extension", error, f"does not load: {error}", REINSTALL)]
    return [Finding("native extension", "fine", str(path)), servo_process(path.with_name("vlar1-servo"))]


def extension_path() -> str:
    """Where the built extension lies. Raises ImportError where it was not built, or not for this Python."""
    from edge.native import _native

    return str(_native.__file__)


def servo_process(path: Path, timeout_s: float = 3.0) -> Finding:
    """Whether the servo loop's program runs; without an argument it says so and ends, having touched nothing."""
    name = "servo process"
    if not path.is_file():
        return Finding(name, "missing", f"{path}: is not there; the install did not finish", REINSTALL)
    if not os.access(path, os.X_OK) or not path.stat().st_mode & 0o111:
        return Finding(name, "missing", f"{path}: may not be executed", f"chmod +x {path}")
    try:
        done = subprocess.run([str(path)], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Finding(name, "missing", f"{path}: no answer within {timeout_s:g} s", REINSTALL)
    except OSError as error:
        return Finding(name, "missing", f"{path}: does not start ({error.strerror})", REINSTALL)
    said = done.stderr.decode(errors="replace").strip()
    if not said.startswith("vlar1-servo:"):
        why = " ".join(said.split()) or f"ended with code {done.returncode}"
        return Finding(name, "missing", f"{path}: does not run: {why}", REINSTALL)
    return Finding(name, "fine", str(path))


def serial_adapters(
    devices: Sequence[UsbDevice] | None = None,
    dev: Path = DEV,
    *,
    login: Login | None = None,
    access: Access = os.access,
    brltty_rules: Sequence[Path] = BRLTTY_RULES,
) -> list[Finding]:
    """One a USB serial adapter: may its port be opened, and has it one at all?"""
    found = []
    for device in usb_devices() if devices is None else devices:
        known, driver = ADAPTERS.get(device.ids, ("", ""))
        title = " ".join(part for part in (known or device.name, device.serial and f"serial {device.serial}") if part)
        if device.tty:
            found.append(_port(device.tty, dev / device.tty, title, device, login, access))
        elif known:
            told = f"{title} is plugged in and has no serial port"
            if device.ids == "1a86:7523" and any(path.exists() for path in brltty_rules):
                told, type_ = f"{told}: brltty (for Braille displays) takes it", "sudo apt remove brltty"
            else:
                type_ = f"sudo modprobe {driver}  # then plug it in again"
            found.append(Finding(device.ids, "warning", told, type_))
    return found or [Finding("serial adapter", "absent", "none plugged in; `vlar1 demo` brings its own arm")]


def _port(name: str, path: Path, title: str, device: UsbDevice, login: Login | None, access: Access) -> Finding:
    if not path.exists():
        return Finding(name, "warning", f"{title}: {path} is not there; in a container, pass it in", f"ls -l {path}")
    if access(str(path), os.R_OK | os.W_OK):
        return Finding(name, "fine", f"{title}: {path}")
    match = f'SUBSYSTEM=="tty", ATTRS{{idVendor}}=="{device.vendor}", ATTRS{{idProduct}}=="{device.product}"'
    why, type_ = how_to_open(path, login or this_login(), "dialout", match)
    return Finding(name, "warning", f"{title}: {path}: {why}", type_)


def robot(
    path: str,
    *,
    ask: Callable[..., Any] = ask_apart,
    devices: Sequence[UsbDevice] | None = None,
    login: Login | None = None,
    access: Access = os.access,
) -> list[Finding]:
    """A robot file that was named: it loads, and its port is there and may be opened."""
    try:
        said = ask("edge.doctor.move:robot_fields", path)
    except NoAnswer as error:
        return [Finding("robot file", "missing", str(error))]
    told = f"{said['name']}: {said['joints']} {said['type']} servos on {said['port']} at {said['baudrate']} baud"
    file = Finding("robot file", "fine", told)
    port, serial = Path(said["port"]), said["usb_serial"]
    if not port.exists():
        moved = [d.tty for d in (usb_devices() if devices is None else devices) if serial and d.serial == serial]
        if moved and moved[0]:
            told = f"{port} is not there; the adapter with serial {serial} is /dev/{moved[0]}"
            return [file, Finding("arm port", "warning", told, f"put into {path}:  port: /dev/{moved[0]}")]
        told = f"{port} is not there; plug in the arm's USB cable, or name its port in {path}"
        return [file, Finding("arm port", "warning", told, "ls /dev/ttyACM* /dev/ttyUSB*")]
    if not access(str(port), os.R_OK | os.W_OK):
        match = f'SUBSYSTEM=="tty", KERNEL=="{port.resolve().name}"'
        why, type_ = how_to_open(port, login or this_login(), "dialout", match)
        return [file, Finding("arm port", "warning", f"{port}: {why}", type_)]
    return [file, Finding("arm port", "fine", str(port))]


def robot_fields(path: str) -> dict[str, Any]:
    """What a robot file says of its bus. Raises UserError where it cannot be used."""
    from drivers.robot import load_robot

    arm = (loaded := load_robot(path)).arm
    bus = {"type": arm.type, "port": arm.port, "baudrate": arm.baudrate, "usb_serial": arm.usb_serial}
    return {"name": loaded.name, "joints": len(arm.joints), **bus}
