"""What Transformers, in fp32, makes of prompts and answers; its weights need not fit into memory.

Each module's weights are read from the checkpoint as its turn comes, so all texts are read in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge.engine.bundle import Bundle, ImageSize
from edge.engine.protocol import Floats
from export.layers import EMBEDS, NORM, mean_cosine
from export.shards import HEAD, Shards, empty_model, read_config


@dataclass(frozen=True)
class Text:
    """A prompt and an answer.

    Attributes:
        size: of its image.
        ids: the prompt.
        patches: of the image.
        tokens: the answer, n of them.
    """

    size: ImageSize
    ids: Sequence[int]
    patches: Floats
    tokens: Sequence[int]


def read_texts(
    shards: Shards, bundle: Bundle, texts: Sequence[Text], states: Mapping[str, Floats], progress: Callable[[], None]
) -> tuple[list[Floats], dict[str, float]]:
    """Transformers' logits before each token of each answer, and how near its hidden states are to others.

    Args:
        shards: the checkpoint.
        bundle: made of it.
        texts: what is read.
        states: of `export.layers.hidden_states` for the first text's prompt.
        progress: called after each of the model's layers and blocks, `reference_steps` times.

    Returns:
        (n, vocab) logits for each text; the mean cosine of each of `states` with Transformers'.
    """
    from accelerate import cpu_offload

    model = empty_model(read_config(shards.folder))
    for layer in (*model.model.visual.blocks, *model.model.language_model.layers):
        layer.register_forward_hook(lambda *_: progress())
    grids = [[1, rows * bundle.merge, cols * bundle.merge] for rows, cols in (bundle.grid_of(t.size) for t in texts)]
    cosines = _compare_states(model, torch.tensor(grids), states)
    # Every module's weights come from the files just before it runs, and go after it.
    cpu_offload(model, torch.device("cpu"), state_dict=shards)
    rows = [torch.tensor([*text.ids, *text.tokens]) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=bundle.end_token)
    lengths = torch.tensor([len(row) for row in rows])
    with torch.no_grad():
        hidden = model.model(
            input_ids=ids,
            attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            pixel_values=torch.from_numpy(np.concatenate([text.patches for text in texts])),
            image_grid_thw=torch.tensor(grids),
            use_cache=False,
        ).last_hidden_state
        weight, found = shards[HEAD], []
        for row, text in zip(hidden, texts, strict=True):
            before = slice(len(text.ids) - 1, len(text.ids) - 1 + len(text.tokens))
            found.append(torch.nn.functional.linear(row[before], weight).numpy())
    return found, {name: cosines[name] for name in states}


def _compare_states(model: Any, grids: Tensor, states: Mapping[str, Floats]) -> dict[str, float]:
    """Have the model compare its hidden states for the first text with `states`; the cosines, there once it has run."""
    visual, language = model.model.visual, model.model.language_model
    cosines: dict[str, float] = {}
    # The tower sees merge blocks window by window, those of all images in turn.
    order = torch.argsort(visual.get_window_index(grids)[0])

    def watch(module: Any, name: str, rows: Callable[[Tensor], Tensor]) -> None:
        def compare(_module: Any, _inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            cosines[name] = mean_cosine(states[name], rows(output)[: len(states[name])])

        module.register_forward_hook(compare)

    def of_patches(x: Tensor) -> Tensor:
        return x.reshape(len(order), -1, x.shape[-1])[order].flatten(0, 1)

    for i, block in enumerate(visual.blocks):
        watch(block, f"vision block {i}", of_patches)
    watch(visual, EMBEDS, lambda x: x)
    for i, layer in enumerate(language.layers):
        watch(layer, f"language layer {i}", lambda x: x[0])
    watch(language.norm, NORM, lambda x: x[0])
    return cosines


def reference_steps(config: Any) -> int:
    """How often `read_texts` calls its `progress`."""
    return int(config.vision_config.depth + config.text_config.num_hidden_layers)
