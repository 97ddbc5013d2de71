"""Real-time priority and locked memory: granted, refused by a limit, refused although the limit allows."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge.doctor.apart import NoAnswer
from edge.doctor.realtime import LIMITS_LINE, LOCKED_BYTES, PRIORITY, SERVICE_LINES, realtime

GRANTED = {"priority_errno": 0, "memory_errno": 0, "rtprio_limit": 60, "memlock_limit": -1}
REFUSED = {
    "priority_errno": errno.EPERM,
    "memory_errno": errno.ENOMEM,
    "rtprio_limit": 0,
    "memlock_limit": 8 << 20,
}
LOGIN, SERVICE = {"TERM": "xterm"}, {"INVOCATION_ID": "5c1b"}


def test_granted() -> None:
    assert [finding.state for finding in realtime(lambda *_: GRANTED, LOGIN)] == ["fine", "fine"]


@pytest.mark.parametrize("environ,type_", [(LOGIN, LIMITS_LINE), (SERVICE, SERVICE_LINES)])
def test_refused_by_a_limit_that_a_login_and_a_service_raise_differently(environ: dict[str, str], type_: str) -> None:
    priority, memory = realtime(lambda *_: REFUSED, environ)
    assert (priority.state, priority.to_type, memory.state, memory.to_type) == ("warning", type_, "warning", type_)
    assert "RLIMIT_RTPRIO 0" in priority.told and "RLIMIT_MEMLOCK 8.4 MB" in memory.told


def test_refused_though_the_limit_allows(tmp_path: Path) -> None:
    runtime = tmp_path / "sched_rt_runtime_us"
    runtime.write_text("950000\n")
    priority, _ = realtime(lambda *_: {**REFUSED, "rtprio_limit": 99}, LOGIN, runtime)
    assert priority.to_type == "sudo sysctl -w kernel.sched_rt_runtime_us=-1"
    assert "sched_rt_runtime_us 950000" in priority.told


def test_a_try_that_crashes_is_told() -> None:
    def ask(*_: object) -> dict[str, int]:
        raise NoAnswer("crashed (SIGSYS)")

    assert {finding.told for finding in realtime(ask, LOGIN)} == {"could not be tried: crashed (SIGSYS)"}


def test_the_limits_line_gives_what_the_servo_process_asks_for() -> None:
    """The line, run by a shell with `cat` in place of sudo, names exactly the two limits."""
    line = LIMITS_LINE.replace("sudo tee /etc/security/limits.d/vlar1.conf", "cat")
    written = subprocess.run(["bash", "-c", line], env={"USER": "me"}, capture_output=True, text=True, check=True)
    assert written.stdout == f"me - rtprio {PRIORITY}\nme - memlock {LOCKED_BYTES // 1024}\n"
    source = Path(__file__).resolve().parents[2] / "edge" / "native" / "servo_loop.cpp"
    assert f"kRealtimePriority = {PRIORITY};" in source.read_text()


def test_the_real_try_agrees_with_a_limit_of_zero() -> None:
    """In a process that gave up its privileges and its limits, both are refused."""
    code = (
        "import json, os, resource\n"
        "from edge.doctor.realtime import try_realtime\n"
        "for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_MEMLOCK): resource.setrlimit(limit, (0, 0))\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        f"print(json.dumps(try_realtime({PRIORITY}, 1 << 20)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["priority_errno"] == errno.EPERM and found["memory_errno"] in (errno.EPERM, errno.ENOMEM)
    assert (found["rtprio_limit"], found["memlock_limit"]) == (0, 0)
