"""Several sampled answers to each prompt on a CPU: the prompt is computed and kept once, not once an answer.

Transformers' ``generate`` gives every answer its own copy of the prompt's keys and values and copies all of them every
token. Here the answers of a group attend to one shared copy, beside keys and values of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BatchFeature, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half


@torch.no_grad()
def sample_answers(
    model: Qwen2_5_VLForConditionalGeneration,
    prompts: BatchFeature,
    group: int,
    max_tokens: int,
    temperature: float,
    end_ids: list[int],
) -> list[list[int]]:
    """``group`` answers to each prompt, drawn from the model's distribution at ``temperature`` by torch's generator.

    Args:
        prompts: of p prompts padded on the left: ``input_ids`` and ``attention_mask`` (p, s), ``pixel_values`` and
            ``image_grid_thw`` of one image each.
        end_ids: tokens that end an answer. Those of `never_drawn` are not drawn.

    Returns:
        p * group lists of token ids, a prompt's answers side by side; each ends with one of ``end_ids`` or is
        ``max_tokens`` long.
    """
    ids, mask, grid = prompts["input_ids"], prompts["attention_mask"], prompts["image_grid_thw"]
    positions, _ = model.model.get_rope_index(ids, grid, None, attention_mask=mask)
    out = model.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        pixel_values=prompts["pixel_values"],
        image_grid_thw=grid,
        use_cache=True,
    )
    p, s = ids.shape
    text = model.model.language_model
    cache = out.past_key_values
    layers = [_Layer(each, cache[k][0], cache[k][1], mask, group, max_tokens) for k, each in enumerate(text.layers)]
    place = positions.amax((0, 2)).repeat_interleave(group)  # of each prompt's last token
    hidden = out.last_hidden_state[:, -1].repeat_interleave(group, 0)  # (p * group, dim)

    never = never_drawn(model)
    drawn = torch.empty(p * group, max_tokens, dtype=torch.long)
    ends, going = torch.tensor(end_ids), torch.ones(p * group, dtype=torch.bool)
    for n in range(max_tokens):
        scores = model.lm_head(hidden).float() / temperature
        scores[:, never] = -torch.inf
        drawn[:, n] = torch.multinomial(scores.softmax(-1), 1)[:, 0]
        going &= ~torch.isin(drawn[:, n], ends)
        if not going.any() or n + 1 == max_tokens:
            break
        hidden = text.embed_tokens(drawn[:, n])
        place = place + 1
        cos, sin = text.rotary_emb(hidden, place.expand(3, -1)[..., None])  # a text token's three positions are alike
        for layer in layers:
            hidden = layer.step(hidden, cos[0], sin[0], n)
        hidden = text.norm(hidden)
    answers = drawn[:, : n + 1]
    ended = torch.isin(answers, ends)
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, n + 1)
    return [row[:length] for row, length in zip(answers.tolist(), lengths.tolist(), strict=True)]


def never_drawn(model: Qwen2_5_VLForConditionalGeneration) -> list[int]:
    """Tokens that would stand for an image in an answer: Transformers then looks for one, and fails."""
    config = model.config
    return [config.vision_start_token_id, config.image_token_id, config.video_token_id]


class _Layer:
    """A decoder layer with the keys and values of p prompts, (p, kv heads, s, head), and of their answers so far."""

    def __init__(
        self, layer: Any, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, group: int, max_tokens: int
    ):
        self.layer: nn.Module = layer
        self.keys, self.values = keys, values
        p, heads, _, dim = keys.shape
        self.own_keys = keys.new_empty(p, heads, group, max_tokens, dim)
        self.own_values = torch.empty_like(self.own_keys)
        self.hidden = torch.zeros(mask.shape).masked_fill(mask == 0, -torch.inf)[:, None, None, None]

    def step(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, n: int) -> torch.Tensor:
        """The n-th answer token of every answer, (p * group, dim) in and out; ``cos``, ``sin`` (p * group, 1, head)."""
        layer: Any = self.layer
        attention = layer.self_attn
        p, heads, group, _, dim = self.own_keys.shape
        normed = layer.input_layernorm(x)
        q, k, v = (
            project(normed).unflatten(-1, (-1, dim))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = (t * cos + rotate_half(t) * sin for t in (q, k))
        q = q.reshape(p, group, heads, -1, dim).transpose(1, 2)  # p, kv heads, group, heads a kv head, head
        self.own_keys[:, :, :, n] = k.reshape(p, group, heads, dim).transpose(1, 2)
        self.own_values[:, :, :, n] = v.reshape(p, group, heads, dim).transpose(1, 2)

        common = (q.flatten(2, 3) @ self.keys.mT).unflatten(2, q.shape[2:4])
        own = q @ self.own_keys[:, :, :, : n + 1].mT
        scores = torch.cat([common * attention.scaling + self.hidden, own * attention.scaling], -1)
        weights = scores.float().softmax(-1).to(v.dtype)
        common, own = weights.split([common.shape[-1], n + 1], -1)
        seen = (common.flatten(2, 3) @ self.values).unflatten(2, q.shape[2:4])
        seen = seen + own @ self.own_values[:, :, :, : n + 1]
        x = x + attention.o_proj(seen.transpose(1, 2).reshape(p * group, -1))
        result: torch.Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
        return result
