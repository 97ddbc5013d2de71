"""An image from outside to pixels: its size is read from its header and judged before anything is decoded."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError

MAX_PIXELS = 4096 * 4096
_MAX_SCANS = 100  # of a progressive JPEG, each of which goes over all pixels; encoders write about ten

_PNG = b"\x89PNG\r\n\x1a\n"
# Of a JPEG (ITU-T T.81, table B.1): frames, and markers that no length follows.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_SCAN, _END = 0xDA, 0xD9


def check_image(content: bytes) -> None:
    """Raises UserError where `content` is no PNG or JPEG file by its header, or has too many pixels."""
    size = _png_size(content) or _jpeg_size(content)
    if size is None or min(size) < 1:
        raise UserError("image: is not a PNG or JPEG file")
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"image: has {size[0]} x {size[1]} pixels, expected at most {MAX_PIXELS}; make it smaller")
    if content.count(b"\xff\xda") > _MAX_SCANS and not content.startswith(_PNG):
        raise UserError(f"image: is a JPEG file with more than {_MAX_SCANS} scans; save it anew")


def decode_image(content: bytes) -> NDArray[np.uint8]:
    """A PNG or JPEG file as (h, w, 3) RGB, upright by its Exif tag; raises UserError as `check_image`, or if broken."""
    check_image(content)
    try:
        bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        bgr = None
    if bgr is None:
        raise UserError("image: is a damaged PNG or JPEG file; it cannot be decoded")
    return np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8)


def _png_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels by the first chunk (ISO/IEC 15948, 11.2.2)."""
    if not content.startswith(_PNG) or content[12:16] != b"IHDR" or len(content) < 24:
        return None
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels by the frame header; what lies between segments is skipped, as decoders do."""
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    place = 2
    while (place := content.find(b"\xff", place)) >= 0:
        while content[place : place + 1] == b"\xff":
            place += 1
        segment = content[place : place + 8]
        if len(segment) < 8 or segment[0] in (_SCAN, _END):
            return None
        if segment[0] in _FRAMES:
            return int.from_bytes(segment[6:8], "big"), int.from_bytes(segment[4:6], "big")
        place += 1
        if segment[0] not in _BARE:
            place += int.from_bytes(segment[1:3], "big")
    return None
