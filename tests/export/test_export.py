"""A bundle says what its checkpoint says, or it does not come to be."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from drivers.errors import UserError
from drivers.sim.scene import draw_scene
from edge import contract
from edge.engine.bundle import LANGUAGE, MANIFEST, VISION, load_bundle
from edge.engine.onnx import OnnxEngine
from export import build, command, graphs, verify
from export.modules import ImageGrid, VisionGraph, windows


def _run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["export", *argv])
    code: int = args.func(args)
    return code


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_NEW_TOKENS", 40)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path):
    return build.load_checkpoint(tiny_checkpoint)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (4, 4), (1, 1), (5, 9), (3, 13)])
def test_windows_are_those_of_transformers(model, height: int, width: int) -> None:
    grid = ImageGrid(28 * width, 28 * height, 14, 2)
    order, lengths = model.model.visual.get_window_index(torch.tensor([[1, 2 * height, 2 * width]]))
    ours = windows(grid, 112)
    assert ours.token_order.tolist() == order.tolist()
    # Transformers lists empty windows too.
    assert (~ours.padding).sum(1).cumsum(0).tolist() == sorted(set(lengths) - {0})


@pytest.mark.parametrize("size_px", [(224, 168), (28, 28), (252, 140), (112, 112)])
def test_vision_module_gives_the_embeddings_of_transformers(model, size_px: tuple[int, int]) -> None:
    grid = ImageGrid(*size_px, 14, 2)
    patches = torch.randn(grid.n_patches, 1176, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.model.visual(patches, grid_thw=torch.tensor([[1, grid.patches_h, grid.patches_w]]))
        got = VisionGraph(model.model.visual, grid)(patches)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def test_fp32_bundle_writes_what_transformers_writes(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())
    verification = manifest["verification"]
    assert verification["first_difference"] == [None] * 3
    assert verification["logits_max_abs_diff"] < 1e-3
    assert manifest["source"]["sha256"] == build.checkpoint_sha256(tiny_checkpoint)
    assert manifest["versions"]["onnxruntime"]


def test_what_is_made_up_to_verify_on_names_what_is_there_and_what_is_not() -> None:
    questions = build.made_up()
    assert len(questions) == build.N_CASES
    assert {q.task for q in questions[:-2]} == {q.task for q in questions[-2:]} == set(contract.TASKS)
    for seed, question in enumerate(questions):
        items = draw_scene(np.random.default_rng([seed, 0xE4])).items
        named = [item.is_container for item in items if f"the {item.name}" in question.instruction]
        there = [False] if question.task == "affordance" else [False, True]
        assert (sorted(named) == there) == (seed < build.N_CASES - 2)
    for one, again in zip(questions, build.made_up(), strict=True):
        assert (one.image == again.image).all() and one.instruction == again.instruction


def test_a_tied_table_is_stored_once(tiny_bundle: Path, model) -> None:
    rows = model.config.text_config.vocab_size
    graph = onnx.load(tiny_bundle / LANGUAGE).graph
    assert sum(rows in tensor.dims for tensor in graph.initializer) == 1


def test_int8_holds_no_float_matrix(tiny_checkpoint: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i, question in enumerate(build.made_up()[:2]):
        cv2.imwrite(str(images / f"{i}.png"), question.image)
    out = tmp_path / "int8"
    assert _run(str(tiny_checkpoint), "--out", str(out), "--quant", "int8", "--images", str(images)) == 0
    bundle = load_bundle(out)
    assert bundle.quantization == "int8" and bundle.manifest["verification"]["cases"] == 2
    for name in (VISION, LANGUAGE):
        graph = onnx.load(out / name).graph
        weights = [t for t in graph.initializer if len(t.dims) == 2 and t.data_type == onnx.TensorProto.FLOAT]
        # What is left in float are constants of the image size, not weights.
        assert all(np.prod(t.dims) < 1000 for t in weights), [t.name for t in weights]
    engine = OnnxEngine(bundle, 1)
    embeds = engine.encode_image(np.zeros((192, 1176), np.float32))
    assert np.isfinite(embeds).all()
    assert {p.name for p in tmp_path.iterdir()} == {"images", "int8"}


@pytest.mark.parametrize("quantization", ["fp32", "int8"])
def test_weights_beyond_protobufs_limit_lie_beside_the_graph(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    monkeypatch.setattr(graphs, "_EXTERNAL_ABOVE_BYTES", 1000)
    monkeypatch.setattr(build, "N_CASES", 1)
    # Random weights choose between near ties; what is tested here is where the weights lie.
    monkeypatch.setattr(verify, "INT8_AGREEMENT", 0.5)
    out = tmp_path / "bundle"
    assert _run(str(tiny_checkpoint), "--out", str(out), "--quant", quantization) == 0
    files = load_bundle(out).manifest["files"]
    assert sorted(files) == ["language.onnx", "language.onnx.data", "tokenizer.json", "vision.onnx", "vision.onnx.data"]
    assert files["language.onnx.data"]["bytes"] > files["language.onnx"]["bytes"] / 10


@pytest.mark.parametrize("quantization", ["fp32", "int8"])
def test_an_untied_head_is_another_table(tiny_checkpoint: Path, tmp_path: Path, quantization: str) -> None:
    model = build.load_checkpoint(tiny_checkpoint)
    torch.manual_seed(0)
    model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn_like(model.lm_head.weight))
    path = tmp_path / "language.onnx"
    graphs.export_language(model, path)
    if quantization == "int8":
        path = tmp_path / "int8.onnx"
        graphs.quantize_int8(tmp_path / "language.onnx", path)
    vocab, hidden = model.lm_head.weight.shape
    assert sum(list(tensor.dims) == [hidden, vocab] for tensor in onnx.load(path).graph.initializer) == 2
    ids = np.arange(300, 340)
    feed = {
        "input_ids": ids,
        "image_embeds": np.zeros((0, hidden), np.float32),
        "position_ids": np.tile(np.arange(40), (3, 1)),
    }
    session = onnxruntime.InferenceSession(str(path))
    feed |= {x.name: np.zeros((2, 0, 16), np.float32) for x in session.get_inputs() if x.name.startswith("past")}
    logits = session.run(["logits"], feed)[0]
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)[None]).logits[0, -1].numpy()
    if quantization == "fp32":
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    else:
        assert logits @ expected / np.linalg.norm(logits) / np.linalg.norm(expected) > 0.98


def test_a_bundle_that_disagrees_is_refused_and_the_old_one_stays(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / MANIFEST).write_text("the old one")
    honest = verify.reference_cases

    def wrong(*args):
        cases = honest(*args)
        cases[0].logits[0, 0] += 1.0
        return cases

    monkeypatch.setattr(verify, "reference_cases", wrong)
    monkeypatch.setattr(build, "N_CASES", 1)
    with pytest.raises(UserError, match="does not agree with Transformers"):
        _run(str(tiny_checkpoint), "--out", str(out))
    assert (out / MANIFEST).read_text() == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("{checkpoint}", "--out", "{tmp}/b", "--image-size", "225x168"), "multiples of 28"),
        (("{checkpoint}", "--out", "{tmp}/b", "--image-size", "big"), "WIDTHxHEIGHT"),
        (("{checkpoint}", "--out", "{tmp}/full"), "not a bundle"),
        (("{checkpoint}", "--out", "{tmp}/b", "--images", "{tmp}/full"), "not a readable image"),
        (("{checkpoint}", "--out", "{tmp}/b", "--images", "{tmp}/none"), "holds no"),
        (("{tmp}/none", "--out", "{tmp}/b"), "no such folder"),
        (("{tmp}/full", "--out", "{tmp}/b"), "lacks config.json"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, argv: tuple[str, ...], says: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "broken.png").write_text("no image")
    with pytest.raises(UserError, match=says) as raised:
        _run(*(part.format(checkpoint=tiny_checkpoint, tmp=tmp_path) for part in argv))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "b").exists()


def _lose_a_layer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_lose_a_layer, "weights are missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot load it"),
        (lambda folder: (folder / "config.json").write_text("[]"), "cannot load it"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load it"),
    ],
)
def test_a_damaged_checkpoint_is_one_line_and_makes_no_bundle(
    tiny_checkpoint: Path, tmp_path: Path, damage, says: str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    damage(checkpoint)
    with pytest.raises(UserError, match=says) as raised:
        _run(str(checkpoint), "--out", str(tmp_path / "b"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "b").exists()
