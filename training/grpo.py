"""``vlar1 train grpo``: stage 2, GRPO with the three verifiable rewards, on TRL's GRPOTrainer.

How the released run's settings (verl) map onto TRL's. A rollout of ``batch`` prompts gives ``batch * group`` answers,
TRL's generation batch. It is used once, ``mini_batch`` prompts' worth of answers an optimizer step: a *step* here, as
in TRL, is one optimizer step, so a rollout is followed by ``batch / mini_batch`` steps (released: 512 / 128 = 4). With
w processes and m answers a forward pass (``micro_batch``, memory only),

    per_device_train_batch_size = m
    gradient_accumulation_steps = mini_batch * group / (w * m)      answers of a step
    steps_per_generation        = batch * group / (w * m)           answers of a rollout

The loss is the mean over all tokens of a step (TRL's "dapo" normalizer, verl's token-mean), ratios clipped at 0.2,
advantages divided by their group's standard deviation. The KL term is the low-variance ("k3") estimator
exp(d) - d - 1, d = log p_ref - log p, of J. Schulman, "Approximating KL divergence" (2020), without TRL's importance
weights on it; no entropy bonus; constant learning rate.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from drivers.errors import UserError
from training.supervised import add_saving, positive

_FREE = ("out", "steps", "micro_batch", "save_every", "resume_from")  # may differ in a command that goes on with a run


@dataclass(frozen=True)
class Settings:
    """One run; the defaults are the released run's (DESIGN §3) where it has the setting.

    Attributes:
        steps: optimizer steps.
        batch, mini_batch: prompts a rollout and prompts a step.
        micro_batch: answers in one forward pass of one process, at most.
        kl: coefficient of the KL term to the model the run starts from; 0 for none.
        frechet: the distance behind trajectory rewards, ``direction-aware`` or ``plain``.
        lora: rank of the adapters; None trains all weights.
        vllm: rollouts by vLLM in the training processes.
    """

    model: Path
    data: tuple[Path, ...]
    out: Path
    steps: int
    batch: int = 512
    mini_batch: int = 128
    micro_batch: int = 16
    group: int = 5
    kl: float = 0.01
    lr: float = 3e-5
    temperature: float = 1.0
    max_answer_tokens: int = 2048
    frechet: str = "direction-aware"
    lora: int | None = None
    vllm: bool = False
    freeze_vision: bool = False
    seed: int = 0
    save_every: int = 50
    resume_from: Path | None = None


def add_parser(commands: Any) -> None:
    """Add ``grpo`` to the sub-commands of ``vlar1 train``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "grpo",
        help="stage 2: GRPO with verifiable rewards; resumes",
        description="Stage 2: train on sampled answers, scored against the wanted ones. The defaults are those of the "
        "released run. Give the same command again to go on from the newest checkpoint in --out.",
    )
    d = Settings(Path(), (), Path(), 1)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="the Qwen2.5-VL checkpoint to start from")
    add("--data", type=Path, required=True, nargs="+", metavar="FILE.json", help="ShareGPT items")
    add("--out", type=Path, required=True, metavar="DIR", help="gets checkpoint-N/, logs/ and at the end checkpoint/")
    add("--steps", type=positive, required=True, metavar="N", help="optimizer steps")
    add("--batch", type=positive, default=d.batch, metavar="N", help="prompts a rollout (%(default)s)")
    add("--mini-batch", type=positive, metavar="N", help="prompts a step (128, or --batch where that is less)")
    add(
        "--micro-batch",
        type=positive,
        default=d.micro_batch,
        metavar="N",
        help="answers a device and forward pass, at most (%(default)s)",
    )
    add("--group", type=int, default=d.group, metavar="N", help="answers a prompt, 2 or more (%(default)s)")
    add("--kl", type=float, default=d.kl, metavar="X", help="coefficient of the KL term (%(default)s)")
    add("--lr", type=float, default=d.lr, metavar="X", help="learning rate, constant (%(default)s)")
    add("--temperature", type=float, default=d.temperature, metavar="X", help="of sampling (%(default)s)")
    add(
        "--max-answer-tokens",
        type=positive,
        default=d.max_answer_tokens,
        metavar="N",
        help="longer answers are cut off (%(default)s; 256 do for the small model)",
    )
    add(
        "--frechet",
        choices=("direction-aware", "plain"),
        default=d.frechet,
        help="the distance behind trajectory rewards (%(default)s)",
    )
    add("--lora", type=positive, metavar="RANK", help="train adapters of this rank, merged at the end; default: all")
    add("--vllm", action="store_true", help="sample with vLLM inside the training processes (needs vllm and a GPU)")
    add("--freeze-vision", action="store_true", help="leave the vision tower as it is")
    add("--seed", type=int, default=d.seed, help="of the order of items and of sampling (%(default)s)")
    add_saving(parser, d.save_every)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Train, or go on training; 0 when the checkpoint is written, 130 when asked to stop before."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each run; read when it is imported
    fields = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    mini_batch = args.mini_batch or min(Settings.mini_batch, args.batch)
    settings = Settings(**{**fields, "data": tuple(args.data), "mini_batch": mini_batch})
    console = Console(highlight=False)
    folder = train(settings, console)
    if folder is None:
        return 130
    console.print(f"checkpoint: {folder}")
    return 0


