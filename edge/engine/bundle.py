"""A model bundle: the folder that crosses from workstation to robot, checked before anything of it is used.

::

    manifest.json    schema, hashes, image size, dimensions, token ids, where it came from, how it was verified
    vision.onnx      patches -> image embeddings
    language.onnx    tokens, image embeddings, positions, cache -> logits, cache
    tokenizer.json   Hugging Face tokenizers' own format
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from drivers.errors import UserError
from edge import contract

SCHEMA = 1
MANIFEST, VISION, LANGUAGE, TOKENIZER = "manifest.json", "vision.onnx", "language.onnx", "tokenizer.json"
_IMAGE_FIELDS = ("width_px", "height_px", "patch_px", "temporal_patch", "merge")
_MODEL_FIELDS = ("layers", "kv_heads", "head_dim", "hidden", "vocab", "max_positions")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle.

    Attributes:
        path: its folder.
        width_px, height_px: the image size the vision graph takes.
        patch_px, temporal_patch, merge: patch side, frames a patch, patches a side that make one image token.
        layers, kv_heads, head_dim, hidden, vocab, max_positions: of the language model.
        image_token, end_token: ids of the image placeholder and of the end of the turn.
        quantization: ``fp32`` or ``int8``.
        manifest: the whole manifest.
        tokenizer, tokenizer_json: the tokenizer and the text it was read from.
    """

    path: Path
    width_px: int
    height_px: int
    patch_px: int
    temporal_patch: int
    merge: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    max_positions: int
    image_token: int
    end_token: int
    quantization: str
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    tokenizer_json: str

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        side_px = self.patch_px * self.merge
        return self.height_px // side_px, self.width_px // side_px

    @property
    def n_image_tokens(self) -> int:
        return self.grid[0] * self.grid[1]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    # Python 3.10 has no hashlib.file_digest.
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def load_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle: schema, every field, every file's hash, the tokenizer.

    Raises:
        UserError: what is missing, damaged or of another schema, in one line.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"bundle {folder}: no such folder; make one with: vlar1 export CHECKPOINT --out {folder}")
    manifest = _read_manifest(folder / MANIFEST)
    files = _field(manifest, "files", dict, folder)
    for name in (VISION, LANGUAGE, TOKENIZER):
        if name not in files:
            raise UserError(f"bundle {folder / MANIFEST}: field files lacks {name}; export the bundle again")
    for name, entry in files.items():
        _check_file(folder, name, entry)
    image = _integers(manifest, "image", _IMAGE_FIELDS, folder)
    model = _integers(manifest, "model", _MODEL_FIELDS, folder)
    side_px = image["patch_px"] * image["merge"]
    for name in ("width_px", "height_px"):
        if image[name] % side_px:
            value = f"image.{name} is {image[name]}"
            raise UserError(f"bundle {folder / MANIFEST}: field {value}, not a multiple of {side_px}; export it again")
    try:
        text = (folder / TOKENIZER).read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"bundle {folder / TOKENIZER}: not a tokenizer: {error}; export the bundle again") from None
    return Bundle(
        path=folder,
        **image,
        **model,
        image_token=_token(tokenizer, contract.IMAGE_PAD, model["vocab"], folder),
        end_token=_token(tokenizer, contract.IM_END, model["vocab"], folder),
        quantization=_field(manifest, "quantization", str, folder),
        manifest=manifest,
        tokenizer=tokenizer,
        tokenizer_json=text,
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"bundle {path}: is missing; this folder is no bundle, or its export did not finish") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"bundle {path}: cannot be read as JSON: {error}; export the bundle again") from None
    if not isinstance(manifest, dict):
        raise UserError(f"bundle {path}: is not a JSON object; export the bundle again")
    if manifest.get("schema") != SCHEMA or isinstance(manifest["schema"], bool):
        raise UserError(
            f"bundle {path}: field schema is {manifest.get('schema')!r}, this version reads {SCHEMA}; "
            "export the bundle again or install the matching version"
        )
    return manifest


def _field(manifest: dict[str, Any], name: str, kind: type, folder: Path) -> Any:
    value = manifest.get(name)
    if not isinstance(value, kind):
        raise UserError(f"bundle {folder / MANIFEST}: field {name} is missing or not a {kind.__name__}")
    return value


def _integers(manifest: dict[str, Any], name: str, fields: tuple[str, ...], folder: Path) -> dict[str, int]:
    section = _field(manifest, name, dict, folder)
    for field in fields:
        value = section.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            where = f"field {name}.{field} is {value!r}"
            raise UserError(f"bundle {folder / MANIFEST}: {where}, expected a positive integer; export it again")
    return {field: section[field] for field in fields}


def _check_file(folder: Path, name: str, entry: Any) -> None:
    path = folder / name
    if Path(name).name != name or not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        raise UserError(f"bundle {folder / MANIFEST}: field files.{name} is not a file of the bundle with its sha256")
    if not path.is_file():
        raise UserError(f"bundle {path}: is missing; export or copy the bundle again")
    size = path.stat().st_size
    if size != entry.get("bytes"):
        expected = entry.get("bytes")
        raise UserError(f"bundle {path}: is damaged: {size} bytes, the manifest says {expected}; copy it again")
    if file_sha256(path) != entry["sha256"]:
        raise UserError(f"bundle {path}: is damaged: its SHA-256 is not the manifest's; copy it again")


def _token(tokenizer: Tokenizer, token: str, vocab: int, folder: Path) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None or not 0 <= token_id < vocab:
        raise UserError(f"bundle {folder / TOKENIZER}: lacks the token {token}; export the bundle again")
    return int(token_id)
