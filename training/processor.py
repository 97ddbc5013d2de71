"""Chat and images -> tensors for Transformers' Qwen2.5-VL, on any machine and with the very pixels of the robot.

Transformers' own `Qwen2_5_VLProcessor` needs torchvision for its video half, which this project never uses, and its
slow image processor takes 3 ms an image; `edge.preprocess` gives the same patches in a tenth of that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin, Qwen2VLImageProcessor

from drivers.errors import UserError
from edge.contract import IMAGE_PAD
from edge.preprocess import IMAGE_MEAN, IMAGE_STD, MERGE, PATCH_PX, TEMPORAL, preprocess, smart_resize
from training.small.tokenizer import CHAT_TEMPLATE

IMAGE_FILE = "preprocessor_config.json"


class PatchImageProcessor(Qwen2VLImageProcessor):
    """Qwen2-VL's image processor with its arithmetic done by `edge.preprocess`."""

    def preprocess(self, images: Any, return_tensors: str | None = None, **_: Any) -> BatchFeature:  # type: ignore[override]
        """``pixel_values`` (patches of all images, 1176) float32 and ``image_grid_thw`` (images, 3), in patches."""
        patches, grids = [], []
        for image in _flat(images):
            rows, columns = image.shape[:2]
            height, width = smart_resize(rows, columns, self.min_pixels, self.max_pixels)
            patches.append(preprocess(image, width, height))
            grids.append((1, height // PATCH_PX, width // PATCH_PX))
        data = {"pixel_values": np.concatenate(patches), "image_grid_thw": np.array(grids)}
        return BatchFeature(data, tensor_type=return_tensors)


class ImageTextProcessor(ProcessorMixin):
    """What TRL and Transformers ask of a processor, for text and still images."""

    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "Qwen2VLImageProcessor"
    tokenizer_class = "AutoTokenizer"  # type: ignore[assignment]

    image_processor: PatchImageProcessor
    tokenizer: PreTrainedTokenizerBase
    chat_template: str

    def __init__(self, image_processor: PatchImageProcessor, tokenizer: PreTrainedTokenizerBase, chat_template: str):
        self.image_token = IMAGE_PAD
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: None = None,
        audio: None = None,
        return_tensors: str | None = None,
        **tokenizer_options: Any,
    ) -> BatchFeature:
        """Tokens of ``text`` and patches of ``images`` (nested as one likes; in the order of their placeholders).

        Each image placeholder in the text is repeated as often as its image has tokens.

        Raises:
            ValueError: more or fewer placeholders than images, or neither is given.
        """
        if images is None and text is None:
            raise ValueError("give text, images or both")
        data: dict[str, Any] = {}
        if images is not None:
            data |= self.image_processor(images, return_tensors="np")
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if images is not None:
                tokens = data["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2
                texts = _repeat_placeholders(texts, tokens.tolist())
            tokenizer_options.pop("return_mm_token_type_ids", None)
            data |= self.tokenizer(texts, **tokenizer_options)
        return BatchFeature(data, tensor_type=return_tensors)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:  # type: ignore[override]
        """The tokenizer with its chat template, and the image settings: what `load_processor` and Transformers read."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.chat_template = self.chat_template
        if backend := getattr(self.tokenizer, "backend_tokenizer", None):
            backend.no_padding()  # the last batch's; it would be written to tokenizer.json
        self.tokenizer.save_pretrained(folder)
        image = self.image_processor
        settings = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": image.min_pixels,
            "max_pixels": image.max_pixels,
            "patch_size": image.patch_size,
            "temporal_patch_size": image.temporal_patch_size,
            "merge_size": image.merge_size,
        }
        (folder / IMAGE_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def load_processor(folder: Path) -> ImageTextProcessor:
    """The processor of a Qwen2.5-VL checkpoint folder.

    Raises:
        UserError: the folder lacks a tokenizer or an image processor, or they are not Qwen2.5-VL's.
    """
    where = folder / IMAGE_FILE
    if not where.is_file():
        raise UserError(f"checkpoint {folder}: lacks {IMAGE_FILE}; expected a folder as Transformers saves it")
    try:
        settings = json.loads(where.read_text())
        size = settings.get("size") or {}  # how newer releases write the two limits
        limits = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
        image_processor = PatchImageProcessor(**limits | {k: v for k, v in settings.items() if v is not None})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: is no image processor's settings ({error})") from None
    expected: dict[str, Any] = {
        "patch_size": PATCH_PX,
        "temporal_patch_size": TEMPORAL,
        "merge_size": MERGE,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
    }
    for name, value in expected.items():
        if not np.allclose(getattr(image_processor, name), value):
            raise UserError(f"{where}: {name} is {getattr(image_processor, name)}, Qwen2.5-VL has {value}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # Transformers raises anything at all over a damaged tokenizer
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"checkpoint {folder}: its tokenizer cannot be loaded: {reason}") from None
    if tokenizer.convert_tokens_to_ids(IMAGE_PAD) in (None, tokenizer.unk_token_id):
        raise UserError(f"checkpoint {folder}: its tokenizer has no {IMAGE_PAD}; expected Qwen2.5-VL's")
    return ImageTextProcessor(image_processor, tokenizer, tokenizer.chat_template or CHAT_TEMPLATE)


def _flat(images: Any) -> list[NDArray[np.uint8]]:
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flat(part)]
    if isinstance(images, Image):
        images = images.convert("RGB")
    return [np.asarray(images)]


def _repeat_placeholders(texts: list[str], tokens: list[int]) -> list[str]:
    if (n := sum(text.count(IMAGE_PAD) for text in texts)) != len(tokens):
        raise ValueError(f"{n} image placeholders for {len(tokens)} images")
    counts = iter(tokens)
    out = []
    for text in texts:
        head, *tails = text.split(IMAGE_PAD)
        out.append(head + "".join(IMAGE_PAD * next(counts) + tail for tail in tails))
    return out
