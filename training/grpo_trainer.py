"""TRL's GRPOTrainer for Qwen2.5-VL with the verifiable rewards: its settings, data, rewards and rollouts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from PIL.Image import Image, fromarray
from transformers import BatchFeature, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from drivers.errors import UserError
from edge.contract import IM_END, Task, prompt_text
from training.checkpoint import batch_vision
from training.data.sharegpt import load_image
from training.grpo import Settings
from training.processor import ImageTextProcessor
from training.rewards import FORMAT_WEIGHT, TASK_WEIGHT, compute_score
from training.rollout import never_drawn, sample_answers
from training.stage import Example, StageMixin, common_arguments, lora_config

Reward = Callable[..., Sequence[float | None]]
Rewards = dict[str, tuple[float, Reward]]  # by the name they are logged under, each with its weight

KEPT_IMAGES = 1024  # of a frozen tower's features; more than one rollout's


# --- rewards


def task_rewards(tokenizer: PreTrainedTokenizerBase, frechet: str) -> Rewards:
    """The three verifiable rewards by name, each with its weight; their weighted sum is `compute_score`'s ``score``.

    They are given apart so that TensorBoard shows each. An item of the other task has no value (None) and counts
    neither in a reward's mean nor in the sum. TRL hands over texts without special tokens; the rewards read the tokens
    themselves, so that a stray special token spoils an answer here as it does on the robot.
    """
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}

    def scores(completion_ids: list[list[int]], ground_truth: list[str]) -> list[dict[str, float]]:
        answers = [tokenizer.decode(_until(ids, ends), clean_up_tokenization_spaces=False) for ids in completion_ids]
        extra = {"frechet": frechet}
        return [compute_score("vla_r1", a, truth, extra) for a, truth in zip(answers, ground_truth, strict=True)]

    def of_task(wanted: Task) -> Reward:
        def reward(
            completion_ids: list[list[int]], task: list[Task], ground_truth: list[str], **_: Any
        ) -> list[float | None]:
            found = scores(completion_ids, ground_truth)
            return [s["task"] if t == wanted else None for s, t in zip(found, task, strict=True)]

        return reward

    def form(completion_ids: list[list[int]], ground_truth: list[str], **_: Any) -> list[float]:
        return [s["format"] for s in scores(completion_ids, ground_truth)]

    return {
        "region_alignment": (TASK_WEIGHT, of_task("affordance")),
        "trajectory_consistency": (TASK_WEIGHT, of_task("trajectory")),
        "format": (FORMAT_WEIGHT, form),
    }


def _until(ids: list[int], ends: set[int]) -> list[int]:
    return next((ids[:k] for k, token in enumerate(ids) if token in ends), ids)


# --- the trainer


class EpochSampler(RepeatSampler):
    """TRL's sampler, the order of an epoch by its number: TRL's goes by how often it was begun, resumed or not."""

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader before each epoch."""
        assert self.seed is not None
        self.generator.manual_seed(self.seed + epoch)


class RewardTrainer(StageMixin, GRPOTrainer):
    """TRL's GRPOTrainer with what both stages share."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        values = self._metrics["train"]
        for name in [n for n, v in values.items() if all(math.isnan(x) for x in v)]:
            del values[name]  # a reward that no item of the step has would be logged as None
        super().log(logs, *args, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if self._buffered_inputs is None:  # a resumed run goes on at its place in the rollout, not at the start of one
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super()._prepare_inputs(generation_batch)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.check_weights()  # there is no drawing from scores that are no numbers
        return super()._generate_and_score_completions(inputs)

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        theirs: Any = super()._get_train_sampler(dataset)
        settings = theirs.mini_repeat_count, theirs.batch_size, theirs.repeat_count, theirs.shuffle, theirs.seed
        return EpochSampler(theirs.data_source, *settings)


def make_config(s: Settings, weights: Sequence[float]) -> GRPOConfig:
    """TRL's settings for a run, mapped as `training.grpo` describes; ``weights`` of the rewards.

    Raises:
        UserError: the answers of a step cannot be spread evenly over the processes; several GPUs are visible to one.
    """
    common = common_arguments(s.out, s.seed, s.save_every)
    processes = PartialState(cpu=common["use_cpu"]).num_processes
    answers, left_over = divmod(s.mini_batch * s.group, processes)
    if left_over:
        a_step = f"--mini-batch {s.mini_batch} x --group {s.group} answers a step"
        raise UserError(f"{a_step}: expected a multiple of the {processes} processes")
    micro = max(m for m in range(1, min(s.micro_batch, answers) + 1) if answers % m == 0)
    return GRPOConfig(
        **common | {"logging_steps": 1, "dataloader_num_workers": 0},  # the images kept are the main process's
        max_steps=s.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=answers // micro,
        steps_per_generation=s.batch * s.group // (processes * micro),
        num_generations=s.group,
        max_completion_length=s.max_answer_tokens,
        temperature=s.temperature,
        learning_rate=s.lr,
        lr_scheduler_type="constant",
        loss_type="dapo",
        scale_rewards="group",
        reward_weights=list(weights),
        beta=s.kl,
        use_bias_correction_kl=False,
        disable_dropout=True,  # an adapter's: answers are drawn from the model that is scored
        use_vllm=s.vllm,
        vllm_mode="colocate",
        log_multimodal=False,
    )


def make_trainer(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: ImageTextProcessor,
    examples: Sequence[Example],
    settings: Settings,
    config: GRPOConfig,
    rewards: Rewards,
) -> RewardTrainer:
    """TRL's trainer for a run, ready to train."""
    never = never_drawn(model)
    config.generation_kwargs = (
        {"logit_bias": dict.fromkeys(never, -100.0)} if settings.vllm else {"suppress_tokens": never}
    )
    # What TRL asks of a tokenizer: the end of turn as its end, and nothing that the model does not take.
    processor.tokenizer.eos_token = IM_END
    processor.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    functions: list[Any] = [reward for _, reward in rewards.values()]
    for name, function in zip(rewards, functions, strict=True):
        function.__name__ = name  # under which TRL logs it
    if settings.freeze_vision:
        model.model.visual.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        trainer = RewardTrainer(
            model=model,
            reward_funcs=functions,
            args=config,
            train_dataset=_prompts(examples, settings.batch),
            processing_class=processor,
            peft_config=lora_config(settings.lora, settings.freeze_vision) if settings.lora else None,
            rollout_func=rollout if config.use_cpu else None,
        )
    if config.use_cpu:
        reference: Any = trainer.ref_model  # None where there is no KL term, or the adapters come off for it
        for each, frozen in ((model, settings.freeze_vision), (reference, True)):
            if each is not None:
                batch_vision(each)
                see_once(each, frozen)
    return trainer


