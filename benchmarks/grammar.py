"""What does writing under the grammar cost beside a pass of the model?

``python -m benchmarks.grammar [--quick] [--json FILE] [--tokenizer FILE] [--pass-ms MS]``. Answers are written with a
vocabulary of 151 936 tokens by an engine whose passes only read memory, as a model's do: always the same amount, which
takes one thread `--pass-ms` where nothing disturbs it. Without `--tokenizer`, a byte-level BPE of 151 665 entries, most
of them random merges, stands in for Qwen's. Printed: each step alone, then in whole answers what comes between two
passes. All is processor time of this process, and the overhead a share of the processor time of the passes around it,
so that another process on the machine, which slows both alike, counts little. What the grammar's own thread computes
while the model runs is shown beside: with a core to spare it costs no time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from rich.table import Table
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.machine import console, exit_code, machine
from drivers.errors import UserError
from edge import contract
from edge.abstention import Abstention
from edge.contract import Affordance, Answer, Task, Trajectory, format_answer
from edge.decode import AnswerWriter, decide
from edge.decode.sampling import greedy
from edge.decode.scores import Logits
from edge.engine.protocol import Engine

VOCAB, ENTRIES = 151_936, 151_665
AIM = 0.02  # of a pass
_READ_FLOATS = 1_000_000
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
OUTPUTS: dict[Task, Affordance | Trajectory] = {
    "affordance": Affordance(0.41, 0.52, 0.1, 0.13),
    "trajectory": Trajectory(tuple((i / 10, 1 - i / 10) for i in range(1, 6))),
}
THOUGHT = "I see the red cube on the table, left of the blue bowl. " * 5


def random_tokenizer(seed: int = 0) -> str:
    """A byte-level BPE with as many entries as Qwen's: the answers' own words, then random merges; single digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    answers = [format_answer(Answer(THOUGHT, output)) for output in OUTPUTS.values()]
    prompts = [contract.render_chat(contract.prompt_text(task, "go")) for task in contract.TASKS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*prompts, *answers], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    content = json.loads(tokenizer.to_str())
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    generator = random.Random(seed)
    short = [token for token in vocab if token not in SPECIAL and not any(char.isdigit() for char in token)]
    parts = list(short)
    while len(vocab) < ENTRIES:
        left, right = generator.choice(parts), generator.choice(short)
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
            if len(left) < 8:
                parts.append(left + right)
    return json.dumps(content)


@dataclass(frozen=True)
class IdleBundle:
    """Of a bundle, what decoding reads."""

    tokenizer: Tokenizer
    tokenizer_json: str
    number_tokens: np.ndarray
    end_token: int
    image_token: int
    vocab: int = VOCAB
    width_px: int = 28
    height_px: int = 28
    n_image_tokens: int = 1
    abstention: Abstention = Abstention()


class IdleEngine:
    """Wants to write a text, and only reads memory where a model would compute.

    Args:
        n_reads: of `_READ_FLOATS` in a pass: so large that what they displace in the caches counts too.
    """

    def __init__(self, bundle: IdleBundle, text: str, n_reads: int) -> None:
        self.bundle, self._n_reads, self.room = bundle, n_reads, 4096
        self._wanted = bundle.tokenizer.encode(text, add_special_tokens=False).ids
        self._base = np.random.default_rng(0).normal(0, 2, VOCAB).astype(np.float32)
        self._row = self._base.copy()
        self._weights = np.ones(_READ_FLOATS, np.float32)
        self.length = self._n_prompt = 0
        self._returned_s: tuple[float, float] | None = None  # of this thread, of the whole process
        self.between_s: list[float] = []  # of this thread, from the end of a pass to the begin of the next
        self.passes_s: list[float] = []  # of this thread, in each pass
        self.helper_s = 0.0  # of other threads, from the end of the first pass on

    def encode_image(self, patches: np.ndarray) -> np.ndarray:
        return np.zeros((1, 8), np.float32)

    def prefill(self, ids: Sequence[int], image_embeds: np.ndarray) -> None:
        opening = len(self.bundle.tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False).ids)
        start = len(ids) - 1 - list(ids)[::-1].index(self.bundle.tokenizer.token_to_id("<|im_start|>"))
        self._n_prompt = start + opening
        self.length = len(ids)
        self._write_logits()

    def extend(self, tokens: Sequence[int]) -> None:
        begun_s = time.thread_time()
        if self._returned_s is not None:
            self.between_s.append(begun_s - self._returned_s[0])
        self.length += len(tokens)
        for _ in range(self._n_reads):
            self._weights.sum()
        self._write_logits()
        self.passes_s.append(time.thread_time() - begun_s)
        process_s, thread_s = time.process_time(), time.thread_time()
        if self._returned_s is not None:
            self.helper_s += (process_s - self._returned_s[1]) - (thread_s - self._returned_s[0])
        self._returned_s = thread_s, process_s

    def _write_logits(self) -> None:
        self._row[:] = self._base
        self._row[self._wanted[min(self.length - self._n_prompt, len(self._wanted) - 1)]] = 30.0

    def truncate(self, length: int) -> None:
        self.length = length

    def logits(self, last: int = 1) -> np.ndarray:
        assert last == 1  # no drafts here
        return self._row[None]

    def number_logits(self, last: int = 1) -> np.ndarray:
        return self.logits(last)[:, self.bundle.number_tokens]


