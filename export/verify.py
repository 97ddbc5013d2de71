"""Does a bundle say what its checkpoint says? The bundle answers real inputs; Transformers must have said the same.

The bundle writes each answer greedily. Then Transformers reads prompt and answer, once, in fp32: after every token,
what would it have written next? Where it agrees all along, its own greedy answer is the same. So a model is verified
whose generation in Transformers would take hours (`export.reference`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from edge import contract
from edge.engine.bundle import Bundle, ImageSize
from edge.engine.onnx import OnnxEngine
from edge.engine.tensorrt.engine import TensorRTEngine
from edge.preprocess import preprocess
from export import tasks
from export.cpu_device import CpuDevice
from export.layers import Layers
from export.quantize import Quantization
from export.questions import Question
from export.reference import Text

MAX_NEW_TOKENS = 200
# fp32 rounding through a few dozen layers, relative to the largest logit. Two summation orders differ by about 1e-5.
FP32_LOGITS_RELATIVE = 1e-3
# Least mean cosine of the logits, and least share of greedy tokens that are the same.
LEAST: dict[Quantization, tuple[float, float]] = {"fp16": (0.999, 0.97), "int8": (0.99, 0.90), "int4": (0.95, 0.80)}


@dataclass(frozen=True)
class Agreement:
    """How a bundle's logits compare with those of Transformers in fp32.

    Attributes:
        cases, tokens: answers compared and tokens in them.
        logits_max_abs_diff, logits_max_abs: largest difference of a logit, and largest reference logit.
        logits_cosine_mean, logits_cosine_min: cosine of the logit vectors, over all tokens.
        greedy_agreement: share of the bundle's tokens that Transformers, given the same text so far, would have
            written.
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


@dataclass(frozen=True)
class Verification:
    """All that was found out about a bundle.

    Attributes:
        agreement: of its graphs for ONNX Runtime.
        layers: where precision goes, for one prompt.
        tasks: how good its answers are; None where nobody knows the right ones.
        tensorrt: of its graphs for TensorRT, run on ONNX Runtime; None where there are none, or they were not run.
    """

    agreement: Agreement
    layers: Layers
    tasks: tasks.Tasks | None
    tensorrt: Agreement | None

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        named = asdict(self.agreement)
        named["layers"] = {**asdict(self.layers), "first_below": self.layers.first_below}
        named["tasks"] = None if self.tasks is None else {**asdict(self.tasks), "bound": self.tasks.bound}
        named["tensorrt"] = None if self.tensorrt is None else asdict(self.tensorrt)
        return named


@dataclass(frozen=True)
class Case(Text):
    """A text whose answer is the bundle's, and the bundle's logits (n, vocab) before each token of it, in a file."""

    logits: NDArray[np.float32]


def bundle_cases(bundle: Bundle, questions: Sequence[Question], work: Path, progress: Callable[[], None]) -> list[Case]:
    """The bundle's greedy answers, the questions in turn at each of its image sizes.

    Args:
        bundle: as the robot will load it.
        questions: at least one for each image size.
        work: folder for the logits.
        progress: called after each answer.
    """
    sizes = [bundle.images[i % len(bundle.images)] for i in range(len(questions))]
    prompts = [_prompt(bundle, question, size) for question, size in zip(questions, sizes, strict=True)]
    engine = OnnxEngine(bundle, room=max(map(len, prompts)) + MAX_NEW_TOKENS)
    cases = []
    for i, (question, size, ids) in enumerate(zip(questions, sizes, prompts, strict=True)):
        patches = preprocess(question.image, size.width_px, size.height_px)
        engine.prefill(ids, engine.encode_image(patches))
        tokens: list[int] = []
        logits: list[NDArray[np.float32]] = []
        while not tokens or (tokens[-1] != bundle.end_token and len(tokens) < MAX_NEW_TOKENS):
            if tokens:
                engine.extend(tokens[-1:])
            logits.append(engine.logits()[0].copy())
            tokens.append(int(logits[-1].argmax()))
        cases.append(Case(size, ids, patches, tokens, _on_disk(work / f"logits-{i}.npy", np.stack(logits))))
        progress()
    return cases


