"""Stage 1 learns the answer and nothing else, and loses no work to a signal, a full disk or a NaN."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.integrations import deepspeed

from drivers.errors import UserError
from edge.contract import IM_END, Affordance, Answer, Trajectory, format_answer, parse_answer, prompt_text, render_chat
from training import stage
from training.checkpoint import batch_vision, load_model, newest_checkpoint
from training.data.sharegpt import Item, to_json, write_items
from training.processor import load_processor
from training.supervised import Settings, answer_text, train

N_ITEMS = 6


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervised") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "preprocessor_config.json").write_text('{"min_pixels": 3136, "max_pixels": 6272}')
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(0)
    items = []
    for k in range(N_ITEMS):
        shape = (56, 84, 3) if k == 1 else (56, 56, 3)  # one of another size
        cv2.imwrite(str(folder / f"{k}.png"), rng.integers(0, 256, shape, np.uint8))
        if k % 2:
            output: Any = Trajectory(tuple((0.1 * i, 0.5) for i in range(2 + k)))
            task: Any = "trajectory"
        else:
            output, task = Affordance(0.1 * k, 0.5, 0.2, 0.2), "affordance"
        items.append(Item(f"{k}.png", task, f"take cube {k}", format_answer(Answer("I see it. " * k, output))))
    write_items(folder / "train.json", items)
    return folder / "train.json"


@pytest.fixture
def settings(model: Path, data: Path, tmp_path: Path) -> Settings:
    return Settings(
        model, (data,), tmp_path / "run", steps=4, batch=2, accumulate=1, lr=1e-3, save_every=2, freeze_vision=True
    )


def fit(settings: Settings) -> tuple[Path | None, str]:
    said = io.StringIO()
    return train(settings, Console(file=said, width=400)), said.getvalue()


def at_step(monkeypatch: pytest.MonkeyPatch, n: int, do: Callable[[], None]) -> None:
    """Have ``do`` called before optimizer step ``n`` (from 1) of a run."""
    original = stage.StageMixin.training_step

    def step(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step + 1 == n:
            do()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(stage.StageMixin, "training_step", step)


def same(a: Path, b: Path) -> bool:
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def test_first_loss_is_that_of_the_answers_alone(settings: Settings, data: Path) -> None:
    """Against Transformers in float32, item by item, without padding, collator or trainer."""
    fit(replace(settings, steps=1, batch=N_ITEMS))
    state = json.loads((settings.out / "checkpoint-1" / "trainer_state.json").read_text())
    processor = load_processor(settings.model)
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(settings.model, dtype=torch.float32).eval()
    losses = []
    for example in stage.read_examples([data], settings.out, Console(quiet=True)):
        item = example.item
        answer = item.answer + IM_END
        chat = render_chat(prompt_text(item.task, item.instruction))
        pixels = stage.load_image(example.folder, item)
        inputs = processor(images=[pixels], text=[chat + answer], return_tensors="pt")
        n = len(processor.tokenizer.encode(answer))
        with torch.no_grad():
            logits = plain(**inputs).logits[0, -n - 1 : -1]
        losses.append(F.cross_entropy(logits, inputs["input_ids"][0, -n:], reduction="none"))
    assert state["log_history"][0]["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=5e-3)


def test_a_stopped_run_goes_on_as_if_it_had_not(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = fit(replace(settings, out=settings.out / "whole", save_every=3))
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped, said = fit(settings)
    assert stopped is None and "stopped at step 1 of 4" in said
    with pytest.raises(UserError, match=r"other settings: seed 0 \(now 1\)"):
        fit(replace(settings, seed=1))
    resumed, said = fit(settings)
    assert f"going on from {settings.out / 'checkpoint-1'}" in said
    assert whole and resumed and same(whole, resumed)
    assert not same(whole, settings.model)

    # The last checkpoint lost its end: it is passed over with a word, and made again.
    damaged = settings.out / "checkpoint-4" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    again, said = fit(settings)
    assert "checkpoint-4: passed over, model.safetensors is damaged" in said
    assert f"going on from {settings.out / 'checkpoint-2'}" in said
    assert again and same(whole, again)

    # Once it is done it stays done, and a lost result is made again.
    shutil.rmtree(again)
    assert fit(settings)[0] == again and same(whole, again)
    assert json.loads((settings.out / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
    assert not (settings.out / "checkpoint-5").exists()
    (settings.out / "checkpoint-9 of monday").mkdir()  # somebody's own
    assert newest_checkpoint(settings.out) == settings.out / "checkpoint-4"
    assert cv2.imread(str(settings.out / "curves.png")) is not None
    assert list((settings.out / "logs").glob("events.out.tfevents.*"))


def test_any_checkpoint_of_a_run_can_be_gone_on_from(settings: Settings) -> None:
    first = replace(settings, lora=2, lr=1e-2, steps=6, save_every=4)  # an epoch has 3 steps
    whole, _ = fit(first)
    old = first.out / "checkpoint-4"
    branch = replace(first, out=first.out.with_name("branch"), resume_from=old, save_every=1)
    resumed, said = fit(branch)
    assert f"going on from {old}" in said
    assert whole and resumed and same(whole, resumed)
    assert (branch.out / "checkpoint-5").exists()  # as often as the last command says
    assert fit(branch)[1].startswith(f"going on from {branch.out / 'checkpoint-6'}")  # the same command again
    third = replace(branch, out=first.out.with_name("third"))
    for change, words in (
        ({"resume_from": first.out / "checkpoint-3"}, "--resume-from .*trainer_state.json is missing"),
        ({"out": first.out}, "--resume-from .*name another --out"),
        ({"seed": 1}, r"--resume-from .*other settings: seed 0 \(now 1\)"),
    ):
        with pytest.raises(UserError, match=words):
            fit(replace(third, **change))


def test_the_result_is_made_whole_under_zero3(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero3:
        def is_zero3(self) -> bool:
            return True

    config = Zero3()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", weakref.ref(config))
    assert deepspeed.is_deepspeed_zero3_enabled()
    folder = stage.finish(settings.model, settings.model, load_processor(settings.model), settings.out)
    load_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.0}, "--lr 0:"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"epochs": -1.0}, "--epochs -1"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(settings: Settings, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit(replace(settings, **change))


def test_frozen_vision_stays_and_adapters_are_merged(settings: Settings) -> None:
    base = {name: w.bfloat16() for name, w in load_file(settings.model / "model.safetensors").items()}
    folder, _ = fit(replace(settings, lora=2, lr=1e-2, steps=2))
    assert folder
    tuned = load_file(folder / "model.safetensors")
    assert tuned.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed and all("visual" not in name for name in changed)
    assert all("_proj" in name for name in changed)
    load_model(folder)


def test_all_weights_are_trained_without_the_options(settings: Settings) -> None:
    folder, _ = fit(replace(settings, freeze_vision=False, steps=2, lr=1e-2))
    assert folder
    before, after = load_file(settings.model / "model.safetensors"), load_file(folder / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name].bfloat16(), after[name])}
    assert any("visual" in name for name in changed) and any("embed_tokens" in name for name in changed)


def test_a_loss_that_is_no_number_ends_the_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import SFTTrainer

    original = SFTTrainer.compute_loss

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 2 else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", broken)
    kept = settings.out / "checkpoint-2"
    with pytest.raises(UserError, match=f"step 3: the loss is nan; the last good checkpoint is {kept}"):
        fit(settings)
    assert newest_checkpoint(settings.out) == kept


def test_an_image_that_is_gone_is_one_line_from_a_worker_too(
    settings: Settings, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = shutil.copytree(data.parent, tmp_path / "items")
    common = stage.common_arguments
    monkeypatch.setattr(stage, "common_arguments", lambda *a: common(*a) | {"dataloader_num_workers": 1})
    at_step(monkeypatch, 1, lambda: [image.unlink() for image in items.glob("*.png")] and None)
    with pytest.raises(UserError, match=rf"^{items}/\d\.png: cannot be read [^\n]*$"):
        fit(replace(settings, data=(items / "train.json",), steps=30))


def test_a_full_disk_keeps_the_last_checkpoint(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    weights = (settings.model / "model.safetensors").stat().st_size
    at_step(monkeypatch, 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (weights // 2, limit[1])))
    kept = settings.out / "checkpoint-2"
    try:
        with pytest.raises(UserError, match=f"step 4: the checkpoint cannot be written .*{kept}; make room"):
            fit(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert newest_checkpoint(settings.out) == kept
    assert not (settings.out / "checkpoint-4").exists()


def test_a_disk_full_at_the_very_end_is_one_line(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    weights = (settings.model / "model.safetensors").stat().st_size
    save = stage.save_checkpoint

    def save_on_a_full_disk(*args: Any) -> Path:
        resource.setrlimit(resource.RLIMIT_FSIZE, (weights // 8, limit[1]))
        try:
            return save(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "save_checkpoint", save_on_a_full_disk)
        with pytest.raises(UserError, match=f"{settings.out / 'checkpoint'}: .*cannot be written .*make room"):
            fit(settings)
    assert not list(settings.out.glob("*.partial"))
    folder, said = fit(settings)
    assert folder and f"going on from {settings.out / 'checkpoint-4'}" in said
    load_model(folder)


def test_what_cannot_be_used_is_listed(settings: Settings, data: Path, tmp_path: Path) -> None:
    good = json.loads(data.read_text())[0]
    good["image"] = str(data.parent / good["image"])
    (tmp_path / "empty.png").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "thin.png"), np.zeros((2, 500, 3), np.uint8))
    bad = [{**good, "image": name} for name in ("missing.png", "empty.png", "thin.png")]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps([{"image": 1}, good, *bad]))
    said = io.StringIO()
    found = stage.read_examples([path], tmp_path / "out", Console(file=said, width=400))
    assert [to_json(e.item) for e in found] == [to_json(Item(good["image"], *_fields(good)))]
    listed = [json.loads(line) for line in (tmp_path / "out" / "left-out.jsonl").read_text().splitlines()]
    assert [entry.get("index") for entry in listed] == [0, None, None, None]
    for name in ("missing.png", "empty.png", "thin.png"):
        assert any(name in entry["reason"] for entry in listed) and name in said.getvalue()
    path.write_text("[]")
    with pytest.raises(UserError, match="no item can be used"):
        stage.read_examples([path], tmp_path / "out", Console(quiet=True))


def _fields(entry: dict[str, Any]) -> tuple[Any, str, str]:
    from training.data.sharegpt import from_json

    item = from_json(entry)
    return item.task, item.instruction, item.answer


def test_an_emptied_think_block_leaves_the_output() -> None:
    answer = Answer("red, left", Affordance(0.5, 0.5, 0.1, 0.1))
    text = answer_text(format_answer(answer), reasoning=False)
    assert text.startswith("<think></think><output>")
    assert parse_answer(text) == replace(answer, reasoning="")
    assert answer_text(format_answer(answer), reasoning=True) == format_answer(answer)


def test_the_batched_tower_is_the_tower(settings: Settings) -> None:
    a, b = load_model(settings.model), load_model(settings.model)
    batch_vision(b)
    for grids in ([[1, 4, 4]] * 3, [[1, 4, 4], [1, 6, 4]]):
        grid = torch.tensor(grids)
        pixels = torch.randn(int(grid.prod(-1).sum()), 1176)
        with torch.no_grad():
            torch.testing.assert_close(b.model.visual(pixels, grid), a.model.visual(pixels, grid), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", None, "lacks config.json"),
        ("config.json", "{", "is not a JSON object"),
        ("config.json", '{"model_type": "llama"}', "model_type is llama, expected qwen2_5_vl"),
        ("model.safetensors", "damaged", "Transformers cannot load it"),
        ("model.safetensors", None, "Transformers cannot load it"),
    ],
)
def test_a_folder_that_is_no_checkpoint(
    settings: Settings, tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(settings.model, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=said):
        load_model(folder)


@pytest.mark.parametrize("path", sorted(Path(stage.__file__).parent.glob("configs/*.yaml")), ids=lambda p: p.name)
def test_accelerate_reads_the_launch_configs(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
    kind = config.distributed_type
    assert (kind == "FSDP" and config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT") or (
        kind == "DEEPSPEED" and config.deepspeed_config["zero3_save_16bit_model"]
    )
