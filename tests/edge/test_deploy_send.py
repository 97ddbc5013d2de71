"""`vlar1 deploy`'s copy: what arrives is what was sent, whatever was there and wherever it was cut."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from drivers.errors import UserError
from edge.deploy.connection import Connection
from edge.deploy.send import AIR_BYTES, check_room, send
from edge.deploy.shipment import Shipment, _item
from edge.deploy.there import Refused
from edge.deploy.there import folder as there
from tests.edge.ssh_board import NAME, Board, running_board

MB = 1_000_000
KEPT = "own/engines"
Tree = dict[str, bytes]


def shipment(folder: Path, tree: Tree) -> Shipment:
    """A shipment of these contents, written to ``folder``."""
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return Shipment("bundle", "bundles/b", tuple(_item(name, folder / name) for name in tree), KEPT)


def tree_of(place: Path) -> Tree:
    found = (path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with running_board(tmp_path_factory.mktemp("ssh")) as board:
        yield board


@pytest.fixture
def board(boards: Board, tmp_path: Path) -> Board:
    """The board, with an empty home."""
    boards.home = tmp_path / "home"
    boards.folder.mkdir(parents=True)
    return boards


def sent(board: Board, what: Shipment) -> int:
    with Connection(NAME) as connection:
        return send(connection, str(board.folder), what, Console(file=io.StringIO()))


OLD = {"manifest": b"1", "weights": os.urandom(MB), "same": b"same" * 1000}
NEW = {"manifest": b"2", "weights": os.urandom(MB), "same": b"same" * 1000, "deep/er": b"", "deep/two": b"two"}


def test_only_what_differs_is_copied_and_what_went_goes(board: Board, tmp_path: Path) -> None:
    place = board.folder / "bundles" / "b"
    first = shipment(tmp_path / "old", {**OLD, "gone": b"gone"})
    assert sent(board, first) == first.bytes and tree_of(place) == {**OLD, "gone": b"gone"}
    assert sent(board, first) == 0
    (place / KEPT).mkdir(parents=True)
    (place / KEPT / "x.engine").write_bytes(b"built there")
    assert sent(board, first) == 0
    second = shipment(tmp_path / "new", NEW)
    assert sent(board, second) == len(NEW["manifest"] + NEW["weights"] + NEW["deep/two"])
    assert tree_of(place) == {**NEW, f"{KEPT}/x.engine": b"built there"}
    assert {path.name for path in place.parent.iterdir()} == {"b", os.readlink(place)}


def test_a_file_that_was_damaged_there_is_copied_again(board: Board, tmp_path: Path) -> None:
    place, what = board.folder / "bundles" / "b", shipment(tmp_path / "old", OLD)
    receive(place, what)
    (place / "weights").write_bytes(b"\0" * MB)
    assert sent(board, what) == MB and tree_of(place) == OLD


def test_a_cut_copy_leaves_the_old_one_and_the_next_goes_on(board: Board, tmp_path: Path) -> None:
    place = board.folder / "bundles" / "b"
    receive(place, shipment(tmp_path / "old", OLD))
    second = shipment(tmp_path / "new", NEW)
    board.cut_at = board.received + MB // 2
    with pytest.raises(UserError, match=f"^{NAME}: the connection was lost.*goes on$"):
        sent(board, second)
    assert tree_of(place) == OLD
    copied = sent(board, second)
    assert 0 < copied < MB * 0.7, "it went on, not from the start"
    assert tree_of(place) == NEW


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_the_old_one(board: Board, tmp_path: Path) -> None:
    place, usual = board.folder / "bundles" / "b", (board.programs / "python3").read_text()
    receive(place, shipment(tmp_path / "old", OLD))
    second = shipment(tmp_path / "new", {**NEW, "weights": os.urandom(8 * MB)})
    # The kernel refuses to write on, here for the file's size.
    board.program(board.programs / "python3", f"ulimit -f 4000\n{usual}")
    try:
        with pytest.raises(UserError, match=f"^{NAME}: .*File too large; make room .* goes on$"):
            sent(board, second)
    finally:
        board.program(board.programs / "python3", usual)
    assert tree_of(place) == OLD
    assert sent(board, second) < second.bytes - MB and tree_of(place)["manifest"] == b"2"


def test_no_room_is_said_before_anything_is_copied(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_room("h", "/d", 1e9, 1e9 + AIR_BYTES)
    with pytest.raises(UserError, match="^h: /d has 1.1 GB free, 1.1 GB are needed; .* give --to on a larger disk$"):
        check_room("h", "/d", 1e9 + 1, 1e9 + AIR_BYTES)
    monkeypatch.setattr("edge.deploy.send.AIR_BYTES", 1e18)
    with pytest.raises(UserError, match=f"^{NAME}: {board.folder} has .* free, 1000000000.0 GB are needed"):
        sent(board, shipment(tmp_path / "old", OLD))
    assert not list((board.folder / "bundles").iterdir())


def test_a_folder_of_somebody_elses_is_not_touched(board: Board, tmp_path: Path) -> None:
    place = board.folder / "bundles" / "b"
    place.mkdir(parents=True)
    (place / "mine").write_text("mine")
    with pytest.raises(UserError, match=f"^{NAME}: {place}: .* did not make this folder; move it away"):
        sent(board, shipment(tmp_path / "new", NEW))
    assert tree_of(place) == {"mine": b"mine"}


NAMES = st.sampled_from(["a", "b", "d/a", "d/e/b", 'it\'s "x" $(y)', "-rf", "ä\n"])
CONTENTS = st.one_of(st.binary(max_size=40), st.sampled_from([b"same", b"other"]))
TREES = st.dictionaries(NAMES, CONTENTS, max_size=5)
SENT = st.tuples(TREES, st.one_of(st.integers(0, 60), st.just(sys.maxsize)))


@settings(max_examples=60, deadline=None)
@given(trees=st.lists(SENT, min_size=1, max_size=5))
# Contents that are here whole and, of a copy that was cut, also in part.
@example(trees=[({"a": b"same"}, sys.maxsize), ({"b": b"same"}, 2), ({"a": b"same", "b": b"other"}, sys.maxsize)])
def test_whatever_was_there_and_wherever_it_is_cut_a_folder_is_whole(
    trees: list[tuple[Tree, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Trees are sent, each cut after so many bytes: the folder is the latest that came to its end, and nothing else."""
    folder = tmp_path_factory.mktemp("there")
    place, now = folder / "bundles" / "b", Tree()
    for i, (tree, cut) in enumerate([*trees, (trees[-1][0], sys.maxsize)]):
        now = tree if receive(place, shipment(folder / str(i), tree), cut) else now
        assert tree_of(place) == now
    assert now == trees[-1][0]


