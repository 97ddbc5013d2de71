"""Multimodal rotary positions: where each token sits in time, height and width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.engine.bundle import Rope


def mrope_positions(ids: Sequence[int], image_token: int, grid: tuple[int, int]) -> NDArray[np.int64]:
    """Positions of a prompt of text and still images (section 2.1 of arXiv:2409.12191).

    Text counts on in all three rows; an image keeps one time, and its rows and columns count from the image's start;
    what follows goes on after the largest position so far.

    Args:
        ids: token ids; each image is one run of `image_token`, as long as `grid` has cells.
        image_token: id of the image placeholder.
        grid: rows and columns of image tokens.

    Returns:
        (3, n) int64: time, height, width.

    Raises:
        ValueError: a run of image placeholders is cut short.
    """
    rows, cols = grid
    row, col = np.indices(grid).reshape(2, -1)
    image = np.stack((np.zeros_like(row), row, col))
    positions = np.empty((3, len(ids)), np.int64)
    i = following = 0
    while i < len(ids):
        if ids[i] != image_token:
            positions[:, i] = following
            i, following = i + 1, following + 1
            continue
        end = i + rows * cols
        if end > len(ids) or any(token != image_token for token in ids[i:end]):
            raise ValueError(f"an image is {rows * cols} placeholders in a row; the run at token {i} is shorter")
        positions[:, i:end] = following + image
        i, following = end, following + max(rows, cols)
    return positions


def rotary(positions: NDArray[np.int64], rope: Rope) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine, (n, head_dim / 2) each, of positions (3, n); pairs turn with time, then rows, then columns."""
    section = np.repeat(np.arange(3), rope.sections)
    angles = positions.T[:, section].astype(np.float32) * rope.inv_freq
    scaling = np.float32(rope.scaling)
    return np.cos(angles) * scaling, np.sin(angles) * scaling
