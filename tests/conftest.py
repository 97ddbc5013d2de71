"""Fixtures shared by the rooms: a tiny random checkpoint with its tokenizer, and the bundle exported from it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


ALONE = (
    "test_benchmarks.py",
    *(f"edge/test_{name}" for name in ("console", "controller", "demo", "loop", "run")),
    "training/test_scenes",
)
"""Files that are real-time and busy: they have the machine to themselves."""

PAIRED = (
    "drivers/",
    *(
        f"edge/test_{name}"
        for name in ("arm_", "ask", "calibrate_check", "camera_command", "cli", "follower", "native")
    ),
    *(f"edge/test_{name}" for name in ("replay", "rerun", "serve", "stop_input")),
    "training/test_cot_resume",
)
"""Files with servo loops, devices, signals or servers in real time, which mostly wait: two run side by side."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(here).as_posix()
        for mark, files in (("alone", ALONE), ("paired", PAIRED)):
            if path.startswith(files):
                item.add_marker(mark)


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored, and whatever these start inherits that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _train_tokenizer(path: Path) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from edge import contract

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[01]\.\d\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    numbers = " ".join(f"{i / 100:.2f}" for i in range(101))
    answers = [
        contract.format_answer(contract.Answer("I see the red cube, the blue bowl and the green ball.", output))
        for output in (contract.Affordance(0.41, 0.52, 0.1, 0.13), contract.Trajectory(((0.1, 0.2), (0.3, 0.4))))
    ]
    prompts = [contract.render_chat(contract.prompt_text(task, "pick up the red cube")) for task in contract.TASKS]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([numbers, *prompts, *answers] * 8, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIAL])
    tokenizer.save(str(path))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` leaves it: a random Qwen2.5-VL of a few hundred thousand parameters."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("checkpoint")
    _train_tokenizer(folder / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in _SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": (len(tokenizer) + 15) // 16 * 16,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "tie_word_embeddings": True,
            "initializer_range": 0.15,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.1,
        },
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of `tiny_checkpoint`, at 224x168 px and 112x84 px."""
    from export import build, questions, verify

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "N_CASES", 3)
        patch.setattr(build, "N_TABLES", 3)
        patch.setattr(verify, "MAX_NEW_TOKENS", 40)
        build.export_bundle(tiny_checkpoint, out, "fp32", [(224, 168), (112, 84)], None)
    return out