def train(settings: Settings, console: Console) -> Path | None:
    """Train, or go on where a run in ``out`` stopped.

    Returns:
        ``out/checkpoint``, or None where the run was asked to stop before its end.

    Raises:
        UserError: the model, the data, ``out`` or a setting cannot be used, the loss is no longer finite, or the disk
            is full.
    """
    _check(settings)
    import torch

    from training import stage
    from training.checkpoint import load_model
    from training.grpo_trainer import make_config, make_trainer, task_rewards
    from training.processor import load_processor

    s = settings
    processor = load_processor(s.model)
    rewards = task_rewards(processor.tokenizer, s.frechet)
    config = make_config(s, [weight for weight, _ in rewards.values()])
    console.quiet = config.process_index > 0
    with config.main_process_first():
        examples = stage.read_examples(s.data, s.out, console)
        if len(examples) < s.batch:
            raise UserError(f"--data: {len(examples)} items are fewer than a rollout of {s.batch}; lower --batch")
        stage.start_run(s.out, _record(s, len(examples)), s.resume_from)
    model = load_model(s.model, torch.bfloat16 if torch.cuda.is_available() and s.lora else torch.float32)
    trainer = make_trainer(model, processor, examples, s, config, rewards)
    last = stage.run_trainer(trainer, s.out, console, s.resume_from)
    return stage.finish(last, s.model, processor, s.out) if last else None


def _check(s: Settings) -> None:
    if s.group < 2:
        raise UserError(f"--group {s.group}: an answer is compared with others of its group; give 2 or more")
    if s.batch % s.mini_batch:
        raise UserError(f"--batch {s.batch}: expected a multiple of --mini-batch {s.mini_batch}")
    for name, value in (("lr", s.lr), ("temperature", s.temperature)):
        if not 0 < value < math.inf:
            raise UserError(f"--{name} {value:g}: expected a number above 0")
    if not 0 <= s.kl < math.inf:
        raise UserError(f"--kl {s.kl:g}: expected 0 or more")
    if s.vllm and importlib.util.find_spec("vllm") is None:
        raise UserError("--vllm: vLLM is not installed; install it (pip install vllm), or leave --vllm out")


def _record(s: Settings, n_items: int) -> dict[str, Any]:
    """What a resumed run must have in common with the run it resumes."""
    record = {name: getattr(s, name) for name in Settings.__dataclass_fields__ if name not in _FREE}
    record |= {"model": str(s.model.resolve()), "data": [str(p.resolve()) for p in s.data], "items": n_items}
    return {"stage": "grpo", **record}
