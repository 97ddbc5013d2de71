"""What deploy/jetson promises: a Dockerfile that copies what is there, rules that parse, a service without an arm."""

from __future__ import annotations

import argparse
import fnmatch
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from edge import cli
from edge.doctor import command
from edge.doctor.move import ADAPTERS

ROOT = Path(__file__).resolve().parent.parent
JETSON = ROOT / "deploy" / "jetson"


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile: name and arguments, continued lines joined, comments left out."""
    text = (JETSON / "Dockerfile").read_text()
    lines = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.split("\n") if line.strip())]


def test_the_dockerfile_starts_from_an_l4t_image_and_knows_its_instructions() -> None:
    found = instructions()
    assert found[0][0] == "ARG" and re.fullmatch(r"L4T_IMAGE=nvcr\.io/nvidia/l4t-jetpack:r36\.\d+\.\d+", found[0][1])
    assert found[1] == ("FROM", "${L4T_IMAGE}")
    assert {name for name, _ in found} <= {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}


def test_the_dockerfile_copies_what_is_there_and_all_that_the_build_needs() -> None:
    sources = [source for name, rest in instructions() if name == "COPY" for source in shlex.split(rest)[:-1]]
    assert sources and all((ROOT / source).exists() for source in sources), sources
    pyproject = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"wheel\.packages = \[(.*)\]", pyproject)
    needed = re.findall(r'"(\w+)"', packages[1]) if packages else []
    files = re.findall(r'^(?:readme = |license-files = \[)"([^"]+)"', pyproject, re.MULTILINE)
    assert needed and len(files) == 2
    assert {*needed, *files, "pyproject.toml", "CMakeLists.txt"} <= set(sources)
    for line in (rest for name, rest in instructions() if name == "RUN"):
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_starting_the_image_looks_at_the_machine_and_nothing_more() -> None:
    found = dict(instructions())
    assert (found["ENTRYPOINT"], found["CMD"]) == ('["vlar1"]', '["doctor"]')


# udev(7): a key, perhaps with an attribute, an operator, a value in quotes.
PART = re.compile(r'([A-Z_]+)(?:\{([^}]+)\})?(==|!=|\+=|:=|=)"([^"]*)"')
MATCHES = {"ACTION", "SUBSYSTEM", "KERNEL", "ATTR", "ATTRS", "ENV", "DRIVER"}
ASSIGNS = {"MODE", "GROUP", "TAG", "ENV", "SYMLINK", "GOTO", "LABEL"}
Part = tuple[str, str, str, str]


def rules() -> list[list[Part]]:
    """Each rule of the file as its parts: key, attribute, operator, value."""
    found = []
    for line in (JETSON / "70-vlar1.rules").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        parts = [PART.fullmatch(part.strip()) for part in line.split(",")]
        assert all(parts), line
        found.append([(m[1], m[2] or "", m[3], m[4]) for m in parts if m])
    return found


def apply(device: dict[str, str]) -> dict[str, str]:
    """What the rules make of a device, given as "SUBSYSTEM", "ATTRS{idVendor}" and so on."""
    made: dict[str, str] = {}
    for rule in rules():
        fits = True
        for key, attribute, operator, value in rule:
            name = f"{key}{{{attribute}}}" if attribute else key
            if operator in ("==", "!="):
                hit = any(fnmatch.fnmatchcase(device.get(name, ""), option) for option in value.split("|"))
                fits &= hit == (operator == "==")
            elif fits:
                made[name] = value
    return made


def test_every_udev_rule_is_well_formed() -> None:
    assert len(rules()) > 5
    for rule in rules():
        for key, _, operator, _ in rule:
            assert key in (MATCHES if operator in ("==", "!=") else ASSIGNS), rule
        assert any(operator not in ("==", "!=") for _, _, operator, _ in rule), f"does nothing: {rule}"
    labels = {value for rule in rules() for key, _, _, value in rule if key == "LABEL"}
    assert {value for rule in rules() for key, _, _, value in rule if key == "GOTO"} == labels
    modes = {value for rule in rules() for key, _, _, value in rule if key == "MODE"}
    assert modes == {"0660"}, "no device is open to everybody"


@pytest.mark.parametrize("ids", ADAPTERS)
def test_the_rules_open_every_adapter_that_the_doctor_knows_to_dialout(ids: str) -> None:
    vendor, product = ids.split(":")
    port = {"SUBSYSTEM": "tty", "ATTRS{idVendor}": vendor, "ATTRS{idProduct}": product}
    made = apply(port)
    assert (made["GROUP"], made["MODE"], made["ENV{ID_MM_PORT_IGNORE}"]) == ("dialout", "0660", "1")
    usb = {"SUBSYSTEM": "usb", "ENV{DEVTYPE}": "usb_device", "ATTR{idVendor}": vendor, "ATTR{idProduct}": product}
    assert apply(usb)["ENV{ID_MM_DEVICE_IGNORE}"] == "1"


def test_the_rules_open_cameras_to_video_and_leave_the_rest_alone() -> None:
    assert apply({"SUBSYSTEM": "video4linux"})["GROUP"] == "video"
    usb = {"SUBSYSTEM": "usb", "ENV{DEVTYPE}": "usb_device", "ATTR{idVendor}": "8086"}
    assert apply({**usb, "ATTR{idProduct}": "0b3a"})["GROUP"] == "video"
    assert "MODE" not in apply({**usb, "ATTR{idProduct}": "0001"})
    assert "MODE" not in apply({"SUBSYSTEM": "tty", "ATTRS{idVendor}": "2341", "ATTRS{idProduct}": "0043"})


def unit() -> dict[str, list[str]]:
    """Settings of the service, each with all its values."""
    found: dict[str, list[str]] = {}
    for line in (JETSON / "vlar1.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_the_service_runs_the_server_and_cannot_open_the_arm() -> None:
    found = unit()
    assert found["ExecStart"] == ["/opt/vlar1/bin/vlar1 serve $VLAR1_SERVE_ARGS"]
    assert "User" not in found and found["DynamicUser"] == ["yes"]
    assert found["SupplementaryGroups"] == ["video render"]
    assert not {"ExecStartPre", "ExecStartPost", "ExecStopPost"} & set(found)


def test_the_service_claims_no_watchdog_that_nobody_feeds() -> None:
    sources = [path for room in ("edge", "drivers", "calib") for path in (ROOT / room).rglob("*.py")]
    notifies = any("NOTIFY_SOCKET" in path.read_text(encoding="utf-8") for path in sources)
    found = unit()
    assert notifies or ("WatchdogSec" not in found and found["Type"] != ["notify"])
    assert found["Restart"] == ["on-failure"]
    assert found["RestartPreventExitStatus"] == [str(cli.USER_ERROR)]


def test_the_service_is_well_formed_to_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (JETSON / "vlar1.service").read_text()
    unit_file = tmp_path / "vlar1.service"
    unit_file.write_text(text.replace("/opt/vlar1/bin/vlar1", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit_file)], capture_output=True, text=True)
    about_ours = [line for line in done.stderr.splitlines() if "vlar1" in line]
    assert (done.returncode, about_ours) == (0, [])


def test_the_readme_installs_the_files_that_are_here_and_types_commands_that_exist() -> None:
    text = (JETSON / "README.md").read_text()
    assert len(text.splitlines()) <= 100, "one page"
    named = set(re.findall(r"deploy/jetson/([\w.-]+)", text))
    assert named == {path.name for path in JETSON.iterdir()} - {"README.md"}
    parser = argparse.ArgumentParser()

    command.register(parser.add_subparsers())
    typed = re.findall(r"^/opt/vlar1/bin/vlar1 (doctor.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert typed
    for line in typed:
        parser.parse_args(shlex.split(line))
