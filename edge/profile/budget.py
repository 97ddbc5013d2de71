"""Does a decision keep within a budget of time; which stage breaks it, and what would help by how much?"""

from __future__ import annotations

import math
import re

import numpy as np

from drivers.errors import UserError
from edge.profile.run import Report

QUANTILE = 0.99
"""A budget is kept where 99 of 100 decisions keep it."""
_LEAST_SHARE = 0.1  # of the decision, for a stage to be worth a word
_LEAST_AREA = 0.25  # of the image: half its sides


def parse_budget(text: str) -> float:
    """ "500ms" or "0.5s" in milliseconds. Raises UserError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s)\s*", text)
    budget_ms = float(found[1]) * (1e3 if found[2] == "s" else 1.0) if found else 0.0
    if not 0.0 < budget_ms < math.inf:
        raise UserError(f"--budget {text}: expected a time such as 500ms or 0.5s")
    return budget_ms


def judge(report: Report, budget_ms: float) -> tuple[bool, list[str]]:
    """Whether the budget is kept, and what to say."""
    runs_ms = report["runs_ms"]
    # A decision that was measured, the first that as many are not above.
    place = int(np.argsort(runs_ms["decision"])[math.ceil(QUANTILE * len(runs_ms["decision"])) - 1])
    took = {name: float(ms[place]) for name, ms in runs_ms.items()}
    all_ms, over_ms = took.pop("decision"), runs_ms["decision"][place] - budget_ms
    if over_ms <= 0.0:
        return True, [f"budget of {budget_ms:g} ms kept: 99 of 100 decisions take at most {all_ms:.1f} ms"]
    stages = {name: ms for name, ms in took.items() if name != "rest"}
    gone_ms, breaks = 0.0, max(stages, key=lambda name: stages[name])
    for name, ms in stages.items():
        gone_ms += ms
        if gone_ms > budget_ms:
            breaks = name
            break
    largest = max(stages, key=lambda name: stages[name])
    lines = [
        f"budget of {budget_ms:g} ms broken: 99 of 100 decisions take at most {all_ms:.1f} ms, {over_ms:.1f} too many",
        f"it runs out in {breaks}, which takes {stages[breaks]:.1f} ms ({stages[breaks] / all_ms:.0%})",
    ]
    if largest != breaks:
        lines.append(f"most of it goes into {largest}: {stages[largest]:.1f} ms ({stages[largest] / all_ms:.0%})")
    advice = _thinking(report, stages, over_ms) + _image(report, stages, over_ms) + _weights(report, stages, all_ms)
    return False, lines + (advice or ["nothing of what is known to help would do much here: use a faster machine"])


def _thinking(report: Report, stages: dict[str, float], over_ms: float) -> list[str]:
    """Fewer tokens of reasoning: decoding's time goes by the tokens it writes."""
    tokens, decode_ms = report["tokens"], stages.get("decode", 0.0)
    thinking, token_ms = int(tokens["thinking"]), decode_ms / max(1.0, tokens["answer"])
    if not thinking or decode_ms < _LEAST_SHARE * sum(stages.values()):
        return []
    least = math.ceil(over_ms / token_ms)
    said = f"thinking budget: {thinking} of {tokens['answer']:g} tokens are reasoning, {token_ms:.2f} ms each; "
    if least >= thinking:
        saved_ms = thinking * token_ms
        return [
            f"{said}without any (--max-think-tokens 0) it would take about {saved_ms:.1f} ms less, not enough alone"
        ]
    return [f"{said}--max-think-tokens {thinking - least} would do, and the answers may be worse for it"]


def _image(report: Report, stages: dict[str, float], over_ms: float) -> list[str]:
    """Fewer pixels: vision and the prompt go by the image's tokens, whatever else is in them left out."""
    bundle, tokens = report["bundle"], report["tokens"]
    of_image = stages.get("vision", 0.0) + stages.get("prefill", 0.0) * min(1.0, tokens["image"] / tokens["prefilled"])
    if of_image < _LEAST_SHARE * sum(stages.values()):
        return []
    side = bundle["side_px"]
    area = max(1.0 - over_ms / of_image, _LEAST_AREA)
    sides = (bundle["width_px"], bundle["height_px"])
    width, height = (max(side, int(px * math.sqrt(area) / side) * side) for px in sides)
    saved_ms = of_image * (1.0 - width * height / (sides[0] * sides[1]))
    if saved_ms <= 0.0:
        return []
    enough = "would do" if saved_ms >= over_ms else "is not enough alone"
    return [
        f"image size: {sides[0]}x{sides[1]} px cost about {of_image:.1f} ms in vision and prefill; "
        f"`vlar1 export --image-size {width}x{height}` would take about {saved_ms:.1f} ms less, which {enough}; "
        "`vlar1 eval` says what it costs in accuracy"
    ]


def _weights(report: Report, stages: dict[str, float], all_ms: float) -> list[str]:
    """Smaller weights, where a step waits for them."""
    quantization = report["bundle"]["quantization"]
    smaller = {"fp32": ("int8", 4), "fp16": ("int4", 4), "int8": ("int4", 2)}.get(quantization)
    if smaller is None or stages.get("decode", 0.0) < _LEAST_SHARE * all_ms:
        return []
    read_mb, (name, times) = report["step_bytes"] / 1e6, smaller
    said = f"quantization: a step reads {read_mb:.0f} MB of {quantization}"
    cache = report["floor"]["cache_bytes"]
    if cache is not None and report["step_bytes"] < cache:
        return [f"{said}, which the processor's cache holds: `--quant {name}` is not sure to help, measure it"]
    return [f"{said}; `vlar1 export --quant {name}` makes it about {read_mb / times:.0f} MB"]
