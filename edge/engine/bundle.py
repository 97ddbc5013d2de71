"""A model bundle: the folder that crosses from workstation to robot, checked before anything of it is used.

::

    manifest.json       schema, hashes, image sizes, dimensions, token ids, where it came from, how it was verified
    tokenizer.json      Hugging Face tokenizers' own format
    embedding.bin       the token table, row after row (`edge.engine.embedding`)
    vision-WxH.onnx     one an image size: patches -> image embeddings
    language.onnx       embeddings, rotary tables, cache -> hidden, cache
    head.onnx           hidden -> logits
    head_numbers.onnx   hidden -> logits of `Bundle.number_tokens` alone
    *.data              weights of the graphs beside them, where those are large or shared
    tensorrt/           the same graphs in standard operators (some bundles)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from drivers.errors import UserError
from edge import contract
from edge.abstention import Abstention, read_abstention
from edge.engine.hashes import check_sha256

SCHEMA = 2
MANIFEST, TOKENIZER, EMBEDDING = "manifest.json", "tokenizer.json", "embedding.bin"
LANGUAGE, HEAD, HEAD_NUMBERS = "language.onnx", "head.onnx", "head_numbers.onnx"
QUANTIZATIONS = ("fp32", "fp16", "int8", "int4")
# Where the graphs for each kind of engine lie.
ENGINE_FOLDERS = {"onnx": "", "tensorrt": "tensorrt/"}
_IMAGE_FIELDS = ("patch_px", "temporal_patch", "merge")
_MODEL_FIELDS = ("layers", "kv_heads", "head_dim", "hidden", "vocab", "max_positions")


@dataclass(frozen=True)
class ImageSize:
    """One size the model sees images at, with a vision graph of its own."""

    width_px: int
    height_px: int

    @property
    def vision(self) -> str:
        """The vision graph's file name."""
        return f"vision-{self.width_px}x{self.height_px}.onnx"


@dataclass(frozen=True)
class Rope:
    """Rotary positions of the language model (section 2.1 of arXiv:2409.12191).

    Attributes:
        inv_freq: (head_dim / 2,) float32, radians a position.
        sections: how many of them count in time, in rows and in columns.
        scaling: what cosines and sines are multiplied by.
    """

    inv_freq: NDArray[np.float32]
    sections: tuple[int, int, int]
    scaling: float


