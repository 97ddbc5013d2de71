"""`vlar1 deploy` through the real ssh: a bundle arrives, is examined and measured; whatever fails is one line."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from drivers.errors import UserError
from drivers.robot import SO101_PATH
from edge.cli import INTERRUPTED
from edge.deploy import command, measure, steps
from edge.deploy.connection import Connection
from edge.deploy.shipment import package_shipment
from edge.shipped import SHIPPED_BUNDLE
from tests.edge.ssh_board import NAME, PASSWORD, PATIENCE_S, Board, running_board

RUNS = 2
ROOT = Path(__file__).resolve().parents[2]


def deploy(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["deploy", *map(str, words)])
    return int(args.func(args))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A board with this very package installed."""
    package = package_shipment()
    assert package is not None
    with running_board(tmp_path_factory.mktemp("ssh")) as board, pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "package_shipment", lambda: package)  # hashed once
        patch.setattr(measure, "RUNS", RUNS)
        board.folder.mkdir(parents=True)
        (board.folder / "installed.json").write_text(json.dumps({"digest": package.digest}))
        for name, module in (("python", ""), ("vlar1", "-m edge.cli")):
            board.program(board.folder / "bin" / name, f'exec {shlex.quote(sys.executable)} {module} "$@"')
        patch.setenv("PYTHONPATH", str(ROOT))
        yield board


def own_arm(folder: Path, port: str) -> Path:
    """A robot file in a folder of its own, its model in another."""
    (folder / "arms").mkdir()
    (folder / "models").mkdir()
    (folder / "models" / "so101.xml").write_bytes(SO101_PATH.with_suffix(".xml").read_bytes())
    content = yaml.safe_load(SO101_PATH.read_text())
    content["model"], content["arm"]["port"] = "../models/so101.xml", port
    (folder / "arms" / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "arms" / "mine.yaml"


@pytest.fixture(scope="module")
def deployed(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """What a whole deploy with the shipped bundle and a robot file printed, and where its reports are."""
    folder = tmp_path_factory.mktemp("desk")
    bus, port = pty.openpty()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "140")
        with (folder / "out").open("w") as out:
            patch.setattr(sys, "stdout", out)
            code = deploy(NAME, "--robot", own_arm(folder, os.ttyname(port)))
    os.set_blocking(bus, False)
    with pytest.raises(BlockingIOError):
        os.read(bus, 1)
    os.close(bus)
    os.close(port)
    reports = folder / "runs" / "deploy" / NAME
    # A machine that is overloaded is told so by its doctor, whose checks have time limits.
    assert code == (0 if json.loads((reports / "doctor.json").read_text())["works"] else 1)
    yield (folder / "out").read_text(), reports


def test_a_bundle_and_a_robot_file_arrive_and_the_arm_hears_nothing(board: Board, deployed: tuple[str, Path]) -> None:
    printed, _ = deployed  # the fixture looked at the arm's line
    there = board.folder / "bundles" / "tabletop"
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in SHIPPED_BUNDLE.iterdir()
    }
    assert (board.folder / "robots" / "mine" / "arms" / "mine.yaml").is_file()
    words = [line.split()[0] for line in printed.splitlines() if line.endswith(" s]")]
    assert words == ["board", "install", "bundle", "robot", "build", "doctor", "profile"]


def test_doctor_and_profile_are_those_of_the_board_and_both_are_kept(board: Board, deployed: tuple[str, Path]) -> None:
    printed, reports = deployed
    doctor, profile = (json.loads((reports / name).read_text()) for name in ("doctor.json", "profile.json"))
    states = {finding["name"]: finding for findings in doctor["groups"].values() for finding in findings}
    assert "robot file" in states
    assert str(board.folder / "bundles" / "tabletop") in states["bundle"]["told"]
    for finding in states.values():
        assert finding["told"] in printed
    assert profile["bundle"]["path"] == str(board.folder / "bundles" / "tabletop")
    assert len(profile["runs_ms"]["decision"]) == RUNS and "cold start" in printed


