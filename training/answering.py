"""A model as a function from images and items to answer texts: a deployed bundle, or a checkpoint by Transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from edge.contract import IM_END, prompt_text, render_chat
from edge.decode import AnswerWriter, Decision, decide
from edge.decode.decision import MAX_THINK_TOKENS, MAX_TOKENS
from edge.engine.protocol import Engine
from edge.preprocess import preprocess
from training.data.sharegpt import Item

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

Image = NDArray[np.uint8]


class Answerer(Protocol):
    """Greedy answers, `batch` images at a time."""

    batch: int

    def __call__(self, images: Sequence[Image], items: Sequence[Item]) -> list[str]:
        """(h, w, 3) uint8 images and what is asked of them -> answer texts. Raises UserError for one it cannot ask."""
        ...


class BundleAnswerer:
    """A bundle through the robot's own runtime; without the grammar, the likeliest tokens until it ends its turn.

    Args:
        on_decision: told what is behind each answer, where the grammar is used.
    """

    batch = 1

    def __init__(
        self, engine: Engine, grammar: bool = True, on_decision: Callable[[Decision], None] | None = None
    ) -> None:
        self._engine, self._grammar, self._on_decision = engine, grammar, on_decision

    def __call__(self, images: Sequence[Image], items: Sequence[Item]) -> list[str]:
        return [self._answer(rgb, item) for rgb, item in zip(images, items, strict=True)]

    def _answer(self, rgb: Image, item: Item) -> str:
        if self._grammar:
            decision = decide(
                self._engine,
                rgb,
                item.task,
                item.instruction,
                max_think_tokens=MAX_THINK_TOKENS,
                max_tokens=MAX_TOKENS,
            )
            if self._on_decision is not None:
                self._on_decision(decision)
            return decision.text
        bundle = self._engine.bundle
        prompt = render_chat(prompt_text(item.task, item.instruction), bundle.n_image_tokens)
        ids = bundle.tokenizer.encode(prompt, add_special_tokens=False).ids
        _check_room(len(ids), bundle.max_positions)
        patches = preprocess(rgb, bundle.width_px, bundle.height_px)
        self._engine.prefill(ids, self._engine.encode_image(patches))
        tokens: list[int] = []
        while (token := int(self._engine.logits()[0].argmax())) != bundle.end_token and len(tokens) < MAX_TOKENS:
            tokens.append(token)
            self._engine.extend([token])
        text: str = bundle.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


class CheckpointAnswerer:
    """A Transformers folder, on the GPU (in bfloat16) where there is one, else on the CPU (in float32)."""

    batch = 16

    def __init__(self, folder: Path, grammar: bool = True) -> None:
        """Load model, tokenizer and image processor.

        Raises:
            UserError: the folder lacks one of them, or Transformers cannot load it.
        """
        import torch
        from transformers import AutoTokenizer, Qwen2VLImageProcessor
        from transformers.utils.logging import disable_progress_bar

        from training.checkpoint import load_model

        for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
            if not (folder / name).is_file():
                raise UserError(f"checkpoint {folder}: lacks {name}; expected a folder as vlar1 train leaves it")
        disable_progress_bar()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = load_model(folder, torch.bfloat16 if self._device.type == "cuda" else torch.float32)
        try:
            self._images = Qwen2VLImageProcessor.from_pretrained(folder)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        except Exception as error:  # of many kinds; tokenizers raises bare ones
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            raise UserError(f"checkpoint {folder}: Transformers cannot load it: {reason}") from None
        self._model = model.eval().to(self._device)
        self._end = int(self._tokenizer.convert_tokens_to_ids(IM_END))
        self._max_positions = int(model.config.text_config.max_position_embeddings)
        self._vocabulary = _Vocabulary(
            self._tokenizer.backend_tokenizer,
            (folder / "tokenizer.json").read_text(encoding="utf-8"),
            int(model.config.text_config.vocab_size),
            self._end,
        )
        self._grammar = grammar

    def __call__(self, images: Sequence[Image], items: Sequence[Item]) -> list[str]:
        import torch
        from transformers import LogitsProcessorList

        try:
            pixels = self._images(images=[np.asarray(rgb) for rgb in images], return_tensors="pt")
        except ValueError as error:
            raise UserError(f"image: {error}; expected one that Qwen2.5-VL takes") from None
        n_tokens = pixels["image_grid_thw"].prod(dim=1) // self._images.merge_size**2
        prompts = [
            render_chat(prompt_text(item.task, item.instruction), int(n))
            for item, n in zip(items, n_tokens, strict=True)
        ]
        inputs = self._tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        n_prompt = inputs["input_ids"].shape[1]
        _check_room(n_prompt, self._max_positions)
        rules = []
        if self._grammar:
            writers = [AnswerWriter(self._vocabulary, i.task, MAX_THINK_TOKENS, MAX_TOKENS) for i in items]
            rules = [_Grammar(writers, n_prompt, self._end)]
        with torch.inference_mode():
            ids = self._model.generate(
                input_ids=inputs["input_ids"].to(self._device),
                attention_mask=inputs["attention_mask"].to(self._device),
                pixel_values=pixels["pixel_values"].to(self._device, self._model.dtype),
                image_grid_thw=pixels["image_grid_thw"].to(self._device),
                logits_processor=LogitsProcessorList(rules),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                temperature=None,  # what the checkpoint's own generation_config says of sampling
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                eos_token_id=self._end,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        texts: list[str] = self._tokenizer.batch_decode(
            ids[:, n_prompt:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts


@dataclass(frozen=True)
class _Vocabulary:
    """An `edge.decode.Vocabulary`."""

    tokenizer: Tokenizer
    tokenizer_json: str
    vocab: int
    end_token: int


class _Grammar:
    """A logits processor of Transformers: each row of a batch under the robot's grammar and thinking budget."""

    def __init__(self, writers: Sequence[AnswerWriter], n_prompt: int, end_token: int) -> None:
        self._writers, self._n_prompt, self._end = writers, n_prompt, end_token
        self._must = [list(writer.forced()) for writer in writers]

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, tokens so far), (rows, vocab) -> scores with minus infinity where a token may not come."""
        import torch

        allowed = torch.full_like(scores, -torch.inf)
        for row, (writer, must) in enumerate(zip(self._writers, self._must, strict=True)):
            n_shown = ids.shape[1] - self._n_prompt - len(writer.tokens) + len(must)
            if n_shown > 0 and not writer.done:  # the token chosen last is the writer's to take
                writer.take(int(ids[row, -1]))
                must += writer.forced()
            if must:
                allowed[row, must.pop(0)] = 0.0
            elif writer.done:
                allowed[row, self._end] = 0.0
            else:
                logits = scores[row].float().cpu().numpy()
                allowed[row] = torch.from_numpy(writer.allowed(logits)).to(scores)
        return allowed


def _check_room(n_prompt: int, n_positions: int) -> None:
    if n_prompt + MAX_TOKENS > n_positions:
        raise UserError(
            f"prompt: has {n_prompt} tokens and {MAX_TOKENS} are kept for the answer, "
            f"the model takes {n_positions} in all; say it shorter"
        )
