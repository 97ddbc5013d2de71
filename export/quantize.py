"""Fewer bits for one part of a graph (by ONNX Runtime's own tools), and for the token table.

===== ============================================ ============================= ================
name  language layers and head                     vision tower                  embedding.bin
===== ============================================ ============================= ================
fp32  float32                                      float32                       float32
fp16  float16; the sums between layers float32     float16                       float16
int8  8 bit in blocks of 128                       8 bit a column                8 bit a row
int4  4 bit in blocks of 128                       8 bit a column                4 bit, blocks 32
===== ============================================ ============================= ================

Blocks run down a column of a product's constant side. Where 128 does not divide it, as in small models, they are of the
largest power of two from 16 to 64 that does, or of 16.

The head is quantized as the layers are: at 3B it is a tenth of what a step reads. The embedding, of which a step reads
one row, gets smaller blocks than it would need for speed, for precision.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edge.engine.embedding import BLOCK_4
from export.half import to_half

Quantization = Literal["fp32", "fp16", "int8", "int4"]
EMBEDDING_BITS: dict[Quantization, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
BLOCK = 128
_ROWS_AT_ONCE = 8192


def quantize_part(model: onnx.ModelProto, quantization: Quantization, vision: bool, work: Path) -> onnx.ModelProto:
    """The same part of a graph with the weights of `quantization`; may change `model`.

    Args:
        model: fp32, weights inside.
        quantization: as the table above says.
        vision: whether it is of the vision tower.
        work: folder for temporary files of the part's size.
    """
    if quantization == "fp16":
        return to_half(model)
    if quantization == "fp32":
        return model
    return _int8(model, work) if vision else _blocks(model, EMBEDDING_BITS[quantization])


def _int8(model: onnx.ModelProto, work: Path) -> onnx.ModelProto:
    """Products with a constant matrix as standard ``DynamicQuantizeLinear`` + ``MatMulInteger``: one scale a column,
    activations quantized as they come. The result is the same on every processor."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=work) as folder, _temporary_files_in(folder), _quiet():
        target = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # x86 without VNNI adds pairs of products in 16 bits that saturate; 7-bit weights cannot reach that. With 8
            # bits, logits of a random model of the shipped size fell from cosine 0.996 to 0.93 there (simulated); with
            # 7 bits they are at 0.990 everywhere.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            # ONNX infers no types through the contrib operators of the graphs.
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
        )
        return onnx.load(target)


def _blocks(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """Products with a constant matrix as ONNX Runtime's ``MatMulNBits``, activations in 8 bit (accuracy level 4).

    Each row of activations is quantized by itself, so that a token's result does not depend on what else is in its
    pass.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    rows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 2}
    sizes = {
        node.name: _block(rows[node.input[1]])
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in rows
    }
    for size in sorted(set(sizes.values())):
        others = [name for name, other in sizes.items() if other != size]
        with _quiet():
            # ONNX Runtime 1.23 takes the bits in this form alone.
            config = DefaultWeightOnlyQuantConfig(size, is_symmetric=True, accuracy_level=4, bits=bits)
            quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=others, algo_config=config)
            quantizer.process()
        model = quantizer.model.model
    _absorb_biases(model.graph)
    return model


def _block(n: int) -> int:
    """Values that share a scale, of `n` on a side that is added up: ONNX Runtime fills the last block with zeros."""
    return max(16, min(BLOCK, n & -n))  # powers of two are what it takes


def _absorb_biases(graph: onnx.GraphProto) -> None:
    """Let each ``MatMulNBits`` add the bias that an ``Add`` behind it adds."""
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    makers = {node.output[0]: node for node in graph.node if node.op_type == "MatMulNBits"}
    readers: dict[str, int] = {}
    for name in [*(name for node in graph.node for name in node.input), *(output.name for output in graph.output)]:
        readers[name] = readers.get(name, 0) + 1
    for node in [node for node in graph.node if node.op_type == "Add"]:
        for product, bias in (tuple(node.input), tuple(node.input)[::-1]):
            maker = makers.get(product)
            if maker is None or bias not in vectors or readers[product] != 1 or len(maker.input) > 5:
                continue
            # Inputs: A, B, scales, zero points, group index, bias.
            maker.input.extend([""] * (5 - len(maker.input)) + [bias])
            maker.output[0] = node.output[0]
            graph.node.remove(node)
            break


def write_table(
    path: Path, read: Callable[[int, int], NDArray[np.float32]], rows: int, hidden: int, quantization: Quantization
) -> dict[str, int]:
    """Write embedding.bin (layouts: `edge.engine.embedding`), a few rows in memory at a time.

    Args:
        path: the file.
        read: (start, stop) -> those rows of the table, (stop - start, hidden).
        rows, hidden: of the table; for int4, `hidden` is a multiple of 32.
        quantization: gives the bits.

    Returns:
        The manifest's field embedding: rows, bits, block.
    """
    bits = EMBEDDING_BITS[quantization]
    block = BLOCK_4 if bits == 4 else hidden
    scales = []
    with path.open("wb") as file:
        for start in range(0, rows, _ROWS_AT_ONCE):
            table = read(start, min(start + _ROWS_AT_ONCE, rows))
            if bits in (32, 16):
                file.write(table.astype("<f4" if bits == 32 else "<f2").tobytes())
                continue
            values, scale = _quantize_rows(table.reshape(-1, block), bits)
            if bits == 4:
                nibbles = (values + 8).astype(np.uint8).reshape(-1, 2)
                values = nibbles[:, 0] | (nibbles[:, 1] << 4)
            file.write(values.tobytes())
            scales.append(scale)
        for scale in scales:
            file.write(scale.tobytes())
    return {"rows": rows, "bits": bits, "block": block}


def _quantize_rows(blocks: NDArray[np.float32], bits: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """(n, block) -> integers of the same shape and (n,) scales, as they are stored."""
    if bits == 8:
        scale = (np.abs(blocks).max(axis=1) / 127).astype("<f4")
    else:
        # The value farthest from zero becomes -8 (the scale takes its sign): one step more than -7 … 7 has.
        farthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)[:, 0]
        scale = (farthest / -8).astype("<f2")
    divisor = np.where(scale == 0, 1, scale).astype(np.float32)
    limits = (-127, 127) if bits == 8 else (-8, 7)
    return np.clip(np.rint(blocks / divisor[:, None]), *limits).astype(np.int8), scale


@contextlib.contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    # ONNX Runtime's tools write copies of the part to Python's temporary folder, which may be memory.
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
