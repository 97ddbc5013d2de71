"""A checkpoint is read as Transformers reads it, tensor by tensor; what it lacks is said before any weight is read."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from drivers.errors import UserError
from export.shards import (
    EMBEDDING,
    HEAD,
    INDEX,
    WEIGHTS,
    Shards,
    empty_model,
    find_checkpoint,
    open_shards,
    read_config,
)


def opened(folder: Path) -> Shards:
    config = read_config(folder)
    return open_shards(folder, config, empty_model(config))


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def in_shards(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]] = lambda weights: weights) -> None:
    """Split the weights over three files with an index."""
    weights = change(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).unlink()
    index: dict[str, str] = {}
    for i in range(3):
        file = f"model-0000{i + 1}-of-00003.safetensors"
        part = {name: weights[name].contiguous() for name in sorted(weights)[i::3]}
        save_file(part, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("new_names", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_tensors_are_those_of_transformers(folder: Path, dtype: torch.dtype, new_names: bool, tied: bool) -> None:
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {name: weight.to(dtype) for name, weight in weights.items()}
        if not tied:
            found["lm_head.weight"] = 2 * found["model.embed_tokens.weight"]
        if new_names:
            old = (("visual.", "model.visual."), ("model.", "model.language_model."))
            for name in list(found):
                for before, after in old:
                    if name.startswith(before):
                        found[after + name.removeprefix(before)] = found.pop(name)
                        break
        return found

    in_shards(folder, change)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(config))
    shards = opened(folder)
    expected = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert set(shards) == set(expected) and shards.tied == tied
    for name, tensor in expected.items():
        assert torch.equal(shards[name], tensor) and shards[name].dtype == torch.float32
        assert shards.shape(name) == tuple(tensor.shape)
    assert torch.equal(shards.rows(HEAD, 3, 9), expected[HEAD][3:9])
    assert torch.equal(shards.select(EMBEDDING, [7, 2, 7]), expected[EMBEDDING][[7, 2, 7]])
    layer = shards.part("model.language_model.layers.1.")
    assert torch.equal(layer["mlp.up_proj.weight"], expected["model.language_model.layers.1.mlp.up_proj.weight"])
    assert shards.n_values("model.visual.") == sum(
        t.numel() for n, t in expected.items() if n.startswith("model.visual.")
    )


def _config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


_NORM = "model.layers.1.input_layernorm.weight"
_SHARD = "model-00002-of-00003.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "lacks config.json"),
    "list for a config": (lambda f: (f / "config.json").write_text("[]"), "Transformers cannot load it"),
    "another architecture": (
        lambda f: _config(f, model_type="qwen2_vl"),
        "model_type is qwen2_vl, expected qwen2_5_vl",
    ),
    "quantized": (lambda f: _config(f, quantization_config={"quant_method": "awq"}), "weights are quantized already"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"has neither {WEIGHTS} nor {INDEX}"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "is no whole safetensors file"),
    "cut weights": (lambda f: _cut(f / WEIGHTS), "is no whole safetensors file"),
    "no layer": (
        lambda f: _weights(f, lambda w: [w.pop(name) for name in list(w) if "layers.1." in name]),
        "12 weights are missing, model.language_model.layers.1",
    ),
    "another shape": (
        lambda f: _weights(f, lambda w: w.update({_NORM: torch.zeros(63)})),
        r"is \(63,\), .* says \(64,\)",
    ),
    "integers": (
        lambda f: _weights(f, lambda w: w.update({_NORM: torch.zeros(64, dtype=torch.int8)})),
        "is I8, expected bf16",
    ),
    "no shard": (lambda f: (in_shards(f), (f / _SHARD).unlink()), f"{_SHARD}: is missing, and {INDEX} names it"),
    "cut shard": (lambda f: (in_shards(f), _cut(f / _SHARD)), f"{_SHARD}: is no whole safetensors file"),
    "no index": (lambda f: (in_shards(f), (f / INDEX).write_text("{}")), f"{INDEX}: is not an index"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_line(folder: Path, name: str) -> None:
    damage, says = DAMAGES[name]
    damage(folder)
    with pytest.raises(UserError, match=says) as raised:
        opened(folder)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    _weights(folder, lambda w: w[_NORM].fill_(value))
    with pytest.raises(UserError, match=f"{_NORM} holds values that are not finite"):
        opened(folder).part("model.language_model.layers.1.")


def test_a_folder_is_taken_as_it_is(folder: Path) -> None:
    assert find_checkpoint(str(folder)) == folder


@pytest.mark.parametrize("name", ["none", "/no/such/folder", "a/b/c", "./a b"])
def test_what_is_no_folder_and_no_hub_name_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="no such folder$"):
        find_checkpoint(name)


def test_a_file_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(UserError, match="is a file"):
        find_checkpoint(str(folder / WEIGHTS))


def test_a_hub_name_without_a_connection_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="no-org/no-model: no such folder, and not fetched") as raised:
        find_checkpoint("no-org/no-model")
    assert "\n" not in str(raised.value)


def test_a_hub_name_is_the_folder_that_the_hub_gives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: (asked.append(name), str(folder))[1])
    assert find_checkpoint("Qwen/Qwen2.5-VL-3B-Instruct") == folder
    assert asked == ["Qwen/Qwen2.5-VL-3B-Instruct"]
