"""The engine computes what Transformers computes, the same to the bit however the tokens are cut into passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.errors import UserError
from edge import contract
from edge.engine.bundle import Bundle, load_bundle
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


@pytest.fixture(scope="module")
def pairs(bundle: Bundle, tiny_checkpoint: Path, tmp_path_factory) -> dict[str, tuple[OnnxEngine, OnnxEngine]]:
    """Two engines of the same weights each, on two threads and on one: what must come out the same in two ways."""
    from export import build, questions, verify

    out = tmp_path_factory.mktemp("bundles") / "int4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "N_CASES", 1)
        patch.setattr(verify, "MAX_NEW_TOKENS", 2)
        patch.setattr(verify, "require", lambda *args: None)  # a random model has no answer that 4 bits could keep
        build.export_bundle(tiny_checkpoint, out, "int4", [(112, 84)], None)
    return {each.quantization: (OnnxEngine(each, 2), OnnxEngine(each, 1)) for each in (bundle, load_bundle(out))}


def no_image(bundle: Bundle) -> np.ndarray:
    return np.zeros((0, bundle.hidden), np.float32)


def prompt(bundle: Bundle, instruction: str = "pick up the red cube", n_image_tokens: int = 48) -> list[int]:
    text = contract.render_chat(contract.prompt_text("affordance", instruction), n_image_tokens)
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


def test_image_embeddings_are_those_of_transformers(model, engine: OnnxEngine, bundle: Bundle) -> None:
    for size in (*bundle.images, bundle.images[0]):
        shape = (1, size.height_px // 14, size.width_px // 14)
        pixels = np.random.default_rng(size.width_px).normal(0, 1, (shape[1] * shape[2], 1176)).astype(np.float32)
        with torch.no_grad():
            expected = model.model.visual(torch.from_numpy(pixels), grid_thw=torch.tensor([shape])).numpy()
        np.testing.assert_allclose(engine.encode_image(pixels), expected, atol=2e-5)


def test_an_image_of_no_known_size_is_refused(engine: OnnxEngine) -> None:
    with pytest.raises(ValueError, match="7 patches; the bundle's image sizes have 192, 48"):
        engine.encode_image(np.zeros((7, 1176), np.float32))


def test_greedy_text_is_that_of_transformers(model, engine: OnnxEngine, bundle: Bundle, patches: np.ndarray) -> None:
    """At both image sizes, so that positions after images of other shapes are right as well."""
    for size, pixels in zip(bundle.images, (patches, patches[:48]), strict=True):
        ids = prompt(bundle, n_image_tokens=len(pixels) // 4)
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values=torch.from_numpy(pixels),
                image_grid_thw=torch.tensor([[1, size.height_px // 14, size.width_px // 14]]),
                do_sample=False,
                max_new_tokens=32,
                eos_token_id=None,
                output_logits=True,
                return_dict_in_generate=True,
            )
        engine.prefill(ids, engine.encode_image(pixels))
        for token, expected in zip(out.sequences[0, len(ids) :].tolist(), out.logits, strict=True):
            logits = engine.logits()
            np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
            assert int(logits[0].argmax()) == token
            engine.extend([int(logits[0].argmax())])
        assert engine.length == len(ids) + 32


def test_text_without_an_image_is_that_of_transformers(model, engine: OnnxEngine, bundle: Bundle) -> None:
    ids = bundle.tokenizer.encode("pick up the red cube").ids
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    engine.prefill(ids[:2], no_image(bundle))
    engine.extend(ids[2:])
    np.testing.assert_allclose(engine.logits(len(ids) - 2), expected[2:], atol=1e-4)


def test_a_placeholder_that_the_model_writes_itself_is_a_token_like_others(
    model, engine: OnnxEngine, bundle: Bundle
) -> None:
    ids = bundle.tokenizer.encode("pick up").ids
    engine.prefill(ids, no_image(bundle))
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
        again = torch.tensor([[bundle.image_token, 300]])
        positions = torch.arange(len(ids), len(ids) + 2).expand(3, 1, 2)
        expected = model(input_ids=again, past_key_values=cache, position_ids=positions).logits[0].numpy()
    engine.extend([bundle.image_token, 300])
    np.testing.assert_allclose(engine.logits(2), expected, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    blocks=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    quantization=st.sampled_from(("fp32", "int4")),
)
def test_drafts_with_tails_forgotten_are_as_single_steps(pairs, blocks, seed, quantization) -> None:
    """To the bit, so that a draft can never change an answer; on two threads as on one."""
    drafted, stepped = pairs[quantization]
    bundle, rng = drafted.bundle, np.random.default_rng(seed)
    embeds = drafted.encode_image(rng.normal(0, 1, (48, 1176)).astype(np.float32))
    for each in pairs[quantization]:
        each.prefill(prompt(bundle, n_image_tokens=12), embeds)
    n_prompt = drafted.length
    for n_new, n_rejected in blocks:
        draft = rng.integers(0, bundle.vocab, n_new).tolist()
        drafted.extend(draft)
        n_kept = max(0, n_new - n_rejected)
        drafted.truncate(drafted.length - (n_new - n_kept))
        expected = []
        for token in draft[:n_kept]:
            stepped.extend([token])
            expected.append(stepped.logits()[0])
        assert drafted.length == stepped.length >= n_prompt
        if n_kept:
            np.testing.assert_array_equal(drafted.logits(n_kept), np.array(expected))
            np.testing.assert_array_equal(drafted.number_logits(n_kept), np.array(expected)[:, bundle.number_tokens])


def test_number_logits_are_the_rows_of_the_logits(engine: OnnxEngine, bundle: Bundle, patches: np.ndarray) -> None:
    engine.prefill(prompt(bundle), engine.encode_image(patches))
    np.testing.assert_array_equal(engine.number_logits(), engine.logits()[:, bundle.number_tokens])
    engine.extend([300, 301, 302])
    for last in (3, 1, 2):
        numbers = engine.number_logits(last)
        assert numbers.shape == (last, len(bundle.number_tokens))
        np.testing.assert_array_equal(numbers, engine.logits(last)[:, bundle.number_tokens])


def test_logits_are_those_of_the_latest_pass_alone(engine: OnnxEngine, bundle: Bundle, patches: np.ndarray) -> None:
    engine.prefill(prompt(bundle), engine.encode_image(patches))
    for last in (0, 2):
        with pytest.raises(ValueError, match=f"logits of the last {last} tokens; 1 remain"):
            engine.logits(last)
    engine.extend([300, 301, 302])
    engine.truncate(engine.length - 2)
    with pytest.raises(ValueError, match="logits of the last 2 tokens; 1 remain"):
        engine.number_logits(2)
    engine.truncate(engine.length - 1)
    with pytest.raises(ValueError, match="0 remain"):
        engine.logits()


@pytest.mark.parametrize("change", [1, -1])
def test_the_prompt_and_what_is_not_there_cannot_be_forgotten(engine: OnnxEngine, bundle: Bundle, change: int) -> None:
    ids = bundle.tokenizer.encode("pick up").ids
    engine.prefill(ids, no_image(bundle))
    with pytest.raises(ValueError, match=f"truncate to {len(ids) + change} of {len(ids)} tokens"):
        engine.truncate(len(ids) + change)


INSTRUCTIONS = ("pick up the red cube", "pick up the ball", "put the green ball in the blue bowl")


@settings(max_examples=10, deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.sampled_from(INSTRUCTIONS), st.sampled_from((1.0, -1.0, 0.5, None))), min_size=2, max_size=5
    ),
    quantization=st.sampled_from(("fp32", "int4")),
)
def test_what_came_before_leaves_no_trace(pairs, turns, quantization) -> None:
    """Instructions, frames, texts without an image and answers in between: to the bit, the logits without them."""
    engine, fresh = pairs[quantization]
    bundle = engine.bundle
    embeds = engine.encode_image(np.random.default_rng(0).normal(0, 1, (48, 1176)).astype(np.float32))
    for instruction, scale in turns:
        ids = prompt(bundle, instruction, n_image_tokens=12 if scale is not None else 0)
        image = no_image(bundle) if scale is None else np.float32(scale) * embeds
        engine.prefill(ids, image)
        fresh.prefill([bundle.end_token], no_image(bundle))  # has nothing in common with a prompt
        fresh.prefill(ids, image)
        np.testing.assert_array_equal(engine.logits(), fresh.logits())
        engine.extend([300, 301])


def test_only_what_is_new_is_computed(engine: OnnxEngine, bundle: Bundle, patches: np.ndarray, monkeypatch) -> None:
    computed: list[tuple[int, int]] = []
    forward = engine._forward

    def record(start: int, embeds: np.ndarray, *tables: np.ndarray) -> None:
        computed.append((start, len(embeds)))
        forward(start, embeds, *tables)

    monkeypatch.setattr(engine, "_forward", record)
    embeds, ids, other = engine.encode_image(patches), prompt(bundle), prompt(bundle, "pick up the ball")
    n_text = ids.index(bundle.image_token)
    n_common = next(i for i, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1])
    engine.prefill([bundle.end_token], no_image(bundle))
    for prompt_ids in (ids, ids, other):
        engine.prefill(prompt_ids, embeds)
        engine.extend([300])
    passes = [(0, 1), (0, len(ids)), (n_text, len(ids) - n_text), (n_common, len(other) - n_common)]
    assert [each for each in computed if each[1] != 1 or each[0] == 0] == passes
    assert 0 < n_common < n_text


def test_the_cache_is_written_in_place(bundle: Bundle) -> None:
    """The tokens' keys are in the buffer that was bound, and the rest of it is as it was."""
    engine = OnnxEngine(bundle, 1, room=16)
    buffers = [value.numpy() for value in engine._binding.get_outputs()]
    engine.prefill([300, 301, 302], no_image(bundle))
    before = [buffer.copy() for buffer in buffers]
    engine.extend([303])
    assert len(buffers) == 2 * bundle.layers
    for old, new in zip(before, buffers, strict=True):
        np.testing.assert_array_equal(old[:, :, :3], new[:, :, :3])
        assert np.abs(new[:, :, 3]).max(axis=-1).min() > 0
        assert not new[:, :, 5:].any()  # place 4 is the forgotten row's


