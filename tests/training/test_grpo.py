"""Stage 2 on a tiny model: it runs, resumes, logs `compute_score`, and makes rewarded answers likelier."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from drivers.errors import UserError
from edge.contract import Affordance, Answer, Trajectory, format_answer
from training import grpo_trainer
from training.checkpoint import load_model
from training.data.sharegpt import Item, write_items
from training.grpo import Settings, train
from training.grpo_trainer import Rewards, RewardTrainer, make_config, make_trainer, task_rewards
from training.processor import load_processor
from training.rewards import compute_score
from training.stage import StageMixin, read_examples

BOX = Affordance(0.4, 0.5, 0.2, 0.2)
PATH = Trajectory(((0.1, 0.2), (0.3, 0.4), (0.5, 0.4)))


@pytest.fixture(scope="module")
def model_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for path in tiny_checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    image = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 56 * 56, "max_pixels": 56 * 56}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    items = []
    for k in range(6):
        cv2.imwrite(str(folder / f"{k}.png"), rng.integers(0, 256, (56, 56, 3), np.uint8))
        wanted = Answer("there it is", PATH if k % 2 else BOX)
        items.append(Item(f"{k}.png", "trajectory" if k % 2 else "affordance", f"go {k}", format_answer(wanted)))
    write_items(folder / "items.json", items)
    return folder / "items.json"


@pytest.fixture
def settings(model_folder: Path, data: Path, tmp_path: Path) -> Settings:
    small = Settings(model_folder, (data,), tmp_path / "run", steps=3, batch=2, mini_batch=1, group=2, micro_batch=1)
    return replace(small, max_answer_tokens=6, lr=1e-3, save_every=1)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=400)


def history(folder: Path) -> list[dict[str, float]]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


def ready(s: Settings, rewards: Rewards) -> RewardTrainer:
    config = make_config(s, [weight for weight, _ in rewards.values()])
    examples = read_examples(s.data, s.out, quiet())
    return make_trainer(load_model(s.model), load_processor(s.model), examples, s, config, rewards)


def likes_low_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(token < 300 for token in ids) / len(ids) for ids in completion_ids]


@pytest.fixture
def liking_low_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that a random model gets something of."""
    monkeypatch.setattr(grpo_trainer, "task_rewards", lambda *_: {"low": (1.0, likes_low_ids)})


@pytest.mark.usefixtures("liking_low_ids")
def test_a_resumed_run_is_the_run_that_was_not_interrupted(settings: Settings) -> None:
    out = train(settings, quiet())
    assert out == settings.out / "checkpoint"
    whole, start = load_file(out / "model.safetensors"), load_file(settings.model / "model.safetensors")
    assert any(not torch.equal(whole[name].float(), start[name].float()) for name in whole)

    # Two steps a rollout: what was interrupted after the second one goes on with a fresh rollout.
    other = replace(settings, out=settings.out.with_name("other"), steps=2)
    train(other, quiet())
    console = quiet()
    train(replace(other, steps=3), console)
    assert "checkpoint-2" in console.file.getvalue()  # type: ignore[attr-defined]
    assert [entry["step"] for entry in history(other.out / "checkpoint-3")] == [1, 2, 3]
    resumed = load_file(other.out / "checkpoint" / "model.safetensors")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert (other.out / "curves.png").stat().st_size > 0
    with pytest.raises(UserError, match="lr"):
        train(replace(other, lr=1.0), quiet())


