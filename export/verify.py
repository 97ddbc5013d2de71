"""Does a bundle say what its checkpoint says? Transformers answers real inputs; the bundle must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drivers.errors import UserError
from edge import contract
from edge.engine.bundle import Bundle
from edge.engine.onnx import OnnxEngine
from edge.preprocess import preprocess
from export.graphs import Quantization

INSTRUCTIONS = ("pick up the red cube", "put the green ball in the blue bowl")
MAX_NEW_TOKENS = 200
# fp32 rounding through a few dozen layers, relative to the largest logit. Two summation orders differ by about 1e-5.
FP32_LOGITS_RELATIVE = 1e-3
INT8_COSINE_MEAN = 0.99
INT8_AGREEMENT = 0.90


@dataclass(frozen=True)
class Verification:
    """How a bundle compares with Transformers in fp32.

    Attributes:
        cases, tokens: answers compared and tokens in them.
        logits_max_abs_diff, logits_max_abs: largest difference of a logit, and largest reference logit.
        logits_cosine_mean, logits_cosine_min: cosine of the logit vectors, over all tokens.
        greedy_agreement: share of tokens at which the bundle, given the same text so far, would have written the same.
        first_difference: place of the first token that differs, for each answer; None where none does. No difference
            means the same greedy answer.
        bound: what was asked of these figures.
    """

    cases: int
    tokens: int
    logits_max_abs_diff: float
    logits_max_abs: float
    logits_cosine_mean: float
    logits_cosine_min: float
    greedy_agreement: float
    first_difference: list[int | None]
    bound: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Question:
    """What both are asked: one image, (h, w, 3) uint8 RGB, and what to say of it."""

    image: NDArray[np.uint8]
    task: contract.Task
    instruction: str


@dataclass(frozen=True)
class Case:
    """One input and what Transformers makes of it: ``tokens`` (n,) greedily, ``logits`` (n, vocab) before each."""

    ids: list[int]
    patches: NDArray[np.float32]
    tokens: list[int]
    logits: NDArray[np.float32]


def ask(i: int, image: NDArray[np.uint8]) -> Question:
    """The `i`-th question, about an image of which nothing is known: tasks and instructions in turn."""
    return Question(image, contract.TASKS[i % 2], INSTRUCTIONS[i // 2 % 2])


def reference_cases(
    model: Any, bundle: Bundle, questions: Sequence[Question], progress: Callable[[], None]
) -> list[Case]:
    """Transformers' greedy answers, fp32, to each question."""
    rows, cols = bundle.grid
    grid_thw = torch.tensor([[1, rows * bundle.merge, cols * bundle.merge]])
    cases = []
    for question in questions:
        text = contract.prompt_text(question.task, question.instruction)
        ids = bundle.tokenizer.encode(contract.render_chat(text, bundle.n_image_tokens), add_special_tokens=False).ids
        patches = preprocess(question.image, bundle.width_px, bundle.height_px)
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values=torch.from_numpy(patches),
                image_grid_thw=grid_thw,
                do_sample=False,
                repetition_penalty=1.0,
                max_new_tokens=MAX_NEW_TOKENS,
                eos_token_id=bundle.end_token,
                pad_token_id=bundle.end_token,
                output_logits=True,
                return_dict_in_generate=True,
            )
        logits = torch.cat(out.logits).float().numpy()
        cases.append(Case(ids, patches, out.sequences[0, len(ids) :].tolist(), logits))
        progress()
    return cases


def compare(bundle: Bundle, cases: Sequence[Case], progress: Callable[[], None]) -> Verification:
    """Run the bundle, as the robot will, along the reference answers."""
    engine = OnnxEngine(bundle)
    diffs, cosines, agreed, first = [0.0], [], [], []
    for case in cases:
        logits = engine.prefill(case.ids, engine.encode_image(case.patches))
        same = []
        for token, reference in zip(case.tokens, case.logits, strict=True):
            diffs.append(float(np.abs(logits - reference).max()))
            norm = float(np.linalg.norm(logits) * np.linalg.norm(reference))
            cosines.append(float(logits @ reference) / max(norm, 1e-12))
            same.append(int(logits.argmax()) == token)
            logits = engine.step(token)
        agreed += same
        first.append(None if all(same) else same.index(False))
        progress()
    quantization: Quantization = "fp32" if bundle.quantization == "fp32" else "int8"
    return Verification(
        cases=len(cases),
        tokens=len(agreed),
        logits_max_abs_diff=max(diffs),
        logits_max_abs=max(float(np.abs(case.logits).max()) for case in cases),
        logits_cosine_mean=float(np.mean(cosines)),
        logits_cosine_min=float(np.min(cosines)),
        greedy_agreement=float(np.mean(agreed)),
        first_difference=first,
        bound=_bound(quantization),
    )


def _bound(quantization: Quantization) -> str:
    if quantization == "fp32":
        return f"logits within {FP32_LOGITS_RELATIVE:g} of the largest logit, and every greedy token the same"
    return f"mean logits cosine at least {INT8_COSINE_MEAN}, at least {INT8_AGREEMENT:.0%} of greedy tokens the same"


def require(result: Verification, quantization: Quantization) -> None:
    """Raise UserError, with the figures, unless `result` is within the bound for `quantization`."""
    if quantization == "fp32":
        good = (
            result.logits_max_abs_diff <= FP32_LOGITS_RELATIVE * max(result.logits_max_abs, 1.0)
            and result.greedy_agreement == 1.0
        )
    else:
        good = result.logits_cosine_mean >= INT8_COSINE_MEAN and result.greedy_agreement >= INT8_AGREEMENT
    if not good:
        raise UserError(
            f"export: the {quantization} bundle does not agree with Transformers: logits differ by up to "
            f"{result.logits_max_abs_diff:.3g} (largest {result.logits_max_abs:.3g}), mean cosine "
            f"{result.logits_cosine_mean:.4f}, {result.greedy_agreement:.1%} of greedy tokens the same, first "
            f"differing tokens {result.first_difference}; asked for: {result.bound}. No bundle was written"
        )