def test_a_full_cache_says_so_and_goes_on_working(bundle: Bundle) -> None:
    engine = OnnxEngine(bundle, 1, room=5)
    with pytest.raises(ValueError, match="6 tokens, the cache has room for 5"):
        engine.prefill(list(range(300, 306)), no_image(bundle))
    engine.prefill([300, 301], no_image(bundle))
    engine.extend([302, 303])
    before = engine.logits(2)
    with pytest.raises(ValueError, match="6 tokens, the cache has room for 5"):
        engine.extend([304, 305])
    np.testing.assert_array_equal(engine.logits(2), before)
    engine.extend([304])
    assert engine.length == engine.room == 5


def test_nothing_to_compute_is_refused(bundle: Bundle) -> None:
    engine = OnnxEngine(bundle, 1)
    for call in (lambda: engine.prefill([], no_image(bundle)), lambda: engine.extend([300]), lambda: engine.logits()):
        with pytest.raises(ValueError, match="0 tokens|prefill comes first|0 remain"):
            call()
    engine.prefill([300], no_image(bundle))
    with pytest.raises(ValueError, match="0 tokens to append"):
        engine.extend([])


def test_a_prompt_whose_pass_failed_cannot_be_gone_on_with(
    engine: OnnxEngine, bundle: Bundle, patches: np.ndarray, monkeypatch
) -> None:
    embeds, ids = engine.encode_image(patches), prompt(bundle)
    engine.prefill(ids, embeds)
    expected = engine.logits()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "_forward", _interrupt)
        engine.prefill(ids, -embeds)
    assert engine.length > 0  # the text before the image
    with pytest.raises(ValueError, match="prefill comes first"):
        engine.extend([300])
    engine.prefill(ids, embeds)
    np.testing.assert_array_equal(engine.logits(), expected)


