"""The tokenizer is one of Qwen2.5-VL's; its number tokens are all that may come inside numbers, and little else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import llguidance
import llguidance.hf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from drivers.errors import UserError
from edge import contract
from edge.engine.bundle import TOKENIZER, load_bundle
from export.plan import plan_export
from export.tokens import number_tokens


def _without(token: str):
    def damage(folder: Path) -> None:
        for path in folder.glob("*token*.json"):
            path.write_text(path.read_text(encoding="utf-8").replace(token, "<|else|>"), encoding="utf-8")

    return damage


def _image_token(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_token_id": 1}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / TOKENIZER).write_text("{"), "cannot load it"),
        (_without("<|image_pad|>"), r"lacks the token <\|image_pad\|>"),
        (_without("<|im_end|>"), r"lacks the token <\|im_end\|>"),
        (_image_token, "image_token_id is not that of"),
    ],
)
def test_a_tokenizer_of_another_model_is_one_line(tiny_checkpoint: Path, tmp_path: Path, damage, says: str) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    damage(checkpoint)
    with pytest.raises(UserError, match=says) as raised:
        plan_export(checkpoint, "fp32", [(56, 56)], "onnx")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("task", contract.TASKS)
def test_number_tokens_are_all_that_may_come_inside_numbers(tiny_bundle: Path, task: contract.Task) -> None:
    """Any answer's text, cut anywhere after its first digit: the grammar lets no token come that is not one of them."""
    bundle = load_bundle(tiny_bundle)
    tokenizer = llguidance.hf.from_tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=bundle.tokenizer), n_vocab=bundle.vocab, eos_token=bundle.end_token
    )
    numbers = set(bundle.number_tokens.tolist())

    @settings(max_examples=60, deadline=None)
    @given(values=st.lists(st.integers(1, 100), min_size=4, max_size=8), cut=st.floats(0, 1))
    def check(values: list[int], cut: float) -> None:
        parts = [value / 100 for value in values]
        points = tuple(zip(parts[::2], parts[1::2], strict=False))
        output = contract.Affordance(*parts[:4]) if task == "affordance" else contract.Trajectory(points)
        text = contract.format_answer(contract.Answer("so", output))
        first = text.index("0." if "0." in text else "1.") + 1
        ids = bundle.tokenizer.encode(text, add_special_tokens=False).ids
        matcher = llguidance.LLMatcher(tokenizer, llguidance.grammar_from("lark", contract.grammar(task)))
        end, seen = 0, 0
        places = [i for i in range(len(ids)) if len(bundle.tokenizer.decode(ids[: i + 1])) > first]
        last = places[int(cut * (len(places) - 1))]
        for i, token in enumerate(ids[: last + 1]):
            if i in places and i > places[0]:
                mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
                assert set(np.flatnonzero(mask).tolist()) <= numbers | {bundle.end_token}
                seen += 1
            assert matcher.consume_token(token)
            end = i
        assert end == last and seen == max(0, last - places[0])

    check()
    assert len(numbers) < bundle.vocab / 2 or len(numbers) < 300


def test_number_tokens_hold_no_other_text(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    tokenizer = Tokenizer.from_str(bundle.tokenizer_json)
    words = {tokenizer.decode([i], skip_special_tokens=False) for i in bundle.number_tokens.tolist()}
    assert {"0", "9", ".", ",", "]", "}", " "} <= words
    assert not words & {"a", "x", "{", "the", "red", "<think>", "<|im_end|>", ""}
    assert number_tokens(tokenizer, bundle.vocab) == bundle.number_tokens.tolist()
    assert max(number_tokens(tokenizer, 100)) < 100