def _prompts(examples: Sequence[Example], batch: int) -> datasets.Dataset:
    """Rows of prompt, task, ground truth and image. TRL asks for every image of a rollout again at each of its forward
    passes, hence the images kept."""
    rows = datasets.Dataset.from_dict(
        {
            "prompt": [_user_turn(prompt_text(e.item.task, e.item.instruction)) for e in examples],
            "task": [e.item.task for e in examples],
            "ground_truth": [e.item.answer for e in examples],
            "index": list(range(len(examples))),
        }
    )

    @lru_cache(maxsize=batch)
    def image(index: int) -> Image:  # not an array, which vLLM would read channels first
        return fromarray(load_image(examples[index].folder, examples[index].item))

    return rows.with_transform(lambda part: {**part, "images": [[image(k)] for k in part.pop("index")]})


def _user_turn(text: str) -> list[dict[str, Any]]:
    """The text first and the image after it; TRL by itself would put the image first. (Arrow wants all keys.)"""
    return [{"role": "user", "content": [{"type": "text", "text": text}, {"type": "image", "text": ""}]}]


# --- on a CPU


def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """TRL's ``rollout_func``: the answers to ``prompts``, in which each prompt stands ``num_generations`` times."""
    group: int = trainer.num_generations
    inputs: BatchFeature = trainer.processing_class.apply_chat_template(
        prompts[::group],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    answers = sample_answers(
        _plain(trainer), inputs, group, trainer.max_completion_length, trainer.temperature, trainer.eos_token_ids
    )
    ids = [row[on].tolist() for row, on in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)]
    return {
        "prompt_ids": [row for row in ids for _ in range(group)],
        "completion_ids": answers,
        "logprobs": None,
    }


def _plain(trainer: GRPOTrainer) -> Qwen2_5_VLForConditionalGeneration:
    """The model itself, under what accelerate and peft wrap it in; an adapter's layers stay in it."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    plain: Qwen2_5_VLForConditionalGeneration = model.get_base_model() if is_peft_model(model) else model
    return plain


def see_once(model: Qwen2_5_VLForConditionalGeneration, frozen: bool) -> None:
    """Let the vision tower encode an image that stands in a batch several times once; a frozen tower once at all."""
    tower: Any = model.model.visual
    encode, merged = tower.forward, tower.spatial_merge_unit
    kept: dict[tuple[int, ...], torch.Tensor] = {}

    def forward(hidden_states: torch.Tensor, grid_thw: torch.Tensor, **options: Any) -> torch.Tensor:
        sizes = grid_thw.prod(-1).tolist()
        patches = hidden_states.split(sizes)
        keys = [(hash(x.numpy().tobytes()), *grid) for x, grid in zip(patches, grid_thw.tolist(), strict=True)]
        new = {key: k for k, key in enumerate(keys) if key not in kept}
        found = dict(kept)
        if new:
            index = list(new.values())
            features = encode(torch.cat([patches[k] for k in index]), grid_thw[index], **options)
            found |= zip(new, features.split([sizes[k] // merged for k in index]), strict=True)
        if frozen:
            kept.clear()
            kept.update(list(found.items())[-KEPT_IMAGES:])
        return torch.cat([found[key] for key in keys])

    tower.forward = forward
