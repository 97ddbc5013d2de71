"""A bundle says what its checkpoint says, or it does not come to be."""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file

from drivers.errors import UserError
from edge.engine.bundle import EMBEDDING, LANGUAGE, MANIFEST, QUANTIZATIONS, TOKENIZER, load_bundle
from edge.engine.onnx import OnnxEngine
from export import assemble, build, command, layers, questions, reference, resources, verify
from export.plan import plan_export
from export.shards import checkpoint_sha256

OLD = json.dumps({"schema": 1, "files": {}, "model": {}})


def _run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["export", *argv])
    code: int = args.func(args)
    return code


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "N_CASES", 2)
    monkeypatch.setattr(build, "N_TABLES", 2)
    monkeypatch.setattr(verify, "MAX_NEW_TOKENS", 12)


def test_fp32_bundle_writes_what_transformers_writes(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())
    verification = manifest["verification"]
    assert verification["first_difference"] == [None] * 3
    assert verification["logits_max_abs_diff"] < 1e-3
    files = [tiny_checkpoint / name for name in ("config.json", TOKENIZER, "model.safetensors")]
    assert manifest["source"]["sha256"] == checkpoint_sha256(files)
    assert manifest["versions"]["onnxruntime"]


def test_the_reference_is_transformers_own_answer(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Weights read module by module, all questions in one pass: the logits are those of the whole model in memory."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    bundle = load_bundle(tiny_bundle)
    cases = verify.bundle_cases(bundle, questions.made_up(2), tmp_path, lambda: None)
    assert [case.size for case in cases] == list(bundle.images)
    steps: list[int] = []
    plan = plan_export(tiny_checkpoint, "fp32", [(224, 168)], "onnx")
    first, window_px = cases[0], plan.config.vision_config.window_size
    states = layers.hidden_states(bundle, first.ids, first.patches, first.size, window_px)
    references, cosines = reference.read_texts(plan.shards, bundle, cases, states, lambda: steps.append(1))
    assert len(steps) == reference.reference_steps(plan.config)
    assert list(cosines) == [
        *(f"vision block {i}" for i in range(3)),
        layers.EMBEDS,
        *(f"language layer {i}" for i in range(2)),
        layers.NORM,
    ]
    assert all(cosine == pytest.approx(1, abs=1e-6) for cosine in cosines.values())
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    for case, logits in zip(cases, references, strict=True):
        rows, cols = bundle.grid_of(case.size)
        with torch.no_grad():
            expected = model(
                input_ids=torch.tensor([[*case.ids, *case.tokens]]),
                pixel_values=torch.from_numpy(case.patches),
                image_grid_thw=torch.tensor([[1, 2 * rows, 2 * cols]]),
            ).logits[0, len(case.ids) - 1 : -1]
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_quantization_at_two_sizes(
    tiny_checkpoint: Path, tmp_path: Path, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random weights choose between near ties.
    monkeypatch.setattr(verify, "LEAST", dict.fromkeys(verify.LEAST, (0.8, 0.2)))
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "0.png"), questions.made_up(1)[0].image)
    out = tmp_path / "out"
    argv = [str(tiny_checkpoint), "--out", str(out), "--quant", quantization, "--images", str(images)]
    assert _run(*argv, "--image-size", "112x84", "56x56") == 0
    bundle = load_bundle(out)
    assert bundle.quantization == quantization
    assert [(image.width_px, image.height_px) for image in bundle.images] == [(112, 84), (56, 56)]
    assert bundle.manifest["verification"]["cases"] == 2  # one image, asked about at both sizes
    graphs = [onnx.load(out / name).graph for name in bundle.manifest["files"] if name.endswith(".onnx")]
    floats = [t for graph in graphs for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    # What is left in float32 are norms, biases, scales and constants of the image size.
    assert quantization == "fp32" or all(np.prod(t.dims) < 3000 for t in floats), [t.name for t in floats]
    table = {"fp32": 4.0, "fp16": 2.0, "int8": 1 + 4 / bundle.hidden, "int4": 0.5 + 2 / 32}[quantization]
    assert (out / EMBEDDING).stat().st_size == table * bundle.vocab * bundle.hidden
    engine = OnnxEngine(bundle, 1)
    engine.prefill([300, 301], np.zeros((0, bundle.hidden), np.float32))
    logits = engine.logits()
    np.testing.assert_allclose(engine.number_logits(), logits[:, bundle.number_tokens], atol=1e-5)
    assert {p.name for p in tmp_path.iterdir()} == {"images", "out"}


def test_an_untied_head_is_another_table(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(1).contiguous()
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = False
    (checkpoint / "config.json").write_text(json.dumps(config))
    result = build.export_bundle(checkpoint, tmp_path / "out", "fp32", [(56, 56)], None)
    assert result.agreement.greedy_agreement == 1.0


def test_graphs_for_tensorrt_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert _run(str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--engine", "tensorrt") == 0
    bundle = load_bundle(tmp_path / "out")
    names = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    assert names == {MANIFEST, *bundle.manifest["files"]}
    assert "tensorrt/language.onnx" in names and LANGUAGE not in names and bundle.manifest["tensorrt"]["room"] > 0
    # Its graphs were run, on ONNX Runtime, and write what Transformers writes.
    assert bundle.manifest["verification"]["tensorrt"]["greedy_agreement"] == 1.0
    with pytest.raises(UserError, match="has graphs for tensorrt alone, none for ONNX Runtime; export it again"):
        OnnxEngine(bundle)


def test_a_large_checkpoint_is_not_made_or_run_twice(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resources, "_SMALL_BYTES", 0)
    monkeypatch.setattr(verify, "LEAST", dict.fromkeys(verify.LEAST, (0.8, 0.2)))
    argv = (str(tiny_checkpoint), "--out", str(tmp_path / "b"), "--quant", "int8", "--engine", "both")
    assert _run(*argv, "--image-size", "56x56") == 0
    verification = json.loads((tmp_path / "b" / MANIFEST).read_text())["verification"]
    assert verification["tensorrt"].startswith("not run") and verification["tasks"]["before"] is None
    assert verification["tasks"]["after"]["boxes"] == 1 and verification["tasks"]["bound"] == ""
    assert "too large to make an fp32 bundle" in capsys.readouterr().out


def test_a_bundle_that_disagrees_is_refused_and_the_old_one_stays(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / MANIFEST).write_text(OLD)
    honest = reference.read_texts

    def wrong(*args):
        logits, cosines = honest(*args)
        logits[0][0, 0] += 1.0
        return logits, cosines

    monkeypatch.setattr(reference, "read_texts", wrong)
    with pytest.raises(UserError, match="does not agree with Transformers"):
        _run(str(tiny_checkpoint), "--out", str(out), "--image-size", "56x56")
    assert (out / MANIFEST).read_text() == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_an_interrupted_export_leaves_the_old_bundle_and_is_taken_up(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made = tmp_path / "bundle", []
    out.mkdir()
    (out / MANIFEST).write_text(OLD)
    honest = assemble._move_weights

    def interrupted(models, file):
        made.append(file.path.name)
        if len(made) == 5:
            raise KeyboardInterrupt
        return honest(models, file)

    monkeypatch.setattr(assemble, "_move_weights", interrupted)
    argv = (str(tiny_checkpoint), "--out", str(out), "--image-size", "56x56")
    with pytest.raises(KeyboardInterrupt):
        _run(*argv)
    assert (out / MANIFEST).read_text() == OLD
    assert len(list(tmp_path.iterdir())) == 2
    with (tmp_path / ".bundle.export.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another export is writing it"):
            _run(*argv)
    assert (out / MANIFEST).read_text() == OLD
    assert _run(*argv) == 0
    # 4 parts of the first run were there; the fifth was made again, and then the rest once.
    assert len(made) == 1 + 2 + 1 + 1 + 2 + 1 + 3 + 1 and load_bundle(out)
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_that_fills_up_is_one_line_and_what_was_made_stays(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = (str(tiny_checkpoint), "--out", str(tmp_path / "bundle"), "--image-size", "56x56")
    calls: list[int] = []
    honest = os.posix_fallocate

    def full(*place: int) -> None:
        calls.append(1)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(*place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match="disk is full; free some and run this again"):
            _run(*argv)
    (work,) = tmp_path.iterdir()
    assert list((work / "parts").glob("*.onnx"))
    assert _run(*argv) == 0 and [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_that_was_about_to_be_replaced_comes_back(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Killed between the two renames at the end."""
    out, work = tmp_path / "bundle", tmp_path / ".bundle.export-0123456789abcdef"
    (work / "old").mkdir(parents=True)
    (work / "old" / MANIFEST).write_text(OLD)
    with build._work_folder(out, "f" * 64) as other:
        assert (out / MANIFEST).read_text() == OLD and not work.exists() and other.exists()


def test_what_an_export_of_another_kind_left_is_removed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / ".bundle.export-0123456789abcdef"
    (left / "bundle").mkdir(parents=True)
    assert _run(str(tiny_checkpoint), "--out", str(tmp_path / "bundle"), "--image-size", "56x56") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("psutil.virtual_memory", lambda: SimpleNamespace(available=10**8), r"takes about .* GB of memory, 100 MB are"),
        ("shutil.disk_usage", lambda path: SimpleNamespace(free=10**5), r"takes about [1-9].* MB there, 0 MB are free"),
    ],
)
def test_too_little_room_is_said_before_the_work(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attribute: str, value, says: str
) -> None:
    monkeypatch.setattr(attribute, value)
    with pytest.raises(UserError, match=says) as raised:
        _run(str(tiny_checkpoint), "--out", str(tmp_path / "b"))
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_disk_asked_for_is_enough(tiny_checkpoint: Path, tmp_path: Path, quantization) -> None:
    """The estimate lies above a bundle's weights, and not far above them and one part's temporary files."""
    plan = plan_export(tiny_checkpoint, quantization, [(56, 56)], "onnx")
    values = sum(int(np.prod(plan.shards.shape(name))) for name in plan.shards if name != "lm_head.weight")
    bytes_per_value = {"fp32": 4, "fp16": 2, "int8": 1, "int4": 0.5}[quantization]
    need = resources.estimate(plan)
    assert values * bytes_per_value < need.disk < 3 * values * 4
    assert need.memory > 10**9


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("{checkpoint}", "--out", "{tmp}/b", "--image-size", "225x168"), "multiples of 28"),
        (("{checkpoint}", "--out", "{tmp}/b", "--image-size", "224x168", "56x0"), "multiples of 28"),
        (("{checkpoint}", "--out", "{tmp}/b", "--image-size", "224x168", "168x224"), "has as many pixels"),
        (("{checkpoint}", "--out", "{tmp}/b", "--image-size", "big"), "WIDTHxHEIGHT"),
        (("{checkpoint}", "--out", "{tmp}/b", "--image-size", "1120x1120"), "makes 1600 tokens, .* takes 2048 in all"),
        (("{checkpoint}", "--out", "{tmp}/full"), "not a bundle"),
        (("{checkpoint}", "--out", "{tmp}/full/broken.png"), "not a bundle"),
        (("{checkpoint}", "--out", "{tmp}/web"), "not a bundle"),
        (("{checkpoint}", "--out", "{tmp}/full/broken.png/b"), "cannot be made|is there already"),
        (("{checkpoint}", "--out", "{tmp}/b", "--images", "{tmp}/full"), "not a readable image"),
        (("{checkpoint}", "--out", "{tmp}/b", "--images", "{tmp}/none"), "no such folder"),
        (("{tmp}/none", "--out", "{tmp}/b"), "no such folder"),
        (("{tmp}/full", "--out", "{tmp}/b"), "lacks config.json"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, argv: tuple[str, ...], says: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "broken.png").write_text("no image")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / MANIFEST).write_text('{"name": "a page"}')
    with pytest.raises(UserError, match=says) as raised:
        _run(*(part.format(checkpoint=tiny_checkpoint, tmp=tmp_path) for part in argv))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "b").exists()
