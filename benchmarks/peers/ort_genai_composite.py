"""onnxruntime-genai's int4 decoder (its own builder, block 128) fed by our int8 vision graph.

Nobody can install this as it is: the builder makes the language model alone. Put together here are its decoder, our
bundle's vision graph under the names that its Qwen2.5-VL pipeline expects, and a token table in float16. The pipeline
runs the vision graph inside its first step, so vision and prefill are timed together.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import workload
from edge import contract

BUILDER_OPTIONS = ("exclude_embeds=true", "int4_block_size=128", "int4_accuracy_level=4", "prune_lm_head=true")
TOKEN_TABLE = "model.embed_tokens.weight"


def prepare(checkpoint: Path, out: Path, variant: str) -> None:
    """`variant` is the folder of our int8 or int4 bundle of the same checkpoint, for its vision graph."""
    with tempfile.TemporaryDirectory() as cache:
        builder = (sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out))
        options = ("-p", "int4", "-e", "cpu", "-c", cache, "--extra_options", *BUILDER_OPTIONS)
        subprocess.run([*builder, *options], check=True)
    config = json.loads((checkpoint / "config.json").read_text())
    _vision(Path(variant), out / "vision.onnx")
    _token_table(checkpoint, config["image_token_id"], out / "embedding.onnx")
    path = out / "genai_config.json"
    settings = json.loads(path.read_text())
    settings["model"] |= {
        "image_token_id": config["image_token_id"],
        "video_token_id": config["video_token_id"],
        "vision_start_token_id": config["vision_start_token_id"],
        "vision": {
            "filename": "vision.onnx",
            "config_filename": "processor_config.json",
            "spatial_merge_size": 2,
            "patch_size": 14,
            "tokens_per_second": 2.0,
            "inputs": {"pixel_values": "pixel_values"},
            "outputs": {"image_features": "image_features"},
        },
        "embedding": {
            "filename": "embedding.onnx",
            "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
            "outputs": {"inputs_embeds": "inputs_embeds"},
        },
    }
    path.write_text(json.dumps(settings, indent=2))
    (out / "processor_config.json").write_text(json.dumps(_processor(checkpoint), indent=2))


def _vision(bundle: Path, out: Path) -> None:
    """Our vision graph under the pipeline's names; its weights stay in files of their own."""
    import onnx

    size = f"vision-{workload.MODEL_WIDTH_PX}x{workload.MODEL_HEIGHT_PX}.onnx"
    graph = onnx.load(bundle / size, load_external_data=False)
    names = {"patches": "pixel_values", "image_embeds": "image_features"}
    for value in (*graph.graph.input, *graph.graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    files = {
        entry.value for tensor in graph.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    for name in files:
        shutil.copy(bundle / name, out.parent / name)
    onnx.save(graph, out)


def _token_table(checkpoint: Path, image_token: int, out: Path) -> None:
    """(1, n) token ids and (k, hidden) image features -> (1, n, hidden) embeddings."""
    import numpy as np
    import onnx
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from safetensors import safe_open

    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(checkpoint / index[TOKEN_TABLE], framework="pt") as shard:
        table = shard.get_tensor(TOKEN_TABLE).to(torch.float16).numpy()
    hidden = table.shape[1]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["text"], to=TensorProto.FLOAT),
        helper.make_node("Equal", ["input_ids", "image_token"], ["is_image"]),
        helper.make_node("NonZero", ["is_image"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["places"], perm=[1, 0]),
        # A random model may write the image token itself: no more places than there are features.
        helper.make_node("Shape", ["image_features"], ["n_features"], start=0, end=1),
        helper.make_node("Slice", ["places", "zero", "n_features"], ["used"]),
        helper.make_node("ScatterND", ["text", "used", "image_features"], ["inputs_embeds"]),
    ]
    graph = helper.make_graph(
        nodes,
        "token_table",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "n"]),
            helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["k", hidden]),
        ],
        [helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["batch", "n", hidden])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array(image_token, np.int64), "image_token"),
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, out, save_as_external_data=True, location=out.name + ".data", size_threshold=1 << 20)


def _processor(checkpoint: Path) -> dict[str, Any]:
    """The image processing of the checkpoint's preprocessor_config.json in ONNX Runtime Extensions' words."""
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text())
    patch, merge = settings["patch_size"], settings["merge_size"]
    resize = {"width": workload.WIDTH_PX, "height": workload.HEIGHT_PX, "smart_resize": 1}
    resize |= {name: settings[name] for name in ("min_pixels", "max_pixels")} | {
        "patch_size": patch,
        "merge_size": merge,
    }
    normalize = {"mean": settings["image_mean"], "std": settings["image_std"], "qwen2_5_vl": 1}
    patches = {"patch_size": patch, "temporal_patch_size": settings["temporal_patch_size"], "merge_size": merge}
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("decode_image", "DecodeImage", {"color_space": "RGB"}),
        ("convert_to_rgb", "ConvertRGB", {}),
        ("resize", "Resize", resize),
        ("rescale", "Rescale", {"rescale_factor": 1 / 255}),
        ("normalize", "Normalize", normalize),
        ("patch_image", "PatchImage", patches),
    ]
    transforms = [{"operation": {"name": name, "type": kind, "attrs": attrs}} for name, kind, attrs in steps]
    return {"processor": {"name": "qwen2_5_image_processor", "transforms": transforms}}


def load(model: Path, threads: int) -> workload.Contender:
    import cv2
    import onnxruntime_genai as og

    options = json.dumps({"intra_op_num_threads": threads})
    config = og.Config(str(model))
    config.overlay(f'{{"model": {{"decoder": {{"session_options": {options}}}}}}}')
    loaded = og.Model(config)
    processor = loaded.create_multimodal_processor()

    def decide(rgb: workload.Image, prompt: str, tokens: int) -> workload.Timing:
        # The processor takes encoded images only; an uncompressed PNG costs it the least, and making one is not timed.
        encoded = cv2.imencode(".png", rgb[:, :, ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 0))[1].tobytes()
        image = og.Images.open_bytes(encoded)
        start_s = time.perf_counter()
        inputs = processor(prompt, images=image)
        params = og.GeneratorParams(loaded)
        params.set_search_options(max_length=1024, min_length=1024, do_sample=False)
        generator = og.Generator(loaded, params)
        generator.set_inputs(inputs)
        generator.generate_next_token()
        first_s = time.perf_counter()
        n_prompt = len(generator.get_sequence(0)) - 1
        for _ in range(tokens - 1):
            generator.generate_next_token()
        end_s = time.perf_counter()
        return workload.Timing(
            vision_s=None,
            prefill_s=first_s - start_s,
            decode_s=end_s - first_s,
            prompt_tokens=n_prompt,
            image_tokens=list(generator.get_sequence(0)).count(image_token),
            answer_tokens=len(generator.get_sequence(0)) - n_prompt,
        )

    image_token = json.loads((model / "genai_config.json").read_text())["model"]["image_token_id"]
    assert contract.IMAGE_PAD == "<|image_pad|>"  # the processor looks for Qwen's own tag in the prompt
    step_bytes = (model / "model.onnx.data").stat().st_size
    return workload.Contender(decide, step_bytes, {"onnxruntime-genai": og.__version__})


if __name__ == "__main__":
    workload.main(load, prepare)
