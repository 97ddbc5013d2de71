"""The doctor's frame: checks that raise or hang become findings, and what a process apart may do wrong."""

from __future__ import annotations

import threading

import pytest

from edge.doctor.apart import NoAnswer, ask_apart
from edge.doctor.findings import Check, Finding, examine, works


def test_findings_come_in_the_order_of_the_checks_whichever_is_ready_first() -> None:
    second_done = threading.Event()

    def slow() -> list[Finding]:
        assert second_done.wait(5.0)
        return [Finding("slow", "fine", "")]

    def quick() -> list[Finding]:
        second_done.set()
        return [Finding("quick", "absent", "")]

    report = examine([Check("a", "slow", slow), Check("b", "quick", quick), Check("a", "third", lambda: ())])
    assert {group: [finding.name for finding in found] for group, found in report.items()} == {
        "a": ["slow"],
        "b": ["quick"],
    }


def test_a_check_that_raises_and_one_that_hangs_are_warnings_and_the_others_are_told() -> None:
    never = threading.Event()

    def broken() -> list[Finding]:
        raise ValueError("two\nlines")

    def hangs() -> list[Finding]:
        never.wait()
        return []

    report = examine(
        [
            Check("a", "broken", broken),
            Check("a", "hangs", hangs, limit_s=0.05),
            Check("a", "good", lambda: [Finding("good", "fine", "yes")]),
        ]
    )
    never.set()
    assert [(f.name, f.state) for f in report["a"]] == [("broken", "warning"), ("hangs", "warning"), ("good", "fine")]
    assert report["a"][0].told == "could not be checked: ValueError: two lines"
    assert report["a"][1].told == "could not be checked: no answer within 0.05 s"


@pytest.mark.parametrize("state,expected", [("fine", True), ("warning", True), ("absent", True), ("missing", False)])
def test_only_what_is_missing_keeps_the_demo_from_working(state, expected: bool) -> None:
    report = {"a": [Finding("x", "fine", "")], "b": [Finding("y", state, ""), Finding("z", "fine", "")]}
    assert works(report) is expected


def chatty(number: int) -> dict[str, int]:
    """What a library does as it loads."""
    print("welcome to the library")
    return {"twice": 2 * number}


def refuses() -> None:
    from drivers.errors import UserError

    raise UserError("file x: no such; make one")


def raises() -> None:
    raise ImportError("libx.so: cannot open\nshared object")


def crashes() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def hangs() -> None:
    threading.Event().wait()


def leaves() -> None:
    import os

    os._exit(0)


def test_a_function_apart_answers_whatever_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", __file__.rpartition("/")[0])
    assert ask_apart("test_doctor:chatty", 21) == {"twice": 42}


@pytest.mark.parametrize(
    "function,told",
    [
        ("refuses", "file x: no such; make one"),
        ("raises", "ImportError: libx.so: cannot open shared object"),
        ("crashes", "crashed (SIGSEGV)"),
        ("leaves", "ended without an answer"),
        ("there_is_none", "AttributeError: module 'test_doctor' has no attribute 'there_is_none'"),
    ],
)
def test_a_function_apart_that_fails_is_one_line(function: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", __file__.rpartition("/")[0])
    with pytest.raises(NoAnswer) as failed:
        ask_apart(f"test_doctor:{function}")
    assert str(failed.value) == told


def test_a_function_apart_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", __file__.rpartition("/")[0])
    with pytest.raises(NoAnswer, match=r"^no answer within 0\.2 s$"):
        ask_apart("test_doctor:hangs", timeout_s=0.2)