def tensorrt_cases(bundle: Bundle, cases: Sequence[Case], work: Path, progress: Callable[[], None]) -> list[Case]:
    """The same texts with the logits of the bundle's graphs for TensorRT, run on ONNX Runtime.

    Args:
        bundle: with graphs for TensorRT.
        cases: of `bundle_cases`.
        work: folder for the logits.
        progress: called after each text.
    """
    engine, found = TensorRTEngine(bundle, CpuDevice(bundle)), []
    for i, case in enumerate(cases):
        engine.prefill(case.ids, engine.encode_image(case.patches))
        logits = [engine.logits()]
        if len(case.tokens) > 1:
            engine.extend(case.tokens[:-1])
            logits.append(engine.logits(len(case.tokens) - 1))
        found.append(replace(case, logits=_on_disk(work / f"logits-tensorrt-{i}.npy", np.concatenate(logits))))
        progress()
    return found


def _on_disk(path: Path, array: NDArray[np.float32]) -> NDArray[np.float32]:
    np.save(path, array)
    mapped: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return mapped


def _prompt(bundle: Bundle, question: Question, size: ImageSize) -> list[int]:
    rows, cols = bundle.grid_of(size)
    text = contract.render_chat(contract.prompt_text(question.task, question.instruction), rows * cols)
    ids: list[int] = bundle.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def compare(cases: Sequence[Case], references: Sequence[NDArray[np.float32]], quantization: Quantization) -> Agreement:
    """The figures of the bundle's logits beside the reference's."""
    diffs, largest, cosines, agreed = [0.0], [0.0], [], []
    first: list[int | None] = []
    for case, reference in zip(cases, references, strict=True):
        same = [bool(same) for same in reference.argmax(axis=1) == case.logits.argmax(axis=1)]
        for got, expected in zip(case.logits, reference, strict=True):
            diffs.append(float(np.abs(got - expected).max()))
            largest.append(float(np.abs(expected).max()))
            cosines.append(float(got @ expected) / max(float(np.linalg.norm(got) * np.linalg.norm(expected)), 1e-12))
        agreed += same
        first.append(None if all(same) else same.index(False))
    return Agreement(
        cases=len(cases),
        tokens=len(agreed),
        logits_max_abs_diff=max(diffs),
        logits_max_abs=max(largest),
        logits_cosine_mean=float(np.mean(cosines)),
        logits_cosine_min=float(np.min(cosines)),
        greedy_agreement=float(np.mean(agreed)),
        first_difference=first,
        bound=_bound(quantization),
    )


def _bound(quantization: Quantization) -> str:
    if quantization == "fp32":
        return f"logits within {FP32_LOGITS_RELATIVE:g} of the largest logit, and every greedy token the same"
    cosine, agreement = LEAST[quantization]
    return f"mean logits cosine at least {cosine}, at least {agreement:.0%} of greedy tokens the same"


def require(result: Verification, quantization: Quantization) -> None:
    """Raise UserError, with the figures, unless `result` is within the bounds for `quantization`."""
    lost = _where_lost(result.layers)
    for graphs, found in (("", result.agreement), (" for TensorRT", result.tensorrt)):
        if found is not None and not _good(found, quantization):
            raise UserError(
                f"export: the {quantization} bundle{graphs} does not agree with Transformers: logits differ by up to "
                f"{found.logits_max_abs_diff:.3g} (largest {found.logits_max_abs:.3g}), mean cosine "
                f"{found.logits_cosine_mean:.4f}, {found.greedy_agreement:.1%} of greedy tokens the same, first "
                f"differing tokens {found.first_difference}; {lost}; asked for: {found.bound}. No bundle was written"
            )
    if result.tasks is not None and result.tasks.before is not None and not result.tasks.good:
        before, after = result.tasks.before, result.tasks.after
        raise UserError(
            f"export: the {quantization} bundle answers worse than the checkpoint: mean IoU of {after.boxes} boxes "
            f"{_figure(before.iou)} before, {_figure(after.iou)} after; mean distance of {after.paths} paths "
            f"{_figure(before.distance)} before, {_figure(after.distance)} after; {lost}; asked for: "
            f"{result.tasks.bound}. No bundle was written"
        )


def _where_lost(layers: Layers) -> str:
    where = layers.first_below
    if where is None:
        return f"hidden states of no layer fall below cosine {layers.least:g}"
    return f"hidden states fall below cosine {layers.least:g} first at {where} ({layers.cosines[where]:.4f})"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _good(found: Agreement, quantization: Quantization) -> bool:
    if quantization == "fp32":
        within = FP32_LOGITS_RELATIVE * max(found.logits_max_abs, 1.0)
        return found.logits_max_abs_diff <= within and found.greedy_agreement == 1.0
    cosine, agreement = LEAST[quantization]
    return found.logits_cosine_mean >= cosine and found.greedy_agreement >= agreement