def idle_bundle(tokenizer_json: str) -> IdleBundle:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    texts = [set(tokenizer.decode([token])) for token in range(tokenizer.get_vocab_size())]
    numbers = [i for i, text in enumerate(texts) if text and text <= set('0123456789., []{}":</>')]
    ids = [tokenizer.token_to_id(name) for name in (contract.IM_END, contract.IMAGE_PAD)]
    return IdleBundle(tokenizer, tokenizer_json, np.array(numbers), *ids)


def reads_in(pass_s: float) -> int:
    """How often a pass must read to take so long: by the quickest of some tries."""
    weights, quickest_s = np.ones(_READ_FLOATS, np.float32), float("inf")
    for _ in range(200):
        began_s = time.thread_time()
        weights.sum()
        quickest_s = min(quickest_s, time.thread_time() - began_s)
    return max(1, round(pass_s / quickest_s))


def steps_us(bundle: IdleBundle) -> dict[str, list[float]]:
    """Microseconds of processor time of each step alone, over the tokens of one answer to each task."""
    taken: dict[str, list[float]] = {name: [] for name in ("mask", "greedy choice", "take, forced tokens")}
    logits = np.random.default_rng(0).normal(0, 2, VOCAB).astype(np.float32)

    for task, output in OUTPUTS.items():
        writer = AnswerWriter(bundle, task, 256, 512)
        writer.forced()
        wanted = bundle.tokenizer.encode(format_answer(Answer(THOUGHT, output)), add_special_tokens=False).ids
        while not writer.done:
            token = wanted[len(writer.tokens)]
            before, logits[token] = logits[token], 30.0
            times_s = [time.thread_time()]
            mask = writer.mask()
            times_s.append(time.thread_time())
            greedy(Logits(logits), mask, writer.tokens)
            times_s.append(time.thread_time())
            writer.take(token)
            writer.forced()
            times_s.append(time.thread_time())
            logits[token] = before
            for name, took_s in zip(taken, np.diff(times_s), strict=True):
                taken[name].append(float(took_s) * 1e6)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grammar", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 answers to each task instead of 10")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json (default: a random one)")
    parser.add_argument("--pass-ms", type=float, default=7.0, metavar="MS", help="of the model (default: 7)")
    args = parser.parse_args()
    if not args.pass_ms > 0:
        raise UserError(f"--pass-ms {args.pass_ms:g}: expected more than 0")
    bundle = idle_bundle(args.tokenizer.read_text(encoding="utf-8") if args.tokenizer else random_tokenizer())
    began_s = time.perf_counter()
    AnswerWriter(bundle, "affordance", 256, 512).forced()
    wrap_s = time.perf_counter() - began_s

    n_reads = reads_in(args.pass_ms / 1e3)
    steps: dict[str, list[float]] = {}
    engines: dict[Task, list[IdleEngine]] = {task: [] for task in contract.TASKS}
    for turn in range(3 if args.quick else 11):
        alone = steps_us(bundle)
        for task, output in OUTPUTS.items():
            engine = IdleEngine(bundle, format_answer(Answer(THOUGHT, output)), n_reads)
            decision = decide(
                cast(Engine, engine), np.zeros((28, 28, 3), np.uint8), task, "go", on_event=lambda event: None
            )
            assert decision.answer.output == output
            if turn:  # the first warms up
                engines[task].append(engine)
        if turn:
            for name, values in alone.items():
                steps.setdefault(name, []).extend(values)

    screen = console()
    screen.print(
        f"{bundle.tokenizer.get_vocab_size()} tokens in a vocabulary of {VOCAB}; wrapped in {wrap_s:.2f} s, once"
    )
    table = Table(title="one token, microseconds of processor time")
    for heading in ("", "p50", "p90", "max"):
        table.add_column(heading, justify="right" if heading else "left")
    results: list[dict[str, object]] = []
    for name, values in steps.items():
        figures = {"p50": np.percentile(values, 50), "p90": np.percentile(values, 90), "max": max(values)}
        table.add_row(name, *(f"{value:.0f}" for value in figures.values()))
        results.append({"name": name, "unit": "us", **{key: float(value) for key, value in figures.items()}})
    screen.print(table)
    table = Table(title=f"whole answers, a pass of {args.pass_ms:g} ms: microseconds of processor time")
    for heading in ("", "between p50", "p90", "mean", "a pass", "mean / pass", f"aim {AIM:.0%}", "its thread"):
        table.add_column(heading, justify="right" if heading else "left")
    for asked, of in engines.items():
        between_us = np.concatenate([engine.between_s for engine in of]) * 1e6
        pass_us = float(np.mean(np.concatenate([engine.passes_s for engine in of]))) * 1e6
        helper_us = sum(engine.helper_s for engine in of) * 1e6 / len(between_us)
        mean_us, p50_us, p90_us = float(between_us.mean()), *(float(np.percentile(between_us, q)) for q in (50, 90))
        share = mean_us / pass_us
        numbers = (f"{value:.0f}" for value in (p50_us, p90_us, mean_us, pass_us))
        table.add_row(asked, *numbers, f"{share:.2%}", "met" if share < AIM else "missed", f"{helper_us:.0f}")
        figures = {"p50": p50_us, "p90": p90_us, "mean": mean_us, "pass": pass_us, "helper_thread": helper_us}
        results.append({"name": asked, "unit": "us", **figures, "share": share, "pass_ms": args.pass_ms})
    screen.print(table)
    if args.json:
        content = {"benchmark": "grammar", "machine": machine(), "wrap_s": wrap_s, "results": results}
        args.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    sys.exit(exit_code(main))
