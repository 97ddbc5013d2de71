"""The vision tower with its image size written in.

Neither of torch's exporters takes the tower as Transformers writes it (its window order is data-dependent), so these
modules say the same computation again with what is known at export time as constants. ``export.verify`` holds them to
Transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from export.modules import AddNorm, GatedMLP, ImageGrid, Linear, RMSNorm, Tensors, constant, rotate

EPS = 1e-6  # Transformers' own constant, not in the config


@dataclass(frozen=True)
class Windows:
    """How a fixed grid is laid out for window attention: the windows one after another, those of one shape together.

    Attributes:
        token_order: (n_tokens,) merged token at each place.
        shapes: number, height and width in tokens of the windows of each shape.
    """

    token_order: Tensor
    shapes: tuple[tuple[int, int, int], ...]


def windows(grid: ImageGrid, window_px: int) -> Windows:
    """Windows of `window_px`, row by row; those at the right and lower edge may be smaller."""
    side = window_px // grid.merge // grid.patch_px
    tokens_h, tokens_w = grid.patches_h // grid.merge, grid.patches_w // grid.merge
    index = torch.arange(tokens_h * tokens_w).reshape(tokens_h, tokens_w)
    by_shape: dict[tuple[int, int], list[Tensor]] = {}
    for top in range(0, tokens_h, side):
        for left in range(0, tokens_w, side):
            window = index[top : top + side, left : left + side]
            by_shape.setdefault((window.shape[0], window.shape[1]), []).append(window.flatten())
    shapes = tuple((len(group), *shape) for shape, group in by_shape.items())
    return Windows(torch.cat([window for group in by_shape.values() for window in group]), shapes)


def patch_angles(grid: ImageGrid, head_dim: int) -> Tensor:
    """(n_patches, head_dim / 2) rotary angles: row then column of each patch, patches ordered by merge block."""
    m, quarter = grid.merge, torch.arange(0, head_dim // 2, 2, dtype=torch.float32)
    inv_freq = 1.0 / 10000.0 ** (quarter / (head_dim // 2))
    rows = torch.arange(grid.patches_h)[:, None].expand(-1, grid.patches_w)
    cols = torch.arange(grid.patches_w)[None, :].expand(grid.patches_h, -1)

    def by_block(x: Tensor) -> Tensor:
        return x.reshape(grid.patches_h // m, m, grid.patches_w // m, m).permute(0, 2, 1, 3).reshape(-1, 1)

    return torch.cat((by_block(rows) * inv_freq, by_block(cols) * inv_freq), dim=-1)


def patch_order(grid: ImageGrid, window_px: int) -> Tensor:
    """(n_patches,) the patch at each place of the windows' layout; the patches of a token stay together."""
    unit = grid.merge**2
    return (windows(grid, window_px).token_order[:, None] * unit + torch.arange(unit)).flatten()


class VisionStart(nn.Module):
    """patches (n_patches, patch values) -> x (n_patches, vision hidden), laid out window by window."""

    order: Tensor

    def __init__(self, tensors: Tensors, grid: ImageGrid, window_px: int) -> None:
        super().__init__()
        self.embed = constant(tensors["patch_embed.proj.weight"].flatten(1).t())
        self.register_buffer("order", patch_order(grid, window_px))

    def forward(self, patches: Tensor) -> Tensor:
        return patches[self.order] @ self.embed


