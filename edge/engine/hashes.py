"""Is a file what the manifest says? Small files are read at every start, large ones once.

Reading gigabytes for their hash would cost a robot ten seconds a start. So the hash of a file of `ALWAYS_BELOW_BYTES`
or more is computed the first time the file is seen, and remembered in the user's cache folder under its device, inode,
size and time of change; a file that is copied anew, or written to, is read again. `vlar1 export` loads what it wrote
and so remembers it. What this does not notice is a disk that changes bits of a file that nobody wrote to.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

ALWAYS_BELOW_BYTES = 64_000_000
_REMEMBERED = 256


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    # Python 3.10 has no hashlib.file_digest.
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str) -> bool:
    """Whether a file has the hash `expected`; a large one that had it before, unchanged since, is believed."""
    stat = path.stat()
    if stat.st_size < ALWAYS_BELOW_BYTES:
        return file_sha256(path) == expected
    # Renaming the bundle keeps all of these; a copy or a write does not.
    key = f"{stat.st_dev}-{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"
    known = _read_cache()
    if known.get(key) == expected:
        return True
    good = file_sha256(path) == expected
    if good:
        _write_cache({**known, key: expected})
    return good


def _cache_path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlar1" / "file_hashes.json"


def _read_cache() -> dict[str, str]:
    try:
        known = json.loads(_cache_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # no home folder
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(known: dict[str, str]) -> None:
    """Keep the newest entries; where the folder cannot be written, the next start computes the hash again."""
    newest = dict(list(known.items())[-_REMEMBERED:])
    try:
        path = _cache_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(json.dumps(newest), encoding="utf-8")
        part.replace(path)
    except (OSError, RuntimeError):
        return