@pytest.fixture
def scripted(board: Board, deployed: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sets what `vlar1` does on the board from now on, by the first of its words; the rest as it is."""
    vlar1, profile = board.folder / "bin" / "vlar1", deployed[1] / "profile.json"
    usual = vlar1.read_text()
    monkeypatch.chdir(tmp_path)

    def script(**does: str) -> None:
        does = {
            "--version": "echo vlar1 0",
            "profile": f'for last; do :; done; cp {shlex.quote(str(profile))} "$last"',
            "doctor": f"cat {shlex.quote(str(profile.with_name('doctor.json')))}",
            **does,
        }
        board.program(vlar1, "case $1 in\n" + "\n".join(f"{word}) {what};;" for word, what in does.items()) + "\nesac")

    yield script
    vlar1.write_text(usual)


def test_what_doctor_misses_does_not_hide_the_profile(
    scripted, deployed: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = {"works": False, "groups": {"see": [{"name": "x", "state": "missing", "told": "t", "to_type": "make x"}]}}
    scripted(doctor=f"echo {shlex.quote(json.dumps(lacking))}; exit 1")
    assert deploy(NAME) == 1
    printed = capsys.readouterr().out
    assert "make x" in printed and "missing: x" in printed and "cold start" in printed
    assert "tabletop: is there, nothing to copy [" in printed


def test_a_program_that_fails_there_is_a_step_that_failed(scripted, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {name: f"echo out; echo 'vlar1: error: no {name}' >&2; exit 2" for name in ("doctor", "profile")}
    scripted(**broken)
    assert deploy(NAME) == 1
    printed = capsys.readouterr().out
    assert all(f"{name:8} failed: vlar1: error: no {name} [" in printed for name in broken)


FOUND, ABSENT = """echo '{"answer": []}'""", """echo '{"refused": "not installed"}'"""


@pytest.mark.parametrize(
    "engines,tensorrt,build,told",
    [
        (["onnx"], "exit 3", "exit 3", "no engines: the bundle has no graphs for TensorRT"),
        (["onnx", "tensorrt"], ABSENT, "exit 3", "no engines: not installed"),
        (["tensorrt"], FOUND, "echo built; echo 6 engines", "6 engines"),
        (["tensorrt"], FOUND, "echo no memory >&2; exit 2", None),
    ],
)
def test_engines_are_built_where_there_are_graphs_and_tensorrt(
    engines: list[str], tensorrt: str, build: str, told: str | None, board: Board, tmp_path: Path
) -> None:
    board.program(tmp_path / "bin" / "python", tensorrt)
    board.program(tmp_path / "bin" / "vlar1", f'[ "$*" = "build /b" ] && {{ {build}; }}')
    bundle = SimpleNamespace(manifest={"engines": engines})
    with Connection(NAME) as connection:
        if told is not None:
            assert measure.build(connection, str(tmp_path), bundle, "/b").startswith(told)  # type: ignore[arg-type]
            return
        with pytest.raises(measure.Failed, match="^no memory$"):
            measure.build(connection, str(tmp_path), bundle, "/b")  # type: ignore[arg-type]


def refused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    "how,said",
    [
        ({"port": 0}, r"cannot be reached \(.*Connection refused\); make `ssh board` work first$"),
        ({"known": "other"}, r"shows another host key than before; .*ssh-keygen -R '\[127.0.0.1\]:\d+'"),
        (
            {"known": ""},
            r"its host key is not known here \(Host key verification failed.\); .* ssh board$",
        ),
        (
            {"key": "other"},
            r"lets you not in \(.*Permission denied \(publickey.*\).\); .* ssh-copy-id board$",
        ),
    ],
)
def test_a_board_that_ssh_does_not_reach_is_one_line_with_what_to_type(
    how: dict[str, str | int], said: str, board: Board
) -> None:
    board.configure(**{**how, **({"port": refused_port()} if "port" in how else {})})  # type: ignore[arg-type]
    try:
        with pytest.raises(UserError, match=f"^{NAME}: {said}") as raised:
            deploy(NAME)
    finally:
        board.configure()
    assert "\n" not in str(raised.value)


def test_a_password_is_asked_for_once(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board.program(tmp_path / "ask", f"echo asked >> {tmp_path / 'asked'}; echo '{PASSWORD}'")
    monkeypatch.setenv("SSH_ASKPASS", str(tmp_path / "ask"))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    board.configure(ask=True)
    try:
        with Connection(NAME) as connection:
            found = [connection.ask("look", to="~")["folder"] for _ in range(2)]
    finally:
        board.configure()
    assert found == [str(board.home)] * 2 and (tmp_path / "asked").read_text() == "asked\n"


@pytest.mark.parametrize(
    "python3,to,said",
    [
        ("exit 127", "~/x", "has no python3; type there: sudo apt install python3"),
        ("echo python3 is 3.8 >&2; exit 1", "~/x", "its python3 is 3.8, expected 3.10 or newer"),
        ("echo hello; exec PYTHON", "/dev/null/x", "/dev/null/x: Not a directory"),
        ("exec PYTHON", "~nobody-at-all/x", "--to ~nobody-at-all/x: the board has no such user"),
    ],
)
def test_a_board_that_cannot_take_it_is_one_line(python3: str, to: str, said: str, board: Board) -> None:
    usual = (board.programs / "python3").read_text()
    board.program(board.programs / "python3", python3.replace("PYTHON", f'{shlex.quote(sys.executable)} "$@"'))
    try:
        with pytest.raises(UserError, match=f"^{NAME}: {said}") as raised:
            deploy(NAME, "--to", to)
    finally:
        (board.programs / "python3").write_text(usual)
    assert "\n" not in str(raised.value)


def test_what_the_readme_types_is_understood() -> None:
    text = (ROOT / "deploy" / "jetson" / "README.md").read_text()
    typed = re.findall(r"^vlar1 (deploy .*?)(?:\s+#.*)?$", text, re.MULTILINE)
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    hosts = {Connection(parser.parse_args(shlex.split(line)).host).host for line in typed}
    assert len(typed) >= 2 and len(hosts) == 1


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "", "a b", "a;b", "$(a)", "a\nb", "`a`", "a'b"])
def test_what_is_no_host_is_not_given_to_ssh(host: str, board: Board) -> None:
    with pytest.raises(UserError, match="is no host; expected what ssh takes"):
        Connection(host)


@pytest.mark.parametrize(
    "host", ["jetson", "me@jetson.local", "ssh://me@10.0.0.2:2222", "me@[fe80::1%eth0]", "fe80::1"]
)
def test_what_ssh_takes_is_a_host(host: str) -> None:
    assert Connection(host).host == host


def test_odd_names_of_folders_reach_no_shell(board: Board) -> None:
    odd = 'it\'s "x" $(touch pwned) `touch pwned`; touch pwned &'
    with Connection(NAME) as connection:
        found = connection.ask("look", to=odd)
        where = connection.ask("run", argv=["pwd"], folder=found["folder"], aloud=False)
    assert where["stdout"] == f"{board.home / odd}\n"
    assert not list(board.home.rglob("pwned"))


def test_ctrl_c_ends_what_runs_there(board: Board, scripted, tmp_path: Path) -> None:
    """The doctor there starts a program that would never end; both go, and nothing stays behind here."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    # Both hold the pipe open as long as they live.
    scripted(
        doctor=f"exec 9>{shlex.quote(str(fifo))}; sh -c 'trap \"\" TERM HUP INT; echo up >&9; cat /dev/zero >/dev/null'"
    )
    main = (
        "import sys; from edge import cli; from edge.deploy import steps; steps.package_shipment = lambda: None; "
        "steps.version = lambda name: '0'; sys.exit(cli.main())"
    )
    here = subprocess.Popen(
        [sys.executable, "-c", main, "deploy", NAME],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with fifo.open("rb", buffering=0) as alive:
        assert alive.readline() == b"up\n"
        here.send_signal(signal.SIGINT)
        _, said = here.communicate(timeout=PATIENCE_S)
        assert select.select([alive], [], [], PATIENCE_S)[0] and alive.read() == b"", "nobody holds it any more"
    assert here.returncode == INTERRUPTED and said.splitlines()[-1] == "vlar1: interrupted"
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("vlar1-")] == []
