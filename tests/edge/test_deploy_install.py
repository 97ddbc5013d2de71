"""How `vlar1 deploy` installs: what is typed on the board, when nothing is, and what is said when it fails."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from drivers.errors import UserError
from edge.deploy.connection import Connection
from edge.deploy.install import commands, install
from edge.deploy.shipment import Shipment, _item
from tests.edge.ssh_board import NAME, Board, running_board

VERSION = "vlar1 9.9"
ROOT = Path(__file__).resolve().parents[2]
QUIET = Console(file=io.StringIO())
# Stands for an environment's python: writes down what it is told, and makes `vlar1` as pip would.
PYTHON = """echo "$PWD $*" >> "$HOME/typed"
printf '#!/bin/sh\\necho %s\\n' "VERSION" > "$(dirname "$0")/vlar1"
chmod +x "$(dirname "$0")/vlar1"
"""


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """A board whose python3 makes environments that only write down what they are told."""
    with running_board(tmp_path / "ssh") as board:
        python3 = board.programs / "python3"
        real, fake = python3.read_text(), board.home / "python"
        board.program(fake, PYTHON.replace("VERSION", VERSION))
        # -m venv --system-site-packages FOLDER
        making = f'[ "$2" = venv ] && mkdir -p "$4/bin" && cp {shlex.quote(str(fake))} "$4/bin/python" && exit'
        board.program(python3, f'echo "$PWD $*" >> "$HOME/typed"\n{making}\n{real}')
        yield board


def typed(board: Board) -> list[str]:
    """What was typed there, but for the requests themselves."""
    lines = (board.home / "typed").read_text().splitlines()
    (board.home / "typed").unlink()
    return [line.replace(str(board.folder), "F") for line in lines if " -m " in line]


def package(folder: Path, text: str) -> Shipment:
    (folder / "pyproject.toml").write_text(text)
    return Shipment("package", "source", (_item("pyproject.toml", folder / "pyproject.toml"),))


def test_it_is_installed_once_and_again_when_files_differ(board: Board, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Connection(NAME) as connection:

        def deploy(text: str) -> str:
            look = {**connection.ask("look", to="~/.local/share/vlar1"), "lacks": []}
            return install(connection, look, package(tmp_path, text), VERSION, log, QUIET)

        assert deploy("one") == f"{VERSION} installed in {board.folder}"
        pip = "F/.source-1 -m pip --disable-pip-version-check install -c constraints.txt .[serve]"
        assert typed(board) == ["F/.source-1 -m venv --system-site-packages F", pip]
        assert deploy("one") == f"{VERSION} is there, of the same files"
        assert typed(board) == []
        assert deploy("two") == f"{VERSION} installed in {board.folder}"
        assert len(typed(board)) == 2 and (board.folder / "source" / "pyproject.toml").read_text() == "two"
        board.program(board.folder / "bin" / "vlar1", "exit 1")
        assert connection.ask("look", to="~/.local/share/vlar1")["installed"] is None, "a stamp alone is not believed"
    assert not log.exists()


def test_pips_reason_is_told_and_the_install_does_not_count(board: Board, tmp_path: Path) -> None:
    log, fails = tmp_path / "reports" / "install.log", "echo Collecting numpy\necho 'ERROR: no space' >&2\necho hint\n"
    board.program(board.home / "python", f"{PYTHON}\n{fails}exit 1")
    with Connection(NAME) as connection:
        look = {**connection.ask("look", to="~/.local/share/vlar1"), "lacks": []}
        with pytest.raises(UserError, match=f"^{NAME}: installing failed: ERROR: no space; .*{log}$"):
            install(connection, look, package(tmp_path, "one"), VERSION, log, QUIET)
        assert log.read_text().splitlines()[-3:] == ["Collecting numpy", "ERROR: no space", "hint"]
        assert connection.ask("look", to="~/.local/share/vlar1")["installed"] is None


class Deaf(Connection):
    """A board that must not be asked anything."""

    def ask(self, call: str, **_: Any) -> Any:
        raise AssertionError(call)


def look(**changes: Any) -> dict[str, Any]:
    usual = {"folder": "/d", "free_bytes": 1e12, "lacks": [], "tensorrt": False, "cuda_major": 0, "installed": None}
    return {**usual, **changes}


@pytest.mark.parametrize(
    "board,package_here,said",
    [
        (look(lacks=["g++", "python3-dev"]), True, "lacks what .* sudo apt install g\\+\\+ python3-dev"),
        (look(free_bytes=1e9), True, "/d has 1.0 GB free, 1.6 GB are needed"),
        (look(), False, "has no vlar1 in /d, .* git clone"),
        (look(installed={"version": "vlar1 1", "digest": ""}), False, "has vlar1 1 in /d, .* git clone"),
    ],
)
def test_what_is_lacking_is_said_in_one_line(
    board: dict[str, Any], package_here: bool, said: str, tmp_path: Path
) -> None:
    files = package(tmp_path, "x") if package_here else None
    with pytest.raises(UserError, match=f"^h: {said}") as raised:
        install(Deaf("h"), board, files, VERSION, tmp_path / "log", QUIET)
    assert "\n" not in str(raised.value)


def test_without_a_checkout_the_same_version_there_will_do(tmp_path: Path) -> None:
    there = look(installed={"version": VERSION, "digest": "other"})
    assert install(Deaf("h"), there, None, VERSION, tmp_path / "log", QUIET) == f"{VERSION} is there"


def test_the_commands_are_those_of_the_dockerfile() -> None:
    """On JetPack 6, whose driver speaks CUDA 12."""
    dockerfile = (ROOT / "deploy" / "jetson" / "Dockerfile").read_text()
    for argv in commands(look(folder="/opt/vlar1", tensorrt=True, cuda_major=12), "source"):
        words = [word for word in argv if word not in ("-m", "--disable-pip-version-check")]
        line = shlex.join(words).replace("/opt/vlar1/bin/python pip", "/opt/vlar1/bin/pip")
        line = line.replace("python3 venv", "python3 -m venv").replace(">=12.6,==12.*", ">=12.6,<13")
        assert line in dockerfile
    assert len(commands(look(tensorrt=True), "source")) == len(commands(look(cuda_major=12), "source")) == 2
    assert json.dumps(commands(look(tensorrt=True, cuda_major=13), "source")).count("==13.*") == 1
