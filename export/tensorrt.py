"""Qwen2.5-VL in standard ONNX operators for TensorRT, written node by node from one tensor of the checkpoint at a time.

TensorRT's networks are strongly typed: the types in the graph are those that it computes in. So the precision is
decided here: float32, float16, or float16 with 8- or 4-bit weights as DequantizeLinear before each product. TensorRT
quantizes activations only by scales fixed beforehand, which Qwen2.5's outliers break; weights alone it is.

What must not overflow in float16 (Qwen2.5 has activations beyond 65504) is float32: the residual stream, the norms and
everything that goes in or comes out, the cache apart. The gated product runs at 1/16 of its size.

The key-value cache. TensorRT's own in-place update (KVCacheUpdate, from ONNX's TensorScatter) is not in the versions
before 10.15, which boards have; ScatterND copies the whole cache in every step; a cache that grows by Concat does too,
and its shapes change, so that no CUDA graph can be kept. Here the cache is an input of fixed room that nothing writes
to: attention's scores over the past and over the new tokens are computed apart and share one softmax, and the keys and
values of the new tokens come out together as one tensor, which the engine copies to their place (for one token, a few
kilobytes). All addresses and, for one token, all shapes stay as they are, and any TensorRT from 10.0 on takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drivers.errors import UserError
from edge.engine.bundle import ImageSize
from edge.engine.tensorrt.layout import FOLDER, HEAD, HEAD_NUMBERS, LANGUAGE, cache_room
from export.modules import ImageGrid
from export.onnx_writer import GraphWriter, WeightFile
from export.vision import EPS, Windows, patch_angles, windows

Weight = Callable[[str], torch.Tensor]
_BITS = {"fp32": None, "fp16": None, "int8": 8, "int4": 4}
_VISION, _TEXT = "model.visual", "model.language_model"
_GATE_SCALE = 1 / 16  # a power of two: nothing is rounded
_HIDDEN_BEHIND = -6e4  # float16 ends at 65504


def tensorrt_steps(config: Any, sizes_px: Sequence[tuple[int, int]]) -> int:
    """How often `export_tensorrt` calls `progress`."""
    return int(config.vision_config.depth) * len(sizes_px) + int(config.text_config.num_hidden_layers) + 2


def export_tensorrt(
    config: Any,
    weight: Weight,
    folder: Path,
    sizes_px: Sequence[tuple[int, int]],
    quantization: str,
    number_tokens: Sequence[int],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the graphs for TensorRT into ``folder/tensorrt``.

    ::

        vision-WxH.onnx    patches (n_patches, values) f32 -> image_embeds (n_tokens, hidden) f32; all share vision.data
        language.onnx      inputs_embeds (n, hidden) f32, cos and sin (n, head_dim / 2) f32, past_length (1,) i32,
                           past_key.i and past_value.i (kv heads, room, head_dim) -> hidden (n, hidden) f32 after the
                           final norm, new_cache (2 * layers * kv heads, n, head_dim): key.0, value.0, key.1, …
        head.onnx          hidden (k, hidden) f32 -> logits (k, vocab) f32
        head_numbers.onnx  hidden (k, hidden) f32 -> logits (k, len(number_tokens)) f32

    The cache is of the type that products are computed in. Whatever lies in it beyond ``past_length`` must be finite.

    Args:
        config: Qwen2_5_VLConfig.
        weight: one tensor by the name it has in Qwen2_5_VLForConditionalGeneration's state_dict of Transformers 4.57;
            ``lm_head.weight`` of a tied model is the token table.
        folder: the bundle.
        sizes_px: width and height of images.
        quantization: ``fp32``, ``fp16``, ``int8`` or ``int4`` (weights of language model and head, in blocks of 128 or,
            where the matrix does not divide, 64; 8 bits where it divides by neither, and in the vision tower).
        number_tokens: rows of the head in head_numbers.onnx.
        progress: called after each layer.

    Returns:
        What the manifest's field ``tensorrt`` says: ``room`` (tokens the cache holds) and ``float16``.

    Raises:
        UserError: the model's activation is not SiLU.
    """
    for name, part in (("text", config.text_config), ("vision", config.vision_config)):
        if part.hidden_act != "silu":
            raise UserError(f"checkpoint: {name}_config.hidden_act is {part.hidden_act!r}, expected 'silu'")
    out = folder / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    float16, bits = quantization != "fp32", _BITS[quantization]
    grids = [
        ImageGrid(*size, config.vision_config.patch_size, config.vision_config.spatial_merge_size) for size in sizes_px
    ]
    text = config.text_config
    room = cache_room(max(grid.n_tokens for grid in grids), text.max_position_embeddings)
    with WeightFile(out / "vision.data") as weights:
        for grid in grids:
            path = out / ImageSize(grid.width_px, grid.height_px).vision
            _vision(GraphWriter(weights, float16), config.vision_config, weight, grid, bits and 8, path, progress)
    with WeightFile(out / "language.data") as weights:
        _language(GraphWriter(weights, float16), text, weight, bits, room, out / LANGUAGE, progress)
    head = weight("lm_head.weight")
    for name, rows in ((HEAD, head), (HEAD_NUMBERS, head[torch.as_tensor(np.asarray(number_tokens, np.int64))])):
        with WeightFile((out / name).with_suffix(".data")) as weights:
            g = GraphWriter(weights, float16)
            logits = g.to_float(g.matmul(g.to_half("hidden"), "head", lambda rows=rows: rows, bits))
            n_rows, hidden = rows.shape
            inputs = [("hidden", np.float32, ("k", hidden))]
            g.save(out / name, inputs, [(logits, ("logits", np.float32, ("k", n_rows)))])
        progress()
    return {"room": room, "float16": float16}


