"""Installs the package on a board from its own files, into a virtual environment, without root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from drivers.errors import UserError
from edge.deploy.connection import Connection
from edge.deploy.send import check_room, send
from edge.deploy.shipment import Shipment

ROOM_BYTES = 1.5e9
"""The environment takes 0.6 GB (measured on x86_64); pip's cache and building the same again beside it."""


def install(
    connection: Connection, board: dict[str, Any], package: Shipment | None, version: str, log: Path, console: Console
) -> str:
    """Have ``vlar1`` on the board, of the same files as here; what was done, in words.

    Args:
        board: what `edge.deploy.there.look` found.
        package: the package's files; None where there are none here to copy.
        version: of the package here, as ``vlar1 --version`` prints it.
        log: what pip said is written here if it fails.
        console: for progress.

    Raises:
        UserError: the board lacks something, has no room, or pip fails there.
    """
    host, folder, installed = connection.host, board["folder"], board["installed"]
    if package is None:
        if installed is not None and installed["version"] == version:
            return f"{version} is there"
        found = "has no vlar1" if installed is None else f"has {installed['version']}"
        raise UserError(
            f"{host}: {found} in {folder}, and this {version} was not installed from a checkout: its files cannot be "
            "copied; git clone the project, pip install -e . there, and deploy with that"
        )
    if installed is not None and installed["digest"] == package.digest:
        return f"{installed['version']} is there, of the same files"
    if board["lacks"]:
        raise UserError(f"{host}: lacks what installing needs; type there: sudo apt install {' '.join(board['lacks'])}")
    if installed is None:
        check_room(host, folder, ROOM_BYTES, board["free_bytes"])
    send(connection, folder, package, console)
    connection.ask("stamp", folder=folder, digest="")
    lines: list[str] = []
    with console.status("installing") as status:

        def heard(line: str) -> None:
            lines.append(line)
            status.update(f"installing: {escape(line.strip()[:100])}")

        for argv in commands(board, package.place):
            lines.append(f"$ {' '.join(argv)}")
            done = connection.ask("run", argv=argv, folder=f"{folder}/{package.place}", aloud=True, on_line=heard)
            if done["code"]:
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text("\n".join(lines) + "\n", encoding="utf-8")
                raise UserError(f"{host}: installing failed: {_why(lines)}; all that was said is in {log}")
    connection.ask("stamp", folder=folder, digest=package.digest)
    return f"{version} installed in {folder}"


def commands(board: dict[str, Any], source: str) -> list[list[str]]:
    """What is run on the board to install, as deploy/jetson/Dockerfile does."""
    folder = board["folder"]
    pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check", "install"]
    # So that JetPack's TensorRT, which is the system's, is seen.
    steps = [["python3", "-m", "venv", "--system-site-packages", folder], [*pip, "-c", "constraints.txt", ".[serve]"]]
    if board["tensorrt"] and board["cuda_major"]:
        # Of the CUDA that the driver speaks, which the constraint's need not be.
        steps.append([*pip, f"cuda-bindings>=12.6,=={board['cuda_major']}.*"])
    return steps


def _why(lines: list[str]) -> str:
    """The line of pip's that says most."""
    errors = [line.strip() for line in lines if line.lstrip().lower().startswith("error")]
    said = [line.strip() for line in lines if line.strip()]
    return (errors or said)[-1]
