"""Image files of the server's own disk: those of the one folder that was allowed, and no others."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_allowed(folder: Path, path: str, max_bytes: int) -> bytes | None:
    """The content of a file in `folder`, or None.

    None says nothing about the disk: it stands for what is not there, lies outside, is no file, is too large or cannot
    be read alike.

    Args:
        folder: symbolic links that lead out of it lead nowhere.
        path: relative to the folder, or absolute.
        max_bytes: larger files are not read.
    """
    try:
        root = folder.resolve(strict=True)
        found = (root / path).resolve(strict=True)
        if not found.is_relative_to(root):
            return None
        # Not through a link put there meanwhile, and not waiting for whoever writes to a pipe.
        descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
                return None
            return file.read(max_bytes)
    except (OSError, ValueError, RuntimeError):  # a null byte; a loop of links
        return None
