"""Qwen2.5-VL as two plain graphs: the checkpoint's weights, everything that depends on the image size a constant.

Neither of torch's exporters takes the tower as Transformers writes it (its window order is data-dependent), so these
modules say the same computation again with what is known at export time written in. ``export.verify`` holds them to
Transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ImageGrid:
    """The fixed image: pixels, patches and merged tokens on each side."""

    width_px: int
    height_px: int
    patch_px: int
    merge: int

    @property
    def patches_h(self) -> int:
        return self.height_px // self.patch_px

    @property
    def patches_w(self) -> int:
        return self.width_px // self.patch_px

    @property
    def n_patches(self) -> int:
        return self.patches_h * self.patches_w

    @property
    def n_tokens(self) -> int:
        return self.n_patches // self.merge**2


class Linear(nn.Module):
    """x @ W + b with W stored (in, out), so that the graph holds one MatMul with a constant right side."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(source.weight.detach().t().contiguous(), requires_grad=False)
        self.bias = None if source.bias is None else nn.Parameter(source.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    """Root-mean-square normalization over the last axis."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(source.weight.detach(), requires_grad=False)
        self.eps = float(source.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.gate, self.up, self.down = Linear(source.gate_proj), Linear(source.up_proj), Linear(source.down_proj)
        self.act = source.act_fn

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(self.act(self.gate(x)) * self.up(x))
        return down


def rotate_half(x: Tensor) -> Tensor:
    """(-second half, first half) of the last axis."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding."""
    return x * cos + rotate_half(x) * sin


@dataclass(frozen=True)
class Windows:
    """The windows of a fixed grid, as constants.

    Attributes:
        token_order: (n_tokens,) merged token at each place once the windows are laid out one after another.
        slots: (n_windows, slot) patch (in that layout) in each slot of a window padded to the largest; padding is 0.
        padding: (n_windows, slot) True where a slot is padding.
        places: (n_patches,) where in the flattened slots each patch is.
    """

    token_order: Tensor
    slots: Tensor
    padding: Tensor
    places: Tensor


def windows(grid: ImageGrid, window_px: int) -> Windows:
    """Windows of `window_px`, row by row; those at the right and lower edge may be smaller."""
    unit = grid.merge**2
    side = window_px // grid.merge // grid.patch_px
    tokens_h, tokens_w = grid.patches_h // grid.merge, grid.patches_w // grid.merge
    index = torch.arange(tokens_h * tokens_w).reshape(tokens_h, tokens_w)
    groups = [
        index[top : top + side, left : left + side].flatten()
        for top in range(0, tokens_h, side)
        for left in range(0, tokens_w, side)
    ]
    largest = max(len(group) for group in groups) * unit
    slots = torch.zeros(len(groups), largest, dtype=torch.long)
    padding = torch.ones(len(groups), largest, dtype=torch.bool)
    start = 0
    for row, group in enumerate(groups):
        n = len(group) * unit
        slots[row, :n] = torch.arange(start, start + n)
        padding[row, :n] = False
        start += n
    places = torch.nonzero(~padding.flatten()).flatten()
    return Windows(torch.cat(groups), slots, padding, places)


def patch_angles(grid: ImageGrid, inv_freq: Tensor) -> Tensor:
    """(n_patches, 2 * len(inv_freq)) rotary angles: row then column of each patch, patches ordered by merge block."""
    m = grid.merge
    rows = torch.arange(grid.patches_h)[:, None].expand(-1, grid.patches_w)
    cols = torch.arange(grid.patches_w)[None, :].expand(grid.patches_h, -1)

    def by_block(x: Tensor) -> Tensor:
        return x.reshape(grid.patches_h // m, m, grid.patches_w // m, m).permute(0, 2, 1, 3).reshape(-1, 1)

    return torch.cat((by_block(rows) * inv_freq, by_block(cols) * inv_freq), dim=-1)


class VisionBlock(nn.Module):
    """One block of the tower; attends in windows, or everywhere where `win` is None."""

    slots: Tensor
    places: Tensor
    bias: Tensor | None

    def __init__(self, source: Any, win: Windows | None) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = RMSNorm(source.norm1), RMSNorm(source.norm2), GatedMLP(source.mlp)
        self.qkv, self.proj = Linear(source.attn.qkv), Linear(source.attn.proj)
        self.heads, self.scale = source.attn.num_heads, float(source.attn.scaling)
        self.windowed = win is not None
        if win is not None:
            self.register_buffer("slots", win.slots.flatten())
            self.register_buffer("places", win.places)
            self.n_windows, self.slot = win.slots.shape
            bias = torch.zeros(win.padding.shape).masked_fill(win.padding, -1e9)[:, None, None, :]
            self.register_buffer("bias", bias if bool(win.padding.any()) else None)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.proj(self.attend(self.norm1(x), cos, sin))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, 3, self.heads, dim // self.heads).unbind(1)
        q, k = rotate(q, cos, sin) * self.scale, rotate(k, cos, sin)
        if not self.windowed:
            q, k, v = q.transpose(0, 1), k.permute(1, 2, 0), v.transpose(0, 1)
            return ((q @ k).softmax(-1) @ v).transpose(0, 1).reshape(n, dim)
        shape = (self.n_windows, self.slot, self.heads, dim // self.heads)
        q, k, v = (part[self.slots].reshape(shape) for part in (q, k, v))
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
        if self.bias is not None:
            scores = scores + self.bias
        mixed = (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)
        return mixed.reshape(self.n_windows * self.slot, dim)[self.places]


class VisionGraph(nn.Module):
    """patches (n_patches, 3 * 2 * 14 * 14) float32 -> image embeddings (n_tokens, hidden)."""

    patch_order: Tensor
    restore: Tensor

    def __init__(self, visual: Any, grid: ImageGrid) -> None:
        super().__init__()
        config = visual.config
        win = windows(grid, config.window_size)
        self.unit = grid.merge**2
        weight = visual.patch_embed.proj.weight.detach()
        self.embed = nn.Parameter(weight.reshape(weight.shape[0], -1).t().contiguous(), requires_grad=False)
        self.register_buffer("patch_order", (win.token_order[:, None] * self.unit + torch.arange(self.unit)).flatten())
        self.register_buffer("restore", torch.argsort(win.token_order))
        angles = patch_angles(grid, visual.rotary_pos_emb.inv_freq.float().cpu())[self.patch_order]
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.blocks = nn.ModuleList(
            VisionBlock(block, None if i in config.fullatt_block_indexes else win)
            for i, block in enumerate(visual.blocks)
        )
        self.norm = RMSNorm(visual.merger.ln_q)
        self.fc1, self.fc2 = Linear(visual.merger.mlp[0]), Linear(visual.merger.mlp[2])

    def forward(self, patches: Tensor) -> Tensor:
        x = patches[self.patch_order] @ self.embed
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        x = self.norm(x)
        x = self.fc2(nn.functional.gelu(self.fc1(x.reshape(x.shape[0] // self.unit, -1))))
        return x[self.restore]


class DecoderLayer(nn.Module):
    """One language layer with a key-value cache."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        attn = source.self_attn
        self.norm1, self.norm2 = RMSNorm(source.input_layernorm), RMSNorm(source.post_attention_layernorm)
        self.q, self.k, self.v = Linear(attn.q_proj), Linear(attn.k_proj), Linear(attn.v_proj)
        self.o, self.mlp = Linear(attn.o_proj), GatedMLP(source.mlp)
        self.kv_heads, self.groups = attn.num_key_value_heads, attn.num_key_value_groups
        self.head_dim, self.scale = attn.head_dim, float(attn.scaling)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = self.norm1(x)
        q = self.q(y).reshape(-1, self.kv_heads, self.groups, self.head_dim).permute(1, 2, 0, 3)
        k = self.k(y).reshape(-1, self.kv_heads, self.head_dim).transpose(0, 1)
        v = self.v(y).reshape(-1, self.kv_heads, self.head_dim).transpose(0, 1)
        q = rotate(q, cos, sin) * self.scale
        key = torch.cat((past_key, rotate(k, cos, sin)), dim=1)
        value = torch.cat((past_value, v), dim=1)
        # The heads that share a key ride on a broadcast axis, so keys and values are never repeated in memory.
        scores = q @ key.unsqueeze(1).transpose(2, 3) + bias
        mixed = (scores.softmax(-1) @ value.unsqueeze(1)).permute(2, 0, 1, 3)
        x = x + self.o(mixed.reshape(-1, self.kv_heads * self.groups * self.head_dim))
        return x + self.mlp(self.norm2(x)), key, value


class LanguageGraph(nn.Module):
    """Prefill and step in one: any number of new tokens after any number of cached ones.

    Inputs: input_ids (n,) int64; image_embeds (m, hidden), row i for the i-th image placeholder among the ids, m = 0
    where there is none; position_ids (3, n) int64 (time, height, width); per layer past_key and past_value
    (kv heads, past, head_dim).
    Outputs: logits (vocab,) after the last token; per layer key and value, past and new together.
    """

    row: Tensor
    inv_freq: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        text, head = model.model.language_model, model.lm_head
        config = text.config
        # (hidden, vocab): one table serves the lookup (a column) and the head (a MatMul), so a tied one is stored once.
        self.head = nn.Parameter(head.weight.detach().t().contiguous(), requires_grad=False)
        self.table = self.head
        if head.weight.data_ptr() != text.embed_tokens.weight.data_ptr():
            self.table = nn.Parameter(text.embed_tokens.weight.detach().t().contiguous(), requires_grad=False)
        self.layers = nn.ModuleList(DecoderLayer(layer) for layer in text.layers)
        self.norm = RMSNorm(text.norm)
        self.kv_heads, self.head_dim = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        self.image_token = int(model.config.image_token_id)
        rotary = text.rotary_emb
        section = config.rope_scaling["mrope_section"]
        self.register_buffer("row", torch.repeat_interleave(torch.arange(3), torch.tensor(section)))
        self.register_buffer("inv_freq", rotary.inv_freq.float().cpu())
        self.attention_scaling = float(rotary.attention_scaling)

    def forward(
        self, input_ids: Tensor, image_embeds: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        placeholder = input_ids == self.image_token
        # One spare row keeps the lookup legal where no image is given.
        rows = torch.cat((image_embeds, torch.zeros_like(self.norm.weight)[None]), dim=0)
        rank = placeholder.to(torch.int64).cumsum(0) - 1
        # A placeholder without an embedding is a token like others, as in Transformers once the image has passed.
        is_image = placeholder & (rank < image_embeds.shape[0])
        rank = torch.where(is_image, rank, torch.zeros_like(rank))
        x = torch.where(is_image[:, None], rows[rank], self.table[:, input_ids].t())

        angles = position_ids[self.row].t().to(torch.float32) * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling

        n, n_past = input_ids.shape[0], past[0].shape[1]
        visible = torch.arange(n_past + n)[None, :] <= (torch.arange(n) + n_past)[:, None]
        bias = torch.where(visible, 0.0, -1e9).to(torch.float32)

        present: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            x, key, value = layer(x, cos, sin, bias, past[2 * i], past[2 * i + 1])
            present += [key, value]
        logits = self.norm(x[-1:]) @ self.head
        return (logits[0], *present)
