"""Sends a shipment to a board: only what differs there, from the byte on where an earlier copy stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from drivers.errors import UserError
from edge.deploy.connection import Connection
from edge.deploy.shipment import Item, Shipment

AIR_BYTES = 100e6
"""What stays free on the board's disk after a copy."""
_TRIES = 2
_BLOCK = 1 << 18


def send(connection: Connection, folder: str, shipment: Shipment, console: Console) -> int:
    """Make ``folder/shipment.place`` on the board what the shipment is; the bytes that were copied.

    Until all of it is there and has the right hashes, the board keeps what it had; the new folder then takes its place
    in one step.

    Args:
        folder: the deploy's, on the board.
        console: for progress.

    Raises:
        UserError: no room, the connection was lost, or contents come damaged.
    """
    place = f"{folder}/{shipment.place}"
    files = [{"name": item.name, "bytes": item.bytes, "sha256": item.sha256} for item in shipment.items]
    copied = 0
    for _ in range(_TRIES):
        here = connection.ask("compare", place=place, files=files, kept=shipment.kept)
        if here["current"]:
            return copied
        missing = [item for item in shipment.items if here["have"][item.name] < item.bytes or not item.bytes]
        unique = list({item.sha256: item for item in missing}.values())  # equal files go once
        left = sum(item.bytes - here["have"][item.name] for item in unique)
        check_room(connection.host, folder, left, here["free_bytes"])
        damaged = _send(connection, place, unique, here["have"], left, shipment, console) if unique else []
        copied += left
        if not damaged:
            connection.ask("settle", place=place, files=files, kept=shipment.kept)
            return copied
    raise UserError(f"{connection.host}: {damaged[0]} came damaged {_TRIES} times; check the board's disk: sudo dmesg")


def check_room(host: str, folder: str, need_bytes: float, free_bytes: float) -> None:
    """Raises UserError where the board's disk has no room for so much."""
    if need_bytes + AIR_BYTES > free_bytes:
        raise UserError(
            f"{host}: {folder} has {free_bytes / 1e9:.1f} GB free, {(need_bytes + AIR_BYTES) / 1e9:.1f} GB are needed; "
            "free some there, or give --to on a larger disk"
        )


def _send(
    connection: Connection,
    place: str,
    items: Sequence[Item],
    have: dict[str, int],
    left: int,
    shipment: Shipment,
    console: Console,
) -> Any:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    files = [{"name": item.name, "bytes": item.bytes, "sha256": item.sha256, "have": have[item.name]} for item in items]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(shipment.place, total=left)

        def contents() -> Iterator[bytes]:
            for item in items:
                with item.path.open("rb") as file:
                    file.seek(have[item.name])
                    todo = item.bytes - have[item.name]
                    while todo:
                        block = file.read(min(todo, _BLOCK))
                        if not block:
                            raise UserError(f"{item.path}: became shorter while it was copied; try again")
                        yield block
                        todo -= len(block)
                        progress.advance(task, len(block))

        return connection.ask("receive", contents=contents(), place=place, files=files)
