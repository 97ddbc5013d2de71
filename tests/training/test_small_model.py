"""The small model's parts against Transformers: tokenizer, sequences, patches, tower; and a base run that resumes."""

import json
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from drivers.errors import UserError
from drivers.sim.scene import COLOURS
from edge.contract import IMAGE_PAD
from training.batched_tower import encode_batch
from training.data.answers import draw_question
from training.data.scenes import make_scenes
from training.data.splits import SPLITS
from training.small.base import Recipe, train_base
from training.small.grounding import draw_talk, draw_talk_of_shapes
from training.small.images import CELLS, N_TOKENS, SHAPE_NAMES, cell_centres, dense_labels, load_dataset, to_patches
from training.small.language import finding_loss
from training.small.model import new_model
from training.small.sequences import IGNORE, collate
from training.small.steps import ahead
from training.small.tokenizer import NUMBERS, token_id, train_tokenizer
from training.small.vision import draw_views, load_state, pretrain_vision, recoloured, relative_boxes, save_state

COUNT = 24


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    assert list(make_scenes(path, SPLITS["train"], COUNT, workers=1)) == [COUNT]
    return path / "train.json"


@pytest.fixture(scope="module")
def data(file: Path):
    return load_dataset(file)


@pytest.fixture(scope="module")
def items(data):
    rng = np.random.default_rng(0)
    return [draw_talk(rng, seen) for seen in data.seen]


@pytest.fixture(scope="module")
def tokenizer(items):
    return train_tokenizer([item.answer for item in items] * 20)


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


def test_patches_are_those_of_the_transformers_image_processor(data) -> None:
    from transformers import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(min_pixels=224 * 168, max_pixels=224 * 168)
    want = processor(images=list(data.rgb[:3]), return_tensors="pt")
    pixels, grid = to_patches(torch.from_numpy(data.rgb[:3]))
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


def test_what_says_whether_a_thing_is_there_is_marked(tokenizer, data) -> None:
    talks = [draw_talk(np.random.default_rng(k), seen) for k, seen in enumerate(data.seen)]
    batch = collate(tokenizer, talks)
    said = set()
    for k, talk in enumerate(talks):
        pattern = r"The \w+ \w+ \[|(?:see|;) \w+|(?<=, )[a-z]+"
        ends = [m.end() for m in re.finditer(pattern, talk.answer)] if "The " in talk.answer else []
        places = batch.finding[k].nonzero().flatten().tolist()
        assert len(places) == len(ends)
        for place, end in zip(places, ends, strict=True):
            word = tokenizer.decode(batch.labels[k, place])
            assert talk.answer[end:].startswith(word)
            said.add(word.strip()[0])
    assert said >= {"[", ",", "*", "n", "0"}


def test_listed_words_have_a_star_where_a_thing_is_named_by_them(data) -> None:
    for k, seen in enumerate(data.seen):
        rng = np.random.default_rng(k)
        question, talk = draw_question(rng, seen, SPLITS["train"]), draw_talk(rng, seen)
        for text, asked in ((question.answer.reasoning, question.instruction), (talk.answer, talk.prompt)):
            listed = re.findall(r"(?:see|;) (\w+\*?), (\w+\*?) \[", text)
            for word in (word for item in listed for word in item):
                assert word.endswith("*") == bool(re.search(rf"\b{word.strip('*')}\b", asked))


def test_shapes_are_not_learnt_from_lists_with_colours_but_from_recoloured_images(tokenizer, data) -> None:
    for k, seen in enumerate(data.seen):
        talk, shapes = draw_talk(np.random.default_rng(k), seen), draw_talk_of_shapes(np.random.default_rng(k), seen)
        batch = collate(tokenizer, [talk, shapes])
        learnt = [tokenizer.decode(row[row != IGNORE]) for row in batch.labels]
        if talk.answer.startswith("I see"):
            assert not re.search(r"(?:see|;) (?:cube|cylinder|ball|bar|bowl|tray)", learnt[0])
        assert sum(learnt[1].count(shape) for shape in SHAPE_NAMES) == len(seen)
        assert not any(colour in learnt[1] for colour in COLOURS)