@pytest.mark.usefixtures("liking_low_ids")
def test_a_resumed_run_asks_what_the_run_would_have_asked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Any]] = []
    original = grpo_trainer.rollout

    def spy(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        asked.append(prompts)
        return original(prompts, trainer)

    monkeypatch.setattr(grpo_trainer, "rollout", spy)
    whole = replace(settings, mini_batch=2, steps=5, save_every=4)  # an epoch has 3 rollouts
    train(whole, quiet())
    assert len(asked) == 5 and asked[4] not in asked[:3]  # the second epoch has an order of its own
    branch = replace(whole, out=whole.out.with_name("branch"), resume_from=whole.out / "checkpoint-4", micro_batch=4)
    train(branch, quiet())
    assert asked[5:] == asked[4:5]


@pytest.mark.usefixtures("liking_low_ids")
def test_weights_that_are_no_numbers_end_the_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    original = StageMixin.training_step

    def broken(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = original(self, *args, **kwargs)
        if self.state.global_step == 1:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(StageMixin, "training_step", broken)
    with pytest.raises(UserError, match="step 2: the weights are no longer finite .*there was no checkpoint yet"):
        train(replace(settings, mini_batch=2, save_every=100), quiet())


def test_the_rewards_logged_are_those_of_compute_score(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_processor(settings.model).tokenizer
    near = format_answer(Answer("", Affordance(0.45, 0.5, 0.2, 0.25)))
    texts = [near + "<|im_end|>", format_answer(Answer("", PATH)) + "<|im_end|>", near.replace("}", "<|im_start|>}")]
    told: list[str] = []

    def write(_: Any, prompts: Any, group: int, *__: Any) -> list[list[int]]:
        answers = [texts[k % len(texts)] for k in range(len(prompts["input_ids"]) * group)]
        told.extend(answers)
        return [tokenizer.encode(a, add_special_tokens=False) for a in answers]

    monkeypatch.setattr(grpo_trainer, "sample_answers", write)
    one = replace(settings, steps=1, batch=4, mini_batch=4, group=3, micro_batch=6, max_answer_tokens=200)
    trainer = ready(one, task_rewards(tokenizer, "direction-aware"))
    tasks: list[str] = []
    truths: list[str] = []
    calculate = trainer._calculate_rewards

    def spy(inputs: Sequence[dict[str, str]], *args: Any) -> torch.Tensor:
        tasks.extend(row["task"] for row in inputs)
        truths.extend(row["ground_truth"] for row in inputs)
        return calculate(inputs, *args)

    monkeypatch.setattr(trainer, "_calculate_rewards", spy)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    found = [compute_score("", a.removesuffix("<|im_end|>"), t) for a, t in zip(told, truths, strict=True)]
    assert logged["reward"] == pytest.approx(np.mean([f["score"] for f in found]), abs=1e-6)
    assert logged["rewards/format/mean"] == pytest.approx(2 / 3)
    for name, task in (("region_alignment", "affordance"), ("trajectory_consistency", "trajectory")):
        values = [f["task"] for f, t in zip(found, tasks, strict=True) if t == task]
        if values:
            assert logged[f"rewards/{name}/mean"] == pytest.approx(np.mean(values), abs=1e-6)
        else:
            assert f"rewards/{name}/mean" not in logged
    assert logged["kl"] == pytest.approx(0.0, abs=1e-3)


def test_rewarded_answers_become_likelier(settings: Settings) -> None:
    long = replace(settings, steps=10, batch=4, mini_batch=4, group=16, micro_batch=64, max_answer_tokens=2)
    trainer = ready(replace(long, lr=5e-3, freeze_vision=True, save_every=100), {"low": (1.0, likes_low_ids)})
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2
    assert kl[0] == pytest.approx(0.0, abs=1e-3) and kl[-1] > 0.1


@pytest.mark.usefixtures("liking_low_ids")
def test_adapters_change_the_language_model_and_are_merged(settings: Settings) -> None:
    out = train(replace(settings, steps=1, group=4, lora=4, freeze_vision=True), quiet())
    assert out is not None
    trained, start = load_model(out).state_dict(), load_model(settings.model).state_dict()
    changed = {name for name in start if not torch.equal(trained[name], start[name].bfloat16().float())}
    assert changed and all(".language_model.layers." in name and name.endswith("proj.weight") for name in changed)


def test_a_tower_that_sees_images_once_says_the_same(model_folder: Path) -> None:
    model, plain = load_model(model_folder), load_model(model_folder)
    grpo_trainer.see_once(model, frozen=True)
    torch.manual_seed(0)
    a, b = torch.rand(16, 1176), torch.rand(32, 1176)
    grid_a, grid_b = [1, 4, 4], [1, 4, 8]
    for patches, grid in (([a, b, a], [grid_a, grid_b, grid_a]), ([b, a], [grid_b, grid_a])):
        pixels, grids = torch.cat(patches), torch.tensor(grid)
        torch.testing.assert_close(
            model.model.visual(pixels, grid_thw=grids), plain.model.visual(pixels, grid_thw=grids)
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group": 1}, "--group 1"),
        ({"batch": 3, "mini_batch": 2}, "--batch 3"),
        ({"batch": 50}, "6 items"),
        ({"temperature": 0.0}, "--temperature"),
        ({"lr": float("nan")}, "--lr"),
        ({"vllm": True}, "vLLM"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(settings: Settings, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train(replace(settings, **change), quiet())