@pytest.mark.parametrize("step", ["bind_cpu_input", "bind_ortvalue_output"])
def test_ctrl_c_between_two_bindings_leaves_no_trace(bundle: Bundle, monkeypatch, step: str) -> None:
    engine, other = OnnxEngine(bundle, 1), OnnxEngine(bundle, 1)
    for each in (engine, other):
        each.prefill([300, 301], no_image(bundle))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine._binding, step, _interrupt)
        engine.extend([302, 303, 304, 305])
    for each in (engine, other):
        each.extend([302, 303, 304, 305])
    np.testing.assert_array_equal(engine.logits(4), other.logits(4))


def _interrupt(*args: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("n", [0, 47, 49])
def test_embeddings_must_match_the_placeholders(engine: OnnxEngine, bundle: Bundle, n: int) -> None:
    with pytest.raises(ValueError, match="48 image placeholders"):
        engine.prefill(prompt(bundle), np.zeros((n, bundle.hidden), np.float32))


def test_a_provider_that_is_not_there_is_refused_in_one_line(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="this onnxruntime has no NoSuchExecutionProvider, only .*CPU") as raised:
        OnnxEngine(bundle, providers=["NoSuchExecutionProvider"])
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_load_is_refused_in_one_line(bundle: Bundle, monkeypatch) -> None:
    """ONNX Runtime goes on without it; here its list of providers promises one that no session ever gets."""
    promised = [*ort.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: promised)
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(UserError, match="CUDAExecutionProvider is in this onnxruntime but did not load") as raised:
        OnnxEngine(replace(bundle, quantization="fp16"), providers=both)
    assert "\n" not in str(raised.value)
    # With any other bundle a part of each layer would run on the processor, beside the cache.
    with pytest.raises(UserError, match="is fp32, and CUDAExecutionProvider takes fp16 alone; export") as raised:
        OnnxEngine(bundle, providers=both)
    assert "\n" not in str(raised.value)
