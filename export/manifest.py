"""What a bundle says of itself."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edge.engine.bundle import MANIFEST, SCHEMA
from edge.engine.hashes import file_sha256
from export.graphs import OPSET, rope
from export.plan import Plan
from export.tokens import SPECIAL_TOKENS

PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers")


def describe(plan: Plan, source: dict[str, str]) -> dict[str, Any]:
    """The manifest without what is known once the files are written (embedding, files, verification)."""
    text, vision = plan.config.text_config, plan.config.vision_config
    tokenizer = Tokenizer.from_str(plan.tokenizer_json)
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quantization": plan.quantization,
        "engines": list(plan.engines),
        "opset": OPSET,
        "source": source,
        "images": [{"width_px": width, "height_px": height} for width, height in plan.sizes_px],
        "image": {
            "patch_px": vision.patch_size,
            "temporal_patch": vision.temporal_patch_size,
            "merge": vision.spatial_merge_size,
        },
        "model": {
            "layers": text.num_hidden_layers,
            "kv_heads": text.num_key_value_heads,
            "head_dim": text.hidden_size // text.num_attention_heads,
            "hidden": text.hidden_size,
            "vocab": text.vocab_size,
            "max_positions": text.max_position_embeddings,
        },
        "rope": rope(text),
        "tokens": {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS},
        "number_tokens": list(plan.numbers),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of what makes the graphs."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's field files: hash and size of every file of the bundle but the manifest."""
    return {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
