"""The small model's parts against Transformers: tokenizer, sequences, patches, tower; and a run that resumes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from drivers.errors import UserError
from edge.contract import IMAGE_PAD, Affordance, Trajectory, format_answer, parse_answer
from training.answers import POINTS, draw_item
from training.batched_tower import encode_batch
from training.images import N_TOKENS, cell_centres, dense_labels, load_dataset, to_patches
from training.model import new_model
from training.recipe import Recipe, train_small
from training.scenes import make_scenes
from training.sequences import IGNORE, collate
from training.tokenizer import NUMBERS, token_id, train_tokenizer
from training.vision import relative_boxes

COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    assert list(make_scenes(path, COUNT, seed=7, workers=1)) == [COUNT]
    return path


@pytest.fixture(scope="module")
def data(folder: Path):
    return load_dataset(folder)


@pytest.fixture(scope="module")
def items(data):
    rng = np.random.default_rng(0)
    return [draw_item(rng, seen) for seen in data.seen]


@pytest.fixture(scope="module")
def tokenizer(items):
    return train_tokenizer([format_answer(item.answer) for item in items] * 20)


@pytest.fixture(scope="module")
def model(tokenizer):
    return new_model(tokenizer, seed=0).eval()


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_from_the_tokenizer(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


def test_numbers_are_one_token_with_and_without_transformers(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    light = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = 'red cube [0.41, 1.00]. {"x": 0.07}'
    assert light.encode(text).ids == tokenizer.encode(text)
    assert all(len(tokenizer.encode(n)) == 1 for n in NUMBERS)
    assert [t for t in light.encode(text).tokens if t[:1] in "01"] == ["0.41", "1.00", "0.07"]


def test_answers_hold_to_the_contract_and_to_the_labels(items) -> None:
    for item in items:
        answer = parse_answer(format_answer(item.answer), item.task)
        assert answer.output == item.answer.output
        if isinstance(answer.output, Trajectory):
            assert len(answer.output.points) == POINTS
        else:
            assert isinstance(answer.output, Affordance)


def test_patches_are_those_of_the_transformers_image_processor(data) -> None:
    from transformers import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(min_pixels=224 * 168, max_pixels=224 * 168)
    want = processor(images=list(data.rgb[:3]), return_tensors="pt")
    pixels, grid = to_patches(data.rgb[:3])
    torch.testing.assert_close(pixels, want["pixel_values"], atol=1e-5, rtol=0)
    assert torch.equal(grid, want["image_grid_thw"])


def test_positions_are_those_of_transformers(model, tokenizer, items) -> None:
    batch = collate(tokenizer, items[:4])
    mask = torch.ones_like(batch.ids)
    for k, item in enumerate(items[:4]):
        length = collate(tokenizer, [item]).ids.shape[1]
        mask[k, length:] = 0
    grid = torch.tensor([[1, 12, 16]] * 4)
    want, _ = model.model.get_rope_index(batch.ids, image_grid_thw=grid, attention_mask=mask)
    on = mask.bool()
    assert torch.equal(batch.positions[:, on], want[:, on])
    assert (batch.image.sum(1) == N_TOKENS).all()
    assert token_id(tokenizer, IMAGE_PAD) not in batch.labels
    assert (batch.labels[batch.image] == IGNORE).all()


def test_the_batched_tower_says_what_transformers_says(model, data) -> None:
    pixels, grid = to_patches(data.rgb[:3])
    with torch.no_grad():
        torch.testing.assert_close(
            encode_batch(model.model.visual, pixels, grid), model.model.visual(pixels, grid), atol=1e-5, rtol=0
        )


def test_dense_labels_point_from_the_token_to_the_item(data) -> None:
    labels = dense_labels(data.tokens[:8], data.seen[:8])
    relative = relative_boxes(labels.box)
    back = cell_centres() + relative[..., :2] / torch.tensor([8.0, 6.0])
    assert labels.covered.any(1).all()
    torch.testing.assert_close(back[labels.covered], labels.box[labels.covered][:, :2])
    names = {(s.colour, s.shape) for s in data.seen[0]}
    from training.images import COLOUR_NAMES, SHAPE_NAMES

    on = labels.covered[0]
    pairs = zip(labels.colour[0][on].tolist(), labels.shape[0][on].tolist(), strict=True)
    assert {(COLOUR_NAMES[c], SHAPE_NAMES[s]) for c, s in pairs} <= names


def test_scenes_already_made_are_kept(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*.npz")}
    assert list(make_scenes(folder, COUNT, seed=7, workers=1)) == [COUNT]
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*.npz")} == before


def test_no_scenes_is_said_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vlar1 data sim"):
        load_dataset(tmp_path)


def test_training_resumes_and_ends_in_a_folder_that_transformers_loads(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

    import training.recipe
    import training.sft
    import training.vision

    def small(function, **fixed):
        return lambda *args, **kwargs: function(*args, **{**kwargs, **fixed})

    pretrain = training.vision.pretrain_vision
    monkeypatch.setattr(training.recipe, "pretrain_vision", small(pretrain, batch=4, save_every=2))
    settings_of = training.recipe.SftSettings
    monkeypatch.setattr(training.recipe, "SftSettings", small(settings_of, batch=4, save_every=2))
    recipe = Recipe(vision_steps=2, language_steps=4, joint_steps=2)
    seen: list[tuple[str, int]] = []

    class Cut(Exception):
        pass

    real = training.sft.language_loss
    calls = 0

    def cut_after_three(*args):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Cut
        return real(*args)

    monkeypatch.setattr(training.sft, "language_loss", cut_after_three)
    with pytest.raises(Cut):
        train_small(folder, tmp_path, recipe, lambda *a: None)
    assert torch.load(tmp_path / "language.pt", weights_only=True)["step"] == 2

    monkeypatch.setattr(training.sft, "language_loss", lambda *a: seen.append(("step", 1)) or real(*a))
    checkpoint = train_small(folder, tmp_path, recipe, lambda *a: None)
    assert len(seen) == 2 + 2  # the two language steps that were missing, and the joint stage
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    assert len(PreTrainedTokenizerFast.from_pretrained(checkpoint)) == model.config.text_config.vocab_size
    assert json.loads((tmp_path / "recipe.json").read_text())["language_steps"] == 4
    (tmp_path / "vision.pt").write_bytes(b"cut short")
    with pytest.raises(UserError, match="vision.pt: cannot be read"):
        train_small(folder, tmp_path, recipe, lambda *a: None)
    with pytest.raises(UserError, match="holds a run with"):
        train_small(folder, tmp_path, Recipe(language_steps=5), lambda *a: None)
