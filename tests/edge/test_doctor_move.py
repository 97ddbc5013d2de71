"""The way to the arm: a servo process that does not run, ports that are not open to us, adapters without a port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.doctor.apart import NoAnswer
from edge.doctor.move import ADAPTERS, extension_path, native, robot, robot_fields, serial_adapters, servo_process
from edge.doctor.usb import Login, UsbDevice

NOBODY = Login("someone", frozenset(), frozenset())
CH343 = UsbDevice("1a86", "55d3", "USB Single Serial", "58FA", 12.0, "ttyACM0")
CH340 = UsbDevice("1a86", "7523", "USB Serial")


def program(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_real_extension_and_servo_process_are_fine() -> None:
    extension, servo = native(lambda function: extension_path())
    assert (extension.state, servo.state) == ("fine", "fine")
    assert servo.told.endswith("/edge/native/vlar1-servo")


def test_an_extension_that_does_not_load_is_missing() -> None:
    def ask(function: str) -> str:
        raise NoAnswer("ModuleNotFoundError: No module named 'edge.native._native'")

    (found,) = native(ask)
    assert found.state == "missing" and found.to_type


@pytest.mark.parametrize(
    "text,mode,told",
    [
        ("#!/bin/sh\n", 0o644, "may not be executed"),
        ("#!/bin/sh\necho 'error while loading shared libraries: libstdc++.so.6' >&2; exit 127\n", 0o755, "libstdc++"),
        ("#!/bin/sh\nexit 3\n", 0o755, "ended with code 3"),
        ("\x7fELF of another machine", 0o755, "does not start"),
        ("#!/bin/sh\nexec sleep 60\n", 0o755, "no answer within"),
    ],
)
def test_a_servo_process_that_does_not_run_is_missing(text: str, mode: int, told: str, tmp_path: Path) -> None:
    found = servo_process(program(tmp_path / "vlar1-servo", text, mode), timeout_s=0.3)
    assert found.state == "missing" and told in found.told and found.to_type
    assert servo_process(tmp_path / "none").state == "missing"


def test_a_port_that_is_open_to_us_and_one_that_is_not(tmp_path: Path) -> None:
    (tmp_path / "ttyACM0").touch(mode=0o600)
    (fine,) = serial_adapters([CH343], tmp_path, access=lambda path, mode: True)
    assert (fine.name, fine.state) == ("ttyACM0", "fine")
    assert fine.told == f"CH343 (Feetech, SO-101) serial 58FA: {tmp_path}/ttyACM0"
    (shut,) = serial_adapters([CH343], tmp_path, login=NOBODY, access=lambda path, mode: False)
    assert shut.state == "warning"
    assert 'SUBSYSTEM=="tty", ATTRS{idVendor}=="1a86", ATTRS{idProduct}=="55d3", MODE="0660"' in shut.to_type


def test_an_adapter_without_a_port_is_told_with_its_cause(tmp_path: Path) -> None:
    (found,) = serial_adapters([CH340], tmp_path, brltty_rules=[tmp_path / "85-brltty.rules"])
    assert found.state == "warning" and found.to_type.startswith("sudo modprobe ch341")
    (tmp_path / "85-brltty.rules").touch()
    (found,) = serial_adapters([CH340], tmp_path, brltty_rules=[tmp_path / "85-brltty.rules"])
    assert found.to_type == "sudo apt remove brltty"


def test_other_usb_devices_are_no_adapters_and_a_port_unseen_in_a_container_is_told(tmp_path: Path) -> None:
    (found,) = serial_adapters([UsbDevice("046d", "0825", "Webcam")], tmp_path)
    assert found.state == "absent"
    (found,) = serial_adapters([CH343], tmp_path)
    assert found.state == "warning" and "in a container" in found.told
    assert all(len(ids) == 9 for ids in ADAPTERS)


def fields(port: Path, serial: str = "") -> dict[str, Any]:
    bus = {"type": "feetech", "port": str(port), "baudrate": 1_000_000, "usb_serial": serial}
    return {"name": "so101", "joints": 6, **bus}


def test_a_robot_whose_port_is_there_open_or_not(tmp_path: Path) -> None:
    (port := tmp_path / "ttyACM0").touch(mode=0o600)
    file, found = robot("r.yaml", ask=lambda name, path: fields(port), access=lambda path, mode: True)
    assert (file.state, found.state) == ("fine", "fine")
    assert file.told == f"so101: 6 feetech servos on {port} at 1000000 baud"
    _, found = robot("r.yaml", ask=lambda name, path: fields(port), access=lambda path, mode: False, login=NOBODY)
    assert found.state == "warning" and 'KERNEL=="ttyACM0"' in found.to_type


def test_a_robot_whose_adapter_has_another_name_now(tmp_path: Path) -> None:
    moved = UsbDevice("1a86", "55d3", "", "58FA", 12.0, "ttyACM1")
    _, found = robot("r.yaml", ask=lambda name, path: fields(tmp_path / "none", "58FA"), devices=[CH340, moved])
    assert found.state == "warning" and found.to_type == "put into r.yaml:  port: /dev/ttyACM1"
    _, found = robot("r.yaml", ask=lambda name, path: fields(tmp_path / "none"), devices=[moved])
    assert found.to_type == "ls /dev/ttyACM* /dev/ttyUSB*"


def test_the_shipped_robot_file_is_read_and_a_bad_one_is_missing() -> None:
    from drivers.robot import SO101_PATH

    assert robot_fields(str(SO101_PATH)) == fields(Path("/dev/ttyACM0"))

    def ask(function: str, path: str) -> dict[str, Any]:
        raise NoAnswer("robot r.yaml: field arm is missing")

    assert [(f.state, f.told) for f in robot("r.yaml", ask=ask)] == [("missing", "robot r.yaml: field arm is missing")]
