"""Camera frame -> the pixel patches Qwen2.5-VL expects."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge import native

# Qwen2.5-VL's vision_config (patch_size, spatial_merge_size, temporal_patch_size).
PATCH_PX = 14
MERGE = 2
TEMPORAL = 2
SIDE_PX = PATCH_PX * MERGE
PATCH_VALUES = 3 * TEMPORAL * PATCH_PX * PATCH_PX
# Qwen2.5-VL's preprocessor_config.json; mean and standard deviation are OpenAI CLIP's, for RGB in [0, 1].
MIN_PIXELS = 56 * 56
MAX_PIXELS = 28 * 28 * 16384
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT_RATIO = 200


def smart_resize(
    height: int, width: int, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """The size (height, width) in pixels at which Qwen2.5-VL looks at an image of ``height`` x ``width``.

    Both sides become multiples of 28, as near the original as they can be while the area stays between
    ``min_pixels`` and ``max_pixels`` (the rule of Qwen2-VL's released image processor, ties to even included).
    Raises ValueError for sides below one pixel and for an aspect ratio above 200.
    """
    if min(height, width) < 1:
        raise ValueError(f"an image needs at least one pixel on each side, got {height} x {width}")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(f"the aspect ratio of {height} x {width} is above {MAX_ASPECT_RATIO}")
    rounded = (round(height / SIDE_PX) * SIDE_PX, round(width / SIDE_PX) * SIDE_PX)
    area = rounded[0] * rounded[1]
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        fit = (math.floor(height / shrink / SIDE_PX), math.floor(width / shrink / SIDE_PX))
        return max(1, fit[0]) * SIDE_PX, max(1, fit[1]) * SIDE_PX
    if area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * grow / SIDE_PX) * SIDE_PX, math.ceil(width * grow / SIDE_PX) * SIDE_PX
    return rounded


def preprocess(
    rgb: NDArray[np.uint8], width: int, height: int, order: Literal["rgb", "bgr"] = "rgb"
) -> NDArray[np.float32]:
    """The normalized patches of one image, resized to ``width`` x ``height`` pixels.

    Equal to Transformers' ``Qwen2VLImageProcessor`` on the same image and size: antialiased bicubic (Pillow's,
    8 bit), CLIP normalization, the frame repeated in time, patches ordered merge block by merge block.

    Args:
        rgb: (any, any, 3) uint8. Need not be contiguous.
        width, height: multiples of 28 (``smart_resize`` gives such).
        order: of the channels in ``rgb``; the patches are red first either way.

    Returns:
        (height / 14 * width / 14, 1176) float32.

    Raises:
        TypeError: ``rgb`` is not an array of uint8.
        ValueError: its shape is not (h, w, 3), it is empty, or the size or the order is not one of the above.
    """
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8:
        raise TypeError(f"an image is an array of uint8, got {getattr(rgb, 'dtype', type(rgb).__name__)}")
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"an image has the shape (height, width, 3), got {rgb.shape}")
    if order not in ("rgb", "bgr"):
        raise ValueError(f"order is 'rgb' or 'bgr', got {order!r}")
    return native.preprocess(np.ascontiguousarray(rgb), height, width, order == "bgr")
