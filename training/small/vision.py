"""First stage for a model from scratch: the vision tower learns from the dense labels a ray caster gives for free.

For every image token: is an item there, its colour and shape, and its box relative to the token. Relative, because
Qwen2.5-VL's tower has only rotary positions: where a token lies is added later, by the language model's M-RoPE.

Shapes are learned from images whose colours are turned and faded at random, colours from the others. Where both came
from the same images, the tower told shapes by colours: 93 % of the shapes were right, but 44 % of those of things in
the four pairs that it never saw.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from drivers.errors import UserError
from training.batched_tower import encode_batch
from training.checkpoint import first_line
from training.small.images import (
    CELLS,
    COLOUR_NAMES,
    N_TOKENS,
    SHAPE_NAMES,
    Dataset,
    DenseLabels,
    cell_centres,
    dense_labels,
    to_patches,
)
from training.small.steps import ahead, device

Log = Callable[[int, dict[str, float]], None]

TURNED = 0.75  # share of the images with other colours: shapes are learnt much more slowly than colours


class DenseHead(nn.Module):
    """Reads an image token's embedding (…, dim): covered or not, colour, shape, box relative to the token."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, 1 + len(COLOUR_NAMES) + len(SHAPE_NAMES) + 4)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.out(self.norm(tokens))
        return out.split([1, len(COLOUR_NAMES), len(SHAPE_NAMES), 4], -1)


def relative_boxes(box: torch.Tensor) -> torch.Tensor:
    """Normalized boxes (b, 48, 4) relative to their token: offset of the centre and size, in token sizes."""
    scale = torch.tensor([CELLS[1], CELLS[0]], dtype=torch.float32, device=box.device)
    return torch.cat([(box[..., :2] - cell_centres().to(box.device)) * scale, box[..., 2:] * scale], -1)


def recoloured(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Images (b, h, w, 3), each with its hues turned by an angle of its own and its colours faded or deepened.

    The turn is about the grey axis of RGB (Rodrigues' formula), so brightness and whatever is grey stay as they are.
    """
    b = len(rgb)
    angle, depth = rng.uniform(0, 2 * np.pi, (b, 1, 1)), rng.uniform(0, 1.2, (b, 1, 1))
    along = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = along + depth * (np.cos(angle) * (np.eye(3) - along) + np.sin(angle) * cross)
    turned = rgb.reshape(b, -1, 3).astype(np.float32) @ turn.astype(np.float32).swapaxes(1, 2)
    return np.rint(turned.clip(0, 255)).astype(np.uint8).reshape(rgb.shape)


@dataclass(frozen=True)
class Views:
    """Images (b, h, w, 3) uint8, their labels, and which of them have other colours, (b,) bool."""

    rgb: torch.Tensor
    labels: DenseLabels
    turned: torch.Tensor


def draw_views(data: Dataset, pick: NDArray[np.int64], rng: np.random.Generator) -> Views:
    """The picked images, half of them mirrored and the first of them recoloured."""
    turned, mirrored = np.arange(len(pick)) < len(pick) * TURNED, rng.random(len(pick)) < 0.5
    rgb, items = data.rgb[pick], data.tokens[pick]
    rgb[turned] = recoloured(rgb[turned], rng)
    rgb[mirrored], items[mirrored] = rgb[mirrored, :, ::-1], items[mirrored, :, ::-1]
    labels = dense_labels(items, [data.seen[i] for i in pick])
    labels.box[mirrored, :, 0] = 1.0 - labels.box[mirrored, :, 0]
    return Views(torch.from_numpy(rgb), labels, torch.from_numpy(turned))


def dense_loss(
    head: DenseHead, tokens: torch.Tensor, labels: DenseLabels, turned: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """The head's loss over a batch (b, 48, dim) and its figures; ``turned`` (b,) bool: images with other colours."""
    covered, colour, shape, box = head(tokens)
    on = labels.covered
    shaped, coloured = on & turned[:, None], on & ~turned[:, None]
    wanted = relative_boxes(labels.box)[on]
    l1 = (box[on] - wanted).abs()
    losses = {
        "covered": F.binary_cross_entropy_with_logits(covered.squeeze(-1), on.float()),
        "colour": F.cross_entropy(colour[coloured], labels.colour[coloured]),
        "shape": F.cross_entropy(shape[shaped], labels.shape[shaped]),
        "box": F.smooth_l1_loss(box[on], wanted, beta=0.1) * 4.0,
    }
    with torch.no_grad():
        figures = {
            "covered": ((covered.squeeze(-1) > 0) == on).float().mean().item(),
            "colour": (colour[coloured].argmax(-1) == labels.colour[coloured]).float().mean().item(),
            "shape": (shape[shaped].argmax(-1) == labels.shape[shaped]).float().mean().item(),
            "shape_untaught": (shape[coloured].argmax(-1) == labels.shape[coloured]).float().mean().item(),
            "box_px": l1.mean().item() * 28,
        }
    total = torch.stack(list(losses.values())).sum()
    return total, figures | {"loss": total.item()}


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine to a tenth of ``peak``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def load_state(path: Path) -> Any:
    """What a stage saved. Raises UserError for a damaged file."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch and its unpickler raise many kinds
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); delete it to begin its stage anew") from None


def save_state(path: Path, state: Any) -> None:
    """Write what a stage is at, complete or not at all. Raises UserError where the disk takes no more."""
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch has its own way
        partial.unlink(missing_ok=True)
        why = f"{path}: cannot be written ({first_line(error)})"
        raise UserError(f"{why}; make room, then give the same command again") from None


def update(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], out: Path, step: int) -> None:
    """One step on the clipped gradient. Raises UserError where that is not finite; the weights are as they were."""
    if not torch.isfinite(nn.utils.clip_grad_norm_(params, 1.0)):
        what = f"{out}: step {step + 1}: the gradient is not finite"
        raise UserError(f"{what}; what was saved is kept; look at the data, then train into another --out")
    optimizer.step()


def pretrain_vision(
    tower: nn.Module,
    data: Dataset,
    out: Path,
    *,
    steps: int,
    log: Log,
    batch: int = 64,
    lr: float = 1.5e-3,
    seed: int = 0,
    save_every: int = 100,
) -> None:
    """Train ``tower`` in place; resumes from ``out`` (a .pt file) where that exists.

    Args:
        log: called every ten steps with the step and its figures.
    """
    torch.manual_seed(seed)
    where = device()
    tower.to(where)
    head = DenseHead(tower.config.out_hidden_size).to(where)  # type: ignore[union-attr,arg-type]
    params = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    start = 0
    if out.exists():
        state = load_state(out)
        tower.load_state_dict(state["tower"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began = time.monotonic()

    def draw(step: int) -> Views:
        rng = np.random.default_rng([seed, step])
        return draw_views(data, rng.integers(0, len(data), batch), rng)

    for step, views in enumerate(ahead(draw, start, steps), start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        pixels, grid = to_patches(views.rgb.to(where))
        with torch.autocast(where.type, torch.bfloat16):
            tokens = encode_batch(tower, pixels, grid)
        tokens = tokens.float().reshape(batch, N_TOKENS, -1)
        loss, figures = dense_loss(head, tokens, views.labels.to(where), views.turned.to(where))
        optimizer.zero_grad()
        loss.backward()
        update(optimizer, params, out, step)
        if (step + 1) % 10 == 0:
            log(step + 1, figures | {"s_per_step": (time.monotonic() - began) / (step + 1 - start)})
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"tower": tower.state_dict(), "head": head.state_dict(), "step": step + 1}
            save_state(out, state | {"optimizer": optimizer.state_dict()})
