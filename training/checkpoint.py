"""Qwen2.5-VL checkpoints as folders: loaded for training, saved complete or not at all."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from drivers.errors import UserError
from training.batched_tower import encode_batch

ARCHITECTURE = "qwen2_5_vl"
STEP_FOLDER = "checkpoint-"  # and the step, as Transformers' Trainer names them


class Saves(Protocol):
    """A processor or a tokenizer."""

    def save_pretrained(self, save_directory: Path) -> Any: ...


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Qwen2_5_VLForConditionalGeneration:
    """The model of a checkpoint folder, on the CPU and in ``dtype``.

    Train all weights in float32 under bfloat16 autocast: in bfloat16 itself, steps below a 256th of a weight are lost.
    bfloat16 is for a frozen base under LoRA.

    Raises:
        UserError: the folder holds no complete Qwen2.5-VL checkpoint.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"checkpoint {folder}: lacks config.json; expected a folder as Transformers saves it")
    try:
        kind = json.loads(config.read_text()).get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"checkpoint {config}: is not a JSON object that can be read ({error})") from None
    if kind != ARCHITECTURE:
        raise UserError(f"checkpoint {config}: model_type is {kind}, expected {ARCHITECTURE}")
    try:
        model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # of many kinds; safetensors raises bare ones
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"checkpoint {folder}: Transformers cannot load it: {reason}") from None
    wrong = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    if wrong:  # Transformers makes weights up for these
        raise UserError(f"checkpoint {folder}: {len(wrong)} weights are missing, {min(wrong)} among them")
    return model


def save_checkpoint(model: Qwen2_5_VLForConditionalGeneration, processor: Saves, folder: Path) -> Path:
    """A folder that Transformers and ``vlar1 export`` take, weights in bfloat16, complete or not there.

    ``model`` itself keeps its dtype. ``processor`` writes the tokenizer and ``preprocessor_config.json``.

    Raises:
        UserError: it cannot be written; a checkpoint that was there before may be kept.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    dtype, weights = model.dtype, {name: p.detach().clone() for name, p in model.state_dict().items()}
    module: nn.Module = model
    module.to(torch.bfloat16)
    for part in (model.config.text_config, model.config.vision_config):
        part.dtype = torch.bfloat16  # save_pretrained sets it in the whole alone
    try:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors each have their own way
        shutil.rmtree(partial, ignore_errors=True)
        what = f"{folder}: the checkpoint cannot be written ({first_line(error)})"
        raise UserError(f"{what}; make room, then give the same command again") from None
    finally:
        module.to(dtype).load_state_dict(weights)
    return folder


def first_line(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def newest_checkpoint(out: Path, console: Console | None = None) -> Path | None:
    """The last complete ``checkpoint-N`` in ``out``; says which damaged ones it passes over."""
    steps = [(p.name.removeprefix(STEP_FOLDER), p) for p in out.glob(f"{STEP_FOLDER}*")]
    for _, path in sorted(((int(step), p) for step, p in steps if step.isdecimal()), reverse=True):
        if (damage := damage_of(path)) is None:
            return path
        if console:
            console.print(f"{path}: passed over, {damage}")
    return None


def damage_of(folder: Path) -> str | None:
    """Why a Trainer checkpoint is not complete, cheaply: the state comes last, and archives name their own length."""
    try:
        json.loads((folder / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return "trainer_state.json is missing or damaged"
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        return "it holds no weights"
    for path in weights:
        try:
            safe_open(path, "pt")
        except (SafetensorError, OSError):
            return f"{path.name} is damaged"
    for path in [*folder.glob("*.pt"), *folder.glob("*.pth")]:
        if not zipfile.is_zipfile(path):
            return f"{path.name} is damaged"
    return None


def batch_vision(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Make the vision tower take a batch of images of one size in one go, as `encode_batch` does.

    For the CPU: Transformers' attention goes window by window. Images of several sizes still go Transformers' way.
    """
    tower: nn.Module = model.model.visual
    one_by_one = tower.forward

    def forward(hidden_states: torch.Tensor, grid_thw: torch.Tensor, **options: Any) -> torch.Tensor:
        alike = not options and bool((grid_thw == grid_thw[:1]).all()) and bool((grid_thw[:, 0] == 1).all())
        if alike:
            return encode_batch(tower, hidden_states, grid_thw)
        result: torch.Tensor = one_by_one(hidden_states, grid_thw, **options)
        return result

    tower.forward = forward
