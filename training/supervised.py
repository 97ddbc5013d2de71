"""``vlar1 train sft``: stage 1, supervised fine-tuning of a Qwen2.5-VL on chain-of-thought answers with TRL."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from drivers.errors import UserError
from edge.contract import IM_END, THINK_CLOSE, THINK_OPEN, prompt_text, render_chat

if TYPE_CHECKING:
    import datasets
    from transformers import Qwen2_5_VLForConditionalGeneration

    from training.stage import Example


@dataclass(frozen=True)
class Settings:
    """One run: what is trained on what, and how. ``steps`` counts optimizer steps; None trains ``epochs``."""

    model: Path
    data: tuple[Path, ...]
    out: Path
    steps: int | None = None
    epochs: float = 3.0
    batch: int = 4
    accumulate: int = 4
    lr: float | None = None
    lora: int | None = None
    freeze_vision: bool = False
    reasoning: bool = True
    seed: int = 0
    save_every: int = 200
    resume_from: Path | None = None

    @property
    def learning_rate(self) -> float:
        return (1e-4 if self.lora else 1e-5) if self.lr is None else self.lr


def add_parser(commands: Any) -> None:
    """Add ``sft`` to the sub-commands of ``vlar1 train``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sft",
        help="stage 1: supervised fine-tuning on chain-of-thought answers; resumes",
        description="Stage 1. Give the same command again to go on from the newest checkpoint in --out.",
    )
    d = Settings(Path(), (), Path())
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="the Qwen2.5-VL checkpoint to start from")
    add("--data", type=Path, required=True, nargs="+", metavar="FILE.json", help="ShareGPT items")
    add("--out", type=Path, required=True, metavar="DIR", help="gets checkpoint-N/, logs/ and at the end checkpoint/")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, metavar="N", help="optimizer steps, in place of --epochs")
    length.add_argument(
        "--epochs", type=float, default=d.epochs, metavar="E", help="passes over the data (%(default)g)"
    )
    add("--batch", type=positive, default=d.batch, metavar="N", help="items a device and forward pass (%(default)s)")
    add("--accumulate", type=positive, default=d.accumulate, metavar="N", help="passes an optimizer step (%(default)s)")
    add("--lr", type=float, metavar="X", help="peak learning rate (1e-5; 1e-4 with --lora)")
    add("--lora", type=positive, metavar="RANK", help="train adapters of this rank, merged at the end; default: all")
    add("--freeze-vision", action="store_true", help="leave the vision tower as it is")
    add(
        "--reasoning",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train on the think block, or on answers with an empty one",
    )
    add("--seed", type=int, default=d.seed, help="of the order of items and of dropout (%(default)s)")
    add_saving(parser, d.save_every)
    parser.set_defaults(func=run)


def add_saving(parser: argparse.ArgumentParser, save_every: int) -> None:
    """The options of both stages about checkpoints."""
    add = parser.add_argument
    add("--save-every", type=positive, default=save_every, metavar="N", help="steps between checkpoints (%(default)s)")
    add(
        "--resume-from",
        type=Path,
        metavar="DIR",
        help="a checkpoint-N of another run with these settings: go on from there while --out has none of its own",
    )


def positive(text: str) -> int:
    """argparse's type for a count from 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def run(args: argparse.Namespace) -> int:
    """Train, or go on training; 0 when the checkpoint is written, 130 when asked to stop before."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each run; read when it is imported
    fields = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    settings = Settings(**{**fields, "data": tuple(args.data)})
    console = Console(highlight=False)
    folder = train(settings, console)
    if folder is None:
        return 130
    console.print(f"checkpoint: {folder}")
    return 0


def train(settings: Settings, console: Console) -> Path | None:
    """Fine-tune; returns ``out/checkpoint``, or None where the run was asked to stop before its end.

    Raises:
        UserError: the model, the data, ``out`` or a setting cannot be used, the loss is no longer finite, or the disk
            is full.
    """
    for name, value in (("lr", settings.learning_rate), ("epochs", settings.epochs)):
        if not 0 < value < math.inf:
            raise UserError(f"--{name} {value:g}: expected a number above 0")
    import torch
    from trl import SFTConfig, SFTTrainer

    from training import stage
    from training.checkpoint import batch_vision, load_model
    from training.processor import load_processor

    s, gpu = settings, torch.cuda.is_available()
    args = SFTConfig(
        **stage.common_arguments(s.out, s.seed, s.save_every),
        max_steps=s.steps or -1,
        num_train_epochs=s.epochs,
        per_device_train_batch_size=s.batch,
        gradient_accumulation_steps=s.accumulate,
        learning_rate=s.learning_rate,
        lr_scheduler_type="cosine",
        warmup_ratio=0.03,
        completion_only_loss=True,
        max_length=None,
    )
    console.quiet = args.process_index > 0
    processor = load_processor(s.model)
    with args.main_process_first():
        examples = stage.read_examples(s.data, s.out, console)
        stage.start_run(s.out, _record(s, len(examples)), s.resume_from)
    model = load_model(s.model, torch.bfloat16 if gpu and s.lora else torch.float32)
    if s.freeze_vision or not gpu:  # on a GPU, a tower that is trained keeps Transformers' gradient checkpointing
        batch_vision(model)
    if s.freeze_vision:
        model.model.visual.requires_grad_(False)
    without_mask(model)

    class SupervisedTrainer(stage.StageMixin, SFTTrainer):
        pass

    trainer = SupervisedTrainer(
        model=model,
        args=args,
        train_dataset=to_dataset(examples, s.reasoning),
        processing_class=processor,
        peft_config=stage.lora_config(s.lora, s.freeze_vision) if s.lora else None,
    )
    last = stage.run_trainer(trainer, s.out, console, s.resume_from)
    return stage.finish(last, s.model, processor, s.out) if last else None


def without_mask(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Give the language model no padding mask.

    TRL's collator pads on the right, where a causal model never looks from the left, so the mask changes nothing that
    counts; without one, attention skips the upper triangle (on CPU, half of its time).
    """

    def drop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "attention_mask": None} if module.training else kwargs

    model.model.language_model.register_forward_pre_hook(drop, with_kwargs=True)


def answer_text(answer: str, reasoning: bool) -> str:
    """What is to be learned of an item's answer; without ``reasoning`` its think block is emptied."""
    if reasoning:
        return answer
    return THINK_OPEN + THINK_CLOSE + (answer.partition(THINK_CLOSE)[2] or answer)


def to_dataset(examples: list[Example], reasoning: bool) -> datasets.Dataset:
    """``prompt``, the chat of `render_chat`; ``completion``, the answer with its end token; and ``images``."""
    from training.stage import lazy_dataset

    prompts = [render_chat(prompt_text(e.item.task, e.item.instruction)) for e in examples]
    completions = [answer_text(e.item.answer, reasoning) + IM_END for e in examples]
    return lazy_dataset(examples, {"prompt": prompts, "completion": completions})


def _record(s: Settings, n_items: int) -> dict[str, Any]:
    """What a resumed run must have in common with the run it resumes."""
    free = ("out", "save_every", "resume_from")
    record = {name: getattr(s, name) for name in Settings.__dataclass_fields__ if name not in free}
    record |= {"model": str(s.model.resolve()), "data": [str(p.resolve()) for p in s.data], "items": n_items}
    return {"stage": "sft", **record, "lr": s.learning_rate}
