"""What is going to be asked: the images, and an estimate of what that takes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drivers.errors import UserError
from edge.preprocess import SIDE_PX, smart_resize
from training.data.cot_question import question
from training.data.sharegpt import Item

CHARACTERS_A_TOKEN = 4  # English under Qwen's tokenizer, roughly
ANSWER_TOKENS = 250  # assumed: three to six sentences and the output
SENT_AS_IS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True)
class Job:
    """One item to ask about: its index in the input, its name in the journal, where its image is and how large."""

    index: int
    key: str
    item: Item
    image: Path
    size_px: tuple[int, int]

    def image_url(self) -> str:
        """The image as a data URL. Raises UserError where it cannot be read any more."""
        from PIL import Image

        try:
            raw = self.image.read_bytes()
            with Image.open(io.BytesIO(raw)) as image:
                kind = image.format or ""
                if kind not in SENT_AS_IS:
                    buffer = io.BytesIO()
                    image.convert("RGB").save(buffer, "PNG")
                    raw, kind = buffer.getvalue(), "PNG"
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{self.image}: cannot be read ({error}); expected an image") from None
        return f"data:{Image.MIME[kind]};base64,{base64.b64encode(raw).decode('ascii')}"


def estimate(jobs: Sequence[Job], attempts: int, prices: tuple[float, float] | None) -> list[str]:
    """What asking about `jobs` will take, in lines: if each first answer is right, and if every attempt is needed.

    Image tokens are Qwen2.5-VL's: one for 28 x 28 pixels of the image as it is resized.
    """
    read = 0
    for job in jobs:
        text = question(job.item, "", job.size_px, show_label=False)[0]["content"][-1]["text"]
        height, width = smart_resize(job.size_px[1], job.size_px[0])
        read += len(text) // CHARACTERS_A_TOKEN + (height // SIDE_PX) * (width // SIDE_PX)
    lines = [f"{len(jobs)} items to ask about (estimate; an answer is taken for {ANSWER_TOKENS} tokens)"]
    for name, times in (("at least", 1), ("at most", attempts)):
        tokens = (read * times, len(jobs) * ANSWER_TOKENS * times)
        line = f"  {name} {len(jobs) * times} requests, {tokens[0]:,} tokens in, {tokens[1]:,} tokens out"
        if prices is not None:
            line += f", ${(tokens[0] * prices[0] + tokens[1] * prices[1]) / 1e6:,.2f}"
        lines.append(line)
    return lines


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels, from the file's header. Raises UserError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            smart_resize(image.height, image.width)  # a shape that Qwen cannot look at is said now
            return image.size
    except UnidentifiedImageError:
        raise UserError(f"{path}: is no image") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected an image") from None
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: {error}") from None
