"""The graphs of a bundle, part by part: each is traced to ONNX from one layer's tensors, then they are joined by name.

Whoever assembles a graph of a large model quantizes each part and puts its weights on disk before it asks for the next.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from drivers.errors import UserError
from export.language import DecoderLayer, LanguageEnd, LanguageStart
from export.modules import ImageGrid, Linear, Tensors
from export.vision import VisionBlock, VisionEnd, VisionStart

OPSET = 17
Shape = tuple[int | str, ...]
# Open sizes while tracing; any do, as long as they differ and a cached token fits.
_EXAMPLE = {"n": 3, "k": 3, "room": 7}
_LENGTHS = ("seqlens_k", "total_length")


@dataclass(frozen=True)
class Part:
    """A piece of a graph.

    Attributes:
        name: what its weights' and inner values' names begin with.
        module: what to trace.
        inputs, outputs: names and shapes, open sizes by name; parts are joined by the names.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]


def rope(config: Any) -> dict[str, Any]:
    """The manifest's field ``rope`` of a text config: radians a position, how many go by time, row and column, scaling.

    Raises:
        UserError: the angles depend on how long the text is.
    """
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

    rotary = Qwen2_5_VLRotaryEmbedding(config)
    if "dynamic" in rotary.rope_type or rotary.rope_type == "longrope":
        raise UserError(f"checkpoint: rope_type {rotary.rope_type} of config.json is not exported; expected default")
    return {
        "inv_freq": [float(value) for value in rotary.inv_freq],
        "sections": [int(size) for size in config.rope_scaling["mrope_section"]],
        "scaling": float(rotary.attention_scaling),
    }


def language_start(config: Any) -> Part:
    """inputs_embeds (n, hidden) -> what the first layer takes."""
    size = config.hidden_size
    return Part("start", LanguageStart(), {"inputs_embeds": ("n", size)}, {"residual.0": (1, "n", size)})


def language_layer(config: Any, index: int, tensors: Tensors) -> Part:
    """One decoder layer; `tensors` of ``model.layers.<index>.``.

    Raises:
        UserError: the config asks for what `DecoderLayer` does not do.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = config.hidden_size // heads
    _require("text_config", config.hidden_act, head_dim)
    module = DecoderLayer(tensors, heads, kv_heads, config.rms_norm_eps, first=index == 0)
    rows: Shape = (1, "n", config.hidden_size)
    cache: Shape = (1, kv_heads, "room", head_dim)
    inputs = _stream(index, rows) | {name: ("room", head_dim // 2) for name in ("cos", "sin")}
    inputs |= {"seqlens_k": (1,), "total_length": (), f"past_key.{index}": cache, f"past_value.{index}": cache}
    outputs = _stream(index + 1, rows) | {f"key.{index}": cache, f"value.{index}": cache}
    return Part(f"layer.{index}", module, inputs, outputs)


def language_end(config: Any, tensors: Tensors) -> Part:
    """The last layer's outputs -> hidden (n, hidden); `tensors` of ``model.norm.``."""
    size = config.hidden_size
    inputs = _stream(config.num_hidden_layers, (1, "n", size))
    return Part("end", LanguageEnd(tensors["weight"], config.rms_norm_eps), inputs, {"hidden": ("n", size)})


def language_values(config: Any) -> tuple[list[str], list[str]]:
    """Names of the language graph's inputs and outputs, in order."""
    layers = range(config.num_hidden_layers)
    past = [f"past_{kind}.{i}" for i in layers for kind in ("key", "value")]
    new = [f"{kind}.{i}" for i in layers for kind in ("key", "value")]
    return ["inputs_embeds", "cos", "sin", "seqlens_k", "total_length", *past], ["hidden", *new]


def head(weight: Tensor) -> Part:
    """The language head, or some rows of it: weight (vocab, hidden); hidden (k, hidden) -> logits (k, vocab)."""
    vocab, size = weight.shape
    return Part("head", Linear({"head.weight": weight}, "head"), {"hidden": ("k", size)}, {"logits": ("k", vocab)})


def vision_start(config: Any, grid: ImageGrid, tensors: Tensors) -> Part:
    """patches (n_patches, patch values) -> what the first block takes; `tensors` of ``visual.``."""
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    module = VisionStart(tensors, grid, config.window_size)
    rows = (grid.n_patches, config.hidden_size)
    return Part("start", module, {"patches": (grid.n_patches, values)}, {"residual.0": rows})


