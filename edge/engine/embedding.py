"""The token table: a file of rows, mapped into memory, of which only the pages of looked-up rows are ever read.

Layouts, little-endian, `rows` x `hidden`: 32 and 16 bit are plain floats. 8 bit: all rows' int8, then one float32 scale
a row. 4 bit: all rows' integers, two to a byte, low nibble first, value + 8; then all rows' float16 scales, one for
each `BLOCK_4` values. A value is integer times scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from edge.engine.bundle import EMBEDDING, MANIFEST, Bundle

BLOCK_4 = 32


class TokenTable:
    """Embeddings of tokens, (vocab, hidden), read from the file as they are asked for."""

    def __init__(self, values: NDArray[Any], scales: NDArray[Any] | None, bits: int, hidden: int) -> None:
        self._values, self._scales, self._bits, self._hidden = values, scales, bits, hidden

    def rows(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, hidden) float32 of n token ids.

        Raises:
            IndexError: an id is not in the table.
        """
        index = np.asarray(ids, np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(self._values)):
            raise IndexError(f"token ids from {index.min()} to {index.max()}, the table has {len(self._values)} rows")
        values = np.asarray(self._values[index])
        if self._scales is None:
            return values.astype(np.float32)
        scales = self._scales[index].astype(np.float32)
        if self._bits == 4:
            values = np.stack((values & 15, values >> 4), axis=-1).astype(np.int8) - np.int8(8)
        n_blocks = scales.shape[1]
        blocks = values.reshape(len(index), n_blocks, self._hidden // n_blocks).astype(np.float32) * scales[:, :, None]
        found: NDArray[np.float32] = blocks.reshape(len(index), self._hidden)
        return found


def table_bytes(rows: int, hidden: int, bits: int) -> int:
    """Size of embedding.bin."""
    if bits == 8:
        return rows * (hidden + 4)
    if bits == 4:
        return rows * (hidden // 2 + hidden // BLOCK_4 * 2)
    return rows * hidden * bits // 8


def open_table(bundle: Bundle) -> TokenTable:
    """Map a bundle's token table.

    Raises:
        UserError: the file and the manifest's field embedding do not go together.
    """
    path, bits, rows, hidden = bundle.path / EMBEDDING, bundle.embedding_bits, bundle.vocab, bundle.hidden
    block = {32: bundle.embedding_block, 16: bundle.embedding_block, 8: hidden, 4: BLOCK_4}.get(bits)
    if block != bundle.embedding_block or bundle.manifest["embedding"]["rows"] != rows or hidden % (block or 1):
        field = bundle.manifest["embedding"]
        raise UserError(
            f"bundle {bundle.path / MANIFEST}: field embedding is {field}, expected {rows} rows, bits of 32, 16, 8 "
            f"(block {hidden}) or 4 (block {BLOCK_4}); export the bundle again"
        )
    size, expected = path.stat().st_size, table_bytes(rows, hidden, bits)
    if size != expected:
        raise UserError(f"bundle {path}: has {size} bytes, the manifest says {expected}; export it again")
    if bits in (32, 16):
        values = np.memmap(path, np.dtype("<f4" if bits == 32 else "<f2"), "r", shape=(rows, hidden))
        return TokenTable(values, None, bits, hidden)
    if bits == 8:
        values = np.memmap(path, np.int8, "r", shape=(rows, hidden))
        return TokenTable(values, np.memmap(path, np.dtype("<f4"), "r", rows * hidden, (rows, 1)), bits, hidden)
    values = np.memmap(path, np.uint8, "r", shape=(rows, hidden // 2))
    scales = np.memmap(path, np.dtype("<f2"), "r", rows * hidden // 2, (rows, hidden // BLOCK_4))
    return TokenTable(values, scales, bits, hidden)
