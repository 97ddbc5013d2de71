"""The recipe of the shipped small model: vision tower, then language model on frozen vision, then both together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from drivers.errors import UserError
from edge.contract import IM_END, format_answer, prompt_text, render_chat
from training.answers import draw_item
from training.images import Dataset, load_dataset
from training.model import new_model
from training.sft import SftSettings, image_features, smooth_number_embeddings, train_sft
from training.tokenizer import NUMBERS, train_tokenizer
from training.vision import Log as StageLog
from training.vision import pretrain_vision

Log = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """Optimizer steps of each stage, at 64 images a step."""

    vision_steps: int = 1000
    language_steps: int = 1800
    joint_steps: int = 400
    seed: int = 0


def train_small(data_folder: Path, out: Path, recipe: Recipe, log: Log) -> Path:
    """Train the small model from scratch; every stage saves as it goes and resumes.

    Args:
        data_folder: shards of `training.scenes.make_scenes`.
        out: gets ``vision.pt``, ``language.pt``, ``joint.pt`` and at the end ``checkpoint/``, a Transformers folder.
        log: told stage, step, steps and figures.

    Raises:
        UserError: no scenes, or ``out`` holds another recipe's run.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = load_dataset(data_folder)
    _same_recipe(out, recipe)
    tokenizer = _tokenizer(out, data)
    model = new_model(tokenizer, recipe.seed)
    number_ids = [tokenizer.encode(n)[0] for n in NUMBERS]
    smooth_number_embeddings(model, number_ids)

    def stage(name: str, steps: int) -> StageLog:
        return lambda step, figures: log(name, step, steps, figures)

    head = pretrain_vision(
        model.model.visual,
        data,
        out / "vision.pt",
        steps=recipe.vision_steps,
        log=stage("vision", recipe.vision_steps),
        seed=recipe.seed,
    )
    reader = None
    if not (out / "joint.pt").exists():
        model.model.visual.eval()
        features = _features(out, model, data, stage("features", len(data)))
        reader = train_sft(
            model,
            tokenizer,
            data,
            out / "language.pt",
            SftSettings(recipe.language_steps, seed=recipe.seed),
            stage("language", recipe.language_steps),
            features=features,
        )
        del features
    train_sft(
        model,
        tokenizer,
        data,
        out / "joint.pt",
        SftSettings(recipe.joint_steps, lr=4e-4, train_vision=True, seed=recipe.seed + 1),
        stage("joint", recipe.joint_steps),
        head=head,
        reader=reader,
    )
    return save_checkpoint(model, tokenizer, out / "checkpoint")


def save_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> Path:
    """A folder that Transformers loads, weights in bfloat16, complete or not there."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    weights = {name: p.detach().clone() for name, p in model.state_dict().items()}
    model.bfloat16().save_pretrained(partial)
    model.float().load_state_dict(weights)
    tokenizer.save_pretrained(partial)
    (partial / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 224 * 168,
    "max_pixels": 224 * 168,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


def _same_recipe(out: Path, recipe: Recipe) -> None:
    path, mine = out / "recipe.json", asdict(recipe)
    if not path.exists():
        path.write_text(json.dumps(mine) + "\n")
        return
    theirs = json.loads(path.read_text())
    if theirs != mine:
        raise UserError(f"{out}: holds a run with {theirs}, this one is {mine}; give another --out")


def _tokenizer(out: Path, data: Dataset) -> PreTrainedTokenizerFast:
    folder = out / "tokenizer"
    if not folder.exists():
        rng = np.random.default_rng(0)
        texts: list[str] = []
        for seen in data.seen[:4000]:
            item = draw_item(rng, seen)
            texts += [render_chat(prompt_text(item.task, item.instruction)), format_answer(item.answer) + IM_END]
        train_tokenizer(texts).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _features(
    out: Path, model: Qwen2_5_VLForConditionalGeneration, data: Dataset, log: StageLog
) -> torch.Tensor:
    path = out / "features.pt"
    if path.exists():
        features: torch.Tensor = torch.load(path, weights_only=True)
        if len(features) == len(data):
            return features
    features = image_features(model.model.visual, data, log)
    torch.save(features, path)
    return features

