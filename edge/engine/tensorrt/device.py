"""What the engine asks of the machine that runs it: memory, copies, and graphs that run on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Buffer(Protocol):
    """Memory on the device. Its shape says how much there is; runs may use less, from the start on."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


class Program(Protocol):
    """One graph of the bundle, ready to run, its inputs and outputs bound to buffers."""

    def run(self, shapes: Mapping[str, Sequence[int]], profile: int, repeated: bool) -> None:
        """Compute.

        Args:
            shapes: of the inputs this time, those of open size; they fill the start of their buffers, as do outputs.
            profile: the optimization profile that these shapes are in.
            repeated: these shapes will come again and again: the device may record the run and replay it.
        """
        ...


class Device(Protocol):
    """Does things in the order they are asked for; only `read` waits for them to be done."""

    def zeros(self, shape: Sequence[int], dtype: Any) -> Buffer: ...

    def rows(self, buffer: Buffer, first: int, stop: int) -> Buffer:
        """Part of a buffer along its first axis; the same memory."""
        ...

    def write(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """From the host to the start of `buffer`."""
        ...

    def read(self, buffer: Buffer, shape: Sequence[int]) -> NDArray[Any]:
        """An array of its own, from the start of `buffer`."""
        ...

    def copy_rows(self, target: Buffer, at: int, source: Buffer, first: int, stop: int) -> None:
        """target[at : at + stop - first] = source[first : stop]."""
        ...

    def insert(self, cache: Buffer, at: int, new: Buffer, n: int, pitch: int) -> None:
        """cache[:, at : at + n] = new[:, :n], where `new` is (len(cache), pitch, …) from its buffer's start on."""
        ...

    def load(self, graph: str, buffers: Mapping[str, Buffer]) -> Program:
        """A graph by its file name, with a buffer for each input and output.

        Raises:
            UserError: it cannot be loaded here.
        """
        ...
