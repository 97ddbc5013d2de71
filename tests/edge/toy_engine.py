"""An engine without a model: what it wants to write is a function of what is written, its time is simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from edge import contract
from edge.abstention import Abstention


@dataclass(frozen=True, eq=False)
class ToyBundle:
    """Of a bundle, what decoding reads."""

    tokenizer: Tokenizer = field(repr=False)
    tokenizer_json: str = field(repr=False)
    vocab: int
    number_tokens: np.ndarray = field(repr=False)
    width_px: int = 56
    height_px: int = 56
    n_image_tokens: int = 4
    max_positions: int = 2048
    abstention: Abstention = Abstention()

    @property
    def image_token(self) -> int:
        return self.tokenizer.token_to_id(contract.IMAGE_PAD)

    @property
    def end_token(self) -> int:
        return self.tokenizer.token_to_id(contract.IM_END)


def toy_bundle(tokenizer_json: str) -> ToyBundle:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    texts = [set(tokenizer.decode([token])) for token in range(tokenizer.get_vocab_size())]
    numbers = [i for i, text in enumerate(texts) if text and text <= set('0123456789., []{}":</>')]
    return ToyBundle(tokenizer, tokenizer_json, (len(texts) + 15) // 16 * 16, np.array(numbers))


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class ToyEngine:
    """An `edge.engine.protocol.Engine` that checks how it is used.

    Attributes:
        wants: the answer's tokens so far -> logits (vocab,).
        pass_s, token_s: what a pass takes, and each of its tokens beyond, by `clock`; the prompt's too.
        uneven: each pass takes up to this share longer.
    """

    bundle: ToyBundle
    wants: Callable[[tuple[int, ...]], np.ndarray]
    pass_s: float = 0.0
    token_s: float = 0.0
    uneven: float = 0.0
    clock: Clock = field(default_factory=Clock)
    n_images: int = 0
    n_prefills: int = 0
    passes: list[int] = field(default_factory=list)  # tokens of each
    number_rows: int = 0
    all_rows: int = 0

    def __post_init__(self) -> None:
        self._tokens: list[int] = []
        self._n_prompt = self._answer_at = self._rows = 0
        self._generator = np.random.default_rng(0)

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def room(self) -> int:
        return self.bundle.max_positions

    def encode_image(self, patches: np.ndarray) -> np.ndarray:
        assert patches.shape == (16, 1176)
        self.n_images += 1
        self._wait(0.0)
        return np.zeros((self.bundle.n_image_tokens, 8), np.float32)

    def prefill(self, ids: Sequence[int], image_embeds: np.ndarray) -> None:
        end = max(i for i, token in enumerate(ids) if token == self.bundle.tokenizer.token_to_id("<|im_start|>"))
        self._answer_at = end + len(self.bundle.tokenizer.encode("<|im_start|>assistant\n").ids)
        self._tokens, self._n_prompt, self._rows = list(ids), len(ids), 1
        self.n_prefills += 1
        self._wait(self.token_s * len(ids))

    def extend(self, tokens: Sequence[int]) -> None:
        assert tokens and len(self._tokens) + len(tokens) <= self.bundle.max_positions
        self._tokens += [int(token) for token in tokens]
        self._rows = len(tokens)
        self.passes.append(len(tokens))
        self._wait(self.token_s * (len(tokens) - 1))

    def truncate(self, length: int) -> None:
        assert self._n_prompt <= length <= len(self._tokens)
        self._rows = max(0, self._rows - (len(self._tokens) - length))
        del self._tokens[length:]

    def logits(self, last: int = 1) -> np.ndarray:
        self.all_rows += last
        return self._logits(last)

    def number_logits(self, last: int = 1) -> np.ndarray:
        self.number_rows += last
        return self._logits(last)[:, self.bundle.number_tokens]

    def _logits(self, last: int) -> np.ndarray:
        assert 1 <= last <= self._rows
        n = len(self._tokens)
        return np.stack([self.wants(tuple(self._tokens[self._answer_at : n - i])) for i in reversed(range(last))])

    def _wait(self, more_s: float) -> None:
        self.clock.now_s += (self.pass_s + more_s) * (1.0 + self.uneven * self._generator.random())


def writes(bundle: ToyBundle, text: str) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Wants to write the text, and then its last token for ever."""
    wanted = bundle.tokenizer.encode(text, add_special_tokens=False).ids

    def logits(written: tuple[int, ...]) -> np.ndarray:
        values = np.zeros(bundle.vocab, np.float32)
        values[wanted[min(len(written), len(wanted) - 1)]] = 9.0
        return values

    return logits


def babbles(bundle: ToyBundle, seed: int, script: str | None = None, faith: float = 0.0) -> Callable:
    """Wants whatever a generator of the last two tokens says, and what comes next in the script as far as `faith`."""
    table = np.random.default_rng(seed).normal(0, 2, (64, bundle.vocab)).astype(np.float32)
    wanted = [] if script is None else bundle.tokenizer.encode(script, add_special_tokens=False).ids

    def logits(written: tuple[int, ...]) -> np.ndarray:
        last, before = (*written, 0, 0)[:2] if len(written) < 2 else (written[-1], written[-2])
        values = table[(31 * last + 7 * before + len(written) // 16) % 64].copy()
        if len(written) < len(wanted):
            values[wanted[len(written)]] += faith
        return values

    return logits


def digit_tokenizer() -> str:
    """A byte-level tokenizer that spells numbers digit by digit, as Qwen's does."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    outputs = (contract.Affordance(0.41, 0.52, 0.1, 0.13), contract.Trajectory(((0.1, 0.2), (0.3, 0.4))))
    answers = [contract.format_answer(contract.Answer("I see the red cube.", output)) for output in outputs]
    prompts = [contract.render_chat(contract.prompt_text(task, "pick up the red cube")) for task in contract.TASKS]
    tokenizer.train_from_iterator([*prompts, *answers], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return str(tokenizer.to_str())
