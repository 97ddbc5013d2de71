"""Writing an ONNX graph node by node, its weights going to a file as they come: no more than one of them in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 21  # the first with 4-bit tensors and DequantizeLinear in blocks
IR_VERSION = 10
_ALIGNMENT = 64
_CHUNK_ROWS = 8192
INT4_BLOCKS = (128, 64)  # what TensorRT documents for 4-bit weights


class WeightFile:
    """The weights of one or more graphs, one after another in one file; the same name is stored once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._stored: dict[str, TensorProto] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def get(self, name: str) -> TensorProto | None:
        """What was stored under `name`, if anything."""
        return self._stored.get(name)

    def add(self, name: str, data_type: int, dims: Sequence[int], array: NDArray[Any]) -> TensorProto:
        """Append a tensor's bytes; the reference to them that a graph holds."""
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        array = np.ascontiguousarray(array)
        self._file.write(array.data)
        tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._path.name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._stored[name] = tensor
        return tensor


class GraphWriter:
    """One graph in the making. Methods take and return names of tensors.

    Args:
        weights: where its matrices go.
        float16: matrices, their products and what lies between them are float16; else float32.
    """

    def __init__(self, weights: WeightFile, float16: bool) -> None:
        self._weights = weights
        self.float16 = float16
        self.dtype: type[np.floating[Any]] = np.float16 if float16 else np.float32
        self.scope = ""
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}
        self._constants: dict[tuple[Any, ...], str] = {}

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.nodes(kind, *inputs, outputs=1, **attributes)[0]

    def nodes(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        name = f"{self.scope}{kind}_{len(self._nodes)}"
        names = [f"{name}:{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A small tensor within the graph, equal ones once; floats are of the graph's type unless `dtype` says else."""
        array = np.asarray(value)
        array = array.astype(dtype or (self.dtype if array.dtype.kind == "f" else np.int64))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"constant_{len(self._constants)}"
            self._tensors[name] = numpy_helper.from_array(array, name)
        return self._constants[key]

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", x, self.constant(shape))

    def transpose(self, x: str, *axes: int) -> str:
        return self.node("Transpose", x, perm=axes)

    def to_half(self, x: str) -> str:
        """float32 to the graph's type."""
        return self.node("Cast", x, to=TensorProto.FLOAT16) if self.float16 else x

    def to_float(self, x: str) -> str:
        """The graph's type to float32."""
        return self.node("Cast", x, to=TensorProto.FLOAT) if self.float16 else x

    def matmul(self, x: str, name: str, weight: Any, bits: int | None, bias: torch.Tensor | None = None) -> str:
        """x @ weight + bias.

        Args:
            x: (n, in) of the graph's type.
            name: of the weight, among all graphs that share the file.
            weight: () -> (out, in) tensor; asked for only where it is not in the file yet.
            bits: 8 or 4 store the matrix so, dequantized by a DequantizeLinear before the product, which TensorRT then
                computes from the stored integers; None stores floats.
            bias: (out,).
        """
        y = self.node("MatMul", x, self._matrix(name, weight, bits))
        return y if bias is None else self.node("Add", y, self.constant(bias.detach().float().numpy()))

    def _matrix(self, name: str, weight: Any, bits: int | None) -> str:
        plain = TensorProto.FLOAT16 if self.float16 else TensorProto.FLOAT
        stored, stored_scale = self._weights.get(name), self._weights.get(f"{name}.scale")
        if stored is None:
            matrix: torch.Tensor = weight().detach()
            n_out, n_in = matrix.shape
            if bits is None:
                values = matrix.to(torch.float16 if self.float16 else torch.float32).t().contiguous().numpy()
                stored = self._weights.add(name, plain, (n_in, n_out), values)
            else:
                block = next((size for size in INT4_BLOCKS if n_in % size == 0), None) if bits == 4 else None
                integers, scale = quantize(matrix, block, self.dtype)
                data_type = TensorProto.INT4 if block else TensorProto.INT8
                packed = pack_int4(integers) if block else integers
                stored = self._weights.add(name, data_type, (n_in, n_out), packed)
                stored_scale = self._weights.add(f"{name}.scale", plain, scale.shape, scale)
        self._tensors[name] = stored
        if stored_scale is None:
            return name
        self._tensors[stored_scale.name] = stored_scale
        if stored.data_type == TensorProto.INT8:
            return self.node("DequantizeLinear", name, stored_scale.name, axis=1)
        block = stored.dims[0] // stored_scale.dims[0]
        return self.node("DequantizeLinear", name, stored_scale.name, axis=0, block_size=block)

    def save(self, path: Path, inputs: Sequence[Any], outputs: Sequence[tuple[str, Any]]) -> None:
        """Write the graph.

        Args:
            path: beside the weight file.
            inputs: (name, numpy type, shape); a text in a shape is an open size.
            outputs: (tensor, (name, numpy type, shape)).
        """
        for tensor, (name, _, _) in outputs:
            self._nodes.append(helper.make_node("Identity", [tensor], [name], name=f"to {name}"))
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, dtype, shape in [*inputs, *(info for _, info in outputs)]
        ]
        split = len(inputs)
        graph = helper.make_graph(
            self._nodes, path.stem, infos[:split], infos[split:], initializer=list(self._tensors.values())
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        path.write_bytes(model.SerializeToString())


def quantize(matrix: torch.Tensor, block: int | None, scale_type: Any) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """Symmetric integers of a matrix, transposed: 4 bits (-7..7) in blocks along `in`, else 8 bits a column.

    Args:
        matrix: (out, in).
        block: rows of the transposed matrix that share a scale, for 4 bits; None for 8 bits and one scale a column.
        scale_type: of the scales; the integers are those that fit the rounded scale.

    Returns:
        (in, out) integers; scales (in / block, out), or (out,).
    """
    n_out, n_in = matrix.shape
    largest, size = (7, block) if block else (127, n_in)
    integers = np.empty((n_in, n_out), np.int8)
    scales = np.empty((n_in // size, n_out), scale_type)
    for start in range(0, n_out, _CHUNK_ROWS):
        part = matrix[start : start + _CHUNK_ROWS].float().t().numpy().reshape(n_in // size, size, -1)
        columns = slice(start, start + part.shape[-1])
        # Below the smallest normal float16 a scale loses its digits.
        scales[:, columns] = np.maximum(np.abs(part).max(axis=1) / largest, 2.0**-14)
        rounded = np.rint(part / scales[:, None, columns].astype(np.float32))
        integers[:, columns] = np.clip(rounded, -largest, largest).reshape(n_in, -1)
    return integers, scales if block else scales[0]


def pack_int4(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two values a byte, the first in the low nibble (ONNX's INT4 layout); an odd last one has zero above it."""
    flat = integers.ravel().view(np.uint8) & np.uint8(15)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[0::2] | (flat[1::2] << np.uint8(4))
