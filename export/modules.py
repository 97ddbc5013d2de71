"""What the parts of both graphs are made of.

A part is filled from the tensors of its own layer of the checkpoint, named as there without the layer's prefix, and
traced alone. Where ONNX Runtime has one kernel for what would be a dozen nodes, the symbolic of a custom function
names it, and its forward says the same in torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]


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


def constant(tensor: Tensor) -> nn.Parameter:
    """A weight of the graph: a copy of its own, in float32."""
    return nn.Parameter(tensor.detach().to(torch.float32, copy=True).contiguous(), requires_grad=False)


class Linear(nn.Module):
    """x @ W + b with W stored (in, out), so that the graph holds one MatMul with a constant right side."""

    def __init__(self, tensors: Tensors, *names: str) -> None:
        """Of torch's (out, in) weights; several products of one input become one, their outputs side by side."""
        super().__init__()
        self.weight = constant(torch.cat([tensors[f"{name}.weight"] for name in names]).t())
        biases = [tensors[f"{name}.bias"] for name in names if f"{name}.bias" in tensors]
        self.bias = constant(torch.cat(biases)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    """Root-mean-square normalization over the last axis."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = constant(weight), eps

    def forward(self, x: Tensor) -> Tensor:
        # In the words that ONNX Runtime fuses into one kernel.
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class AddNorm(RMSNorm):
    """The residual's sum and its normalization at once: (x, y) -> normalized x + y, x + y."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        pair: tuple[Tensor, Tensor] = _AddNorm.apply(x, y, self.weight, self.eps)
        return pair


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = x + y
        return total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + eps) * weight, total

    @staticmethod
    def symbolic(g: Any, x: Any, y: Any, weight: Any, eps: float) -> tuple[Any, Any]:
        outputs = g.op("com.microsoft::SkipSimplifiedLayerNormalization", x, y, weight, epsilon_f=eps, outputs=4)
        for output in (outputs[0], outputs[3]):
            output.setType(x.type())
        return outputs[0], outputs[3]


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.gate, self.up = Linear(tensors, "mlp.gate_proj"), Linear(tensors, "mlp.up_proj")
        self.down = Linear(tensors, "mlp.down_proj")

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        down: Tensor = self.down(gate * torch.sigmoid(gate) * self.up(x))
        return down


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x (…, n, heads, head_dim) by cos, sin (n, head_dim / 2)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def no_value(g: Any) -> Any:
    """An optional input that is left out of a traced node."""
    none = g.op("prim::Constant")
    none.setType(torch.OptionalType.ofTensor())
    return none
