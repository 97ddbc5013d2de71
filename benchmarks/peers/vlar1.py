"""Ours: the bundle on ONNX Runtime. The table's figures are of the bare engine loop, as its peers' are.

A random model never closes a JSON by itself, so the fixed number of tokens is decoded without the grammar. After that,
what the robot does is timed: `edge.decode.decide` with its grammar, cold, and warm with the previous answer as draft.
What is written there is scripted (`benchmarks.peers.scripted`): two answers as alike as two frames of one scene give.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import onnxruntime

from benchmarks.peers import workload
from benchmarks.peers.scripted import Scripted
from edge import contract
from edge.decode import Decision, decide
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.engine.protocol import Engine
from edge.preprocess import preprocess

THINK_TOKENS = 256
# An answer of 128 tokens, and the next one: the bowl a little farther, so seven tokens at six places are others.
BEFORE = (
    "<think>The red cube stands on the left half of the table, a little above the middle of the image, and the blue "
    "bowl is on its right. The gripper has to come down on the cube, close, lift it clear of the rim and then carry it "
    "over to the blue bowl.</think>"
    "<output>[[0.42, 0.38], [0.41, 0.36], [0.52, 0.30], [0.63, 0.41], [0.71, 0.58]]</output>"
)
NOW = (
    "<think>The red cube stands on the left half of the table, a little above the centre of the image, and the blue "
    "bowl is far right. The gripper has to come down on the cube, close, lift it clear of the rim and then carry it "
    "over to the blue bowl.</think>"
    "<output>[[0.42, 0.38], [0.41, 0.36], [0.53, 0.30], [0.65, 0.41], [0.74, 0.57]]</output>"
)


def prepare(checkpoint: Path, out: Path, variant: str) -> None:
    from export import build, verify

    # The answers of a random model hang on nothing, so quantized ones differ: no bound on that can hold here.
    verify.require = lambda *_: None
    size_px = (workload.MODEL_WIDTH_PX, workload.MODEL_HEIGHT_PX)
    build.export_bundle(checkpoint, out, variant, [size_px], None, "onnx")  # type: ignore[arg-type]


def load(path: Path, threads: int) -> workload.Contender:
    bundle = load_bundle(path)
    engine = OnnxEngine(bundle, threads=threads)
    image = contract.IMAGE_PAD * bundle.n_image_tokens

    def run(rgb: workload.Image, prompt: str, tokens: int) -> workload.Timing:
        start_s = time.perf_counter()
        embeds = engine.encode_image(preprocess(rgb, bundle.width_px, bundle.height_px))
        seen_s = time.perf_counter()
        ids = bundle.tokenizer.encode(prompt.replace(contract.IMAGE_PAD, image), add_special_tokens=False).ids
        engine.prefill(ids, embeds)
        answer = [int(engine.logits()[0].argmax())]
        first_s = time.perf_counter()
        for _ in range(tokens - 1):
            engine.extend(answer[-1:])
            answer.append(int(engine.logits()[0].argmax()))
        end_s = time.perf_counter()
        return workload.Timing(
            seen_s - start_s, first_s - seen_s, end_s - first_s, len(ids), bundle.n_image_tokens, len(answer)
        )

    # The layers and the head; of the token table a step reads one row.
    step_bytes = sum(size for name, size in _sizes(path).items() if name.startswith(("language.", "head.")))
    return workload.Contender(run, step_bytes, {"onnxruntime": onnxruntime.__version__}, lambda: _robot(engine))


def _robot(engine: OnnxEngine) -> dict[str, object]:
    """One cold decision on an instruction not seen before, and a warm one on the next frame."""
    tokenizer = engine.bundle.tokenizer

    def ask(on: Engine, number: int, frame: int, draft: tuple[int, ...] = ()) -> Decision:
        instruction = f"{number}: move the red cube to the blue bowl."
        return decide(on, workload.frame(frame), "trajectory", instruction, max_think_tokens=THINK_TOKENS, draft=draft)

    # Without a script, and before anything is timed: does a draft change what the engine itself decodes?
    plain = ask(engine, 999, 999)
    drafted = ask(engine, 999, 999, _changed(plain.tokens, engine.bundle.vocab))
    before, now = (tokenizer.encode(text, add_special_tokens=False).ids for text in (BEFORE, NOW))
    cold = ask(Scripted(engine, before), 1000, 1000)
    warm = ask(Scripted(engine, now), 1000, 1001, cold.tokens)
    if (cold.text, warm.text) != (BEFORE, NOW):
        raise RuntimeError(f"the script was not followed: {cold.text!r}, {warm.text!r}")
    return {
        "tokens": cold.n_tokens,
        "cold_s": cold.took_s,
        "cold_passes": cold.n_passes,
        "first_waypoint_s": cold.first_action_s,
        "warm_s": warm.took_s,
        "warm_passes": warm.n_passes,
        "warm_tokens_rejected": warm.n_draft_rejected,
        "drafted_is_plain": drafted.tokens == plain.tokens,
    }


def _changed(tokens: tuple[int, ...], vocab: int) -> tuple[int, ...]:
    """The answer with every twentieth token another."""
    return tuple((token + 1) % vocab if i % 20 == 10 else token for i, token in enumerate(tokens))


def _sizes(path: Path) -> dict[str, int]:
    files = json.loads((path / "manifest.json").read_text())["files"]
    return {name: entry["bytes"] for name, entry in files.items()}


if __name__ == "__main__":
    workload.main(load, prepare, ("int4", "int8"))
