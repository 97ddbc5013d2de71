"""The token table is read row by row; a bundle's large files are hashed once, and again when they change."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.errors import UserError
from edge.engine import hashes
from edge.engine.bundle import EMBEDDING, LANGUAGE, MANIFEST, load_bundle
from edge.engine.embedding import open_table, table_bytes


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def _edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def _put_table(folder: Path, content: bytes, bits: int, block: int) -> None:
    """Another embedding.bin, and a manifest that goes with it."""
    (folder / EMBEDDING).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    entry = {"sha256": hashes.file_sha256(folder / EMBEDDING), "bytes": len(content)}
    rows = manifest["model"]["vocab"]
    _edit(folder, files=manifest["files"] | {EMBEDDING: entry}, embedding={"rows": rows, "bits": bits, "block": block})


def _written_by_hand(bits: int, rows: int, hidden: int, seed: int) -> tuple[bytes, np.ndarray, int]:
    """A table as the format's words say, value by value: its bytes, its values, its block."""
    rng = np.random.default_rng(seed)
    if bits in (32, 16):
        table = rng.normal(size=(rows, hidden)).astype("<f4" if bits == 32 else "<f2")
        return table.tobytes(), table.astype(np.float32), hidden
    block = hidden if bits == 8 else 32
    integers = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, hidden))
    scales = rng.normal(size=(rows, hidden // block)).astype("<f4" if bits == 8 else "<f2")
    table = np.array(
        [[integers[i, j] * np.float32(scales[i, j // block]) for j in range(hidden)] for i in range(rows)], np.float32
    )
    if bits == 8:
        return integers.astype(np.int8).tobytes() + scales.tobytes(), table, block
    flat = integers.ravel() + 8
    return (
        bytes(int(a) | int(b) << 4 for a, b in zip(flat[::2], flat[1::2], strict=True)) + scales.tobytes(),
        table,
        block,
    )


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_rows_are_those_written(folder: Path, bits: int) -> None:
    model = load_bundle(folder)
    content, table, block = _written_by_hand(bits, model.vocab, model.hidden, bits)
    assert len(content) == table_bytes(model.vocab, model.hidden, bits)
    _put_table(folder, content, bits, block)
    opened = open_table(load_bundle(folder))

    @settings(max_examples=30, deadline=None)
    @given(ids=st.lists(st.integers(0, model.vocab - 1), max_size=8))
    def check(ids: list[int]) -> None:
        found = opened.rows(ids)
        assert found.dtype == np.float32 and found.shape == (len(ids), model.hidden)
        np.testing.assert_array_equal(found, table[ids] if ids else np.zeros((0, model.hidden)))

    check()
    for wrong in (-1, model.vocab):
        with pytest.raises(IndexError, match="token ids"):
            opened.rows([0, wrong])


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"rows": 1, "bits": 32, "block": 64}, "field embedding"),
        ({"bits": 5, "block": 64}, "field embedding"),
        ({"bits": 4, "block": 64}, "field embedding"),
        ({"bits": 16, "block": 64}, "the manifest says"),
    ],
)
def test_a_table_of_another_layout_is_refused_in_one_line(folder: Path, field: dict[str, int], says: str) -> None:
    rows = json.loads((folder / MANIFEST).read_text())["model"]["vocab"]
    _edit(folder, embedding={"rows": rows} | field)
    with pytest.raises(UserError, match=says) as raised:
        open_table(load_bundle(folder))
    assert "\n" not in str(raised.value)


def test_a_bundle_must_have_the_graphs_of_its_engines(folder: Path) -> None:
    _edit(folder, engines=["onnx", "tensorrt"])
    with pytest.raises(UserError, match="lacks tensorrt/language.onnx"):
        load_bundle(folder)
    _edit(folder, engines=["abacus"])
    with pytest.raises(UserError, match="field engines holds 'abacus'"):
        load_bundle(folder)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, and an empty cache folder."""
    monkeypatch.setattr(hashes, "ALWAYS_BELOW_BYTES", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "large.data"
    path.write_bytes(b"weights")
    return path


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    honest = hashes.file_sha256
    monkeypatch.setattr(hashes, "file_sha256", lambda path: (read.append(path), honest(path))[1])
    return read


def test_a_large_file_is_hashed_once_and_again_when_it_changes(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hashes.file_sha256(large)
    read = _counted(monkeypatch)
    assert all(hashes.check_sha256(large, expected) for _ in range(3))
    assert len(read) == 1
    assert not hashes.check_sha256(large, "0" * 64)  # what is remembered is one hash, not a yes
    stat = large.stat()
    large.write_bytes(b"WEIGHTS")
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size and time of change
    assert not hashes.check_sha256(large, expected)


def test_a_small_file_is_hashed_every_time(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "ALWAYS_BELOW_BYTES", 100)
    expected = hashes.file_sha256(large)
    read = _counted(monkeypatch)
    assert all(hashes.check_sha256(large, expected) for _ in range(3))
    assert len(read) == 3


@pytest.mark.parametrize("content", [None, "{", "[]", '{"x": 1}'])
def test_no_cache_is_no_trouble(large: Path, tmp_path: Path, content: str | None) -> None:
    cache = tmp_path / "cache"
    if content is None:
        cache.write_text("a file where the folder should be")
    else:
        (cache / "vlar1").mkdir(parents=True)
        (cache / "vlar1" / "file_hashes.json").write_text(content)
    expected = hashes.file_sha256(large)
    assert all(hashes.check_sha256(large, expected) for _ in range(2))


def test_a_damaged_large_file_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "ALWAYS_BELOW_BYTES", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_bundle(folder)
    content = bytearray((folder / LANGUAGE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / LANGUAGE).write_bytes(content)
    with pytest.raises(UserError, match="language.onnx: is damaged: its SHA-256"):
        load_bundle(folder)
