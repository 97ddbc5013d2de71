"""What deploy promises: a Dockerfile that copies what is there, rules that parse, a service without an arm; a check on
ARM that says what it lacks and tells answers apart."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge import cli
from edge.doctor import command
from edge.doctor.move import ADAPTERS
from edge.serve.line import STUCK_AFTER_S

ROOT = Path(__file__).resolve().parent.parent
JETSON = ROOT / "deploy" / "jetson"
CHECK = ROOT / "deploy" / "check_aarch64.sh"


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


def test_the_service_is_started_again_unless_a_person_has_something_to_mend() -> None:
    """on-failure is for an unclean exit, a time-out and the watchdog alike: systemd.service(5), table 2."""
    found = unit()
    assert found["Restart"] == ["on-failure"]
    assert found["RestartPreventExitStatus"] == [str(cli.USER_ERROR)]


def test_the_service_reaches_systemd_with_what_the_server_tells_it() -> None:
    """What `tests/edge/test_serve_notify.py` hears: readiness, and signs of life from the process that is started."""
    found = unit()
    assert (found["Type"], found["NotifyAccess"]) == (["notify"], ["main"])
    assert "AF_UNIX" in found["RestrictAddressFamilies"][0].split()
    assert not {"sh", "bash", "env"} & {Path(word).name for word in shlex.split(found["ExecStart"][0])}
    (watchdog_s,) = map(int, found["WatchdogSec"])
    told = f"for {watchdog_s} s: its event loop gives one every {watchdog_s // 2} s"
    assert f"{told}, as long as no decision has taken {STUCK_AFTER_S:g} s" in (JETSON / "README.md").read_text()


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


def check_with(tmp_path: Path, programs: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The check on ARM where there is bash, dirname and what is given: a name and what it prints."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name in ("bash", "dirname"):
        (bin_dir / name).symlink_to(shutil.which(name) or name)
    for name, prints in programs.items():
        (bin_dir / name).write_text(f"#!{shutil.which('sh')}\necho {prints}\n")
        (bin_dir / name).chmod(0o755)
    command = [str(bin_dir / "bash"), str(CHECK), *arguments]
    return subprocess.run(command, env={"PATH": str(bin_dir)}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("programs", "says"),
    [
        ({"uname": "aarch64", "id": "0"}, "expected x86_64"),
        ({"uname": "x86_64", "id": "1000"}, "needs root: sudo"),
        ({"uname": "x86_64", "id": "0"}, "apt install qemu-user-static"),
        ({"uname": "x86_64", "id": "0", "qemu-aarch64-static": ""}, "apt install debootstrap"),
        ({"uname": "x86_64", "id": "0", "qemu-aarch64-static": "", "debootstrap": ""}, "apt install git"),
    ],
)
def test_the_check_on_arm_says_in_one_line_what_is_missing(tmp_path: Path, programs: dict[str, str], says: str) -> None:
    done = check_with(tmp_path, programs, str(tmp_path / "made"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert says in done.stderr
    assert not (tmp_path / "made").exists()


def test_the_check_on_arm_takes_one_folder(tmp_path: Path) -> None:
    done = check_with(tmp_path, {"uname": "x86_64", "id": "0"}, "one", "two")
    assert done.returncode == 2 and "one folder at most" in done.stderr


def test_the_check_on_arm_is_well_formed_and_names_files_that_are_there() -> None:
    subprocess.run(["bash", "-n", str(CHECK)], check=True)
    text = CHECK.read_text()
    tests = re.search(r'^TESTS="(.*)"$', text, re.MULTILINE)
    named = [*(tests[1].split() if tests else []), *re.findall(r"deploy/[\w./]+\w", text)]
    assert len(named) > 4 and all((ROOT / name).is_file() for name in named), named


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `vlar1 ask --json` prints about a picture."""
    image = tmp_path_factory.mktemp("asked") / "frame.png"
    cv2.imwrite(str(image), np.full((48, 64, 3), 128, np.uint8))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["ask", "--image", str(image), "--task", "affordance", "--json", "pick up the red cube"]) == 0
    answer: dict[str, Any] = json.loads(printed.getvalue())
    return answer


def same_answers(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    for name, answer in (("x86_64", one), ("aarch64", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "01-affordance.json").write_text(json.dumps(answer))
        (tmp_path / name / "patches.txt").write_text(f"01.png {answer['confidence']}\n")
    command = [sys.executable, str(ROOT / "deploy" / "same_answers.py"), "x86_64", "aarch64"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


def test_answers_are_the_same_that_took_another_time_and_differ_in_a_float(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    slower = {**asked, "took_ms": asked["took_ms"] * 30.0, "confidence": asked["confidence"] - 1e-3}
    done = same_answers(tmp_path, asked, slower)
    assert done.returncode == 0 and "of 1 answers 1 are the same" in done.stdout, done.stderr
    assert "by 1.0e-03 at most" in done.stdout and "0 of 1 frames" in done.stdout


def said(x: str, rest: str = "a cube") -> dict[str, str]:
    return {"text": f'<think>I see {rest}.</think><output>{{"x": {x}, "y": 0.50}}</output>'}


@pytest.mark.parametrize("there", [{"x": "0.42"}, {"x": "0.40"}])
def test_one_in_the_last_digit_is_told_and_passes(tmp_path: Path, asked: dict[str, Any], there: dict[str, str]) -> None:
    done = same_answers(tmp_path, {**asked, **said("0.41")}, {**asked, **said(**there)})
    assert done.returncode == 0 and "1 differ by 0.01 in a number, 0 by more" in done.stdout
    assert "of 1 answers 0 are the same" in done.stdout and "01-affordance: a digit" in done.stdout


@pytest.mark.parametrize(
    "changed",
    [
        said("0.43"),
        said("0.41", "a cup"),
        said("0.41", "a cube [0.10]"),
        {**said("0.41"), "thinking_cut": "deadline"},
        {**said("0.41"), "tokens": {"prompt": 1, "answer": 2, "forced": 3}},
    ],
)
def test_an_answer_with_another_word_or_a_number_further_off_is_another_answer(
    tmp_path: Path, asked: dict[str, Any], changed: dict[str, Any]
) -> None:
    done = same_answers(tmp_path, {**asked, **said("0.41")}, {**asked, **changed})
    assert done.returncode == 1 and "01-affordance: other" in done.stdout
    assert "0 differ by 0.01 in a number, 1 by more" in done.stdout and said("0.41")["text"] in done.stdout


def test_questions_that_only_one_machine_answered_are_not_taken_for_agreement(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    same_answers(tmp_path, asked, asked)
    (tmp_path / "aarch64" / "01-affordance.json").unlink()
    command = [sys.executable, str(ROOT / "deploy" / "same_answers.py"), "x86_64", "aarch64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "ask again" in done.stderr and "Traceback" not in done.stderr
