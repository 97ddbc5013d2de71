"""Answers drawn with shared prompts are those Transformers' own generation gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BatchFeature, Qwen2_5_VLForConditionalGeneration

from edge.contract import prompt_text, render_chat
from training.processor import ImageTextProcessor, load_processor
from training.rollout import never_drawn, sample_answers

ENDS = [2]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> BatchFeature:
    """Three prompts of different lengths, with images of different sizes."""
    processor = tiny_processor(tiny_checkpoint, tmp_path_factory.mktemp("processor"))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((56, 56), (84, 56), (56, 112))]
    words = ("pick up the red cube", "the ball", "pick up the red cube and put it into the blue bowl")
    texts = [render_chat(prompt_text("affordance", w)) for w in words]
    return processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")


def tiny_processor(checkpoint: Path, folder: Path) -> ImageTextProcessor:
    for path in checkpoint.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    settings = '{"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12544}'
    (folder / "preprocessor_config.json").write_text(settings)
    processor = load_processor(folder)
    processor.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return processor


def test_without_chance_an_answer_is_that_of_generate(
    model: Qwen2_5_VLForConditionalGeneration, prompts: BatchFeature
) -> None:
    ours = sample_answers(model, prompts, 2, 24, 1e-4, ENDS)
    theirs = model.generate(
        **prompts,
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=ENDS,
        pad_token_id=ENDS[0],
        suppress_tokens=never_drawn(model),
    )[:, prompts["input_ids"].shape[1] :]
    for k, row in enumerate(theirs.tolist()):
        wanted = row[: row.index(ENDS[0]) + 1] if ENDS[0] in row else row
        assert ours[2 * k] == ours[2 * k + 1] == wanted
    assert len({tuple(a) for a in ours}) == 3


def test_answers_follow_the_models_distribution(
    model: Qwen2_5_VLForConditionalGeneration, prompts: BatchFeature
) -> None:
    torch.manual_seed(0)
    group, heat = 3000, 1.5
    answers = sample_answers(model, prompts, group, 1, heat, ENDS)
    logits = model(**prompts).logits[:, -1].float() / heat
    logits[:, never_drawn(model)] = -torch.inf
    for k, wanted in enumerate(logits.softmax(-1).detach()):
        drawn = torch.bincount(torch.tensor(answers[k * group : (k + 1) * group])[:, 0], minlength=len(wanted)) / group
        assert (drawn - wanted).abs().max() < 5 * 0.5 / group**0.5  # five standard deviations of a share, at most


def test_an_answer_stops_at_an_end_token_and_the_seed_decides(
    model: Qwen2_5_VLForConditionalGeneration, prompts: BatchFeature
) -> None:
    ends = list(range(0, 300))  # about every second token ends an answer
    torch.manual_seed(3)
    first = sample_answers(model, prompts, 4, 12, 2.0, ends)
    torch.manual_seed(3)
    assert sample_answers(model, prompts, 4, 12, 2.0, ends) == first
    assert len({tuple(a) for a in first}) > 3
    for answer in first:
        assert not any(token < 300 for token in answer[:-1])
        assert answer[-1] < 300 or len(answer) == 12
        assert not set(never_drawn(model)) & set(answer)
