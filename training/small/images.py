"""Scenes as tensors: images in memory, batches of patches in the order Qwen2.5-VL reads them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from drivers.errors import UserError
from drivers.sim.scene import COLOURS, CONTAINERS, OBJECTS
from edge.preprocess import IMAGE_MEAN, IMAGE_STD
from training.data.labels import HEIGHT_PX, MIN_VISIBLE_PX, WIDTH_PX, Seen, seen_from_json
from training.data.sharegpt import read_image, read_items

PATCH, MERGE = 14, 2
TOKEN_PX = PATCH * MERGE  # an image token: patches of 14 px merged 2x2
GRID = (HEIGHT_PX // PATCH, WIDTH_PX // PATCH)  # patches
CELLS = (HEIGHT_PX // TOKEN_PX, WIDTH_PX // TOKEN_PX)  # image tokens
N_TOKENS = CELLS[0] * CELLS[1]
COLOUR_NAMES = tuple(COLOURS)
SHAPE_NAMES = (*OBJECTS, *CONTAINERS)


@dataclass(frozen=True)
class Dataset:
    """``rgb`` (n, 168, 224, 3) uint8, ``tokens`` (n, 6, 8) int8: the item in each image token, -1 none; and what each
    image shows."""

    rgb: NDArray[np.uint8]
    tokens: NDArray[np.int8]
    seen: list[tuple[Seen, ...]]

    def __len__(self) -> int:
        return len(self.seen)


def load_dataset(file: Path, log: Callable[[int, int], None] = lambda done, all: None) -> Dataset:
    """The images, masks and names of a file of ``vlar1 data sim``.

    Args:
        log: told how many images are read, and of how many.

    Raises:
        UserError: no such file, an image that cannot be read, or items without ``mask`` and ``seen``.
    """
    items, bad = read_items(file)
    if bad or not items:
        reason = bad[0].reason if bad else "holds no items"
        raise UserError(f"{file}: {reason}; make it with vlar1 data sim --split train")
    rgb = np.empty((len(items), HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    tokens = np.empty((len(items), *CELLS), np.int8)
    seen = []

    def load(k: int) -> tuple[Seen, ...]:
        image = read_image(file.parent / items[k].image)
        try:
            mask = read_image(file.parent / items[k].more["mask"])[:, :, 0]
            found = seen_from_json(items[k].more["seen"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{file}: item {k} lacks mask or seen; make it with vlar1 data sim") from None
        if image.shape != rgb.shape[1:] or mask.shape != image.shape[:2]:
            raise UserError(f"{file}: the image of item {k} is not {WIDTH_PX}x{HEIGHT_PX}; make it with vlar1 data sim")
        rgb[k], tokens[k] = image, tokens_of(mask, len(found))
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for one in pool.map(load, range(len(items))):
            seen.append(one)
            if len(seen) % 100 == 0 or len(seen) == len(items):
                log(len(seen), len(items))
    return Dataset(rgb, tokens, seen)


def tokens_of(mask: NDArray[np.uint8], n_items: int) -> NDArray[np.int8]:
    """(168, 224) item indices -> (6, 8) the item that covers most of each image token, -1 where none covers enough."""
    cells = mask.reshape(CELLS[0], TOKEN_PX, CELLS[1], TOKEN_PX).swapaxes(1, 2).reshape(*CELLS, -1)
    counts = (cells[..., None] == np.arange(n_items)).sum(-2)
    return np.where(counts.max(-1) >= MIN_VISIBLE_PX, counts.argmax(-1), -1).astype(np.int8)


def to_patches(rgb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, 168, 224, 3) uint8 -> ``pixel_values`` (b * 192, 1176) float32 there and ``image_grid_thw`` (b, 3).

    The same numbers as `edge.preprocess` gives for one image of this size (no resize needed), batched for training.
    """
    b = len(rgb)
    x = rgb.float().div_(255.0)
    x = (x - torch.tensor(IMAGE_MEAN, device=x.device)) / torch.tensor(IMAGE_STD, device=x.device)
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

    def to(self, device: torch.device) -> DenseLabels:
        """The same labels on ``device``."""
        return DenseLabels(*(getattr(self, field.name).to(device) for field in fields(self)))


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
