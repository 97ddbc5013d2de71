"""Which machine a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import cv2
import numpy as np


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
