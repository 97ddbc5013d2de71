"""The small model learns to say what it sees: grounding talk, with dense labels along the way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from training.batched_tower import encode_batch
from training.small.grounding import draw_talk, draw_talk_of_shapes
from training.small.images import COLOUR_NAMES, N_TOKENS, SHAPE_NAMES, Dataset, DenseLabels, dense_labels, to_patches
from training.small.sequences import IGNORE, Batch, collate
from training.small.steps import ahead, device
from training.small.tokenizer import NUMBERS
from training.small.vision import Log, learning_rate, load_state, recoloured, save_state, update

BOX_LAYER = 2  # the language model's image tokens know their absolute boxes after this layer; the rest is for reading
FINDING = 10.0  # how much more than any other token those count that say whether a named thing is there
NUMBER_SIGMA = 0.8  # in hundredths: a number next to the right one is nearly right


def smooth_number_embeddings(model: Qwen2_5_VLForConditionalGeneration, number_ids: list[int]) -> None:
    """Start with neighbouring numbers alike: low-frequency cosines instead of independent noise."""
    x = torch.arange(len(number_ids)).float()[:, None] / (len(number_ids) - 1)
    waves = torch.cos(torch.pi * x * torch.arange(24)[None])
    weight = model.get_input_embeddings().weight
    mix = torch.randn(waves.shape[1], weight.shape[1]) * (0.02 / np.sqrt(waves.shape[1] / 2))
    with torch.no_grad():
        weight[number_ids] = waves @ mix


class TokenReader(nn.Module):
    """Reads, from an image token inside the language model, the very tokens an answer needs: the item's colour,
    shape and four numbers, each as scores against the model's own token embeddings. Used in training only."""

    def __init__(self, dim: int, tokenizer: PreTrainedTokenizerFast):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.slots = nn.Linear(dim, 6 * dim, bias=False)

        def first(words: tuple[str, ...]) -> list[int]:
            return [tokenizer.encode(f" {w}")[0] for w in words]

        self.colours, self.shapes = first(COLOUR_NAMES), first(SHAPE_NAMES)
        self.numbers = [tokenizer.encode(n)[0] for n in NUMBERS]

    def loss(
        self, hidden: torch.Tensor, labels: DenseLabels, embeddings: torch.Tensor, turned: torch.Tensor
    ) -> torch.Tensor:
        """Loss over a batch of image tokens (b, 48, dim); ``embeddings`` (vocab, dim); ``turned`` (b,) bool: images
        with other colours, from which shapes are learnt, and colours from the others."""
        turned = turned[:, None].expand_as(labels.covered)[labels.covered]
        slots = self.slots(self.norm(hidden[labels.covered])).unflatten(-1, (6, -1))
        colour = slots[:, 0] @ embeddings[self.colours].T
        shape = slots[:, 1] @ embeddings[self.shapes].T
        numbers = slots[:, 2:] @ embeddings[self.numbers].T
        target = soft_numbers(labels.box[labels.covered] * 100.0)
        return (
            F.cross_entropy(colour[~turned], labels.colour[labels.covered][~turned])
            + F.cross_entropy(shape[turned], labels.shape[labels.covered][turned])
            - (target * numbers.log_softmax(-1)).sum(-1).sum(-1).mean()
        )


def soft_numbers(hundredths: torch.Tensor) -> torch.Tensor:
    """(…,) values in hundredths -> (…, 101) a narrow Gaussian over the number tokens around each."""
    bins = torch.arange(len(NUMBERS), dtype=torch.float32, device=hundredths.device)
    return (-0.5 * ((bins - hundredths[..., None]) / NUMBER_SIGMA) ** 2).softmax(-1)


