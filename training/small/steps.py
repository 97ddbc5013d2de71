"""Batches of the small model, made ahead: each is a function of its step alone, so a resumed run sees the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Made = TypeVar("Made")


class _Steps(Dataset[Made], Generic[Made]):
    def __init__(self, make: Callable[[int], Made]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> Made:
        return self._make(step)


def device() -> torch.device:
    """Where the small model is trained: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ahead(make: Callable[[int], Made], start: int, steps: int) -> Iterator[Made]:
    """``make(start)``, …, ``make(steps - 1)``; beside a GPU by worker processes, ahead of time.

    On a CPU the processes would only take turns with the training itself.
    """
    workers = min(16, os.cpu_count() or 1) if device().type == "cuda" else 0
    loader: DataLoader[Made] = DataLoader(
        _Steps(make),
        batch_size=None,
        sampler=range(start, steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)
