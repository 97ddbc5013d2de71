"""A Qwen2.5-VL checkpoint folder, read tensor by tensor: what it must hold is checked from the headers alone.

Names are those of Transformers' module tree (``model.visual.…``, ``model.language_model.…``, ``lm_head.weight``); files
that say ``visual.…`` and ``model.layers.…`` (the released ones, and what `save_pretrained` writes) are read as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drivers.errors import UserError
from edge.engine.hashes import file_sha256

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# As Transformers' Qwen2_5_VLForConditionalGeneration renames them on loading.
_RENAMES = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)


@dataclass(frozen=True)
class _Place:
    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


class Shards(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each read from its file when it is asked for, as fp32.

    Attributes:
        folder: the checkpoint.
        tied: the head is the embedding's table, and found under both names.
    """

    def __init__(self, folder: Path, places: dict[str, _Place], tied: bool) -> None:
        self.folder, self.tied = folder, tied
        self._places = places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        # Opened anew each time: pages of a mapping that stays open would count as this process's memory.
        with safe_open(place.file, "pt") as file:
            return self._fp32(file.get_tensor(place.name), place)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a matrix, fp32."""
        place = self._places[name]
        with safe_open(place.file, "pt") as file:
            return self._fp32(file.get_slice(place.name)[start:stop], place)

    def select(self, name: str, rows: Sequence[int]) -> Tensor:
        """Some rows of a matrix, fp32."""
        place = self._places[name]
        with safe_open(place.file, "pt") as file:
            matrix = file.get_slice(place.name)
            return self._fp32(torch.cat([matrix[row : row + 1] for row in rows]), place)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor whose name begins with `prefix`, under the rest of its name, fp32."""
        return {name.removeprefix(prefix): self[name] for name in self._places if name.startswith(prefix)}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def n_values(self, prefix: str) -> int:
        """Values of the tensors whose names begin with `prefix`."""
        return sum(math.prod(place.shape) for name, place in self._places.items() if name.startswith(prefix))

    @property
    def files(self) -> list[Path]:
        """Config, tokenizer and the files that hold the tensors."""
        own = [self.folder / CONFIG, self.folder / TOKENIZER]
        return sorted({*own, *(place.file for place in self._places.values())})

    def _fp32(self, tensor: Tensor, place: _Place) -> Tensor:
        full = tensor.to(torch.float32)
        # The sum of finite values is finite, short of an overflow: one pass without a copy for almost all.
        if not bool(torch.isfinite(full.sum())) and not bool(torch.isfinite(full).all()):
            raise UserError(f"checkpoint {place.file}: {place.name} holds values that are not finite; save it again")
        return full


def find_checkpoint(name: str) -> Path:
    """The folder of a checkpoint: `name` itself, or where the hub's repository of that name (org/name) was put.

    Raises:
        UserError: neither a folder nor a repository that can be fetched.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"checkpoint {name}: is a file; expected a folder as save_pretrained leaves it")
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"checkpoint {name}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except Exception as error:  # huggingface_hub passes on those of its HTTP library
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"checkpoint {name}: no such folder, and not fetched from the Hugging Face hub either ({reason}); "
            "name a folder, or check the name and the connection"
        ) from None


def read_config(folder: Path) -> Any:
    """Transformers' configuration of a Qwen2.5-VL checkpoint.

    Raises:
        UserError: it is missing, of another architecture, or asks for what is not exported.
    """
    from transformers import AutoConfig

    for name in (CONFIG, TOKENIZER):
        if not (folder / name).is_file():
            raise UserError(f"checkpoint {folder}: lacks {name}; expected a folder as save_pretrained leaves it")
    where = folder / CONFIG
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # of many kinds
        raise not_loaded(folder, error) from None
    if config.model_type != "qwen2_5_vl":
        raise UserError(f"checkpoint {where}: model_type is {config.model_type}, expected qwen2_5_vl")
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"checkpoint {where}: its weights are quantized already; export the checkpoint it was made of")
    if getattr(config.text_config, "use_sliding_window", False):
        raise UserError(f"checkpoint {where}: use_sliding_window is on; that is not exported")
    return config


def empty_model(config: Any) -> Any:
    """Transformers' model without weights (they are on the meta device); its few buffers are real."""
    from accelerate import init_empty_weights
    from transformers import Qwen2_5_VLForConditionalGeneration

    config._attn_implementation = "eager"
    with init_empty_weights(include_buffers=False):
        # Its parts are made in the precision that the config names; what is computed with it is computed in fp32.
        return Qwen2_5_VLForConditionalGeneration(config).float().eval()


def open_shards(folder: Path, config: Any, model: Any) -> Shards:
    """Every tensor that `model` has, found in the folder's files; no weight is read yet.

    Args:
        folder: the checkpoint.
        config: of `read_config`.
        model: of `empty_model`.

    Raises:
        UserError: a file or a tensor is missing, cut short, or not of the shape that config.json says.
    """
    places: dict[str, _Place] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, "pt") as header:
                for name in header.keys():
                    entry = header.get_slice(name)
                    found = _Place(file, name, tuple(entry.get_shape()), str(entry.get_dtype()))
                    places[_transformers_name(name)] = found
        except (SafetensorError, OSError) as error:
            raise UserError(f"checkpoint {file}: is no whole safetensors file: {_line(error)}; copy it again") from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = bool(config.get_text_config(decoder=True).tie_word_embeddings)
    if tied and EMBEDDING in places:
        places[HEAD] = places[EMBEDDING]
    missing = sorted(set(expected) - set(places))
    if missing:
        raise UserError(
            f"checkpoint {folder}: {len(missing)} weights are missing, {missing[0]} among them; save it again in full"
        )
    for name, shape in expected.items():
        place = places[name]
        if place.shape != shape:
            raise UserError(f"checkpoint {place.file}: {place.name} is {place.shape}, {CONFIG} says {shape}")
        if place.dtype not in _FLOATS:
            raise UserError(f"checkpoint {place.file}: {place.name} is {place.dtype}, expected bf16, fp16 or fp32")
    return Shards(folder, {name: places[name] for name in expected}, tied)


def checkpoint_sha256(files: Sequence[Path], progress: Callable[[], None] = lambda: None) -> str:
    """One hash of a checkpoint's files: SHA-256 over their names and SHA-256s. `progress` is called after each."""
    lines = ""
    for path in sorted(files):
        lines += f"{path.name} {file_sha256(path)}\n"
        progress()
    return hashlib.sha256(lines.encode()).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"checkpoint {folder}: has neither {WEIGHTS} nor {INDEX}; save it as safetensors")
        return [folder / WEIGHTS]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"checkpoint {index}: is not an index of safetensors files; copy it again") from None
    for file in files:
        if not file.is_file():
            raise UserError(f"checkpoint {file}: is missing, and {INDEX} names it; fetch the whole checkpoint again")
    return files


def _transformers_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return name


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def not_loaded(folder: Path, error: Exception) -> UserError:
    """What a user is told where Transformers' own readers fail."""
    return UserError(f"checkpoint {folder}: Transformers cannot load it: {_line(error)}")
