"""The ChArUco board: what is printed, where its corners are, how it is found in an image, how the gripper holds it.

Board frame (OpenCV's): origin at the outer corner of the top left square, x to the right, y down, z into the board,
away from whoever looks at the print.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError

MIN_CORNERS = 6
"""A view with fewer corners says too little about the board's tilt to be used."""


HOLDING_GRIPPER_RAD = 0.05
"""Jaw angle of an SO-101 that holds the plate."""

PLATE_THICKNESS_M = 0.003
"""What the nominal mount assumes: about the jaws' gap at HOLDING_GRIPPER_RAD."""


@dataclass(frozen=True)
class Detection:
    """The board in one image: ``ids`` (n,) int, ``corners_px`` (n, 2) float64 (x, y), pixel centres at integers."""

    ids: NDArray[np.int64]
    corners_px: NDArray[np.float64]


@dataclass(frozen=True)
class Board:
    """A ChArUco board, pattern of OpenCV 4.6 and later.

    Attributes:
        squares_x, squares_y: number of chessboard squares across and down.
        square_m, marker_m: side of a square, and of the marker inside a white one.
        dictionary: name of a predefined dictionary of ``cv2.aruco``.
        margin_m: white border around the squares; outer markers need it against a dark background.
    """

    squares_x: int = 5
    squares_y: int = 4
    square_m: float = 0.024
    marker_m: float = 0.018
    dictionary: str = "DICT_4X4_50"
    margin_m: float = 0.004

    def __post_init__(self) -> None:
        if not (self.squares_x >= 3 and self.squares_y >= 3):
            raise UserError(f"board: {self.squares_x}x{self.squares_y} squares, expected at least 3x3")
        if not 0.0 < self.marker_m < self.square_m:
            raise UserError(f"board: marker of {self.marker_m} m must be smaller than the square of {self.square_m} m")
        if not self.dictionary.startswith("DICT_") or not hasattr(cv2.aruco, self.dictionary):
            raise UserError(f"board: no dictionary '{self.dictionary}' in cv2.aruco; DICT_4X4_50 is the usual one")

    @property
    def squares_size_m(self) -> tuple[float, float]:
        """Width and height of the chessboard without its border."""
        return self.squares_x * self.square_m, self.squares_y * self.square_m

    @property
    def plate_size_m(self) -> tuple[float, float]:
        """Width (board x) and height (board y) of the printed plate, border included."""
        width_m, height_m = self.squares_size_m
        return width_m + 2 * self.margin_m, height_m + 2 * self.margin_m

    @property
    def centre_m(self) -> NDArray[np.float64]:
        """(3,) the middle of the plate in the board frame."""
        width_m, height_m = self.squares_size_m
        return np.array([width_m / 2, height_m / 2, 0.0])

    @property
    def plate_corners_m(self) -> NDArray[np.float64]:
        """(4, 3) the corners of the plate, border included, in the board frame."""
        half = 0.5 * np.array(self.plate_size_m)
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        return self.centre_m + np.column_stack([signs * half, np.zeros(4)])

    def corners_m(self, ids: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """(n, 3) inner chessboard corners in the board frame: those of ``ids``, or all in order."""
        x, y = np.meshgrid(np.arange(1, self.squares_x), np.arange(1, self.squares_y))
        corners = np.zeros((x.size, 3))
        corners[:, 0], corners[:, 1] = self.square_m * x.ravel(), self.square_m * y.ravel()
        return corners if ids is None else corners[ids]

    def image(self, px_per_m: float = 10_000.0) -> NDArray[np.uint8]:
        """The plate's print, border included: (height, width) uint8, 0 black, 255 white.

        Row 0 is board -y. Choose ``px_per_m`` so that square, marker and margin are whole pixels (the default is
        0.1 mm a pixel): the print is then exact, and pixel (i, j) covers board x from i / px_per_m - margin_m on.
        """
        width_m, height_m = self.plate_size_m
        size = (round(width_m * px_per_m), round(height_m * px_per_m))
        image = self._pattern().generateImage(size, marginSize=round(self.margin_m * px_per_m), borderBits=1)
        return np.asarray(image, dtype=np.uint8)

    def detect(self, rgb: NDArray[np.uint8]) -> Detection | None:
        """Find the board in an (h, w, 3) RGB or (h, w) grey image; None with fewer than MIN_CORNERS corners."""
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) if rgb.ndim == 3 else rgb
        corners, ids, _, _ = cv2.aruco.CharucoDetector(self._pattern()).detectBoard(np.ascontiguousarray(grey))
        if ids is None or len(ids) < MIN_CORNERS:
            return None
        ids = np.asarray(ids, dtype=np.int64).ravel()
        if np.ptp(ids % (self.squares_x - 1)) == 0 or np.ptp(ids // (self.squares_x - 1)) == 0:
            return None  # one line of corners leaves the tilt about it unknown
        return Detection(ids, np.asarray(corners, dtype=np.float64).reshape(-1, 2))

    def _pattern(self) -> cv2.aruco.CharucoBoard:
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, self.dictionary))
        return cv2.aruco.CharucoBoard((self.squares_x, self.squares_y), self.square_m, self.marker_m, dictionary)


CAMERA_BOARD = Board(squares_x=8, squares_y=6, square_m=0.030, marker_m=0.022, dictionary="DICT_5X5_50", margin_m=0.005)
"""Fills an A4 or Letter sheet. Its markers are not those of the gripper's plate, so neither is taken for the other."""

BOARDS = {"camera": CAMERA_BOARD, "hand-eye": Board()}
"""The large one for a camera's intrinsics; the plate that a gripper holds."""


def printed_board(name: str, square_mm: float | None = None) -> Board:
    """One of BOARDS, as large as its print came out: ``square_mm`` is the measured side of a square.

    Raises UserError for a size that no print of it has.
    """
    board = BOARDS[name]
    if square_mm is None:
        return board
    scale = 1e-3 * square_mm / board.square_m
    if not 0.8 <= scale <= 1.25:
        raise UserError(
            f"--square-mm {square_mm:g}: the {name} board has squares of {1e3 * board.square_m:g} mm; measure one, or "
            "print the board at 100 % (`vlar1 calibrate board`)"
        )
    return replace(
        board, square_m=scale * board.square_m, marker_m=scale * board.marker_m, margin_m=scale * board.margin_m
    )


def T_gripper_board_nominal(board: Board) -> NDArray[np.float64]:
    """(4, 4) where the plate sits when an SO-101 holds it like a paddle; the calibration finds the true place.

    Frame: MJCF body ``gripper``: approach along -z, fixed jaw's inner face at x = -7.9 mm, jaws close along x. The
    plate lies in the jaws' gap, its print towards the moving jaw (normal +x), board y along the approach, the near
    edge 6 mm beyond the jaw tips (z = -98.1 mm).
    """
    T = np.eye(4)
    T[:3, :3] = np.column_stack([[0, 1, 0], [0, 0, -1], [-1, 0, 0]])
    centre = np.array([-0.0079 + PLATE_THICKNESS_M, -0.0002, -0.0981 - 0.006 - board.plate_size_m[1] / 2])
    T[:3, 3] = centre - T[:3, :3] @ board.centre_m
    return T
