"""The small model before VLA-R1's two stages: vision tower, then language on frozen vision.

It stands where Qwen2.5-VL stands for the 3B model: it has learnt to see and to name, not yet to reason or to act.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from drivers.errors import UserError
from edge.contract import IM_END, format_answer, prompt_text, render_chat
from training.checkpoint import save_checkpoint
from training.data.answers import draw_question
from training.data.labels import HEIGHT_PX, WIDTH_PX
from training.data.splits import SPLITS
from training.processor import ImageTextProcessor, PatchImageProcessor
from training.small.grounding import draw_talk
from training.small.images import Dataset, load_dataset
from training.small.language import LanguageSettings, image_features, smooth_number_embeddings, train_language
from training.small.model import new_model
from training.small.tokenizer import NUMBERS, train_tokenizer
from training.small.vision import Log as StageLog
from training.small.vision import load_state, pretrain_vision, save_state

Log = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """Optimizer steps of each stage, and images a step."""

    vision_steps: int = 2400
    language_steps: int = 1500
    batch: int = 256
    seed: int = 0


def train_base(data_file: Path, out: Path, recipe: Recipe, log: Log) -> Path:
    """Train the small model from scratch; every stage saves as it goes and resumes.

    Args:
        data_file: the ``train.json`` of `training.data.scenes.make_scenes`.
        out: gets ``vision.pt``, ``language.pt`` and at the end ``checkpoint/``, a Transformers folder.
        log: told stage, step, steps and figures.

    Raises:
        UserError: no scenes, or ``out`` holds another recipe's run.
    """
    out.mkdir(parents=True, exist_ok=True)
    _same_recipe(out, recipe)
    data = load_dataset(data_file, lambda done, all: log("images", done, all, {}) if done % 5000 == 0 else None)
    tokenizer = _tokenizer(out, data)
    model = new_model(tokenizer, recipe.seed)
    number_ids = [tokenizer.encode(n)[0] for n in NUMBERS]
    smooth_number_embeddings(model, number_ids)

    def stage(name: str, steps: int) -> StageLog:
        return lambda step, figures: log(name, step, steps, figures)

    pretrain_vision(
        model.model.visual,
        data,
        out / "vision.pt",
        steps=recipe.vision_steps,
        log=stage("vision", recipe.vision_steps),
        batch=recipe.batch,
        seed=recipe.seed,
    )
    model.model.visual.eval()
    train_language(
        model,
        tokenizer,
        data,
        out / "language.pt",
        LanguageSettings(recipe.language_steps, recipe.batch, seed=recipe.seed),
        stage("language", recipe.language_steps),
        _features(out, model, data, stage("features", len(data))),
    )
    image_processor = PatchImageProcessor(min_pixels=WIDTH_PX * HEIGHT_PX, max_pixels=WIDTH_PX * HEIGHT_PX)
    processor = ImageTextProcessor(image_processor, tokenizer, tokenizer.chat_template)
    return save_checkpoint(model, processor, out / "checkpoint")


def _same_recipe(out: Path, recipe: Recipe) -> None:
    path, mine = out / "recipe.json", asdict(recipe)
    if not path.exists():
        path.write_text(json.dumps(mine) + "\n")
        return
    try:
        theirs = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: is not JSON; delete it if {out} holds a run with {mine}") from None
    if theirs != mine:
        raise UserError(f"{out}: holds a run with {theirs}, this one is {mine}; give another --out")


def _tokenizer(out: Path, data: Dataset) -> PreTrainedTokenizerFast:
    """Trained on what is said now and on what fine-tuning will say: a base model's tokenizer knows common words."""
    folder = out / "tokenizer"
    if not folder.exists():
        rng = np.random.default_rng(0)
        texts: list[str] = []
        for seen in data.seen[:4000]:
            talk = draw_talk(rng, seen)
            question = draw_question(rng, seen, SPLITS["train"])
            texts += [render_chat(talk.prompt), talk.answer + IM_END]
            texts += [render_chat(prompt_text(question.task, question.instruction)), format_answer(question.answer)]
        partial = folder.with_name("tokenizer.partial")
        train_tokenizer(texts).save_pretrained(partial)
        partial.rename(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _features(out: Path, model: Qwen2_5_VLForConditionalGeneration, data: Dataset, log: StageLog) -> torch.Tensor:
    path = out / "features.pt"
    # Older than the tower: of one that was trained before, whose file somebody deleted to begin its stage anew.
    if path.exists() and path.stat().st_mtime >= (out / "vision.pt").stat().st_mtime:
        kept: torch.Tensor = load_state(path)
        if kept.shape[:2] == (2, len(data)):
            return kept
    features = image_features(model.model.visual, data, log)
    save_state(path, features)
    return features
