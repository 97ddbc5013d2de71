"""Talk as token sequences: Qwen's chat, the image's placeholders, M-RoPE positions, labels on the answer."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

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
    """``ids``, ``labels`` (b, s) long, padded on the right; ``positions`` (3, b, s): time, height, width;
    ``image`` (b, s) bool: where image tokens stand; ``finding`` (b, s) bool: where it is said whether a listed thing
    is named, and whether a named thing has a box: the first token after its colour, the first behind its bracket."""

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    image: torch.Tensor
    finding: torch.Tensor


def encode(tokenizer: PreTrainedTokenizerFast, talk: Talk) -> tuple[list[int], int, list[int]]:
    """Token ids of a whole conversation, how many of them are the prompt, and the places of `Batch.finding`."""
    prompt = tokenizer.encode(render_chat(talk.prompt, N_TOKENS))
    answer = tokenizer(talk.answer + IM_END, return_offsets_mapping=True)
    ends = [end for _, end in answer["offset_mapping"]]
    places = [match.end() for match in re.finditer(r"The \w+ \w+ \[", talk.answer)]
    if places:
        places += [match.end() for match in re.finditer(r"(?:I see |; )\w+, \w+", talk.answer)]
    return prompt + answer["input_ids"], len(prompt), [len(prompt) + bisect_right(ends, place) for place in places]


def collate(tokenizer: PreTrainedTokenizerFast, talks: list[Talk]) -> Batch:
    """A batch of conversations. Padding stands on the right, where a causal model never looks from the left."""
    image_id = token_id(tokenizer, IMAGE_PAD)
    encoded = [encode(tokenizer, talk) for talk in talks]
    longest = max(len(ids) for ids, _, _ in encoded)
    ids = np.full((len(talks), longest), tokenizer.pad_token_id)
    labels = np.full((len(talks), longest), IGNORE)
    positions = np.zeros((3, len(talks), longest), int)
    finding = np.zeros((len(talks), longest), bool)
    for k, (seq, n_prompt, places) in enumerate(encoded):
        ids[k, : len(seq)] = seq
        labels[k, n_prompt : len(seq)] = seq[n_prompt:]
        positions[:, k, : len(seq)] = mrope_positions(seq, image_id, CELLS)
        finding[k, places] = True
    t = torch.from_numpy(ids)
    return Batch(t, torch.from_numpy(labels), torch.from_numpy(positions), t == image_id, torch.from_numpy(finding))
