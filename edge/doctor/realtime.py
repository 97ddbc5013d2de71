"""What the servo loop may ask of the kernel, for ``vlar1 doctor``: real-time priority and locked memory.

Both are tried in a process of their own, which then ends: a limit that looks good is not always granted.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge.doctor.apart import NoAnswer, ask_apart
from edge.doctor.findings import Finding, read_text

PRIORITY = 50
"""kRealtimePriority of edge/native/servo_loop.cpp."""
LOCKED_BYTES = 64 << 20
"""Twice an estimate of what the servo process locks: 6 MB shared, libraries, two more threads' stacks of 8 MB."""
RT_RUNTIME = Path("/proc/sys/kernel/sched_rt_runtime_us")
LIMITS_LINE = (
    f'printf \'%s\\n\' "$USER - rtprio {PRIORITY}" "$USER - memlock {LOCKED_BYTES >> 10}" '
    "| sudo tee /etc/security/limits.d/vlar1.conf  # then log in again"
)
SERVICE_LINES = f"in the unit's [Service]:  LimitRTPRIO={PRIORITY}  LimitMEMLOCK={LOCKED_BYTES >> 20}M"


def realtime(
    ask: Callable[..., Any] = ask_apart, environ: Mapping[str, str] = os.environ, runtime: Path = RT_RUNTIME
) -> list[Finding]:
    """Whether a thread gets SCHED_FIFO, and whether memory stays locked; the loop does without, less exactly."""
    names = ("real-time priority", "locked memory")
    try:
        tried = ask("edge.doctor.realtime:try_realtime", PRIORITY, LOCKED_BYTES)
    except NoAnswer as error:
        return [Finding(name, "warning", f"could not be tried: {error}") for name in names]
    # systemd sets INVOCATION_ID for a service; limits.d is for logins.
    type_ = SERVICE_LINES if "INVOCATION_ID" in environ and "TERM" not in environ else LIMITS_LINE
    priority_limit, memory_limit = tried["rtprio_limit"], tried["memlock_limit"]
    limit = _shown(priority_limit)
    if not (refused := tried["priority_errno"]):
        priority = Finding(names[0], "fine", f"SCHED_FIFO {PRIORITY} is granted (RLIMIT_RTPRIO {limit})")
    elif priority_limit == -1 or priority_limit >= PRIORITY:
        told = f"{os.strerror(refused)}, though RLIMIT_RTPRIO is {limit}: perhaps the kernel gives groups shares of it"
        told += f" (sched_rt_runtime_us {read_text(runtime)})"
        priority = Finding(names[0], "warning", told, "sudo sysctl -w kernel.sched_rt_runtime_us=-1")
    else:
        told = f"SCHED_FIFO {PRIORITY} is refused ({os.strerror(refused)}; RLIMIT_RTPRIO {limit})"
        priority = Finding(names[0], "warning", told, type_)
    limit = "unlimited" if memory_limit == -1 else f"{memory_limit / 1e6:.1f} MB"
    size = f"{LOCKED_BYTES / 1e6:.0f} MB"
    if not (refused := tried["memory_errno"]):
        return [priority, Finding(names[1], "fine", f"{size} can be locked (RLIMIT_MEMLOCK {limit})")]
    told = f"{size} cannot be locked ({os.strerror(refused)}; RLIMIT_MEMLOCK {limit})"
    return [priority, Finding(names[1], "warning", told, type_)]


def try_realtime(priority: int, locked_bytes: int) -> dict[str, int]:
    """Ask for SCHED_FIFO, and lock fresh memory: errno of each (0: granted), and the limits (-1: none)."""
    found = {"priority_errno": 0, "memory_errno": 0}
    with mmap.mmap(-1, locked_bytes) as memory:
        libc = ctypes.CDLL(None, use_errno=True)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        if libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(locked_bytes)) < 0:
            found["memory_errno"] = ctypes.get_errno()
        libc.munlock(ctypes.c_void_p(start), ctypes.c_size_t(locked_bytes))
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        found["priority_errno"] = error.errno or 1
    found["rtprio_limit"] = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    found["memlock_limit"] = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return found


def _shown(limit: int) -> str:
    return "unlimited" if limit == -1 else str(limit)
