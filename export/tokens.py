"""The checkpoint's tokenizer as the robot needs it, and which of its tokens numbers are written with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from drivers.errors import UserError
from edge import contract
from export.shards import CONFIG, TOKENIZER, not_loaded

SPECIAL_TOKENS = (
    contract.IMAGE_PAD,
    contract.IM_START,
    contract.IM_END,
    contract.VISION_START,
    contract.VISION_END,
)


def tokenizer_json(checkpoint: Path, config: Any) -> str:
    """The tokenizer with the tokens that Transformers adds to tokenizer.json, without padding or truncation.

    Raises:
        UserError: it cannot be read, or lacks a token of the chat template.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        backend = PreTrainedTokenizerFast.from_pretrained(checkpoint).backend_tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        raise not_loaded(checkpoint, error) from None
    where = checkpoint / TOKENIZER
    for token in SPECIAL_TOKENS:
        token_id = backend.token_to_id(token)
        if token_id is None or token_id >= config.text_config.vocab_size:
            raise UserError(f"checkpoint {where}: lacks the token {token}; expected Qwen2.5-VL's tokenizer")
    if backend.token_to_id(contract.IMAGE_PAD) != config.image_token_id:
        raise UserError(f"checkpoint {checkpoint / CONFIG}: image_token_id is not that of {contract.IMAGE_PAD}")
    backend.no_padding()
    backend.no_truncation()
    text: str = backend.to_str()
    return text


def number_tokens(tokenizer: Tokenizer, vocab: int) -> list[int]:
    """Ascending ids of the tokens that may come from inside an answer's first number on.

    These are the tokens whose text is part of what follows there: of numbers, what stands between them and the end of
    the output, whatever the digits. Where a grammar allows no others, theirs are the only rows of the head needed.
    """
    zeros = (contract.Affordance(0, 0, 0, 0), contract.Trajectory(((0, 0), (0, 0))))
    ends = [contract.format_answer(contract.Answer("", output)) for output in zeros]
    texts = [end[end.index("0.00") :].replace("0.00", f"0.{'0' * 4}"[: 1 + n]) for end in ends for n in (0, 2, 3, 4, 5)]
    digits = str.maketrans("123456789", "0" * 9)
    ids = range(min(vocab, tokenizer.get_vocab_size()))
    words = tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False)
    return [i for i, word in zip(ids, words, strict=True) if word and any(word.translate(digits) in t for t in texts)]
