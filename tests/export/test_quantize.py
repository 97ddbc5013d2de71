"""A quantized part computes what the part computes, within the rounding of its bits; so does a table of tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto

from edge.engine.bundle import EMBEDDING
from edge.engine.embedding import open_table, table_bytes
from export.graphs import Part, trace
from export.modules import GatedMLP, RMSNorm
from export.quantize import EMBEDDING_BITS, Quantization, quantize_part, write_table

HIDDEN = 64


class Piece(torch.nn.Module):
    """What a layer is made of: a norm, products with a constant, with a bias and without."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        names = {"gate": (160, HIDDEN), "up": (160, HIDDEN), "down": (HIDDEN, 160)}
        tensors = {f"mlp.{n}_proj.weight": 0.2 * torch.randn(shape, generator=g) for n, shape in names.items()}
        tensors |= {f"mlp.{n}_proj.bias": torch.randn(shape[0], generator=g) for n, shape in names.items() if n != "up"}
        self.norm, self.mlp = RMSNorm(torch.rand(HIDDEN, generator=g) + 0.5, 1e-6), GatedMLP(tensors)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self.mlp(self.norm(x))


def piece() -> onnx.ModelProto:
    shape = ("n", HIDDEN)
    return trace(Part("piece", Piece(), {"residual.0": shape}, {"residual.1": shape, "delta.1": shape}))


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: list[NDArray[np.float32]] = session.run(["residual.1", "delta.1"], {"residual.0": x})
    return found


@pytest.mark.parametrize(
    ("quantization", "vision", "cosine", "kinds"),
    [
        ("fp16", False, 0.99999, {TensorProto.FLOAT16}),
        ("fp16", True, 0.99999, {TensorProto.FLOAT16}),
        ("int8", False, 0.999, {TensorProto.UINT8}),
        ("int8", True, 0.999, {TensorProto.INT8}),
        ("int4", False, 0.98, {TensorProto.UINT8}),
        ("int4", True, 0.999, {TensorProto.INT8}),
    ],
)
def test_a_part_keeps_what_it_says(
    tmp_path: Path, quantization: Quantization, vision: bool, cosine: float, kinds: set[int]
) -> None:
    x = np.random.default_rng(0).normal(size=(5, HIDDEN)).astype(np.float32)
    same, expected = run(piece(), x)
    np.testing.assert_allclose(expected, Piece()(torch.from_numpy(x))[1].numpy(), atol=1e-5)
    model = quantize_part(piece(), quantization, vision, tmp_path)
    assert {tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 1000} == kinds
    untouched, got = run(model, x)
    np.testing.assert_array_equal(untouched, same)
    assert got.dtype == np.float32
    assert (got * expected).sum() / np.linalg.norm(got) / np.linalg.norm(expected) > cosine
    assert not list(tmp_path.iterdir())


def test_fp32_is_left_as_it_is(tmp_path: Path) -> None:
    assert quantize_part(piece(), "fp32", False, tmp_path) == piece()


def test_biases_are_added_by_the_products(tmp_path: Path) -> None:
    graph = quantize_part(piece(), "int4", False, tmp_path).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert [len(node.input) for node in products].count(6) == 2 and len(products) == 3
    vectors = {tensor.name for tensor in graph.initializer if tuple(tensor.dims) in ((160,), (HIDDEN,))}
    assert not [node for node in graph.node if node.op_type == "Add" and vectors & set(node.input)]


@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("int4", 4)])
def test_blocks_are_the_largest_that_divide_a_column(tmp_path: Path, quantization: Quantization, bits: int) -> None:
    """Of 64 and 160 values here; so no block is filled up with zeros."""
    graph = quantize_part(piece(), quantization, False, tmp_path).graph
    found = []
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            values = {attribute.name: attribute.i for attribute in node.attribute}
            found.append((values["K"], values["block_size"], values["bits"]))
    assert sorted(found) == [(64, 64, bits), (64, 64, bits), (160, 32, bits)]
    assert not [node for node in graph.node if node.op_type == "MatMul"]


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_row_does_not_depend_on_the_others_in_its_pass(tmp_path: Path, quantization: Quantization) -> None:
    x = np.random.default_rng(0).normal(size=(6, HIDDEN)).astype(np.float32)
    x[4:] *= 100  # with one scale for all activations of a pass, the rows before would lose their last bits
    model = quantize_part(piece(), quantization, False, tmp_path)
    np.testing.assert_array_equal(run(model, x)[1][:4], run(model, x[:4])[1])


def test_what_leaves_the_range_of_float16_stays_whole_from_part_to_part(tmp_path: Path) -> None:
    """Qwen2.5-VL's sums over layers reach values that float16 has not; the norms bring them back."""
    x = 3e5 * np.random.default_rng(0).normal(size=(5, HIDDEN)).astype(np.float32)
    _, expected = run(piece(), x)
    same, got = run(quantize_part(piece(), "fp16", False, tmp_path), x)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_allclose(got, expected, atol=0.02)


@settings(max_examples=40, deadline=None)
@given(
    quantization=st.sampled_from(["fp32", "fp16", "int8", "int4"]),
    rows=st.integers(1, 20),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    largest=st.floats(1e-3, 100),
)
def test_a_table_comes_back_within_half_a_step(
    tmp_path_factory: pytest.TempPathFactory,
    quantization: Quantization,
    rows: int,
    blocks: int,
    seed: int,
    largest: float,
) -> None:
    hidden, folder = 32 * blocks, tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(seed)
    table = rng.uniform(-largest, largest, (rows, hidden)).astype(np.float32)
    table[rng.random((rows, hidden)) < 0.3] = 0
    table[0] = 0
    field = write_table(folder / EMBEDDING, lambda start, stop: table[start:stop], rows, hidden, quantization)
    assert field["bits"] == EMBEDDING_BITS[quantization] and field["rows"] == rows
    assert (folder / EMBEDDING).stat().st_size == table_bytes(rows, hidden, field["bits"])
    bundle = SimpleNamespace(
        path=folder,
        vocab=rows,
        hidden=hidden,
        embedding_bits=field["bits"],
        embedding_block=field["block"],
        manifest={"embedding": field},
    )
    found = open_table(bundle).rows(range(rows))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found[0], 0)
    farthest = np.abs(table.reshape(rows, -1, field["block"])).max(axis=-1).repeat(field["block"], axis=-1)
    # Half a step of the integers; at 4 bits the side away from the farthest value ends one step early.
    step = {"fp32": 0.0, "fp16": 2.0**-10, "int8": 1 / 127, "int4": 2 / 8}[quantization]
    assert (np.abs(found - table) <= step * farthest / 2 * 1.01 + 1e-7).all()