@dataclass(frozen=True)
class Bundle:
    """A checked bundle.

    Attributes:
        path: its folder.
        images: the sizes it sees images at; the first is the default.
        patch_px, temporal_patch, merge: patch side, frames a patch, patches a side that make one image token.
        layers, kv_heads, head_dim, hidden, vocab, max_positions: of the language model.
        rope: its rotary positions.
        image_token, end_token: ids of the image placeholder and of the end of the turn.
        number_tokens: ascending ids of the tokens that may come from inside an answer's first number on.
        embedding_bits, embedding_block: how embedding.bin is written.
        quantization: one of `QUANTIZATIONS`.
        abstention: how sure an answer must be to be acted on.
        manifest: the whole manifest.
        tokenizer, tokenizer_json: the tokenizer and the text it was read from.
    """

    path: Path
    images: tuple[ImageSize, ...]
    patch_px: int
    temporal_patch: int
    merge: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    max_positions: int
    rope: Rope
    image_token: int
    end_token: int
    number_tokens: NDArray[np.int64]
    embedding_bits: int
    embedding_block: int
    quantization: str
    abstention: Abstention
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    tokenizer_json: str

    @property
    def width_px(self) -> int:
        """Of the default image size."""
        return self.images[0].width_px

    @property
    def height_px(self) -> int:
        """Of the default image size."""
        return self.images[0].height_px

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens at the default image size."""
        return self.grid_of(self.images[0])

    @property
    def n_image_tokens(self) -> int:
        """At the default image size."""
        return self.grid[0] * self.grid[1]

    @property
    def size_bytes(self) -> int:
        """Of all its files together."""
        return sum(int(entry["bytes"]) for entry in self.manifest["files"].values())

    def grid_of(self, image: ImageSize) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        side_px = self.patch_px * self.merge
        return image.height_px // side_px, image.width_px // side_px


def load_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle: schema, every field, every file's size and hash (`edge.engine.hashes`), the tokenizer.

    Raises:
        UserError: what is missing, damaged or of another schema, in one line.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"bundle {folder}: no such folder; make one with: vlar1 export CHECKPOINT --out {folder}")
    manifest = _read_manifest(folder / MANIFEST)
    image = _integers(manifest, "image", _IMAGE_FIELDS, folder)
    model = _integers(manifest, "model", _MODEL_FIELDS, folder)
    images = _images(manifest, image["patch_px"] * image["merge"], folder)
    files = _field(manifest, "files", dict, folder)
    engines = _field(manifest, "engines", list, folder)
    for engine in engines:
        if not isinstance(engine, str) or engine not in ENGINE_FOLDERS:
            raise UserError(f"bundle {folder / MANIFEST}: field engines holds {engine!r}, which this version lacks")
    graphs = (LANGUAGE, HEAD, HEAD_NUMBERS, *(size.vision for size in images))
    for name in (TOKENIZER, EMBEDDING, *(f"{ENGINE_FOLDERS[engine]}{graph}" for engine in engines for graph in graphs)):
        if name not in files:
            raise UserError(f"bundle {folder / MANIFEST}: field files lacks {name}; export the bundle again")
    for name, entry in files.items():
        _check_file(folder, name, entry)
    embedding = _integers(manifest, "embedding", ("rows", "bits", "block"), folder)
    try:
        text = (folder / TOKENIZER).read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"bundle {folder / TOKENIZER}: not a tokenizer: {error}; export the bundle again") from None
    if tokenizer.get_vocab_size() > model["vocab"]:
        n = tokenizer.get_vocab_size()
        raise UserError(f"bundle {folder / TOKENIZER}: has {n} tokens, the model {model['vocab']}; export it again")
    return Bundle(
        path=folder,
        images=images,
        **image,
        **model,
        rope=_rope(manifest, model["head_dim"], folder),
        image_token=_token(tokenizer, contract.IMAGE_PAD, model["vocab"], folder),
        end_token=_token(tokenizer, contract.IM_END, model["vocab"], folder),
        number_tokens=_number_tokens(manifest, model["vocab"], folder),
        embedding_bits=embedding["bits"],
        embedding_block=embedding["block"],
        quantization=_field(manifest, "quantization", str, folder),
        abstention=read_abstention(manifest, f"bundle {folder / MANIFEST}"),
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


def _integers(manifest: dict[str, Any], name: str, fields: Sequence[str], folder: Path) -> dict[str, int]:
    section = _field(manifest, name, dict, folder)
    for field in fields:
        if not _is_positive(section.get(field)):
            where = f"field {name}.{field} is {section.get(field)!r}"
            raise UserError(f"bundle {folder / MANIFEST}: {where}, expected a positive integer; export it again")
    return {field: section[field] for field in fields}


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _images(manifest: dict[str, Any], side_px: int, folder: Path) -> tuple[ImageSize, ...]:
    found = []
    for entry in _field(manifest, "images", list, folder):
        size: list[Any] = [entry.get(name) for name in ("width_px", "height_px")] if isinstance(entry, dict) else []
        if len(size) != 2 or not all(_is_positive(px) and px % side_px == 0 for px in size):
            raise UserError(
                f"bundle {folder / MANIFEST}: field images holds {entry!r}, expected width_px and height_px, "
                f"multiples of {side_px}; export it again"
            )
        found.append(ImageSize(*size))
    if not found:
        raise UserError(f"bundle {folder / MANIFEST}: field images is empty; export the bundle again")
    if len({size.width_px * size.height_px for size in found}) < len(found):  # engines tell sizes apart by it
        raise UserError(f"bundle {folder / MANIFEST}: field images holds two sizes of one area; export it again")
    return tuple(found)


def _rope(manifest: dict[str, Any], head_dim: int, folder: Path) -> Rope:
    section = _field(manifest, "rope", dict, folder)
    try:
        inv_freq = np.array(section["inv_freq"], np.float32)
        sections = tuple(int(n) for n in section["sections"])
        rope = Rope(inv_freq, sections, float(section["scaling"]))  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, OverflowError):
        rope = Rope(np.zeros(0, np.float32), (0, 0, 0), 1.0)
    finite = bool(np.isfinite(rope.inv_freq).all() and np.isfinite(rope.scaling))
    add_up = len(rope.sections) == 3 and min(rope.sections) >= 0 and sum(rope.sections) == head_dim // 2
    if rope.inv_freq.shape != (head_dim // 2,) or not add_up or not finite:
        raise UserError(
            f"bundle {folder / MANIFEST}: field rope must give {head_dim // 2} inv_freq, three sections that add up to "
            "as many, and scaling, all finite; export the bundle again"
        )
    return rope


def _number_tokens(manifest: dict[str, Any], vocab: int, folder: Path) -> NDArray[np.int64]:
    ids = _field(manifest, "number_tokens", list, folder)
    if not ids or not all(isinstance(i, int) and 0 <= i < vocab for i in ids) or ids != sorted(set(ids)):
        raise UserError(f"bundle {folder / MANIFEST}: field number_tokens is not ascending token ids; export it again")
    return np.array(ids, np.int64)


def _check_file(folder: Path, name: str, entry: Any) -> None:
    place = PurePosixPath(name)
    inside = not place.is_absolute() and ".." not in place.parts and "\\" not in name and len(place.parts) > 0
    if not inside or not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        raise UserError(f"bundle {folder / MANIFEST}: field files.{name} is not a file of the bundle with its sha256")
    path = folder / name
    if not path.is_file():
        raise UserError(f"bundle {path}: is missing; export or copy the bundle again")
    size = path.stat().st_size
    if size != entry.get("bytes"):
        expected = entry.get("bytes")
        raise UserError(f"bundle {path}: is damaged: {size} bytes, the manifest says {expected}; copy it again")
    if not check_sha256(path, entry["sha256"]):
        raise UserError(f"bundle {path}: is damaged: its SHA-256 is not the manifest's; copy it again")


def _token(tokenizer: Tokenizer, token: str, vocab: int, folder: Path) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None or not 0 <= token_id < vocab:
        raise UserError(f"bundle {folder / TOKENIZER}: lacks the token {token}; export the bundle again")
    return int(token_id)
