"""The graphs for TensorRT compute what Transformers computes, in standard operators, in the precision asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from drivers.errors import UserError
from edge.engine.bundle import HEAD, HEAD_NUMBERS, LANGUAGE, Rope
from edge.engine.mrope import mrope_positions, rotary
from edge.engine.tensorrt.layout import cache_room
from export.graphs import rope
from export.onnx_writer import OPSET, pack_int4, quantize
from export.tensorrt import export_tensorrt, tensorrt_steps

SIZES = ((224, 168), (224, 224), (252, 140))  # padded windows, whole windows, windows of four shapes
NUMBERS = (3, 5, 300, 301)
QUANTIZATIONS = ("fp32", "fp16", "int8", "int4")
TOLERANCE = {"fp32": 2e-5, "fp16": 5e-3, "int8": 5e-3, "int4": 5e-3}  # of the largest value


def random_model(**text: Any) -> Any:
    """As the tiny checkpoint, with matrices that 4 bits in blocks of 64 and 128 fit, and an untied head."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 400,
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": False,
            "initializer_range": 0.12,
            **text,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_heads": 2,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.1,
        },
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("graphs")

    def of(quantization: str) -> Path:
        if not (root / quantization).exists():
            write(model, root / quantization, quantization)
        return root / quantization / "tensorrt"

    return of


def write(model: Any, out: Path, quantization: str, sizes_px: Sequence[tuple[int, int]] = SIZES) -> dict[str, Any]:
    weights = model.state_dict()
    return export_tensorrt(model.config, weights.__getitem__, out, sizes_px, quantization, NUMBERS)


def as_stored(model: Any, graphs: Path, quantization: str) -> Any:
    """`model` with the matrices that `graphs` hold, dequantized by ONNX's own reference implementation."""
    model = copy.deepcopy(model)
    if quantization not in ("int8", "int4"):
        return model
    found: dict[str, torch.Tensor] = {}
    for path in graphs.glob("*.onnx"):
        graph = onnx.load(path).graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "DequantizeLinear":
                inputs = [numpy_helper.to_array(tensors[name]) for name in node.input]
                matrix = ReferenceEvaluator(node).run(None, dict(zip(node.input, inputs, strict=True)))[0]
                found[f"{path.stem.split('-')[0]}:{node.input[0]}"] = torch.from_numpy(matrix.astype(np.float32).T)
    vision, text = model.model.visual, model.model.language_model
    parts: list[tuple[str, list[Any]]] = [("head:head", [model.lm_head])]
    for i, layer in enumerate(text.layers):
        name, attn, mlp = f"language:model.language_model.layers.{i}", layer.self_attn, layer.mlp
        parts += [(f"{name}.qkv", [attn.q_proj, attn.k_proj, attn.v_proj]), (f"{name}.o", [attn.o_proj])]
        parts += [(f"{name}.mlp.gate_up", [mlp.gate_proj, mlp.up_proj]), (f"{name}.mlp.down", [mlp.down_proj])]
    for i, block in enumerate(vision.blocks):
        name = f"vision:model.visual.blocks.{i}.mlp"
        parts += [
            (f"{name}.gate_up", [block.mlp.gate_proj, block.mlp.up_proj]),
            (f"{name}.down", [block.mlp.down_proj]),
        ]
        parts += [
            (f"vision:blocks.{i}.attn.qkv", [block.attn.qkv]),
            (f"vision:blocks.{i}.attn.proj", [block.attn.proj]),
        ]
    parts += [(f"vision:merger.mlp.{i}", [vision.merger.mlp[i]]) for i in (0, 2)]
    for name, linears in parts:
        rows = found.pop(name).split([linear.weight.shape[0] for linear in linears])
        for linear, weight in zip(linears, rows, strict=True):
            linear.weight.data = weight.contiguous()
    assert set(found) == {"head_numbers:head"}  # every product was quantized, and only those
    return model


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Left to itself, ONNX Runtime makes 8-bit products of these on the processor, activations quantized too.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(str(path), options)


