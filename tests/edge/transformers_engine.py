"""A checkpoint behind the engine protocol by Transformers alone: what our own engines and their decoding must equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from edge import contract
from edge.abstention import Abstention


@dataclass(frozen=True)
class CheckpointBundle:
    """Of a bundle, what decoding reads."""

    width_px: int
    height_px: int
    n_image_tokens: int
    vocab: int
    max_positions: int
    image_token: int
    end_token: int
    number_tokens: np.ndarray
    tokenizer: Tokenizer
    tokenizer_json: str
    abstention: Abstention = Abstention()


class TransformersEngine:
    """An `edge.engine.protocol.Engine`, float32 on the CPU; nothing of an earlier prompt is kept."""

    def __init__(self, checkpoint: Path, width_px: int = 224, height_px: int = 168) -> None:
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        text = (checkpoint / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
        config = self._model.config
        spelled = [set(tokenizer.decode([token])) for token in range(tokenizer.get_vocab_size())]
        self.bundle = CheckpointBundle(
            width_px,
            height_px,
            width_px * height_px // 28**2,
            config.text_config.vocab_size,
            config.text_config.max_position_embeddings,
            config.image_token_id,
            tokenizer.token_to_id(contract.IM_END),
            np.array([i for i, chars in enumerate(spelled) if chars and chars <= set('0123456789., []{}":</>')]),
            tokenizer,
            text,
        )
        self._grid = torch.tensor([[1, height_px // 14, width_px // 14]])
        self._n_prompt = self._position = 0
        self._cache = DynamicCache()
        self._hidden = torch.zeros(0, 1)
        self.n_passes = 0
        self.number_rows = 0

    @property
    def length(self) -> int:
        return self._cache.get_seq_length()

    @property
    def room(self) -> int:
        return self.bundle.max_positions

    @torch.inference_mode()
    def encode_image(self, patches: np.ndarray) -> np.ndarray:
        return self._model.model.visual(torch.from_numpy(patches), grid_thw=self._grid).numpy()

    def prefill(self, ids: Sequence[int], image_embeds: np.ndarray) -> None:
        tokens = torch.tensor([list(ids)])
        grid = self._grid if len(image_embeds) else None
        positions, delta = self._model.model.get_rope_index(tokens, grid)
        embeds = self._model.get_input_embeddings()(tokens)
        embeds[0, tokens[0] == self.bundle.image_token] = torch.from_numpy(image_embeds)
        self._cache, self._n_prompt = DynamicCache(), len(ids)
        self._run(embeds, positions)
        self._hidden = self._hidden[-1:]
        self._position = int(positions.max()) + 1 - len(ids)

    def extend(self, tokens: Sequence[int]) -> None:
        assert tokens and self._n_prompt
        embeds = self._model.get_input_embeddings()(torch.tensor([list(tokens)]))
        place = self._position + self.length
        self._run(embeds, torch.arange(place, place + len(tokens)).expand(3, 1, -1))
        self.n_passes += 1

    def truncate(self, length: int) -> None:
        assert self._n_prompt <= length <= self.length
        self._hidden = self._hidden[: max(0, len(self._hidden) - (self.length - length))]
        if length < self.length:
            self._cache.crop(length)

    def logits(self, last: int = 1) -> np.ndarray:
        return self._logits(last)

    def number_logits(self, last: int = 1) -> np.ndarray:
        self.number_rows += last
        return self._logits(last)[:, self.bundle.number_tokens]

    @torch.inference_mode()
    def _run(self, embeds: torch.Tensor, positions: torch.Tensor) -> None:
        out = self._model.model.language_model(
            inputs_embeds=embeds, position_ids=positions, past_key_values=self._cache, use_cache=True
        )
        self._cache, self._hidden = out.past_key_values, out.last_hidden_state[0]

    @torch.inference_mode()
    def _logits(self, last: int) -> np.ndarray:
        assert 1 <= last <= len(self._hidden)
        return self._model.lm_head(self._hidden[-last:]).numpy()