def vision_block(config: Any, grid: ImageGrid, index: int, tensors: Tensors) -> Part:
    """One block of the tower; `tensors` of ``visual.blocks.<index>.``.

    Raises:
        UserError: the config asks for what `VisionBlock` does not do.
    """
    _require("vision_config", config.hidden_act, config.hidden_size // config.num_heads)
    windowed = index not in config.fullatt_block_indexes
    sizes = (config.num_heads, config.window_size)
    module = VisionBlock(tensors, grid, *sizes, windowed=windowed, first=index == 0)
    rows = (grid.n_patches, config.hidden_size)
    return Part(f"block.{index}", module, _stream(index, rows), _stream(index + 1, rows))


def vision_end(config: Any, grid: ImageGrid, tensors: Tensors) -> Part:
    """The last block's outputs -> image_embeds (n_tokens, hidden); `tensors` of ``visual.merger.``."""
    module = VisionEnd(tensors, grid, config.window_size)
    inputs = _stream(config.depth, (grid.n_patches, config.hidden_size))
    return Part("end", module, inputs, {"image_embeds": (grid.n_tokens, config.out_hidden_size)})


def _stream(index: int, shape: Shape) -> dict[str, Shape]:
    """What goes from layer to layer: the residual and, but into the first, what is still to be added to it."""
    return {f"{name}.{index}": shape for name in (("residual", "delta") if index else ("residual",))}


def _require(section: str, act: str, head_dim: int) -> None:
    where = f"checkpoint: {section} of config.json"
    if act != "silu":
        raise UserError(f"{where}: hidden_act is {act}, which is not exported; expected silu")
    if head_dim % 16:
        raise UserError(f"{where}: {head_dim} values a head are not exported; expected a multiple of 16")


def trace(part: Part) -> onnx.ModelProto:
    """A part as ONNX, its weights within; inputs and outputs named as the part says, all else after the part."""
    file = io.BytesIO()
    with warnings.catch_warnings(), _quiet(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            part.module.eval(),
            tuple(_example(name, shape) for name, shape in part.inputs.items()),
            file,  # type: ignore[arg-type]  # takes open files, whatever its signature says
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_axes={name: _open(shape) for name, shape in (part.inputs | part.outputs).items()},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(file.getvalue())
    _rename(model.graph, part)
    return model


def _example(name: str, shape: Shape) -> Tensor:
    sizes = [_EXAMPLE[size] if isinstance(size, str) else size for size in shape]
    if name in _LENGTHS:
        return torch.full(sizes, _EXAMPLE["n"] + (name == "total_length"), dtype=torch.int32)
    return torch.zeros(sizes)


def _open(shape: Shape) -> dict[int, str]:
    return {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}


def _rename(graph: onnx.GraphProto, part: Part) -> None:
    # torch stores equal weights once and says Identity for the others.
    weights = {tensor.name for tensor in graph.initializer}
    copies = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in weights]
    names = {name: name for name in ("", *part.inputs, *part.outputs)}
    names |= {node.output[0]: f"{part.name}.{node.input[0]}" for node in copies}

    def named(name: str) -> str:
        return names.get(name, f"{part.name}.{name}")

    for node in copies:
        graph.node.remove(node)
    for tensor in graph.initializer:
        tensor.name = named(tensor.name)
    for node in graph.node:
        node.name = f"{part.name}.{node.name}"
        node.input[:] = [named(name) for name in node.input]
        node.output[:] = [named(name) for name in node.output]
    del graph.value_info[:], graph.output[:]  # torch loses shapes behind operators that are not ONNX's own
    graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in part.outputs.items()
    )


def join(models: Sequence[onnx.ModelProto], inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """One graph of traced parts, in order: what one gives under a name, a later one takes under it."""
    values = {value.name: value for model in models for value in (*model.graph.input, *model.graph.output)}
    graph = helper.make_graph(
        [node for model in models for node in model.graph.node],
        "graph",
        [values[name] for name in inputs],
        [values[name] for name in outputs],
        [tensor for model in models for tensor in model.graph.initializer],
    )
    opsets = {opset.domain: opset for model in models for opset in model.opset_import}
    return helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=models[0].ir_version)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