def hidden_of(model: Any, embeds: torch.Tensor, positions: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        ids = torch.from_numpy(positions)[:, None]
        out = model.model.language_model(inputs_embeds=embeds[None], position_ids=ids)
    found: np.ndarray = out.last_hidden_state[0].numpy()
    return found


def run_language(graph: Any, model: Any, embeds: Any, positions: Any, passes: list[int]) -> np.ndarray:
    """Hidden states, of passes of so many tokens, with a cache in which nonsense lies beyond what is written."""
    table = rope(model.config.text_config)
    cos, sin = rotary(positions, Rope(np.array(table["inv_freq"], np.float32), tuple(table["sections"]), 1.0))
    shapes = {value.name: value.shape for value in graph.get_inputs()}
    kind = np.float16 if "float16" in next(v.type for v in graph.get_inputs() if v.name == "past_key.0") else np.float32
    names = [f"past_{kind}.{i}" for i in range(2) for kind in ("key", "value")]
    kv_heads, room, size = shapes["past_key.0"]
    cache = np.random.default_rng(0).normal(0, 30, (len(names) * kv_heads, room, size)).astype(kind)
    found, past = [], 0
    for n in passes:
        part = slice(past, past + n)
        feed = {"inputs_embeds": embeds[part].numpy(), "cos": cos[part], "sin": sin[part]}
        feed["past_length"] = np.array([past], np.int32)
        feed |= {name: cache[i * kv_heads : (i + 1) * kv_heads] for i, name in enumerate(names)}
        hidden, new = graph.run(["hidden", "new_cache"], feed)
        cache[:, part] = new
        found.append(hidden)
        past += n
    return np.concatenate(found)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_vision_gives_the_embeddings_of_transformers(model: Any, folder: Any, quantization: str) -> None:
    reference = as_stored(model, folder(quantization), quantization)
    for width_px, height_px in SIZES:
        rows, cols = height_px // 14, width_px // 14
        patches = torch.randn(rows * cols, 1176, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = reference.model.visual(patches, grid_thw=torch.tensor([[1, rows, cols]])).numpy()
        graph = session(folder(quantization) / f"vision-{width_px}x{height_px}.onnx")
        (found,) = graph.run(None, {"patches": patches.numpy()})
        np.testing.assert_allclose(found, expected, atol=TOLERANCE[quantization] * np.abs(expected).max())


@pytest.fixture(scope="module")
def question(model: Any) -> tuple[torch.Tensor, np.ndarray]:
    """Embeddings (n, hidden) and positions (3, n) of 12 + 6 * 8 + 20 tokens, an image in the middle."""
    image = model.config.image_token_id = 399
    ids = [*range(12), *[image] * 48, *range(100, 120)]
    with torch.no_grad():
        embeds = model.get_input_embeddings()(torch.tensor(ids))
    return embeds, mrope_positions(ids, image, (6, 8))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_language_and_head_give_the_logits_of_transformers(
    model: Any, folder: Any, question: Any, quantization: str
) -> None:
    reference = as_stored(model, folder(quantization), quantization)
    expected = hidden_of(reference, *question)
    graph = session(folder(quantization) / LANGUAGE)
    found = run_language(graph, model, *question, [12, 60, 1, 1, 5, 1])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[quantization] * np.abs(expected).max())
    with torch.no_grad():
        logits = reference.lm_head(torch.from_numpy(expected)).numpy()
    (all_rows,) = session(folder(quantization) / HEAD).run(None, {"hidden": expected})
    np.testing.assert_allclose(all_rows, logits, atol=TOLERANCE[quantization] * np.abs(logits).max())
    (few_rows,) = session(folder(quantization) / HEAD_NUMBERS).run(None, {"hidden": expected})
    np.testing.assert_allclose(few_rows, all_rows[:, NUMBERS], atol=1e-3 * np.abs(logits).max())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(passes=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_how_a_sequence_is_cut_into_passes_does_not_matter(model: Any, folder: Any, question: Any, passes: Any) -> None:
    embeds, positions = question
    left = len(embeds) - sum(passes)
    n = sum(passes) if left < 0 else len(embeds)
    if left > 0:
        passes = [*passes, left]
    if left < 0:  # more tokens than there are: some twice
        embeds, positions = embeds.repeat(1 + n // len(embeds), 1)[:n], np.tile(np.arange(n), (3, 1))
    expected = hidden_of(model, embeds, positions)
    found = run_language(session(folder("fp32") / LANGUAGE), model, embeds, positions, passes)
    np.testing.assert_allclose(found, expected, atol=3e-5)


class Reference:
    """ONNX's own implementation behind a session's calls: ONNX Runtime's processor kernels widen float16."""

    def __init__(self, path: Path) -> None:
        self.get_inputs = session(path).get_inputs
        self.run = ReferenceEvaluator(onnx.load(path)).run


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")
def test_activations_beyond_float16_do_no_harm(tmp_path: Path) -> None:
    model = random_model(num_hidden_layers=2)
    mlp = model.model.language_model.layers[0].mlp
    # As in Qwen2.5: one layer's gated product is of the order of 10^5.
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight.data[5] *= 400
        linear.weight.data[9] *= 150
    write(model, tmp_path, "fp16", SIZES[:1])
    embeds = 0.5 * torch.randn(30, 128, generator=torch.Generator().manual_seed(2))
    positions = np.tile(np.arange(30), (3, 1))
    product: list[float] = []
    hook = mlp.down_proj.register_forward_pre_hook(lambda module, args: product.append(float(args[0].abs().max())))
    expected = hidden_of(model, embeds, positions)
    hook.remove()
    assert product[0] > 1.5 * 65504
    found = run_language(Reference(tmp_path / "tensorrt" / LANGUAGE), model, embeds, positions, [30])
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_graphs_are_standard_and_hold_the_precision_asked_for(folder: Any, quantization: str) -> None:
    half = TensorProto.FLOAT if quantization == "fp32" else TensorProto.FLOAT16
    for path in folder(quantization).glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
        assert not {node.domain for node in model.graph.node} - {""}
        matrices = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        assert matrices
        kinds = {t.data_type for t in matrices if not t.name.endswith(".scale")}
        is_vision = path.stem.startswith("vision")
        expected = {"fp32": set(), "fp16": set(), "int8": {TensorProto.INT8}, "int4": {TensorProto.INT4}}[quantization]
        if quantization == "int4" and is_vision:
            expected = {TensorProto.INT8}
        # The first product of the tower, with the pixels, stays in full.
        assert kinds == expected | ({half} if is_vision or not expected else set()), path
        scales = {tuple(t.dims) for t in matrices if t.name.endswith("language_model.layers.0.mlp.down.scale")}
        assert (
            scales == {"int8": {(128,)}, "int4": {(192 // 64, 128)}}.get(quantization, set()) or path.name != LANGUAGE
        )


def test_image_sizes_share_one_file_of_weights(model: Any, tmp_path: Path) -> None:
    write(model, tmp_path / "one", "fp16", SIZES[:1])
    write(model, tmp_path / "three", "fp16", SIZES)
    one, three = (tmp_path / name / "tensorrt" / "vision.data" for name in ("one", "three"))
    assert one.read_bytes() == three.read_bytes()


def test_progress_room_and_refusals(model: Any, tmp_path: Path) -> None:
    calls: list[None] = []
    weights, config = model.state_dict(), model.config
    asked: list[str] = []

    def weight(name: str) -> torch.Tensor:
        asked.append(name)
        tensor: torch.Tensor = weights[name].to(torch.bfloat16)
        return tensor

    field = export_tensorrt(config, weight, tmp_path, SIZES, "int4", NUMBERS, lambda: calls.append(None))
    assert len(calls) == tensorrt_steps(config, SIZES)
    assert field == {"room": cache_room(64, 2048), "float16": True} and field["room"] == 1152
    assert cache_room(64, 300) == 300
    # Every tensor is asked for, and each matrix only once, so that a large checkpoint is read once.
    used = set(weights) - {"model.language_model.embed_tokens.weight"}
    assert set(asked) == used
    assert all(asked.count(name) == 1 for name in used if weights[name].dim() == 2)
    config = copy.deepcopy(config)
    config.text_config.hidden_act = "gelu"
    with pytest.raises(UserError, match="text_config.hidden_act is 'gelu', expected 'silu'"):
        export_tensorrt(config, weight, tmp_path, SIZES, "fp16", NUMBERS)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 3)),
    block=st.sampled_from([None, 64, 128]),
    scale=st.sampled_from([0.0, 1e-7, 0.02, 300.0]),
    seed=st.integers(0, 99),
)
def test_quantized_values_are_within_half_a_step(shape: Any, block: int | None, scale: float, seed: int) -> None:
    n_out, blocks = shape
    n_in = blocks * (block or 64)
    matrix = scale * torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed))
    integers, scales = quantize(matrix, block, np.float16)
    largest = 7 if block else 127
    assert integers.shape == (n_in, n_out) and np.abs(integers.astype(int)).max(initial=0) <= largest
    assert scales.shape == ((blocks, n_out) if block else (n_out,)) and np.isfinite(scales).all()
    step = np.repeat(scales.astype(np.float64), block, axis=0) if block else scales.astype(np.float64)
    # A scale is rounded to float16, which may cut the largest value a little.
    slack = 0.5 + largest * 2.0**-11
    assert (np.abs(integers * step - matrix.numpy().T) <= slack * step).all()


@given(st.lists(st.integers(-8, 7), max_size=33))
def test_four_bit_values_are_packed_as_onnx_unpacks_them(values: list[int]) -> None:
    packed = pack_int4(np.array(values, np.int8))
    tensor = TensorProto(data_type=TensorProto.INT4, dims=[len(values)], raw_data=packed.tobytes())
    assert numpy_helper.to_array(tensor).astype(int).tolist() == values
