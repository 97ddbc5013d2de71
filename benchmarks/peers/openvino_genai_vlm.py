"""OpenVINO GenAI's VLMPipeline: int8, and int4 symmetric in groups of 128, both as optimum-intel exports them.

In the int4 export the head and the vision tower stay int8 (its default).
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers import workload
from edge import contract

OPTIONS = {
    "int4": ("--weight-format", "int4", "--sym", "--ratio", "1.0", "--group-size", "128"),
    "int8": ("--weight-format", "int8"),
}


def prepare(checkpoint: Path, out: Path, variant: str) -> None:
    command = ("export", "openvino", "-m", str(checkpoint), "--task", "image-text-to-text", *OPTIONS[variant], str(out))
    tool = Path(sys.executable).with_name("optimum-cli")
    subprocess.run([str(tool), *command], check=True)


def load(model: Path, threads: int) -> workload.Contender:
    import openvino
    import openvino_genai

    pipeline = openvino_genai.VLMPipeline(str(model), "CPU", INFERENCE_NUM_THREADS=threads)

    def decide(rgb: workload.Image, prompt: str, tokens: int) -> workload.Timing:
        settings = openvino_genai.GenerationConfig(
            max_new_tokens=tokens, min_new_tokens=tokens, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        start_s = time.perf_counter()
        result = pipeline.generate(prompt, images=[openvino.Tensor(rgb[None])], generation_config=settings)
        total_s = time.perf_counter() - start_s
        metrics = result.perf_metrics
        vision_s = metrics.get_prepare_embeddings_duration().mean / 1e3
        first_s = metrics.get_ttft().mean / 1e3
        return workload.Timing(
            vision_s=vision_s,
            prefill_s=first_s - vision_s,
            decode_s=total_s - first_s,
            prompt_tokens=metrics.get_num_input_tokens(),
            image_tokens=workload.MODEL_WIDTH_PX * workload.MODEL_HEIGHT_PX // 28**2,
            answer_tokens=metrics.get_num_generated_tokens(),
        )

    step_bytes = (model / "openvino_language_model.bin").stat().st_size
    versions = {"openvino": openvino.__version__, "openvino-genai": openvino_genai.__version__}
    return workload.Contender(decide, step_bytes, versions)


if __name__ == "__main__":
    assert contract.IMAGE_PAD == "<|image_pad|>"  # the pipeline looks for Qwen's own tag in the prompt
    workload.main(load, prepare, tuple(OPTIONS))
