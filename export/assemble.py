"""Graphs put together part by part: each part's weights go to a data file as it is made, and what is made stays made.

A work folder holds ``bundle/`` with the data files as they grow, and ``parts/``: one small ONNX file a finished part,
whose weights are references into the data file. A run that finds parts of an interrupted one goes on after the last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export.graphs import join

# Tensors below this stay in the graph.
_DATA_FROM_BYTES = 1024
# ONNX Runtime maps the file; weights begin at cache lines, large ones at pages.
_LINE, _PAGE = 64, 4096
INLINE_BELOW_BYTES = 100_000_000
_STATE = "vlar1"


@dataclass
class _DataFile:
    """Weights one after another, equal ones once."""

    path: Path
    end: int = 0
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, pieces: Sequence[NDArray[Any]], axis: int, dims: Sequence[int]) -> tuple[str, int, int]:
        """Digest, offset and length of the `pieces` side by side along `axis` (shape `dims`); appended if new."""
        digest = hashlib.sha256(str((axis, tuple(dims), pieces[0].dtype.str)).encode())
        for piece in pieces:
            digest.update(np.ascontiguousarray(piece).data)
        name, length = digest.hexdigest(), sum(piece.nbytes for piece in pieces)
        if name not in self.places:
            align = _PAGE if length >= _PAGE else _LINE
            offset = -(-self.end // align) * align
            with self.path.open("r+b" if self.path.exists() else "w+b") as file:
                # A write to mapped pages for which there is no room on the disk would kill the process.
                os.posix_fallocate(file.fileno(), offset, length)
                whole = np.memmap(file, pieces[0].dtype, "r+", offset, tuple(dims))
                start = 0
                for piece in pieces:
                    stop = start + piece.shape[axis]
                    whole[(slice(None),) * axis + (slice(start, stop),)] = piece
                    start = stop
                whole.flush()
            self.places[name] = (offset, length)
            self.end = offset + length
        return (name, *self.places[name])


class Assembly:
    """The graphs of one bundle in the making, in a work folder of their own."""

    def __init__(self, work: Path) -> None:
        """Begin, or go on with what `work` holds."""
        self.folder, self._parts = work / "bundle", work / "parts"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._parts.mkdir(exist_ok=True)
        self._graphs: dict[str, list[Path]] = {}
        self._data: dict[str, _DataFile] = {}
        self._readers: dict[str, set[str]] = {}
        self._n_parts = 0

    def add(self, graph: str, data: str, make: Callable[[], Sequence[onnx.ModelProto]]) -> None:
        """Make the next part of a graph, unless an earlier run did. Parts come in the same order in every run.

        Args:
            graph: the graph's file name.
            data: of the file that its weights go to; several graphs may share one.
            make: the part with its weights inside, quantized; called only where it is needed. Several of them are
                those of consecutive slices of the vocabulary, and become one.
        """
        path = self._parts / f"{self._n_parts:05d}-{graph}"
        file = self._data.setdefault(data, _DataFile(self.folder / data))
        if not (path.exists() and _recall(file, onnx.load(path, load_external_data=False))):
            model = _move_weights(make(), file)
            if file.path.exists():
                # The weights must be on disk before the part that says so; what an interrupted run wrote beyond goes.
                with file.path.open("r+b") as opened:
                    opened.truncate(file.end)
                    os.fsync(opened.fileno())
            part = path.with_suffix(".part")
            with part.open("wb") as opened:
                opened.write(model.SerializeToString())
                os.fsync(opened.fileno())
            part.replace(path)
        self._graphs.setdefault(graph, []).append(path)
        self._readers.setdefault(data, set()).add(graph)
        self._n_parts += 1

    def finish(self, ends: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> None:
        """Join the parts of each graph and write it. Small data files that one graph alone reads go into it.

        Args:
            ends: names of a graph's inputs and outputs, by the graph.
        """
        inlined = set()
        for data, readers in self._readers.items():
            path = self.folder / data
            if path.exists() and len(readers) == 1 and path.stat().st_size < INLINE_BELOW_BYTES:
                inlined.add(path)
        for graph, parts in self._graphs.items():
            loaded = [_without_state(onnx.load(part, load_external_data=False)) for part in parts]
            model = join(loaded, *ends[graph])
            model.producer_name = "vlar1-edge"
            places = {self.folder / _external(t)["location"] for t in model.graph.initializer if t.external_data}
            if places <= inlined:
                onnx.load_external_data_for_model(model, str(self.folder))
            (self.folder / graph).write_bytes(model.SerializeToString())
        for data in [data for data in self._readers if self.folder / data in inlined]:
            # Whoever goes on with this folder makes these parts again.
            for part in (part for graph in self._readers[data] for part in self._graphs[graph]):
                part.unlink()
            (self.folder / data).unlink()


def _move_weights(models: Sequence[onnx.ModelProto], file: _DataFile) -> onnx.ModelProto:
    """The first of `models` with references into the file for weights: those of all models, column after column.

    Several models are the head for consecutive slices of the vocabulary, graphs of the same nodes. ``MatMulNBits``
    holds a matrix column by column along its first axis, all others along their last.
    """
    whole = models[0]
    n_bits = [node for node in whole.graph.node if node.op_type == "MatMulNBits"]
    by_rows = {name for node in n_bits for name in node.input}
    for position, tensor in enumerate(whole.graph.initializer):
        pieces = [numpy_helper.to_array(model.graph.initializer[position]) for model in models]
        if pieces[0].ndim == 0 or (len(models) == 1 and pieces[0].nbytes < _DATA_FROM_BYTES):
            continue
        axis = 0 if tensor.name in by_rows else pieces[0].ndim - 1
        dims = list(pieces[0].shape)
        dims[axis] = sum(piece.shape[axis] for piece in pieces)
        digest, offset, length = file.add(pieces, axis, dims)
        moved = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=dims, data_location=TensorProto.EXTERNAL)
        entries: dict[str, Any] = {"location": file.path.name, "offset": offset, "length": length, _STATE: digest}
        for key, value in entries.items():
            moved.external_data.add(key=key, value=str(value))
        tensor.CopyFrom(moved)
        for model in models:
            model.graph.initializer[position].ClearField("raw_data")
    if len(models) > 1:
        columns = [model.graph.output[0].type.tensor_type.shape.dim[-1] for model in models]
        columns[0].dim_value = sum(column.dim_value for column in columns)
        for attribute in (attribute for node in n_bits for attribute in node.attribute if attribute.name == "N"):
            attribute.i = columns[0].dim_value
    state = json.dumps({"end": file.end})
    whole.metadata_props.append(onnx.StringStringEntryProto(key=_STATE, value=state))
    return whole


def _without_state(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        for entry in [entry for entry in tensor.external_data if entry.key == _STATE]:
            tensor.external_data.remove(entry)
    return model


def _recall(file: _DataFile, model: onnx.ModelProto) -> bool:
    """Take over what an earlier run wrote of a part; whether its weights are in the file."""
    end = json.loads(next(prop.value for prop in model.metadata_props if prop.key == _STATE))["end"]
    if end > (file.path.stat().st_size if file.path.exists() else 0):
        return False
    for tensor in model.graph.initializer:
        if tensor.external_data:
            entries = _external(tensor)
            file.places[entries[_STATE]] = (int(entries["offset"]), int(entries["length"]))
    file.end = end
    return True


def _external(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
