"""Which machine a figure was measured on, and how fast its memory was at that moment."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from drivers.errors import UserError

_READ_BYTES = 1_200_000_000  # many times any cache
_PASSES = 5


def machine() -> dict[str, object]:
    """CPU, cores, system, load and versions, for the figures' file."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    versions = {"python": platform.python_version(), "numpy": np.__version__, "opencv": cv2.__version__}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_1min": os.getloadavg()[0],
        **versions,
    }


def console() -> Console:
    """As wide as the terminal; in a file or a pipe wide enough that no name in a table is cut."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def exit_code(main: Callable[[], int | None]) -> int:
    """Run a benchmark: 2 after one line on stderr where its user can mend what stopped it, else its own or 0."""
    try:
        return main() or 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def read_bandwidth(threads: int) -> float:
    """Bytes a second at which `threads` threads read memory now: the best of a few passes over 1.2 GB.

    Every thread takes the largest value of its own stretch, one vector comparison a load and nothing written, so it
    waits for memory alone. What a decoding step can reach at best: its weights are read once, in order. Other
    processes' traffic counts against it, as it does for a decoding step.
    """
    values = np.zeros(_READ_BYTES // 4, np.int32)
    values[::1024] = 1  # every page is written, or all of them would be one page of zeros
    stretches = np.array_split(values, threads)
    best_s = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_PASSES):
            start_s = time.perf_counter()
            list(pool.map(np.max, stretches))
            best_s = min(best_s, time.perf_counter() - start_s)
    return values.nbytes / best_s
