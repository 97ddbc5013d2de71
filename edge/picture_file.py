"""A picture to a file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError


def write_picture(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write (h, w, 3) RGB in the format that the name ends in. Raises UserError where it cannot be written."""
    try:
        written = cv2.imwrite(str(path), rgb[:, :, ::-1])
    except cv2.error:  # a format that OpenCV does not have
        written = False
    if not written:
        raise UserError(f"{path}: cannot be written; is the disk full, the folder not yours, or the name no .png?")
