"""What is exported from what: checked first, then listed part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx
from tokenizers import Tokenizer

from drivers.errors import UserError
from edge.engine.bundle import HEAD, HEAD_NUMBERS, LANGUAGE, ImageSize
from export import graphs
from export.modules import ImageGrid
from export.quantize import EMBEDDING_BITS, Quantization, quantize_part
from export.shards import HEAD as HEAD_WEIGHT
from export.shards import Shards, empty_model, open_shards, read_config
from export.tokens import number_tokens, tokenizer_json

Engines = Literal["onnx", "tensorrt", "both"]
# Rows of the head that are quantized at once.
HEAD_ROWS = 16384
# Of an instruction and its answer.
TEXT_TOKENS = 1024
_TEXT, _VISION = "model.language_model.", "model.visual."
_FIRST = "patch_embed.proj.weight"


@dataclass(frozen=True)
class Plan:
    """What is exported from what, all of it checked.

    Attributes:
        config: Transformers' configuration.
        shards: the checkpoint's tensors.
        sizes_px: width and height of the images.
        quantization: of the weights.
        engines: kinds of graphs, ``onnx`` and ``tensorrt``.
        tokenizer_json: the tokenizer.
        numbers: ids of the tokens whose logits head_numbers.onnx gives.
    """

    config: Any
    shards: Shards
    sizes_px: tuple[tuple[int, int], ...]
    quantization: Quantization
    engines: tuple[str, ...]
    tokenizer_json: str
    numbers: list[int]


@dataclass(frozen=True)
class Step:
    """A part of a graph: the graph's file, the file of its weights, and what makes it (see `Assembly.add`)."""

    graph: str
    data: str
    make: Callable[[], list[onnx.ModelProto]]


def plan_export(
    checkpoint: Path, quantization: Quantization, sizes_px: Sequence[tuple[int, int]], engine: Engines
) -> Plan:
    """Check what was asked for against the checkpoint's headers.

    Raises:
        UserError: the checkpoint or the sizes cannot be used.
    """
    config = read_config(checkpoint)
    _check_sizes(_grids(config, sizes_px), config.text_config.max_position_embeddings)
    hidden = config.text_config.hidden_size
    if EMBEDDING_BITS[quantization] == 4 and hidden % 32:
        raise UserError(f"--quant int4: the checkpoint's hidden_size {hidden} is not a multiple of 32; choose int8")
    graphs.rope(config.text_config)  # refuses what it cannot describe
    text = tokenizer_json(checkpoint, config)
    numbers = number_tokens(Tokenizer.from_str(text), config.text_config.vocab_size)
    shards = open_shards(checkpoint, config, empty_model(config))
    engines = ("onnx", "tensorrt") if engine == "both" else (engine,)
    return Plan(config, shards, tuple(sizes_px), quantization, engines, text, numbers)


def _grids(config: Any, sizes_px: Sequence[tuple[int, int]]) -> list[ImageGrid]:
    vision = config.vision_config
    return [ImageGrid(*size_px, vision.patch_size, vision.spatial_merge_size) for size_px in sizes_px]


def _check_sizes(grids: Sequence[ImageGrid], max_positions: int) -> None:
    for i, grid in enumerate(grids):
        side = grid.patch_px * grid.merge
        name = f"--image-size {grid.width_px}x{grid.height_px}"
        if min(grid.width_px, grid.height_px) < side or grid.width_px % side or grid.height_px % side:
            raise UserError(f"{name}: both sides must be multiples of {side} pixels, and not 0")
        if grid.n_tokens + TEXT_TOKENS > max_positions:
            raise UserError(
                f"{name}: makes {grid.n_tokens} tokens, and {TEXT_TOKENS} are kept for text; the checkpoint takes "
                f"{max_positions} in all (max_position_embeddings of config.json); name a smaller size"
            )
        # The engine tells sizes apart by it.
        if any(other.n_patches == grid.n_patches for other in grids[:i]):
            raise UserError(f"{name}: another size has as many pixels; name sizes of different areas")


def parts(plan: Plan, work: Path) -> list[Step]:
    """Every part of every graph for ONNX Runtime, in order; nothing is read or made yet.

    Args:
        plan: of `plan_export`.
        work: folder for temporary files.
    """
    text, vision, shards = plan.config.text_config, plan.config.vision_config, plan.shards

    def made(part: graphs.Part, of_vision: bool = False) -> list[onnx.ModelProto]:
        return [quantize_part(graphs.trace(part), plan.quantization, of_vision, work)]

    def language(part: Callable[[], graphs.Part]) -> Step:
        return Step(LANGUAGE, "language.data", lambda: made(part()))

    def layer(i: int) -> graphs.Part:
        return graphs.language_layer(text, i, shards.part(f"{_TEXT}layers.{i}."))

    def head() -> list[onnx.ModelProto]:
        vocab = shards.shape(HEAD_WEIGHT)[0]
        starts = range(0, vocab, HEAD_ROWS)
        rows = (shards.rows(HEAD_WEIGHT, start, min(start + HEAD_ROWS, vocab)) for start in starts)
        return [model for row in rows for model in made(graphs.head(row))]

    def seen(part: Callable[[ImageGrid], graphs.Part]) -> list[Step]:
        """The part for each image size; their equal weights are stored once."""
        names = [ImageSize(*size_px).vision for size_px in plan.sizes_px]
        makers = [lambda grid=grid: made(part(grid), True) for grid in _grids(plan.config, plan.sizes_px)]
        return [Step(name, "vision.data", make) for name, make in zip(names, makers, strict=True)]

    def start(grid: ImageGrid) -> graphs.Part:
        return graphs.vision_start(vision, grid, {_FIRST: shards[_VISION + _FIRST]})

    def block(i: int, grid: ImageGrid) -> graphs.Part:
        return graphs.vision_block(vision, grid, i, shards.part(f"{_VISION}blocks.{i}."))

    def end(grid: ImageGrid) -> graphs.Part:
        return graphs.vision_end(vision, grid, shards.part(f"{_VISION}merger."))

    return [
        language(lambda: graphs.language_start(text)),
        *(language(partial(layer, i)) for i in range(text.num_hidden_layers)),
        language(lambda: graphs.language_end(text, shards.part(f"{_TEXT}norm."))),
        Step(HEAD, "head.data", head),
        Step(HEAD_NUMBERS, "head_numbers.data", lambda: made(graphs.head(shards.select(HEAD_WEIGHT, plan.numbers)))),
        *seen(start),
        *(step for i in range(vision.depth) for step in seen(partial(block, i))),
        *seen(end),
    ]


def ends(plan: Plan) -> dict[str, tuple[list[str], list[str]]]:
    """Names of the inputs and outputs of every graph."""
    heads = {name: (["hidden"], ["logits"]) for name in (HEAD, HEAD_NUMBERS)}
    visions = {ImageSize(*size_px).vision: (["patches"], ["image_embeds"]) for size_px in plan.sizes_px}
    return {LANGUAGE: graphs.language_values(plan.config.text_config), **heads, **visions}
