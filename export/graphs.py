"""The two graphs as ONNX files, in fp32 or with 8-bit weights."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from export.modules import ImageGrid, LanguageGraph, VisionGraph

Quantization = Literal["fp32", "int8"]
OPSET = 17
# Protobuf files end at 2 GiB; larger weights go to one file beside the graph.
_EXTERNAL_ABOVE_BYTES = 1_500_000_000


def export_vision(visual: Any, grid: ImageGrid, path: Path) -> None:
    """Write the vision tower for one image size to `path`: patches -> image_embeds."""
    config = visual.config
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    example = (torch.zeros(grid.n_patches, values),)
    _export(VisionGraph(visual, grid), example, path, ["patches"], ["image_embeds"], {})


def export_language(model: Any, path: Path) -> None:
    """Write the language model with its key-value cache to `path` (inputs and outputs: `LanguageGraph`)."""
    graph = LanguageGraph(model)
    n_layers = len(graph.layers)
    past = [torch.zeros(graph.kv_heads, 3, graph.head_dim) for _ in range(2 * n_layers)]
    ids = torch.tensor([graph.image_token, graph.image_token, 1, 2, 3])
    example = (ids, torch.zeros(2, graph.norm.weight.shape[0]), torch.arange(15).reshape(3, 5), *past)
    past_names = [f"past_{kind}.{i}" for i in range(n_layers) for kind in ("key", "value")]
    new_names = [f"{kind}.{i}" for i in range(n_layers) for kind in ("key", "value")]
    axes: dict[str, dict[int, str]] = {"input_ids": {0: "n"}, "image_embeds": {0: "m"}, "position_ids": {1: "n"}}
    axes |= {name: {1: "past"} for name in past_names} | {name: {1: "total"} for name in new_names}
    inputs = ["input_ids", "image_embeds", "position_ids", *past_names]
    _export(graph, example, path, inputs, ["logits", *new_names], axes)


def _export(
    graph: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    # Written in a folder of its own first: above 2 GiB torch strews one file a tensor around the graph.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        raw = Path(folder) / path.name
        torch.onnx.export(
            graph.eval(),
            example,
            str(raw),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        save(onnx.load(raw), path)


@contextlib.contextmanager
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph; weights above protobuf's limit go to ``<name>.data`` beside it."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > _EXTERNAL_ABOVE_BYTES:
        onnx.save(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=1024)
    else:
        onnx.save(model, path)


def quantize_int8(source: Path, target: Path) -> None:
    """Rewrite a graph with 8-bit weights (of which 7 are used): one scale a column, activations quantized as they come.

    Every product with a constant matrix becomes standard ONNX ``DynamicQuantizeLinear`` + ``MatMulInteger``. A table
    that is looked up column by column (the embedding) becomes 8 bit with the same column scales, so a tied head and
    table stay one tensor. The result is the same on every processor.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # x86 without VNNI adds pairs of products in 16 bits that saturate; 7-bit weights cannot reach that. With 8
            # bits, logits of a random model of the shipped size fell from cosine 0.996 to 0.93 there (simulated); with
            # 7 bits they are at 0.990 everywhere.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=source.with_name(source.name + ".data").exists(),
            extra_options={"MatMulConstBOnly": True},
        )
    model = onnx.load(target)
    _quantize_tables(model.graph)
    target.unlink()
    target.with_name(target.name + ".data").unlink(missing_ok=True)
    save(model, target)


def _quantize_tables(graph: onnx.GraphProto) -> None:
    """Replace each lookup of columns in a float table by a lookup of 8-bit columns and their scales."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    tables = [
        node
        for node in graph.node
        if node.op_type == "Gather"
        and node.input[0] in weights
        and weights[node.input[0]].data_type == onnx.TensorProto.FLOAT
        and len(weights[node.input[0]].dims) == 2
        and helper.get_node_attr_value(node, "axis") == 1
    ]
    for node in tables:
        name, ids, out = node.input[0], node.input[1], node.output[0]
        quantized, scale = f"{name}_quantized", f"{name}_scale"
        if quantized not in weights:
            table = numpy_helper.to_array(weights[name])
            column_scale = np.maximum(np.abs(table).max(axis=0), 1e-12).astype(np.float32) / 127
            values = np.clip(np.rint(table / column_scale), -127, 127).astype(np.int8)
            graph.initializer.append(numpy_helper.from_array(values, quantized))
            graph.initializer.append(numpy_helper.from_array(column_scale, scale))
        lookup = [
            helper.make_node("Gather", [quantized, ids], [f"{out}_q"], axis=1),
            helper.make_node("Cast", [f"{out}_q"], [f"{out}_f"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Gather", [scale, ids], [f"{out}_s"], axis=0),
            helper.make_node("Mul", [f"{out}_f", f"{out}_s"], [out]),
        ]
        index = list(graph.node).index(node)
        graph.node.remove(node)
        for offset, new in enumerate(lookup):
            graph.node.insert(index + offset, new)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