def test_what_is_found_is_judged_by_all_boxes_together() -> None:
    logits = torch.tensor([[2.5, 2.5, 3.0], [0.0, 0.0, 3.0]])  # tokens 0 and 1 are numbers, 2 is "none"
    loss, right = finding_loss(logits, torch.tensor([1, 2]), [0, 1])
    there = 2 * np.exp(2.5) / (2 * np.exp(2.5) + np.exp(3.0))
    missing = np.exp(3.0) / (2.0 + np.exp(3.0))
    assert loss.item() == pytest.approx(-np.log(there) - np.log(missing), rel=1e-5)
    assert right == 1.0


def test_a_mirrored_image_has_mirrored_labels(data) -> None:
    pick = np.arange(len(data))
    views = draw_views(data, pick, np.random.default_rng(0))
    rgb, labels, turned = views.rgb.numpy(), views.labels, views.turned.numpy()
    straight = dense_labels(data.tokens, data.seen)
    seen = set()
    for k in pick[~turned]:
        mirrored = not np.array_equal(rgb[k], data.rgb[k])
        assert np.array_equal(rgb[k], data.rgb[k][:, ::-1] if mirrored else data.rgb[k])
        on = labels.covered[k].reshape(CELLS)
        assert torch.equal(
            on, straight.covered[k].reshape(CELLS).flip(1) if mirrored else straight.covered[k].reshape(CELLS)
        )
        middles = labels.box[k, :, 0].reshape(CELLS)[on]
        assert ((middles - cell_centres()[:, 0].reshape(CELLS)[on]).abs() < 0.2).all()  # of the item in that cell
        seen.add(mirrored)
    assert seen == {True, False} and 0.7 < turned.mean() < 0.8


def test_turned_colours_keep_brightness_and_grey(data) -> None:
    turned = recoloured(data.rgb[:8], np.random.default_rng(0))
    assert turned.shape == data.rgb[:8].shape and turned.dtype == np.uint8
    inside = ((turned > 0) & (turned < 255)).all(-1)
    np.testing.assert_allclose(turned.mean(-1)[inside], data.rgb[:8].mean(-1)[inside], atol=0.6)
    assert (np.abs(turned.astype(int) - data.rgb[:8]).mean((1, 2, 3)) > 1).all()
    grey = np.repeat(data.rgb[:8, :, :, :1], 3, -1)
    np.testing.assert_allclose(recoloured(grey, np.random.default_rng(0)), grey, atol=1)


def test_the_batched_tower_says_what_transformers_says(model, data) -> None:
    pixels, grid = to_patches(torch.from_numpy(data.rgb[:3]))
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
    from training.small.images import COLOUR_NAMES, SHAPE_NAMES

    on = labels.covered[0]
    pairs = zip(labels.colour[0][on].tolist(), labels.shape[0][on].tolist(), strict=True)
    assert {(COLOUR_NAMES[c], SHAPE_NAMES[s]) for c, s in pairs} <= names


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_batches_made_ahead_are_those_of_their_steps(data, monkeypatch, where: str) -> None:
    monkeypatch.setattr("training.small.steps.device", lambda: torch.device(where))  # beside a GPU, by processes

    def draw(step: int):
        rng = np.random.default_rng(step)
        return draw_views(data, rng.integers(0, len(data), 4), rng)

    made = list(ahead(draw, 3, 9))
    assert len(made) == 6
    for step, views in enumerate(made, 3):
        want = draw(step)
        assert torch.equal(views.rgb, want.rgb) and torch.equal(views.turned, want.turned)
        assert torch.equal(views.labels.box, want.labels.box)


