"""The TensorRT engine: everything but the GPU's own calls, on ONNX Runtime, against Transformers. Then the GPU's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorrt_bundle import add_tensorrt
from transformers_engine import TransformersEngine

from drivers.errors import UserError
from edge import contract
from edge.decode import decide
from edge.engine.bundle import HEAD, LANGUAGE, MANIFEST, Bundle
from edge.engine.onnx import OnnxEngine
from edge.engine.tensorrt.cuda import this_gpu
from edge.engine.tensorrt.engine import TensorRTEngine
from edge.engine.tensorrt.layout import HEAD_ROWS, PREFILL_BLOCK, PREFILL_PROFILE, STEP_BLOCK, STEP_PROFILE, cache_room
from edge.engine.tensorrt.module import installed
from export.cpu_device import CpuDevice


def _why_no_gpu() -> str | None:
    try:
        this_gpu(installed()[0])
    except UserError as error:
        return str(error)
    return None


NO_GPU = _why_no_gpu()
PATCHES = np.random.default_rng(0).normal(0, 1, (192, 1176)).astype(np.float32)
TOKENS = st.integers(300, 500)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return add_tensorrt(tiny_bundle, tiny_checkpoint, "fp32", tmp_path_factory.mktemp("tensorrt") / "fp32")


@pytest.fixture(scope="module")
def device(bundle: Bundle) -> CpuDevice:
    return CpuDevice(bundle)


@pytest.fixture(scope="module")
def engine(bundle: Bundle, device: CpuDevice) -> TensorRTEngine:
    return TensorRTEngine(bundle, device)


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> TransformersEngine:
    return TransformersEngine(tiny_checkpoint)


@pytest.fixture(scope="module")
def embeds(reference: TransformersEngine) -> np.ndarray:
    found: np.ndarray = reference.encode_image(PATCHES)
    return found


def prompt(bundle: Bundle, instruction: str, n_image_tokens: int = 48) -> list[int]:
    text = contract.render_chat(contract.prompt_text("affordance", instruction), n_image_tokens)
    ids: list[int] = bundle.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def no_image(bundle: Bundle) -> np.ndarray:
    return np.zeros((0, bundle.hidden), np.float32)


def same(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, atol=2e-4)


def test_an_image_becomes_the_embeddings_of_transformers(engine: TensorRTEngine, embeds: np.ndarray) -> None:
    np.testing.assert_allclose(engine.encode_image(PATCHES), embeds, atol=2e-5)
    with pytest.raises(ValueError, match="7 patches"):
        engine.encode_image(PATCHES[:7])


PASSES = st.lists(
    st.one_of(
        st.lists(TOKENS, min_size=1, max_size=1),
        st.lists(TOKENS, min_size=2, max_size=STEP_BLOCK + 2),
        st.integers(1, 12).map(lambda n: -n),  # forget so many
    ),
    max_size=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(instructions=st.lists(st.sampled_from(["red cube", "red bowl", "blue"]), min_size=1, max_size=2), passes=PASSES)
def test_any_course_of_passes_gives_the_logits_of_transformers(
    engine: TensorRTEngine, reference: TransformersEngine, bundle: Bundle, embeds: np.ndarray, instructions, passes
) -> None:
    for instruction in instructions:
        ids = prompt(bundle, instruction)
        for each in (engine, reference):
            each.prefill(ids, embeds)
        same(engine.logits(), reference.logits())
        left = 1
        for step in passes:
            if isinstance(step, int):
                step = max(step, len(ids) - engine.length)
                for each in (engine, reference):
                    each.truncate(each.length + step)
                left = max(0, left + step)
            else:
                for each in (engine, reference):
                    each.extend(step)
                left = len(step)
            assert engine.length == reference.length
            if left:
                same(engine.logits(left), reference.logits(left))
                same(engine.number_logits(1), reference.logits(1)[:, bundle.number_tokens])
            with pytest.raises(ValueError, match="remain of the latest pass"):
                engine.logits(left + 1)


@pytest.mark.parametrize("task", contract.TASKS)
def test_decisions_are_those_of_the_onnx_engine(bundle: Bundle, engine: TensorRTEngine, task: contract.Task) -> None:
    onnx = OnnxEngine(bundle, 1)
    for seed in range(2):
        rgb = np.random.default_rng(seed).integers(0, 255, (168, 224, 3), np.uint8)
        ours, theirs = (decide(each, rgb, task, "red cube", max_think_tokens=12) for each in (engine, onnx))
        assert ours.text == theirs.text and ours.answer == theirs.answer


def test_other_image_sizes_have_positions_and_a_tower_of_their_own(
    bundle: Bundle, engine: TensorRTEngine, tiny_checkpoint: Path
) -> None:
    size = bundle.images[1]
    reference = TransformersEngine(tiny_checkpoint, size.width_px, size.height_px)
    patches = PATCHES[: size.width_px * size.height_px // 14**2]
    ids = prompt(bundle, "red cube", len(patches) // 4)
    for each in (engine, reference):
        each.prefill(ids, each.encode_image(patches))
        each.extend([300, 301])
    same(engine.logits(2), reference.logits(2))


def test_each_pass_runs_with_the_shapes_that_engines_are_built_for(bundle: Bundle, device, engine) -> None:
    engine.prefill(prompt(bundle, "red cube"), np.zeros((48, 64), np.float32))
    device.runs.clear()
    device.inserted.clear()
    length = engine.length
    for n in (1, 5, STEP_BLOCK, STEP_BLOCK + 1):
        engine.extend([300] * n)
    language = [run[1:] for run in device.runs if run[0] == LANGUAGE]
    assert language == [
        (1, STEP_PROFILE, True),
        (STEP_BLOCK, STEP_PROFILE, True),
        (STEP_BLOCK, STEP_PROFILE, True),
        (STEP_BLOCK + 1, PREFILL_PROFILE, False),
    ]
    # Of a padded block, only the tokens themselves reach the cache.
    starts = length + np.cumsum([0, 1, 5, STEP_BLOCK])
    assert device.inserted == [*zip(starts, (1, 5, STEP_BLOCK, STEP_BLOCK + 1), strict=True)]


def test_text_before_the_image_is_computed_once(bundle: Bundle, device: CpuDevice, engine: TensorRTEngine) -> None:
    ids = prompt(bundle, "green ball")
    image = ids.index(bundle.image_token)
    engine.prefill(ids, np.zeros((48, 64), np.float32))
    device.inserted.clear()
    engine.prefill(ids, np.ones((48, 64), np.float32))
    assert device.inserted == [(image, len(ids) - image)]
    engine.prefill(ids[:image], no_image(bundle))
    assert device.inserted[1:] == [(image - 1, 1)]  # the last token's hidden state is asked for


def test_long_prompts_and_long_extensions_take_several_passes(
    bundle: Bundle, device: CpuDevice, engine: TensorRTEngine, reference: TransformersEngine
) -> None:
    ids = np.random.default_rng(1).integers(300, 500, PREFILL_BLOCK + 200).tolist()
    device.inserted.clear()
    for each in (engine, reference):
        each.prefill(ids, no_image(bundle))
    assert device.inserted == [(0, PREFILL_BLOCK), (PREFILL_BLOCK, 200)]
    same(engine.logits(), reference.logits())
    n = HEAD_ROWS + 9
    for each in (engine, reference):
        each.extend(ids[:n])
    same(engine.logits(n), reference.logits(n))


def test_the_cache_is_used_to_its_last_place_and_no_further(bundle: Bundle, device: CpuDevice, reference) -> None:
    engine = TensorRTEngine(bundle, device)
    with pytest.raises(ValueError, match="prefill comes first"):
        engine.extend([300])
    ids = prompt(bundle, "cup")
    for each in (engine, reference):
        each.prefill(ids, np.zeros((48, 64), np.float32))
        each.extend([301] * (engine.room - len(ids) - 3))
    with pytest.raises(ValueError, match=f"room for {engine.room}"):
        engine.extend([302] * 4)
    for each in (engine, reference):
        each.extend([302] * 3)
    assert engine.length == engine.room == cache_room(48, bundle.max_positions)
    same(engine.logits(3), reference.logits(3))
    with pytest.raises(ValueError, match="room for"):
        engine.prefill([300] * (engine.room + 1), no_image(bundle))
    with pytest.raises(ValueError, match="into|the prompt"):
        engine.truncate(len(ids) - 1)
    with pytest.raises(ValueError, match="48 image placeholders, 0 embeddings"):
        engine.prefill(ids, no_image(bundle))


def test_one_token_and_one_row_are_what_is_recorded(bundle: Bundle, device: CpuDevice, engine: TensorRTEngine) -> None:
    engine.prefill([300, 301, 302], no_image(bundle))
    engine.extend([303, 304])
    device.runs.clear()
    engine.logits(1)
    engine.logits(2)
    assert device.runs == [(HEAD, 1, 0, True), (HEAD, 2, 0, False)]


@pytest.mark.parametrize("field", [None, {"room": 0, "float16": True}, {"room": 64}, {"room": True, "float16": True}])
def test_a_bundle_without_such_graphs_is_refused(bundle: Bundle, device: CpuDevice, field: object) -> None:
    manifest = {**bundle.manifest, "tensorrt": field}
    with pytest.raises(UserError, match=f"{MANIFEST}.*tensorrt.*export it") as refusal:
        TensorRTEngine(replace(bundle, manifest=manifest), device)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(NO_GPU is None, reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_the_engine_says_so_in_one_line(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="no NVIDIA GPU here.*ONNX Runtime|cuda-bindings") as refusal:
        TensorRTEngine(bundle)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(NO_GPU is not None, reason=f"native TensorRT engine: {NO_GPU}")
@pytest.mark.parametrize("quantization", ["fp16", "int8", "int4"])
def test_on_a_gpu_the_engines_give_what_the_graphs_say(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, embeds: np.ndarray, quantization: str
) -> None:
    from rich.progress import Progress

    from edge.engine.tensorrt.build import build_engines

    bundle = add_tensorrt(tiny_bundle, tiny_checkpoint, quantization, tmp_path / quantization)
    with Progress(disable=True) as progress:
        build_engines(bundle, this_gpu(installed()[0]), progress)
    native, graphs = TensorRTEngine(bundle), TensorRTEngine(bundle, CpuDevice(bundle))
    np.testing.assert_allclose(native.encode_image(PATCHES), graphs.encode_image(PATCHES), atol=0.05)
    for instruction in ("red cube", "red bowl"):
        for each in (native, graphs):
            each.prefill(prompt(bundle, instruction), embeds)
        np.testing.assert_allclose(native.logits(), graphs.logits(), atol=0.1)
        # The third time a shape comes, its recording is replayed.
        for tokens in ([300], [301], [302], [303, 304], [305, 306, 307], [308] * 8, [309] * 20):
            for each in (native, graphs):
                each.extend(tokens)
            n = len(tokens)
            np.testing.assert_allclose(native.logits(n), graphs.logits(n), atol=0.1)
            np.testing.assert_allclose(native.number_logits(n), graphs.number_logits(n), atol=0.1)
        for each in (native, graphs):
            each.truncate(each.length - 15)
            each.extend([310])
        np.testing.assert_allclose(native.logits(), graphs.logits(), atol=0.1)
