"""The engine computes what Transformers computes; a bundle that is not whole is refused before it runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.errors import UserError
from edge import contract
from edge.engine.bundle import LANGUAGE, MANIFEST, TOKENIZER, VISION, Bundle, load_bundle
from edge.engine.mrope import mrope_positions
from edge.engine.onnx import OnnxEngine


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path):
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> OnnxEngine:
    return OnnxEngine(bundle, 1)


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (192, 1176)).astype(np.float32)


def prompt(bundle: Bundle, instruction: str = "pick up the red cube") -> list[int]:
    text = contract.render_chat(contract.prompt_text("affordance", instruction), bundle.n_image_tokens)
    ids: list[int] = bundle.tokenizer.encode(text).ids
    return ids


@settings(max_examples=40, deadline=None)
@given(
    before=st.lists(st.integers(0, 3), max_size=9),
    after=st.lists(st.integers(0, 3), max_size=9),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    n_images=st.integers(0, 2),
)
def test_positions_are_those_of_transformers(model, before, after, grid, n_images) -> None:
    start, image = model.config.vision_start_token_id, model.config.image_token_id
    text = [token + 300 for token in before]
    one_image = [start, *[image] * (grid[0] * grid[1]), 301]
    ids = [*text, *one_image * n_images, *(token + 300 for token in after)] or [300]
    grids = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]] * n_images) if n_images else None
    expected, delta = model.model.get_rope_index(torch.tensor([ids]), grids)
    positions = mrope_positions(ids, image, grid)
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())
    assert positions.max() + 1 - len(ids) == int(delta)


def test_a_short_run_of_placeholders_has_no_positions() -> None:
    with pytest.raises(ValueError, match="shorter"):
        mrope_positions([1, 9, 9, 9, 1], 9, (2, 2))


def test_image_embeddings_are_those_of_transformers(model, engine: OnnxEngine, patches: np.ndarray) -> None:
    with torch.no_grad():
        expected = model.model.visual(torch.from_numpy(patches), grid_thw=torch.tensor([[1, 12, 16]])).numpy()
    np.testing.assert_allclose(engine.encode_image(patches), expected, atol=2e-5)


def test_greedy_text_is_that_of_transformers(model, engine: OnnxEngine, bundle: Bundle, patches: np.ndarray) -> None:
    ids = prompt(bundle)
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            pixel_values=torch.from_numpy(patches),
            image_grid_thw=torch.tensor([[1, 12, 16]]),
            do_sample=False,
            max_new_tokens=48,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = engine.prefill(ids, engine.encode_image(patches))
    for token, expected in zip(out.sequences[0, len(ids) :].tolist(), out.logits, strict=True):
        np.testing.assert_allclose(logits, expected[0].numpy(), atol=1e-4)
        assert int(logits.argmax()) == token
        logits = engine.step(int(logits.argmax()))
    assert engine.length == len(ids) + 48


def test_text_without_an_image_is_that_of_transformers(model, engine: OnnxEngine, bundle: Bundle) -> None:
    ids = bundle.tokenizer.encode("pick up the red cube").ids
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
    logits = engine.prefill(ids, np.zeros((0, bundle.hidden), np.float32))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_placeholder_that_the_model_writes_itself_is_a_token_like_others(
    model, engine: OnnxEngine, bundle: Bundle
) -> None:
    ids = bundle.tokenizer.encode("pick up").ids
    engine.prefill(ids, np.zeros((0, bundle.hidden), np.float32))
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
        again = torch.tensor([[bundle.image_token, 300]])
        positions = torch.arange(len(ids), len(ids) + 2).expand(3, 1, 2)
        expected = model(input_ids=again, past_key_values=cache, position_ids=positions).logits[0, -1].numpy()
    np.testing.assert_allclose(engine.extend([bundle.image_token, 300]), expected, atol=1e-4)


def test_several_tokens_in_one_pass_are_as_good_as_one_by_one(engine: OnnxEngine, bundle: Bundle, patches) -> None:
    ids, embeds = prompt(bundle), engine.encode_image(patches)
    tokens = bundle.tokenizer.encode('<output>{"x": 0.41, "y": ').ids
    engine.prefill(ids, embeds)
    for token in tokens:
        one_by_one = engine.step(token)
    engine.prefill(ids, embeds)
    np.testing.assert_allclose(engine.extend(tokens), one_by_one, atol=1e-5)


def test_what_came_before_leaves_no_trace(engine: OnnxEngine, bundle: Bundle, patches: np.ndarray) -> None:
    """The kept prefix gives the very same logits, whatever other instructions and images came in between."""
    embeds = engine.encode_image(patches)
    fresh = OnnxEngine(bundle, 1).prefill(prompt(bundle), embeds)
    for instruction in ("pick up the red cube", "pick up the ball", "pick up the red cube", "pick up the red cube"):
        engine.prefill(prompt(bundle, instruction), -embeds)
        engine.extend([300, 301])
        engine.prefill(prompt(bundle, instruction), -embeds)
    np.testing.assert_array_equal(engine.prefill(prompt(bundle), embeds), fresh)


@pytest.mark.parametrize("n", [0, 47, 49])
def test_embeddings_must_match_the_placeholders(engine: OnnxEngine, bundle: Bundle, n: int) -> None:
    with pytest.raises(ValueError, match="48 image placeholders"):
        engine.prefill(prompt(bundle), np.zeros((n, bundle.hidden), np.float32))


def _edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def _rehash(folder: Path, name: str) -> None:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    content = (folder / name).read_bytes()
    files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    _edit(folder, files=files)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _no_tokenizer(folder: Path) -> None:
    (folder / TOKENIZER).write_text("{}")
    _rehash(folder, TOKENIZER)


def _binary_tokenizer(folder: Path) -> None:
    (folder / TOKENIZER).write_bytes(b"\xff\xfe")
    _rehash(folder, TOKENIZER)


def _no_image_token(folder: Path) -> None:
    text = (folder / TOKENIZER).read_text(encoding="utf-8").replace("<|image_pad|>", "<|picture|>")
    (folder / TOKENIZER).write_text(text, encoding="utf-8")
    _rehash(folder, TOKENIZER)


DAMAGES = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "no such folder"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "is missing"),
    "cut manifest": (lambda folder: (folder / MANIFEST).write_text('{"schema": 1'), "cannot be read as JSON"),
    "binary manifest": (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"), "cannot be read as JSON"),
    "list manifest": (lambda folder: (folder / MANIFEST).write_text("[]"), "not a JSON object"),
    "later schema": (lambda folder: _edit(folder, schema=2), "field schema is 2, this version reads 1"),
    "no schema": (lambda folder: _edit(folder, schema=None), "field schema"),
    "no files": (lambda folder: _edit(folder, files={}), "lacks vision.onnx"),
    "file outside": (
        lambda folder: _edit(
            folder, files=json.loads((folder / MANIFEST).read_text())["files"] | {"../x": {"sha256": "", "bytes": 0}}
        ),
        r"files.../x is not a file of the bundle",
    ),
    "no size": (lambda folder: _edit(folder, image={"width_px": 224}), "field image.height_px"),
    "odd size": (
        lambda folder: _edit(folder, image=json.loads((folder / MANIFEST).read_text())["image"] | {"width_px": 225}),
        "not a multiple of 28",
    ),
    "no dimensions": (lambda folder: _edit(folder, model=[]), "field model is missing"),
    "no graph": (lambda folder: (folder / VISION).unlink(), "vision.onnx: is missing"),
    "cut graph": (lambda folder: (folder / VISION).write_bytes(b"x"), "vision.onnx: is damaged"),
    "flipped bit": (lambda folder: _flip(folder / LANGUAGE), "language.onnx: is damaged: its SHA-256"),
    "no tokenizer": (_no_tokenizer, "not a tokenizer"),
    "binary tokenizer": (_binary_tokenizer, "not a tokenizer"),
    "no image token": (_no_image_token, "lacks the token"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_bundle_is_refused_in_one_line(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    damage, says = DAMAGES[name]
    damage(folder)
    with pytest.raises(UserError, match=says) as raised:
        load_bundle(folder)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


def test_a_graph_that_is_none_is_refused_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    (folder / LANGUAGE).write_bytes(b"no graph")
    _rehash(folder, LANGUAGE)
    with pytest.raises(UserError, match="ONNX Runtime cannot load it") as raised:
        OnnxEngine(load_bundle(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "layers", 1),
        ("model", "layers", 3),
        ("model", "hidden", 65),
        ("model", "kv_heads", 3),
        ("model", "vocab", 5000),
        ("image", "width_px", 252),
        ("image", "patch_px", 7),
    ],
)
def test_graphs_that_are_not_the_manifests_are_refused_in_one_line(
    tiny_bundle: Path, tmp_path: Path, section: str, field: str, value: int
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    _edit(folder, **{section: json.loads((folder / MANIFEST).read_text())[section] | {field: value}})
    with pytest.raises(UserError, match="not as the manifest") as raised:
        OnnxEngine(load_bundle(folder))
    assert "\n" not in str(raised.value)