def _rms_norm(g: GraphWriter, x: str, scale: torch.Tensor, eps: float) -> str:
    """Of (n, size), float32 in and out."""
    mean = g.node("ReduceMean", g.node("Mul", x, x), g.constant([-1]), keepdims=1)
    root = g.node("Sqrt", g.node("Add", mean, g.constant(eps, np.float32)))
    return g.node("Mul", g.node("Div", x, root), g.constant(scale.detach().float().numpy(), np.float32))


def _normalized(g: GraphWriter, x: str, scale: torch.Tensor, eps: float) -> str:
    """What a product takes: the float32 residual stream normalized, in the graph's type."""
    return g.to_half(_rms_norm(g, x, scale, eps))


def _rotate(g: GraphWriter, x: str, cos: str, sin: str) -> str:
    """Rotary position embedding of (n, heads, size) by (n, 1, size / 2)."""
    a, b = g.nodes("Split", x, outputs=2, axis=-1, num_outputs=2)
    first = g.node("Sub", g.node("Mul", a, cos), g.node("Mul", b, sin))
    second = g.node("Add", g.node("Mul", b, cos), g.node("Mul", a, sin))
    return g.node("Concat", first, second, axis=-1)


def _gated_mlp(g: GraphWriter, x: str, name: str, weight: Weight, bits: int | None, bias: bool) -> str:
    """down(silu(gate(x)) * up(x)), float32 out."""

    def both(kind: str) -> torch.Tensor:
        return torch.cat((weight(f"{name}.gate_proj.{kind}"), weight(f"{name}.up_proj.{kind}")))

    joined = g.matmul(x, f"{name}.gate_up", lambda: both("weight"), bits, both("bias") if bias else None)
    gate, up = g.nodes("Split", joined, outputs=2, axis=-1, num_outputs=2)
    gate = g.node("Mul", gate, g.node("Sigmoid", gate))
    if g.float16:
        up = g.node("Mul", up, g.constant(_GATE_SCALE))
    product = g.node("Mul", gate, up)
    down = g.to_float(g.matmul(product, f"{name}.down", lambda: weight(f"{name}.down_proj.weight"), bits))
    if g.float16:
        down = g.node("Mul", down, g.constant(1 / _GATE_SCALE, np.float32))
    return (
        g.node("Add", down, g.constant(weight(f"{name}.down_proj.bias").float().numpy(), np.float32)) if bias else down
    )


