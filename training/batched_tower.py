"""Qwen2.5-VL's vision tower over a batch of images of one size: the same numbers, fewer and larger operations.

Transformers runs attention window by window. With every image alike, all windows of all images go through one masked
attention call: 1.35 against 1.95 s a training step of 64 images on two cores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F


def encode_batch(tower: Any, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """What ``tower(pixels, grid)`` returns, (b * tokens, dim), for ``grid`` (b, 3) whose rows are all the same."""
    b, one = len(grid), grid[:1]
    n = int(one.prod())
    unit = tower.spatial_merge_unit
    index, bounds = tower.get_window_index(one)
    order = torch.as_tensor(index, device=pixels.device)
    window_of = torch.zeros(n, dtype=torch.long, device=pixels.device)
    for k, start in enumerate(sorted(set(bounds))):
        window_of[start:] = k
    same_window = window_of[:, None] == window_of[None]

    rotary = tower.rot_pos_emb(one).reshape(n // unit, unit, -1)[order].reshape(n, -1)
    cos, sin = torch.cat([rotary, rotary], -1).cos(), torch.cat([rotary, rotary], -1).sin()

    weight = tower.patch_embed.proj.weight
    x = F.linear(pixels, weight.reshape(len(weight), -1)).reshape(b, n // unit, unit, -1)[:, order].reshape(b, n, -1)
    for layer, block in enumerate(tower.blocks):
        mask = None if layer in tower.fullatt_block_indexes else same_window
        x = x + _attend(block.attn, block.norm1(x), cos, sin, mask)
        x = x + block.mlp(block.norm2(x))
    x = tower.merger(x.reshape(b * n, -1)).reshape(b, n // unit, -1)
    return x[:, torch.argsort(order)].reshape(b * n // unit, -1)


def _attend(
    attn: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    b, n, dim = x.shape
    q, k, v = attn.qkv(x).reshape(b, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = (t * cos + _rotate_half(t) * sin for t in (q.float(), k.float()))
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)
    result: torch.Tensor = attn.proj(out.transpose(1, 2).reshape(b, n, dim))
    return result


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)
