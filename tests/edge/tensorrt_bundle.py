"""A bundle with graphs for TensorRT, made of the tiny bundle without exporting that again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import Qwen2_5_VLForConditionalGeneration

from edge.engine.bundle import MANIFEST, Bundle, load_bundle
from export.manifest import list_files
from export.tensorrt import export_tensorrt


def add_tensorrt(bundle: Path, checkpoint: Path, quantization: str, out: Path) -> Bundle:
    """A copy of `bundle` at `out` whose TensorRT graphs are those of `checkpoint`, quantized so."""
    shutil.copytree(bundle, out)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    manifest = json.loads((out / MANIFEST).read_text())
    sizes_px = [(image["width_px"], image["height_px"]) for image in manifest["images"]]
    field = export_tensorrt(
        model.config, model.state_dict().__getitem__, out, sizes_px, quantization, manifest["number_tokens"]
    )
    manifest |= {"tensorrt": field, "quantization": quantization, "files": list_files(out)}
    (out / MANIFEST).write_text(json.dumps(manifest))
    return load_bundle(out)
