"""Transformers' ``generate`` in bfloat16: what the released server runs, here on the CPU."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from benchmarks.peers import workload
from edge import contract


class _Clock:
    """A streamer that only notes when tokens came: the prompt first, then one at a time."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        pass


def load(checkpoint: Path, threads: int) -> workload.Contender:
    torch.set_num_threads(threads)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    tokenizer = Qwen2TokenizerFast.from_pretrained(checkpoint)
    processor = Qwen2VLImageProcessor.from_pretrained(checkpoint)
    embedded_s = [0.0]
    model.model.visual.register_forward_hook(lambda *_: embedded_s.__setitem__(0, time.perf_counter()))

    def decide(rgb: workload.Image, prompt: str, tokens: int) -> workload.Timing:
        start_s = time.perf_counter()
        image = processor(Image.fromarray(rgb), return_tensors="pt")
        n_image = int(image["image_grid_thw"].prod()) // 4
        text = prompt.replace(contract.IMAGE_PAD, contract.IMAGE_PAD * n_image)
        inputs = tokenizer(text, return_tensors="pt")
        clock = _Clock()
        with torch.inference_mode():
            model.generate(
                **inputs,
                pixel_values=image["pixel_values"].to(torch.bfloat16),
                image_grid_thw=image["image_grid_thw"],
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                streamer=clock,
            )
        _, first_s, *_ = clock.times_s
        n_answer = len(clock.times_s) - 1
        return workload.Timing(
            vision_s=embedded_s[0] - start_s,
            prefill_s=first_s - embedded_s[0],
            decode_s=clock.times_s[-1] - first_s,
            prompt_tokens=inputs["input_ids"].shape[1],
            image_tokens=n_image,
            answer_tokens=n_answer,
        )

    read = [*model.model.language_model.parameters()]  # the tied head reads the whole token table
    step_bytes = sum(parameter.numel() * parameter.element_size() for parameter in read)
    return workload.Contender(
        decide, step_bytes, {"transformers": transformers.__version__, "torch": torch.__version__}
    )


if __name__ == "__main__":
    workload.main(load)