def answer_loss(
    logits: torch.Tensor, labels: torch.Tensor, number_ids: list[int]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of answer tokens (n, vocab), (n,); a number against a narrow Gaussian over its neighbours."""
    value = torch.full((logits.shape[1],), -1.0, device=logits.device)
    value[number_ids] = torch.arange(len(number_ids), dtype=torch.float32, device=logits.device)
    wanted = value[labels]
    is_number = wanted >= 0
    log_p = logits.log_softmax(-1)
    words = F.nll_loss(log_p[~is_number], labels[~is_number], reduction="sum")
    numbers = -(soft_numbers(wanted[is_number]) * log_p[is_number][:, number_ids]).sum()
    with torch.no_grad():
        got = value[logits.argmax(-1)]
        off = (got[is_number] - wanted[is_number]).abs()
        figures = {
            "word": (logits[~is_number].argmax(-1) == labels[~is_number]).float().mean().item(),
            "num1": ((off <= 1) & (got[is_number] >= 0)).float().mean().item(),
            "num3": ((off <= 3) & (got[is_number] >= 0)).float().mean().item(),
        }
    return (words + numbers) / len(labels), figures


@dataclass(frozen=True)
class _Lesson:
    """Which images (b,), which of them recoloured (b,), what is said of them and their labels."""

    pick: torch.Tensor
    turned: torch.Tensor
    talk: Batch
    labels: DenseLabels


@dataclass(frozen=True)
class LanguageSettings:
    steps: int
    batch: int = 64
    lr: float = 1.5e-3
    seed: int = 0
    save_every: int = 100


@torch.no_grad()
def image_features(tower: nn.Module, data: Dataset, log: Log, batch: int = 128) -> torch.Tensor:
    """(2, n, 48, dim) bfloat16: what a frozen tower says of every image as it is, and recoloured, computed once."""
    out: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    rng, where = np.random.default_rng(0), device()
    for k in range(0, len(data), batch):
        rgb = data.rgb[k : k + batch]
        for variant, images in zip(out, (rgb, recoloured(rgb, rng)), strict=True):
            pixels, grid = to_patches(torch.from_numpy(images).to(where))
            with torch.autocast(where.type, torch.bfloat16):
                variant.append(encode_batch(tower, pixels, grid).reshape(len(grid), N_TOKENS, -1).bfloat16().cpu())
        if k // batch % 20 == 0:
            log(k + len(rgb), {})
    return torch.stack([torch.cat(variant) for variant in out])


def train_language(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: Dataset,
    out: Path,
    settings: LanguageSettings,
    log: Log,
    features: torch.Tensor,
) -> None:
    """Train ``model``'s language half in place; resumes from ``out`` (a .pt file) where that exists.

    Args:
        features: of `image_features`.
    """
    torch.manual_seed(settings.seed)
    where = device()
    module: nn.Module = model
    module.to(where)
    reader = TokenReader(model.config.text_config.hidden_size, tokenizer).to(where)
    params = [*model.model.language_model.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(params, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.03)
    start = 0
    if out.exists():
        state = load_state(out)
        model.load_state_dict(state["model"])
        reader.load_state_dict(state["reader"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began = time.monotonic()

    def draw(step: int) -> _Lesson:
        rng = np.random.default_rng([settings.seed, step])
        pick = rng.integers(0, len(data), settings.batch)
        seen = [data.seen[i] for i in pick]
        turned = np.arange(settings.batch) < settings.batch // 3
        talks = [(draw_talk_of_shapes if t else draw_talk)(rng, s) for t, s in zip(turned, seen, strict=True)]
        labels = dense_labels(data.tokens[pick], seen)
        return _Lesson(torch.from_numpy(pick), torch.from_numpy(turned), collate(tokenizer, talks), labels)

    for step, lesson in enumerate(ahead(draw, start, settings.steps), start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.lr)
        image = features[lesson.turned.long(), lesson.pick].to(where).float()
        turned = lesson.turned.to(where)
        loss, figures = language_loss(model, reader, lesson.talk.to(where), image, lesson.labels.to(where), turned)
        optimizer.zero_grad()
        loss.backward()
        update(optimizer, params, out, step)
        if (step + 1) % 10 == 0:
            log(step + 1, figures | {"s_per_step": (time.monotonic() - began) / (step + 1 - start)})
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            state = {"model": model.state_dict(), "reader": reader.state_dict(), "step": step + 1}
            save_state(out, state | {"optimizer": optimizer.state_dict()})


def language_loss(
    model: Qwen2_5_VLForConditionalGeneration,
    reader: TokenReader,
    batch: Batch,
    image: torch.Tensor,
    labels: DenseLabels,
    turned: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Answer loss plus the reader's, for image embeddings (b, 48, dim), those of recoloured images ``turned`` (b,)."""
    embeddings = model.get_input_embeddings().weight
    embeds = F.embedding(batch.ids, embeddings).masked_scatter(batch.image[..., None], image)
    with torch.autocast(image.device.type, torch.bfloat16):
        out = model.model.language_model(
            inputs_embeds=embeds, position_ids=batch.positions, use_cache=False, output_hidden_states=True
        )
        target = batch.labels[:, 1:]
        on = target != IGNORE
        logits = model.lm_head(out.last_hidden_state[:, :-1][on])
    answer, figures = answer_loss(logits.float(), target[on], reader.numbers)
    first = batch.finding[:, 1:]
    finding, found = finding_loss(logits.float()[first[on]], target[first], reader.numbers)
    hidden = out.hidden_states[BOX_LAYER].float()[batch.image].reshape(len(batch.ids), N_TOKENS, -1)
    read = reader.loss(hidden, labels, embeddings, turned)
    loss = answer + FINDING * finding / on.sum() + 0.1 * read
    return loss, figures | {"found": found, "answer": answer.item(), "read": read.item()}


def finding_loss(logits: torch.Tensor, labels: torch.Tensor, number_ids: list[int]) -> tuple[torch.Tensor, float]:
    """Is it there, whatever its box: summed cross-entropy at the places of `Batch.finding` (n, vocab), (n,), and the
    share of them where the right is likelier than all else. Every number is right where there is a box.

    They are few tokens among many that depend on everything before them, and learnt last if they count like any other.
    """
    log_p = logits.log_softmax(-1)
    box = log_p[:, number_ids].logsumexp(-1)
    has_box = torch.isin(labels, torch.tensor(number_ids, device=labels.device))
    said = torch.where(has_box, box, log_p.gather(1, labels[:, None])[:, 0])
    return -said.sum(), (said > np.log(0.5)).float().mean().item() if len(labels) else 1.0
