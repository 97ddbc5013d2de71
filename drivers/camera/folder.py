"""A folder of pictures in place of a camera."""

from __future__ import annotations

import re
import time
from pathlib import Path

import cv2
import numpy as np

from drivers.errors import DeviceError
from drivers.protocols import Frame, Intrinsics

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class FolderCamera:
    """The Camera protocol over a folder: its pictures in the order of their names, one a call, stamped with its time.

    Args:
        path: of the folder.
        intrinsics: of the camera that took them; every picture must have their size. None: nominal ones.

    Raises:
        DeviceError: it holds no picture.
    """

    def __init__(self, path: Path, intrinsics: Intrinsics | None = None) -> None:
        self.serial = f"folder:{path}"
        found = sorted((file for file in path.iterdir() if file.suffix.lower() in SUFFIXES), key=_by_number)
        if not found:
            raise DeviceError(f"camera {path}: the folder holds no pictures; expected {', '.join(SUFFIXES)}")
        self._path, self._left = path, found[::-1]
        if intrinsics is None:
            height, width = self._picture(found[0]).shape[:2]
            intrinsics = Intrinsics.assumed(width, height)
        self.intrinsics: Intrinsics = intrinsics

    def read(self) -> Frame:
        """The next picture. Raises DeviceError after the last, and for one that is damaged or of another size."""
        if not self._left:
            raise DeviceError(f"camera {self._path}: has no more frames")
        file, t_s = self._left.pop(), time.monotonic()
        bgr = self._picture(file)
        height, width = bgr.shape[:2]
        expected = self.intrinsics
        if (width, height) != (expected.width, expected.height):
            raise DeviceError(
                f"camera {file}: has {width}x{height} px, its calibration expects {expected.width}x{expected.height}"
            )
        return Frame(np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8), None, t_s, expected, self.serial)

    def close(self) -> None:
        """No more pictures come. May be called twice."""
        self._left = []

    def _picture(self, file: Path) -> np.ndarray:
        bgr = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if bgr is None:
            raise DeviceError(f"camera {file}: is not a picture that OpenCV reads; take it out of the folder")
        return bgr


def _by_number(file: Path) -> list[tuple[int, str]]:
    """A key that puts frame_9 before frame_10."""
    return [(int(part or 0), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", file.name)]
