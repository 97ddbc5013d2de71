"""The shipped small model: Qwen2.5-VL's own architecture with a tiny configuration."""

from __future__ import annotations

from functools import partial

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from training.small.tokenizer import token_id

# M-RoPE gives the fastest rotary pairs to time, the next to rows, the slowest to columns. On a grid of 6x8 image
# tokens, rows and columns need fast ones (0.75 to 0.32 and 0.24 rad a step here), and text needs slow ones (down to
# 0.0001 rad): without them a word of the instruction is found again only at the distances of training.
ROPE_THETA = 10_000.0
MROPE_SECTION = [1, 4, 27]


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """About 7 M parameters: vision 5 blocks of 192, language 5 layers of 256."""

    token = partial(token_id, tokenizer)

    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_theta": ROPE_THETA,
            "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": MROPE_SECTION},
            "tie_word_embeddings": True,
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 5,
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_heads": 3,
            "out_hidden_size": 256,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3, 4],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model, the same for the same seed."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(tiny_config(tokenizer))
    text = model.config.text_config
    model.generation_config = GenerationConfig(eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id)
    return model