def receive(place: Path, what: Shipment, limit: int = sys.maxsize) -> bool:
    """What the board does of one `send`, whose connection ends after ``limit`` bytes; whether it came to its end."""
    files = [{"name": item.name, "bytes": item.bytes, "sha256": item.sha256} for item in what.items]
    found = there.compare(str(place), files, KEPT)
    if found["current"] and place.exists():
        return True
    missing = [{**file, "have": found["have"][file["name"]]} for file in files]
    wanted = {str(file["sha256"]): file for file in missing if file["have"] < file["bytes"] or not file["bytes"]}
    paths = {item.sha256: item.path for item in what.items}
    stream = b"".join(paths[sha256].read_bytes()[file["have"] :] for sha256, file in wanted.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(there.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stream[:limit])))
        try:
            assert there.receive(str(place), list(wanted.values())) == []
        except Refused:
            return False
    there.settle(str(place), files, KEPT)
    return True


def test_contents_that_came_damaged_are_told_and_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = shipment(tmp_path / "new", {"a": b"right"})
    files = [{"name": "a", "bytes": 5, "sha256": what.items[0].sha256, "have": 0}]
    place = tmp_path / "there" / "b"
    part = place.with_name(".b-incoming") / what.items[0].sha256
    part.parent.mkdir(parents=True)
    part.write_bytes(b"by another copy, after this one had looked")
    for content, damaged in ((b"right", []), (b"wrong", ["a"])):
        monkeypatch.setattr(there.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        assert there.receive(str(place), files) == damaged
    assert there.compare(str(place), files, "")["have"] == {"a": 0} and not part.exists()
