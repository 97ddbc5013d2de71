"""A bundle that is not whole, or whose graphs are not the manifest's, is refused in one line before it runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from drivers.errors import UserError
from edge.engine.bundle import HEAD, HEAD_NUMBERS, LANGUAGE, MANIFEST, TOKENIZER, load_bundle
from edge.engine.onnx import OnnxEngine

VISION = "vision-224x168.onnx"


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


def _more_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.add_tokens([f"unheard-of-{i}" for i in range(100)])
    tokenizer.save(str(folder / TOKENIZER))
    _rehash(folder, TOKENIZER)


def _rope(**changes: object) -> Callable[[Path], None]:
    return lambda folder: _edit(folder, rope=_manifest(folder)["rope"] | changes)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


DAMAGES = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "no such folder"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "is missing"),
    "cut manifest": (lambda folder: (folder / MANIFEST).write_text('{"schema": 1'), "cannot be read as JSON"),
    "binary manifest": (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"), "cannot be read as JSON"),
    "list manifest": (lambda folder: (folder / MANIFEST).write_text("[]"), "not a JSON object"),
    "older schema": (lambda folder: _edit(folder, schema=1), "field schema is 1, this version reads 2"),
    "no schema": (lambda folder: _edit(folder, schema=None), "field schema"),
    "no files": (lambda folder: _edit(folder, files={}), "field files lacks "),
    "file outside": (
        lambda folder: _edit(folder, files=_manifest(folder)["files"] | {"../x": {"sha256": "", "bytes": 0}}),
        r"files.../x is not a file of the bundle",
    ),
    "no size": (lambda folder: _edit(folder, images=[{"width_px": 224}]), "field images holds"),
    "no sizes": (lambda folder: _edit(folder, images=[]), "field images is empty"),
    "odd size": (lambda folder: _edit(folder, images=[{"width_px": 225, "height_px": 168}]), "multiples of 28"),
    "no patches": (lambda folder: _edit(folder, image={}), "field image.patch_px"),
    "no dimensions": (lambda folder: _edit(folder, model=[]), "field model is missing"),
    "no angles": (lambda folder: _edit(folder, rope={}), "field rope must give 8 inv_freq"),
    "no angle": (_rope(inv_freq=[float("nan")] * 8), "field rope must give 8 inv_freq"),
    "an angle too large": (_rope(inv_freq=[10**400] * 8), "field rope must give 8 inv_freq"),
    "a negative section": (_rope(sections=[-2, 5, 5]), "field rope must give 8 inv_freq"),
    "an endless section": (_rope(sections=[float("inf"), 3, 3]), "field rope must give 8 inv_freq"),
    "no scaling": (_rope(scaling=float("inf")), "field rope must give 8 inv_freq"),
    "no engine's name": (lambda folder: _edit(folder, engines=[[]]), r"field engines holds \[\]"),
    "sizes of one area": (
        lambda folder: _edit(
            folder,
            images=[{"width_px": 224, "height_px": 168}, {"width_px": 168, "height_px": 224}],
            files=_manifest(folder)["files"] | {"vision-168x224.onnx": _manifest(folder)["files"][VISION]},
        ),
        "field images holds two sizes of one area",
    ),
    "no number tokens": (lambda folder: _edit(folder, number_tokens=[5, 4]), "field number_tokens"),
    "no graph": (lambda folder: (folder / VISION).unlink(), f"{VISION}: is missing"),
    "cut graph": (lambda folder: (folder / VISION).write_bytes(b"x"), f"{VISION}: is damaged"),
    "flipped bit": (lambda folder: _flip(folder / LANGUAGE), "language.onnx: is damaged: its SHA-256"),
    "no tokenizer": (_no_tokenizer, "not a tokenizer"),
    "binary tokenizer": (_binary_tokenizer, "not a tokenizer"),
    "more tokens than the model's": (_more_tokens, "tokens, the model"),
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


@pytest.mark.parametrize("name", [LANGUAGE, HEAD, HEAD_NUMBERS, VISION])
def test_a_graph_that_is_none_is_refused_in_one_line(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    (folder / name).write_bytes(b"no graph")
    _rehash(folder, name)
    with pytest.raises(UserError, match=f"{name}: ONNX Runtime cannot load it") as raised:
        OnnxEngine(load_bundle(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("section", "field", "value", "graph"),
    [
        ("model", "layers", 1, LANGUAGE),
        ("model", "layers", 3, LANGUAGE),
        ("model", "kv_heads", 3, LANGUAGE),
        ("image", "patch_px", 7, VISION),
    ],
)
def test_graphs_that_are_not_the_manifests_are_refused_in_one_line(
    tiny_bundle: Path, tmp_path: Path, section: str, field: str, value: int, graph: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    _edit(folder, **{section: _manifest(folder)[section] | {field: value}})
    with pytest.raises(UserError, match=f"{graph}: .* is not as the manifest") as raised:
        OnnxEngine(load_bundle(folder))
    assert "\n" not in str(raised.value)


def test_fewer_number_tokens_than_the_graphs_are_refused_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    _edit(folder, number_tokens=_manifest(folder)["number_tokens"][1:])
    with pytest.raises(UserError, match="head_numbers.onnx: logits is not as the manifest"):
        OnnxEngine(load_bundle(folder))
