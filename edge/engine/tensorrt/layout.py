"""What the exporter, the builder and the engine agree on: file names, and the sizes that engines are built for."""

from __future__ import annotations

FOLDER = "tensorrt"
LANGUAGE, HEAD, HEAD_NUMBERS = "language.onnx", "head.onnx", "head_numbers.onnx"  # and ImageSize.vision
# Tokens in one step: one at a time, or a block of drafts padded to so many. Longer passes are prefills.
STEP_BLOCK = 8
# Tokens in one pass of a prefill; longer prompts take several, so that what a pass needs in memory is bounded.
PREFILL_BLOCK = 512
# The language engine's optimization profiles.
PREFILL_PROFILE, STEP_PROFILE = 0, 1
# Rows of the head in one pass.
HEAD_ROWS = 32
# Prompt and answer of a decision, apart from the image.
_TEXT_TOKENS = 1024
_ROUND = 128


def cache_room(n_image_tokens: int, max_positions: int) -> int:
    """Tokens the key-value cache holds: the largest image, and text."""
    return min(-(-(n_image_tokens + _TEXT_TOKENS) // _ROUND) * _ROUND, max_positions)