def _padded(win: Windows, unit: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Windows as one batch, smaller ones padded: one launch instead of one a shape.

    Returns:
        (n_windows, slot) the patch in each slot, 0 where there is none; (n_windows, slot) whether there is one.
    """
    sizes = np.repeat([h * w * unit for _, h, w in win.shapes], [count for count, _, _ in win.shapes])
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    slot = np.arange(sizes.max())
    taken = slot < sizes[:, None]
    return np.where(taken, starts[:, None] + slot, 0), taken


def _vision(
    g: GraphWriter, config: Any, weight: Weight, grid: ImageGrid, bits: int | None, path: Path, progress: Any
) -> None:
    dim, heads, unit = config.hidden_size, config.num_heads, grid.merge**2
    size = dim // heads
    win = windows(grid, config.window_size)
    slots, taken = _padded(win, unit)
    order = (win.token_order[:, None] * unit + torch.arange(unit)).flatten()
    angles = patch_angles(grid, size)[order][:, None, :]
    cos, sin = g.constant(angles.cos().numpy()), g.constant(angles.sin().numpy())

    def linear(x: str, name: str) -> str:
        bias = weight(f"{_VISION}.{name}.bias")
        return g.matmul(x, name, lambda: weight(f"{_VISION}.{name}.weight"), bits, bias)

    def attend(qkv: str, everywhere: bool) -> str:
        q, k, v = g.nodes("Split", g.reshape(qkv, -1, 3 * heads, size), outputs=3, axis=1, num_outputs=3)
        q, k = g.node("Mul", _rotate(g, q, cos, sin), g.constant(size**-0.5)), _rotate(g, k, cos, sin)
        padded = not everywhere and not taken.all()
        n_windows, slot = (1, grid.n_patches) if everywhere else slots.shape
        parts = []
        for part, axes in ((q, (0, 2, 1, 3)), (k, (0, 2, 3, 1)), (v, (0, 2, 1, 3))):
            part = g.node("Gather", part, g.constant(slots.flatten()), axis=0) if padded else part
            parts.append(g.transpose(g.reshape(part, n_windows, slot, heads, size), *axes))
        scores = g.node("MatMul", parts[0], parts[1])
        if padded:
            scores = g.node("Add", scores, g.constant(np.where(taken, 0.0, _HIDDEN_BEHIND)[:, None, None, :]))
        mixed = g.node("MatMul", g.node("Softmax", scores, axis=-1), parts[2])
        mixed = g.reshape(g.transpose(mixed, 0, 2, 1, 3), n_windows * slot, dim)
        return g.node("Gather", mixed, g.constant(np.flatnonzero(taken)), axis=0) if padded else mixed

    patches = g.to_half(g.node("Gather", "patches", g.constant(order.numpy()), axis=0))
    embed = f"{_VISION}.patch_embed.proj.weight"
    # Pixels stay in full: one small matrix that everything else hangs on.
    x = g.to_float(g.matmul(patches, "patch_embed", lambda: weight(embed).reshape(dim, -1), None))
    for i in range(config.depth):
        g.scope, name = f"vision.{i}/", f"blocks.{i}"
        y = _normalized(g, x, weight(f"{_VISION}.{name}.norm1.weight"), EPS)
        mixed = attend(linear(y, f"{name}.attn.qkv"), i in config.fullatt_block_indexes)
        x = g.node("Add", x, g.to_float(linear(mixed, f"{name}.attn.proj")))
        y = _normalized(g, x, weight(f"{_VISION}.{name}.norm2.weight"), EPS)
        x = g.node("Add", x, _gated_mlp(g, y, f"{_VISION}.{name}.mlp", weight, bits, bias=True))
        progress()
    g.scope = "merger/"
    y = g.reshape(_normalized(g, x, weight(f"{_VISION}.merger.ln_q.weight"), EPS), grid.n_tokens, dim * unit)
    y = linear(g.node("Gelu", linear(y, "merger.mlp.0")), "merger.mlp.2")
    y = g.to_float(g.node("Gather", y, g.constant(torch.argsort(win.token_order).numpy()), axis=0))
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    shape = (grid.n_tokens, config.out_hidden_size)
    g.save(path, [("patches", np.float32, (grid.n_patches, values))], [(y, ("image_embeds", np.float32, shape))])


def _language(
    g: GraphWriter, config: Any, weight: Weight, bits: int | None, room: int, path: Path, progress: Any
) -> None:
    hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    size, groups = hidden // heads, heads // kv_heads
    cache = (kv_heads, room, size)
    inputs = [
        ("inputs_embeds", np.float32, ("n", hidden)),
        ("cos", np.float32, ("n", size // 2)),
        ("sin", np.float32, ("n", size // 2)),
        ("past_length", np.int32, (1,)),
        *((f"past_{kind}.{i}", g.dtype, cache) for i in range(config.num_hidden_layers) for kind in ("key", "value")),
    ]
    cos, sin = (g.to_half(g.node("Unsqueeze", name, g.constant([1]))) for name in ("cos", "sin"))
    seen, unseen = g.constant(0.0), g.constant(_HIDDEN_BEHIND)
    in_cache = g.node("Less", g.constant(np.arange(room), np.int32), "past_length")
    past_bias = g.node("Where", in_cache, seen, unseen)  # (room,)
    n = g.node("Squeeze", g.node("Shape", "inputs_embeds", start=0, end=1), g.constant([0]))
    new = g.node("Range", g.constant(0), n, g.constant(1))
    # The query heads that share a key lie one after another in a row of their own: (kv heads, groups * n, size).
    rows = g.node("Unsqueeze", g.node("Tile", new, g.constant([groups])), g.constant([1]))
    new_bias = g.node("Where", g.node("LessOrEqual", new, rows), seen, unseen)  # (groups * n, n)

    def attend(qkv: str, i: int) -> tuple[str, str, str]:
        q, k, v = g.nodes("Split", qkv, g.constant([hidden, kv_heads * size, kv_heads * size]), outputs=3, axis=-1)
        q = g.node("Mul", _rotate(g, g.reshape(q, -1, heads, size), cos, sin), g.constant(size**-0.5))
        q = g.reshape(g.transpose(q, 1, 0, 2), kv_heads, -1, size)
        k = g.transpose(_rotate(g, g.reshape(k, -1, kv_heads, size), cos, sin), 1, 0, 2)
        v = g.transpose(g.reshape(v, -1, kv_heads, size), 1, 0, 2)
        past_scores = g.node("Add", g.node("MatMul", q, g.transpose(f"past_key.{i}", 0, 2, 1)), past_bias)
        new_scores = g.node("Add", g.node("MatMul", q, g.transpose(k, 0, 2, 1)), new_bias)
        share = g.node("Softmax", g.node("Concat", past_scores, new_scores, axis=-1), axis=-1)
        ends = g.constant([0]), g.constant([room]), g.constant([2**62]), g.constant([2])
        past_share = g.node("Slice", share, ends[0], ends[1], ends[3])
        new_share = g.node("Slice", share, ends[1], ends[2], ends[3])
        mixed = g.node("Add", g.node("MatMul", past_share, f"past_value.{i}"), g.node("MatMul", new_share, v))
        mixed = g.reshape(g.transpose(g.reshape(mixed, heads, -1, size), 1, 0, 2), -1, hidden)
        return mixed, k, v

    x = "inputs_embeds"
    new_cache = []
    for i in range(config.num_hidden_layers):
        g.scope, name = f"language.{i}/", f"{_TEXT}.layers.{i}"

        def joined(kind: str, name: str = name) -> torch.Tensor:
            return torch.cat([weight(f"{name}.self_attn.{part}_proj.{kind}") for part in "qkv"])

        y = _normalized(g, x, weight(f"{name}.input_layernorm.weight"), config.rms_norm_eps)
        qkv = g.matmul(y, f"{name}.qkv", lambda joined=joined: joined("weight"), bits, joined("bias"))
        mixed, k, v = attend(qkv, i)
        new_cache += [k, v]
        o = f"{name}.self_attn.o_proj.weight"
        x = g.node("Add", x, g.to_float(g.matmul(mixed, f"{name}.o", lambda o=o: weight(o), bits)))
        y = _normalized(g, x, weight(f"{name}.post_attention_layernorm.weight"), config.rms_norm_eps)
        x = g.node("Add", x, _gated_mlp(g, y, f"{name}.mlp", weight, bits, bias=False))
        progress()
    g.scope = "end/"
    x = _rms_norm(g, x, weight(f"{_TEXT}.norm.weight"), config.rms_norm_eps)
    stacked = g.node("Concat", *new_cache, axis=0)
    outputs = [
        (x, ("hidden", np.float32, ("n", hidden))),
        (stacked, ("new_cache", g.dtype, (len(new_cache) * kv_heads, "n", size))),
    ]
    g.save(path, inputs, outputs)
