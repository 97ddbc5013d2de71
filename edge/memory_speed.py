"""How fast memory is read at this moment, and how much of it there is: what decoding cannot be faster than."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_READ_BYTES = 1_200_000_000  # many times any cache
_PASSES = 5


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_bandwidth(threads: int) -> float:
    """Bytes a second at which `threads` threads read memory now: the best of a few passes over 1.2 GB.

    Where less than four times as much memory is free, over a quarter of what is. Every thread takes the largest value
    of its own stretch, one vector comparison a load and nothing written, so it waits for memory alone. What a decoding
    step can reach at best: its weights are read once, in order. Other processes' traffic counts against it, as it does
    for a decoding step.
    """
    free_bytes = memory_bytes("MemAvailable")
    n_bytes = _READ_BYTES if free_bytes is None else min(_READ_BYTES, free_bytes // 4)
    values = np.zeros(n_bytes // 4, np.int32)
    values[::1024] = 1  # every page is written, or all of them would be one page of zeros
    stretches = np.array_split(values, threads)
    best_s = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_PASSES):
            start_s = time.perf_counter()
            list(pool.map(np.max, stretches))
            best_s = min(best_s, time.perf_counter() - start_s)
    return values.nbytes / best_s


def memory_bytes(field: str, file: Path = Path("/proc/meminfo")) -> int | None:
    """A figure of ``/proc/meminfo``, or of ``/proc/self/status``, such as VmHWM; None where the system tells none."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    values = (line.partition(":")[2].split() for line in lines if line.startswith(f"{field}:"))
    return next((int(value[0]) * 1024 for value in values if value), None)


def peak_bytes() -> int | None:
    """The most memory that this process had resident so far; None where the system does not tell."""
    return memory_bytes("VmHWM", Path("/proc/self/status"))


def cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """The processor's largest cache; None where the system does not tell."""
    sizes = []
    for file in root.glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        digits = text.rstrip("KM")
        if digits.isdigit():
            sizes.append(int(digits) * unit)
    return max(sizes, default=None)
