"""Checkpoint folder to verified bundle: load, export, quantize, describe, verify, and only then put in place."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from drivers.errors import UserError
from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render
from drivers.sim.scene import draw_scene, draw_task
from drivers.sim.world import build_model, set_arm
from edge import contract
from edge.engine.bundle import LANGUAGE, MANIFEST, SCHEMA, TOKENIZER, VISION, Bundle, file_sha256, load_bundle
from export import verify
from export.graphs import OPSET, Quantization, export_language, export_vision, quantize_int8
from export.modules import ImageGrid

_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_SPECIAL = (contract.IMAGE_PAD, contract.IM_START, contract.IM_END, contract.VISION_START, contract.VISION_END)
N_CASES = 8


def export_bundle(
    checkpoint: Path,
    out: Path,
    quantization: Quantization,
    size_px: tuple[int, int],
    images: Path | None,
) -> verify.Verification:
    """Make the bundle `out` of a checkpoint folder as `save_pretrained` leaves it.

    The bundle is built in a folder beside `out` and takes its place at the end; whatever goes wrong, `out` stays as it
    was.

    Args:
        checkpoint: config.json, weights, tokenizer.json.
        out: the bundle's folder; an older bundle there is replaced, any other folder with something in it is not.
        quantization: ``fp32`` or ``int8``.
        size_px: width and height of the image the vision graph takes.
        images: folder of images to verify on; None renders some of the simulated table.

    Raises:
        UserError: the checkpoint, the size, the images or `out` cannot be used, or the bundle disagrees with
            Transformers.
    """
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: is there already and is not a bundle; name another folder")
    questions = [verify.ask(i, image) for i, image in enumerate(read_images(images))] if images else made_up()
    model = load_checkpoint(checkpoint)
    tokenizer_json = _tokenizer_json(checkpoint)
    grid = _grid(model.config, size_px)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}); name another folder") from None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work, Progress(*columns) as progress:
        graphs = progress.add_task(f"graphs, {quantization}", total=2)
        folder = Path(work) / out.name
        folder.mkdir()
        for name, write in (
            (VISION, lambda path: export_vision(model.model.visual, grid, path)),
            (LANGUAGE, lambda path: export_language(model, path)),
        ):
            _write_graph(write, folder / name, quantization)
            progress.advance(graphs)
        (folder / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
        manifest = _manifest(model, grid, quantization, checkpoint, folder)
        _write_manifest(folder, manifest)
        bundle = load_bundle(folder)
        task = progress.add_task("Transformers' answers", total=len(questions))
        cases = verify.reference_cases(model, bundle, questions, lambda: progress.advance(task))
        check = progress.add_task("the bundle's answers", total=len(cases))
        result = verify.compare(bundle, cases, lambda: progress.advance(check))
        verify.require(result, quantization)
        manifest["verification"] = result.as_dict() | {"images": str(images.name) if images else "made up"}
        _write_manifest(folder, manifest)
        _put_in_place(folder, out)
    return result


def load_checkpoint(checkpoint: Path) -> Any:
    """The model in fp32 for inference; raises UserError where the folder holds none."""
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    for name in ("config.json", TOKENIZER):
        if not (checkpoint / name).is_file():
            raise UserError(f"checkpoint {checkpoint}: lacks {name}; expected a folder as save_pretrained leaves it")
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        if config.model_type != "qwen2_5_vl":
            where = checkpoint / "config.json"
            raise UserError(f"checkpoint {where}: model_type is {config.model_type}, expected qwen2_5_vl")
        model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # of many kinds; safetensors and tokenizers raise bare ones
        raise _not_loaded(checkpoint, error) from None
    if loading["missing_keys"]:  # Transformers makes weights up for these
        name, n = min(loading["missing_keys"]), len(loading["missing_keys"])
        raise UserError(f"checkpoint {checkpoint}: {n} weights are missing, {name} among them; save it again in full")
    if getattr(model.config.text_config, "use_sliding_window", False):
        raise UserError(f"checkpoint {checkpoint / 'config.json'}: use_sliding_window is on; that is not exported")
    return model.eval()


def _not_loaded(checkpoint: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"checkpoint {checkpoint}: Transformers cannot load it: {reason}")


def read_images(folder: Path) -> list[NDArray[np.uint8]]:
    """Up to `N_CASES` images of a folder, spread over it, as RGB.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"--images {folder}: holds no {', '.join(_IMAGE_SUFFIXES)} file")
    images = []
    for path in paths[:: max(1, len(paths) // N_CASES)][:N_CASES]:
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if bgr is None:
            raise UserError(f"--images {path}: is not a readable image")
        images.append(np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8))
    return images


def made_up() -> list[verify.Question]:
    """`N_CASES` views of simulated tables, as their camera gives them: (480, 640, 3) RGB, the same every time.

    What is named is on the table, so that a model which says ``null`` otherwise answers in full; not so in the fourth
    pair, which asks for what most tables lack.
    """
    robot = load_robot()
    questions = []
    for seed in range(N_CASES):
        rng = np.random.default_rng([seed, 0xE4])
        scene = draw_scene(rng)
        model = build_model(scene)
        data = mujoco.MjData(model)
        set_arm(model, data, robot.ready_rad)
        mujoco.mj_kinematics(model, data)
        image = render(model, data, scene.look, camera_pose(scene.look), CAMERA, rng).rgb
        question = verify.ask(seed, image)
        if seed // 2 % 4 != 3:
            kind = "pick" if question.task == "affordance" else "place"
            question = replace(question, instruction=draw_task(rng, scene, kind).instruction)
        questions.append(question)
    return questions


def _grid(config: Any, size_px: tuple[int, int]) -> ImageGrid:
    vision = config.vision_config
    grid = ImageGrid(*size_px, vision.patch_size, vision.spatial_merge_size)
    side = grid.patch_px * grid.merge
    if min(size_px) < side or grid.width_px % side or grid.height_px % side:
        raise UserError(f"--image-size {grid.width_px}x{grid.height_px}: both sides must be multiples of {side} pixels")
    return grid


def _write_graph(write: Any, path: Path, quantization: Quantization) -> None:
    if quantization == "fp32":
        write(path)
        return
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        full = Path(folder) / path.name
        write(full)
        quantize_int8(full, path)


def _tokenizer_json(checkpoint: Path) -> str:
    """The tokenizer with the tokens that Transformers adds to tokenizer.json, without padding or truncation."""
    from transformers import PreTrainedTokenizerFast

    try:
        backend = PreTrainedTokenizerFast.from_pretrained(checkpoint).backend_tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        raise _not_loaded(checkpoint, error) from None
    backend.no_padding()
    backend.no_truncation()
    text: str = backend.to_str()
    return text


def _manifest(
    model: Any, grid: ImageGrid, quantization: Quantization, checkpoint: Path, folder: Path
) -> dict[str, Any]:
    from tokenizers import Tokenizer

    text, vision = model.config.text_config, model.config.vision_config
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    if tokenizer.token_to_id(contract.IMAGE_PAD) != model.config.image_token_id:
        raise UserError(
            f"checkpoint {checkpoint}: image_token_id of config.json is not the tokenizer's {contract.IMAGE_PAD}"
        )
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quantization": quantization,
        "opset": OPSET,
        "source": {"checkpoint": checkpoint.resolve().name, "sha256": checkpoint_sha256(checkpoint)},
        "image": {
            "width_px": grid.width_px,
            "height_px": grid.height_px,
            "patch_px": grid.patch_px,
            "temporal_patch": vision.temporal_patch_size,
            "merge": grid.merge,
        },
        "model": {
            "layers": text.num_hidden_layers,
            "kv_heads": text.num_key_value_heads,
            "head_dim": text.hidden_size // text.num_attention_heads,
            "hidden": text.hidden_size,
            "vocab": text.vocab_size,
            "max_positions": text.max_position_embeddings,
        },
        "tokens": {token: tokenizer.token_to_id(token) for token in _SPECIAL},
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in _PACKAGES},
        "files": {
            path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size}
            for path in sorted(folder.iterdir())
            if path.name != MANIFEST
        },
    }


def checkpoint_sha256(checkpoint: Path) -> str:
    """One hash of config, weights and tokenizer: SHA-256 over their names and SHA-256s."""
    weights = [path.name for path in checkpoint.glob("*.safetensors")]
    names = sorted(["config.json", TOKENIZER, *weights])
    lines = "".join(f"{name} {file_sha256(checkpoint / name)}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _put_in_place(folder: Path, out: Path) -> None:
    old = folder.with_name(f"{out.name}.old")
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def bundle_size_bytes(bundle: Bundle) -> int:
    """Bytes of a bundle's files."""
    return sum(int(entry["bytes"]) for entry in bundle.manifest["files"].values())


def size_of(value: str) -> tuple[int, int]:
    """``224x168`` -> (224, 168); raises UserError."""
    parts: Sequence[str] = value.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and part.isascii() for part in parts):
        raise UserError(f"--image-size {value}: expected WIDTHxHEIGHT in pixels, for example 224x168")
    return int(parts[0]), int(parts[1])
