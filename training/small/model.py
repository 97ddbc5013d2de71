"""The shipped small model: Qwen2.5-VL's own architecture with a tiny configuration."""

from __future__ import annotations

from functools import partial

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from training.small.tokenizer import token_id

# Rows and columns of an image sit in the slow end of the rotary frequencies. On a grid of 6x8 tokens the usual 10,000
# turns a step of one column by at most 0.003 rad, which can hardly be told from none; 10 turns it by up to 0.27 rad.
ROPE_THETA = 10.0


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
            "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [4, 14, 14]},
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
