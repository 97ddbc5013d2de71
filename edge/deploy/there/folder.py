"""Folders on the board: what of one is here already, files received, the whole put in place in one step.

Files are collected as ``.NAME-incoming/SHA256`` and linked into ``.NAME-1`` or ``.NAME-2``, whichever NAME, a symbolic
link, does not point to. Then the link is replaced: NAME is the old folder or the new one, never half of it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from edge.deploy.there import Refused
from edge.engine.hashes import check_sha256, file_sha256

_BLOCK = 1 << 20

File = dict[str, Any]
"""``name`` (relative, with /), ``bytes`` and ``sha256`` of one file."""


def compare(place: str, files: list[File], kept: str) -> dict[str, Any]:
    """Which of the files are here already.

    Args:
        place: the folder they make.
        files: all of it.
        kept: a folder in it that is the board's own, "" for none.

    Returns:
        ``current``: whether the folder is exactly that; ``have``: bytes of each file that need not be sent, by name;
        ``free_bytes``: on that disk.
    """
    folder = Path(place)
    if folder.exists() and not folder.is_symlink():
        raise Refused(f"{folder}: `vlar1 deploy` did not make this folder; move it away, or give another --to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder.parent).free
    whole = {file["name"]: _is(folder / file["name"], file) for file in files}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    mine = {name for name in found if not kept or not name.startswith(f"{kept}/")}
    have = {file["name"]: file["bytes"] if whole[file["name"]] else _received(folder, file) for file in files}
    return {"current": all(whole.values()) and mine == set(whole), "have": have, "free_bytes": free_bytes}


def _is(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file["bytes"] and check_sha256(path, file["sha256"])


def _incoming(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-incoming")


def _part(folder: Path, file: File) -> Path:
    return _incoming(folder) / str(file["sha256"])


def _received(folder: Path, file: File) -> int:
    """Bytes that an earlier copy left; none where they turn out wrong."""
    part = _part(folder, file)
    size = part.stat().st_size if part.is_file() else 0
    if size < file["bytes"]:
        return size
    if size == file["bytes"] and part.is_file() and file_sha256(part) == file["sha256"]:
        return size
    part.unlink(missing_ok=True)
    return 0


def receive(place: str, files: list[File]) -> list[str]:
    """Take files from stdin, one after the other, each from byte ``have`` on; the names of those that came damaged."""
    folder, damaged = Path(place), []
    _incoming(folder).mkdir(exist_ok=True)
    for file in files:
        part, left = _part(folder, file), file["bytes"] - file["have"]
        try:
            with part.open("ab") as out:
                out.truncate(file["have"])
                while left and (block := sys.stdin.buffer.read(min(left, _BLOCK))):
                    out.write(block)
                    left -= len(block)
        except OSError as error:
            raise Refused(f"{part}: {error.strerror}; make room there, then the same command goes on") from None
        if left:
            raise Refused(f"{file['name']}: the copy was cut")
        if _received(folder, file) != file["bytes"]:
            damaged.append(str(file["name"]))
    return damaged


def settle(place: str, files: list[File], kept: str) -> None:
    """Make the folder of what `compare` found whole here and what was received, then swap it in."""
    folder = Path(place)
    old = os.readlink(folder) if folder.is_symlink() else ""
    new = next(folder.with_name(name) for name in (f".{folder.name}-1", f".{folder.name}-2") if name != old)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for file in files:
        here, target = folder / file["name"], new / file["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(here if _is(here, file) else _part(folder, file), target)
    if kept and (folder / kept).is_dir():
        shutil.copytree(folder / kept, new / kept, copy_function=os.link)
    os.sync()  # contents before the name: a power cut leaves the old folder or the whole new one
    link = folder.with_name(f".{folder.name}-link")
    link.unlink(missing_ok=True)
    link.symlink_to(new.name)
    link.replace(folder)
    for past in (_incoming(folder), *([folder.with_name(old)] if old else [])):
        shutil.rmtree(past, ignore_errors=True)
