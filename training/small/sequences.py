"""Talk as token sequences: Qwen's chat, the image's placeholders, M-RoPE positions, labels on the answer."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, fields

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from edge.contract import IM_END, IMAGE_PAD, render_chat
from edge.engine.mrope import mrope_positions
from training.small.grounding import Talk
from training.small.images import CELLS, N_TOKENS
from training.small.tokenizer import token_id

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Conversations of one length.

    Attributes:
        ids: (b, s) long, padded on the right.
        labels: (b, s) long, `IGNORE` where nothing is learnt: in prompts, and at `Encoded.shapes`.
        positions: (3, b, s) time, height, width.
        image: (b, s) bool, where image tokens stand.
        finding: (b, s) bool, where it is said whether a named thing is there: the first tokens after each listed word,
            with a star or not, and behind a named thing's bracket.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    image: torch.Tensor
    finding: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same conversations on ``device``."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Encoded:
    """A whole conversation.

    Attributes:
        ids: its tokens; the first ``n_prompt`` are the prompt.
        finding: places of `Batch.finding`.
        shapes: places of the shapes in a list that has colours too; recoloured images teach them.
    """

    ids: list[int]
    n_prompt: int
    finding: list[int]
    shapes: list[int]


def encode(tokenizer: PreTrainedTokenizerFast, talk: Talk) -> Encoded:
    """Token ids of a conversation, and the places in it that are trained on in another way than the rest."""
    prompt = tokenizer.encode(render_chat(talk.prompt, N_TOKENS))
    answer = tokenizer(talk.answer + IM_END, return_offsets_mapping=True)
    ends = [end for _, end in answer["offset_mapping"]]

    def tokens_behind(pattern: str) -> list[int]:
        return [len(prompt) + bisect_right(ends, match.end()) for match in re.finditer(pattern, talk.answer)]

    finding = tokens_behind(r"The \w+ \w+ \[")
    if finding:
        finding += tokens_behind(r"(?:see|;) \w+") + tokens_behind(r"(?:see|;) \w+\*?, \w+")
    return Encoded(prompt + answer["input_ids"], len(prompt), finding, tokens_behind(r"(?:see|;)(?= \w+\*?,)"))


def collate(tokenizer: PreTrainedTokenizerFast, talks: list[Talk]) -> Batch:
    """A batch of conversations. Padding stands on the right, where a causal model never looks from the left."""
    image_id = token_id(tokenizer, IMAGE_PAD)
    encoded = [encode(tokenizer, talk) for talk in talks]
    longest = max(len(one.ids) for one in encoded)
    ids = np.full((len(talks), longest), tokenizer.pad_token_id)
    labels = np.full((len(talks), longest), IGNORE)
    positions = np.zeros((3, len(talks), longest), int)
    finding = np.zeros((len(talks), longest), bool)
    for k, one in enumerate(encoded):
        length = len(one.ids)
        ids[k, :length] = one.ids
        labels[k, one.n_prompt : length] = one.ids[one.n_prompt :]
        labels[k, one.shapes] = IGNORE
        positions[:, k, :length] = mrope_positions(one.ids, image_id, CELLS)
        finding[k, one.finding] = True
    t = torch.from_numpy(ids)
    return Batch(t, torch.from_numpy(labels), torch.from_numpy(positions), t == image_id, torch.from_numpy(finding))
