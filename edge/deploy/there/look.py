"""What a board is, has and lacks, and which install is on it."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from edge.deploy.there import Refused
from edge.doctor.machine import board

STAMP = "installed.json"
_TIMEOUT_S = 60.0  # of `vlar1 --version`, from a slow card


def look(to: str) -> dict[str, Any]:
    """What board it is, what it has and lacks, and what an earlier deploy installed.

    Args:
        to: folder for everything; made where it is missing; relative ones are in the home folder.
    """
    try:
        folder = Path.home() / Path(to).expanduser()
    except RuntimeError:
        raise Refused(f"--to {to}: the board has no such user") from None
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refused(f"--to {folder}: you may not write there; type there: sudo chown $USER {folder}")
    compilers = ("c++", "g++", "clang++")
    has = {
        "g++": any(shutil.which(name) for name in compilers),
        "python3-venv": importlib.util.find_spec("ensurepip") is not None,
        "python3-dev": Path(sysconfig.get_path("include"), "Python.h").is_file(),
    }
    return {
        "folder": str(folder),
        "board": board().told,
        "arch": platform.machine(),
        "python": platform.python_version(),
        "free_bytes": shutil.disk_usage(folder).free,
        "lacks": [name for name, there in has.items() if not there],
        "tensorrt": importlib.util.find_spec("tensorrt") is not None,
        "cuda_major": _cuda_major(),
        "installed": _installed(folder),
    }


def _cuda_major() -> int:
    """Of the CUDA that the driver speaks; 0 without a driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value // 1000


def _installed(folder: Path) -> dict[str, str] | None:
    """The stamp of a finished install whose ``vlar1`` starts."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        vlar1 = [str(folder / "bin" / "vlar1"), "--version"]
        said = subprocess.run(vlar1, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return {"digest": str(stamp.get("digest")), "version": said.stdout.decode(errors="replace").strip()}


def stamp(folder: str, digest: str) -> None:
    """Note that an install finished and from which files; "" as it begins: until the end there is none."""
    path = Path(folder, STAMP)
    if not digest:
        path.unlink(missing_ok=True)
        return
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"digest": digest}), encoding="utf-8")
    part.replace(path)
