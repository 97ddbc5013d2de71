"""Scenes as tensors: shards in memory, batches of patches in the order Qwen2.5-VL reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from drivers.errors import UserError
from drivers.sim.scene import COLOURS, CONTAINERS, OBJECTS
from edge.preprocess import IMAGE_MEAN, IMAGE_STD
from training.scenes import HEIGHT_PX, TOKEN_PX, WIDTH_PX, Seen, load_shard

PATCH, MERGE = 14, 2
GRID = (HEIGHT_PX // PATCH, WIDTH_PX // PATCH)  # patches
CELLS = (HEIGHT_PX // TOKEN_PX, WIDTH_PX // TOKEN_PX)  # image tokens
N_TOKENS = CELLS[0] * CELLS[1]
COLOUR_NAMES = tuple(COLOURS)
SHAPE_NAMES = (*OBJECTS, *CONTAINERS)


@dataclass(frozen=True)
class Dataset:
    """``rgb`` (n, 168, 224, 3) uint8, ``tokens`` (n, 6, 8) int8, and what each image shows."""

    rgb: NDArray[np.uint8]
    tokens: NDArray[np.int8]
    seen: list[tuple[Seen, ...]]

    def __len__(self) -> int:
        return len(self.seen)


def load_dataset(folder: Path) -> Dataset:
    """All shards under ``folder``. Raises UserError when there are none."""
    paths = sorted(folder.glob("scenes-*.npz"))
    if not paths:
        raise UserError(f"{folder}: no scenes-*.npz here; make them with: vlar1 data sim --out {folder} --count 30000")
    shards = [load_shard(p) for p in paths]
    return Dataset(
        np.concatenate([s[0] for s in shards]),
        np.concatenate([s[1] for s in shards]),
        [seen for s in shards for seen in s[2]],
    )


def to_patches(rgb: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, 168, 224, 3) uint8 -> ``pixel_values`` (b * 192, 1176) float32 and ``image_grid_thw`` (b, 3).

    The same numbers as `edge.preprocess` gives for one image of this size (no resize needed), batched for training.
    """
    b = len(rgb)
    x = torch.from_numpy(rgb).float().div_(255.0)
    x = (x - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    x = x.reshape(b, CELLS[0], MERGE, PATCH, CELLS[1], MERGE, PATCH, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)  # b, cell row, cell column, row in cell, column in cell, channel, y, x
    x = x.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)  # the temporal patch: a still image twice
    return x.reshape(b * GRID[0] * GRID[1], -1), torch.tensor([[1, *GRID]] * b)


@dataclass(frozen=True)
class DenseLabels:
    """What each image token covers. ``covered`` (b, 48) bool; ``colour``, ``shape`` (b, 48) long;
    ``box`` (b, 48, 4): centre x, y, width, height of the covering item, normalized to the image."""

    covered: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    box: torch.Tensor


def dense_labels(tokens: NDArray[np.int8], seen: list[tuple[Seen, ...]]) -> DenseLabels:
    """Labels of a batch, (b, 6, 8) item indices and the items they index."""
    b = len(seen)
    flat = tokens.reshape(b, N_TOKENS).astype(np.int64)
    most = max(len(s) for s in seen)
    colour, shape = np.zeros((b, most), np.int64), np.zeros((b, most), np.int64)
    box = np.zeros((b, most, 4), np.float32)
    for k, items in enumerate(seen):
        for i, s in enumerate(items):
            colour[k, i], shape[k, i] = COLOUR_NAMES.index(s.colour), SHAPE_NAMES.index(s.shape)
            box[k, i] = s.box
    rows, index = np.arange(b)[:, None], np.maximum(flat, 0)
    return DenseLabels(
        torch.from_numpy(flat >= 0),
        torch.from_numpy(colour[rows, index]),
        torch.from_numpy(shape[rows, index]),
        torch.from_numpy(box[rows, index]),
    )


def cell_centres() -> torch.Tensor:
    """(48, 2) normalized centre of each image token."""
    y, x = torch.meshgrid(torch.arange(CELLS[0]), torch.arange(CELLS[1]), indexing="ij")
    return torch.stack([(x + 0.5) / CELLS[1], (y + 0.5) / CELLS[0]], -1).reshape(-1, 2)