def test_a_gradient_that_is_not_finite_changes_and_saves_nothing(data, tokenizer, tmp_path: Path) -> None:
    tower = new_model(tokenizer, seed=0).model.visual
    with torch.no_grad():
        tower.blocks[0].norm1.weight[0] = torch.nan
    before = {name: p.clone() for name, p in tower.state_dict().items()}
    with pytest.raises(UserError, match="step 1: the gradient is not finite"):
        pretrain_vision(tower, data, tmp_path / "vision.pt", steps=1, log=lambda *a: None, batch=4)
    assert not list(tmp_path.iterdir())
    for name, p in tower.state_dict().items():
        torch.testing.assert_close(p, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_stage_on_a_full_disk_is_said_and_the_last_one_kept(tmp_path: Path) -> None:
    file = tmp_path / "vision.pt"
    save_state(file, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a write beyond fails as on a full disk
    try:
        with pytest.raises(UserError, match="vision.pt: cannot be written"):
            save_state(file, {"step": 2, "tower": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_state(file) == {"step": 1} and list(tmp_path.iterdir()) == [file]


def test_training_resumes_and_ends_in_a_folder_that_transformers_loads(file: Path, tmp_path: Path, monkeypatch) -> None:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

    import training.small.base
    import training.small.language
    import training.small.vision

    def small(function, **fixed):
        return lambda *args, **kwargs: function(*args, **{**kwargs, **fixed})

    pretrain = training.small.vision.pretrain_vision
    monkeypatch.setattr(training.small.base, "pretrain_vision", small(pretrain, save_every=2))
    settings_of = training.small.base.LanguageSettings
    monkeypatch.setattr(training.small.base, "LanguageSettings", small(settings_of, save_every=2))
    recipe = Recipe(vision_steps=2, language_steps=4, batch=4)
    seen: list[tuple[str, int]] = []

    class Cut(Exception):
        pass

    real = training.small.language.language_loss
    calls = 0

    def cut_after_three(*args):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Cut
        return real(*args)

    monkeypatch.setattr(training.small.language, "language_loss", cut_after_three)
    with pytest.raises(Cut):
        train_base(file, tmp_path, recipe, lambda *a: None)
    assert torch.load(tmp_path / "language.pt", weights_only=True)["step"] == 2

    monkeypatch.setattr(training.small.language, "language_loss", lambda *a: seen.append(("step", 1)) or real(*a))
    checkpoint = train_base(file, tmp_path, recipe, lambda *a: None)
    assert len(seen) == 2  # the language steps that were missing
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    assert len(PreTrainedTokenizerFast.from_pretrained(checkpoint)) == model.config.text_config.vocab_size
    assert json.loads((tmp_path / "recipe.json").read_text())["language_steps"] == 4
    features, old = tmp_path / "features.pt", torch.zeros(COUNT, 1)
    torch.save(old, features)
    os.utime(features, (0, 0))  # of a tower that was trained before this one
    tower = model.eval().model.visual
    read = training.small.base._features(tmp_path, model, load_dataset(file), lambda *a: None)
    assert read.shape == (2, COUNT, N_TOKENS, tower.config.out_hidden_size)
    assert torch.equal(torch.load(features, weights_only=True), read)
    features.write_bytes(b"cut short")
    with pytest.raises(UserError, match="features.pt: cannot be read"):
        training.small.base._features(tmp_path, model, load_dataset(file), lambda *a: None)
    (tmp_path / "vision.pt").write_bytes(b"cut short")
    with pytest.raises(UserError, match="vision.pt: cannot be read"):
        train_base(file, tmp_path, recipe, lambda *a: None)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(UserError, match="recipe.json: is not JSON"):
        train_base(file, tmp_path, recipe, lambda *a: None)
    (tmp_path / "recipe.json").write_text(json.dumps(vars(recipe)))
    with pytest.raises(UserError, match="holds a run with"):
        train_base(file, tmp_path, Recipe(language_steps=5), lambda *a: None)
