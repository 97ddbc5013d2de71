"""The language model's layers with a key-value cache that is written in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from export.modules import AddNorm, GatedMLP, Linear, RMSNorm, Tensors, no_value, rotate


class DecoderLayer(nn.Module):
    """One layer, for one sequence: n new tokens after any number of cached ones.

    Inputs: x (1, n, hidden), or x and what is to be added to it first; cos, sin (room, head_dim / 2), one row a place
    in the cache; lengths (1,) int32, tokens in all less one; total () int32, tokens in all; past_key, past_value
    (1, kv heads, room, head_dim). Outputs: x, what is to be added to it, key, value. The sums are left to the next
    layer's norm, which does both in one kernel.
    """

    def __init__(self, tensors: Tensors, heads: int, kv_heads: int, eps: float, first: bool) -> None:
        super().__init__()
        weight = tensors["input_layernorm.weight"]
        self.norm1 = RMSNorm(weight, eps) if first else AddNorm(weight, eps)
        self.norm2 = AddNorm(tensors["post_attention_layernorm.weight"], eps)
        self.qkv = Linear(tensors, *(f"self_attn.{name}_proj" for name in "qkv"))
        self.o, self.mlp = Linear(tensors, "self_attn.o_proj"), GatedMLP(tensors)
        self.sizes = heads, kv_heads, self.o.weight.shape[0] // heads
        self.first = first

    def forward(self, x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.first:
            y = self.norm1(x)
        else:
            y, x = self.norm1(x, rest[0])
            rest = rest[1:]
        mixed, key, value = _CachedAttention.apply(self.qkv(y), *rest, *self.sizes)
        y, x = self.norm2(x, self.o(mixed))
        return x, self.mlp(y), key, value


class _CachedAttention(torch.autograd.Function):
    """Causal rotary attention over a cache, as ONNX Runtime's GroupQueryAttention (batch 1, queries packed with keys).

    The operator looks rotary angles up by a token's place in the cache when it is given no position ids. So the angles
    of M-RoPE, whatever the positions they come from, only need to be written at the tokens' places.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        lengths: Tensor,
        total: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        heads: int,
        kv_heads: int,
        head_dim: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, end = qkv.shape[1], int(total)
        q, k, v = qkv[0].reshape(n, -1, head_dim).split([heads, kv_heads, kv_heads], dim=1)
        new = slice(end - n, end)
        key, value = past_key.clone(), past_value.clone()
        key[0, :, new] = rotate(k, cos[new], sin[new]).transpose(0, 1)
        value[0, :, new] = v.transpose(0, 1)
        visible = torch.arange(end)[None, :] <= torch.arange(end - n, end)[:, None]
        q = rotate(q, cos[new], sin[new]).transpose(0, 1)[None]
        mixed = nn.functional.scaled_dot_product_attention(
            q, key[:, :, :end], value[:, :, :end], attn_mask=visible, enable_gqa=True
        )
        return mixed.transpose(1, 2).flatten(2), key, value

    @staticmethod
    def symbolic(
        g: Any,
        qkv: Any,
        cos: Any,
        sin: Any,
        lengths: Any,
        total: Any,
        past_key: Any,
        past_value: Any,
        heads: int,
        kv_heads: int,
        head_dim: int,
    ) -> Any:
        none = no_value(g)
        inputs = (qkv, none, none, past_key, past_value, lengths, total, cos, sin)
        sizes = {"num_heads_i": heads, "kv_num_heads_i": kv_heads, "do_rotary_i": 1}
        mixed, key, value = g.op("com.microsoft::GroupQueryAttention", *inputs, **sizes, outputs=3)
        mixed.setType(past_key.type().with_sizes([1, None, heads * head_dim]))
        key.setType(past_key.type())
        value.setType(past_value.type())
        return mixed, key, value


class LanguageStart(nn.Module):
    """inputs_embeds (n, hidden) -> x (1, n, hidden)."""

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return inputs_embeds.unsqueeze(0)


class LanguageEnd(nn.Module):
    """x and what is to be added to it -> hidden (n, hidden), normalized."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.norm = AddNorm(weight, eps)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x, y)[0].squeeze(0)