class VisionBlock(nn.Module):
    """One block: x, or x and what is to be added to it -> x and what is to be added to it; (n_patches, hidden) each."""

    def __init__(
        self, tensors: Tensors, grid: ImageGrid, heads: int, window_px: int, *, windowed: bool, first: bool
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(tensors["norm1.weight"], EPS) if first else AddNorm(tensors["norm1.weight"], EPS)
        self.norm2 = AddNorm(tensors["norm2.weight"], EPS)
        self.qkv, self.proj, self.mlp = Linear(tensors, "attn.qkv"), Linear(tensors, "attn.proj"), GatedMLP(tensors)
        self.first = first
        head_dim = self.proj.weight.shape[0] // heads
        if windowed:
            # Scores depend on differences of positions alone, so positions may count from each window's corner, and
            # all windows of a shape are one batch with the same angles.
            side_px = grid.patch_px * grid.merge
            self.attend = nn.ModuleList()
            for n, h, w in windows(grid, window_px).shapes:
                window = replace(grid, width_px=w * side_px, height_px=h * side_px)
                self.attend.append(Attention(n, heads, patch_angles(window, head_dim)))
        else:
            angles = patch_angles(grid, head_dim)[patch_order(grid, window_px)]
            self.attend = nn.ModuleList([Attention(1, heads, angles)])

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if y is None:
            y = self.norm1(x)
        else:
            y, x = self.norm1(x, y)
        y, x = self.norm2(x, self.proj(self.mix(self.qkv(y))))
        return x, self.mlp(y)

    def mix(self, qkv: Tensor) -> Tensor:
        if len(self.attend) == 1:
            mixed: Tensor = self.attend[0](qkv)
            return mixed
        parts = qkv.split([attend.n_rows for attend in self.attend])
        return torch.cat([attend(part) for attend, part in zip(self.attend, parts, strict=True)])


class Attention(nn.Module):
    """Rotary attention within each of `batch` sequences, one after another: (rows, 3 * hidden) -> (rows, hidden)."""

    cos: Tensor
    sin: Tensor
    start: Tensor

    def __init__(self, batch: int, heads: int, angles: Tensor) -> None:
        """`angles`: (rows of one sequence, head_dim / 2)."""
        super().__init__()
        self.batch, self.heads, self.n_rows = batch, heads, batch * len(angles)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("start", torch.zeros(1, dtype=torch.int64))

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.reshape(self.batch, self.n_rows // self.batch, -1).chunk(3, dim=-1)
        q, k = (_Rotate.apply(x, self.start, self.cos, self.sin, self.heads) for x in (q, k))
        mixed = _Attention.apply(q, k, v, self.heads)
        out: Tensor = mixed.reshape(self.n_rows, -1)
        return out


class _Rotate(torch.autograd.Function):
    """Every head of x (batch, n, hidden) by cos, sin (n, head_dim / 2); start (1,) int64 is their row of x's first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        return rotate(x.unflatten(-1, (heads, -1)), cos, sin).flatten(2)

    @staticmethod
    def symbolic(g: Any, x: Any, start: Any, cos: Any, sin: Any, heads: int) -> Any:
        rotated = g.op("com.microsoft::RotaryEmbedding", x, start, cos, sin, num_heads_i=heads)
        rotated.setType(x.type())
        return rotated


class _Attention(torch.autograd.Function):
    """Attention of all with all, q, k, v and the result (batch, n, hidden).

    The operator is one that every ONNX Runtime back to the last for Python 3.10 (1.23, JetPack 6) has without a causal
    mask; GroupQueryAttention, which would rotate as well, has it from 1.31 on and is no faster.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, q: Any, k: Any, v: Any, heads: int) -> Any:
        mixed = g.op("com.microsoft::MultiHeadAttention", q, k, v, num_heads_i=heads)
        mixed.setType(q.type())
        return mixed


class VisionEnd(nn.Module):
    """x and what is to be added to it -> image_embeds (n_tokens, hidden), in the image's order."""

    restore: Tensor

    def __init__(self, tensors: Tensors, grid: ImageGrid, window_px: int) -> None:
        super().__init__()
        self.norm = AddNorm(tensors["ln_q.weight"], EPS)
        self.fc1, self.fc2 = Linear(tensors, "mlp.0"), Linear(tensors, "mlp.2")
        self.unit = grid.merge**2
        self.register_buffer("restore", torch.argsort(windows(grid, window_px).token_order))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.norm(x, y)[0]
        x = self.fc2(nn.functional.gelu(self.fc1(x.reshape(x.shape[0] // self.unit, -1))))
        return x[self.restore]
