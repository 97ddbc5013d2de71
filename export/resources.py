"""Is there room for an export? Estimated from the checkpoint's header, before the work."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from drivers.errors import UserError
from edge.engine.embedding import table_bytes
from export import questions, verify
from export.plan import HEAD_ROWS, Plan
from export.quantize import BLOCK, EMBEDDING_BITS
from export.shards import EMBEDDING, HEAD

# Python with torch, Transformers and ONNX Runtime.
_BASE_BYTES = 1_000_000_000
# Copies of a part in fp32 at the worst moment: the tensors, the module, the traced graph, and what quantizing makes.
_PART_COPIES = 6
# ONNX Runtime keeps packed copies of weights beside the pages of the files.
_ENGINE_COPIES = 2
# Transformers reads the embedding and the head whole.
_TABLE_COPIES = 3
_TEXT_TOKENS = 256  # of a prompt
_SMALL_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Need:
    """What an export takes at its worst moment, in bytes."""

    memory: int
    disk: int


def is_small(plan: Plan) -> bool:
    """Whether an fp32 bundle is quickly made and run on the way, to compare with."""
    return 4 * plan.shards.n_values("") <= _SMALL_BYTES


def estimate(plan: Plan) -> Need:
    """Memory and disk that an export needs."""
    config, shards, quantization = plan.config, plan.shards, plan.quantization
    vocab, hidden = shards.shape(EMBEDDING)
    vision = shards.n_values("model.visual.")
    language = shards.n_values("model.language_model.layers.") + shards.n_values(HEAD)
    bytes_per_value = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0 + 4 / BLOCK, "int4": 0.5 + 4 / BLOCK}
    vision_bytes = vision * bytes_per_value["int8" if quantization == "int4" else quantization]
    graphs = vision_bytes + language * bytes_per_value[quantization]
    bundle = graphs * len(plan.engines) + table_bytes(vocab, hidden, EMBEDDING_BITS[quantization])
    parts = [shards.n_values(f"model.language_model.layers.{i}.") for i in range(config.text_config.num_hidden_layers)]
    parts += [shards.n_values(f"model.visual.blocks.{i}.") for i in range(config.vision_config.depth)]
    parts += [shards.n_values("model.visual.merger."), min(vocab, HEAD_ROWS) * hidden]
    part = 4 * max(parts)
    head = vocab * hidden * bytes_per_value[quantization]
    answers = 4 * vocab * questions.N_CASES * verify.MAX_NEW_TOKENS
    n_patches = max(width * height for width, height in plan.sizes_px) / config.vision_config.patch_size**2
    n_tokens = n_patches / config.vision_config.spatial_merge_size**2 + _TEXT_TOKENS
    states = n_patches * config.vision_config.depth * config.vision_config.hidden_size
    states += n_tokens * config.text_config.num_hidden_layers * hidden
    # It reads all texts at once, and images one after another; scores, their softmax and what that was made of.
    scores = 3 * max(
        config.vision_config.num_heads * n_patches**2,
        questions.N_CASES * config.text_config.num_attention_heads * (n_tokens + verify.MAX_NEW_TOKENS) ** 2,
    )
    reference = _TABLE_COPIES * 4 * vocab * hidden + 2 * part + answers + 4 * (states + scores)
    fp32 = 4 * shards.n_values("") if is_small(plan) else 0
    making = max(_PART_COPIES * part, 2 * head + _PART_COPIES * 4 * parts[-1])
    # Whose graphs for TensorRT are run, ONNX Runtime unfolds to fp32 beside what it was given.
    running = max(_ENGINE_COPIES * graphs, (1 + _ENGINE_COPIES) * fp32) + 2 * 4 * states
    memory = _BASE_BYTES + max(making, running, reference)
    beside = fp32 if quantization != "fp32" else 0
    return Need(math.ceil(memory), math.ceil((bundle + beside) * 1.02 + 4 * part + answers))


def require(need: Need, out: Path, done_bytes: int) -> None:
    """Raise UserError unless memory and the disk of `out`, whose folder exists, have room for `need`.

    `done_bytes` are there already, of an interrupted export.
    """
    available = psutil.virtual_memory().available
    if available < need.memory:
        raise UserError(
            f"export: takes about {_size(need.memory)} of memory, {_size(available)} are free; close other programs, "
            "or choose a smaller --quant or --image-size"
        )
    free = shutil.disk_usage(out.parent).free + done_bytes
    if free < need.disk:
        raise UserError(
            f"--out {out}: the export takes about {_size(need.disk)} there, {_size(free)} are free; free some, or name "
            "a folder on another disk"
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
