"""`vlar1 doctor` on this machine: exit codes, JSON, and that nothing is opened for writing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from edge.doctor import command
from edge.doctor.findings import Check, Finding


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["doctor", *words])
    return int(args.func(args))


def test_this_machine_runs_the_demo_and_the_report_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["works"] is True
    assert list(report["groups"]) == ["machine", "decide", "see", "move", "real time", "extras"]
    states = {f["name"]: f["state"] for findings in report["groups"].values() for f in findings}
    needed = ("packages", "ONNX Runtime", "provider CPU", "bundle", "native extension", "servo process")
    assert {states[name] for name in needed} == {"fine"}
    assert set(states.values()) <= {"fine", "warning", "absent"}


@pytest.fixture
def two_checks(monkeypatch: pytest.MonkeyPatch):
    """The report of a machine with one finding of a state."""

    def set_state(state) -> None:
        checks = [
            Check("decide", "x", lambda: [Finding("[x]", state, "told [dim]", "sudo [type]")]),
            Check("see", "y", lambda: [Finding("y", "fine", "seen")]),
        ]
        monkeypatch.setattr(command, "checks", lambda bundle, robot: checks)

    return set_state


@pytest.mark.parametrize("state,code", [("fine", 0), ("absent", 0), ("warning", 0), ("missing", 1)])
def test_only_missing_fails_and_every_line_is_printed(
    state: str, code: int, two_checks, capsys: pytest.CaptureFixture[str]
) -> None:
    two_checks(state)
    assert run() == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "decide" and lines[1].split() == [state, "[x]", "told", "[dim]"]
    assert lines[2].strip() == "sudo [type]"
    assert lines[3] == "see" and lines[4].split() == ["fine", "y", "seen"]
    assert lines[5].startswith("missing: [x]" if code else "`vlar1 demo` and `vlar1 ask` work here")
    assert lines[5].endswith("1 warning" if state == "warning" else "0 warnings")


def test_a_robot_that_is_named_is_looked_at_with_the_arm() -> None:
    groups = [check.group for check in command.checks(Path("b"), Path("r.yaml"))]
    names = [check.name for check in command.checks(Path("b"), Path("r.yaml")) if check.group == "move"]
    assert names == ["native extension", "serial adapter", "robot file"]
    assert sorted(set(groups), key=groups.index) == ["machine", "decide", "see", "move", "real time", "extras"]
