"""The board as a sheet to print: a PDF of vector squares at true scale, with rulers to check the print by."""

from __future__ import annotations

import cv2
import numpy as np

from calib.board import Board
from drivers.errors import UserError

PAPERS_MM = {"a4": (297.0, 210.0), "letter": (279.4, 215.9)}
"""Width and height, the long side across."""

RULER_MM = 100
_POINTS_PER_MM = 72.0 / 25.4
_EDGE_MM = 6.0  # what printers leave white along the paper's edges
_STRIP_MM = 11.0  # for a ruler and the text along it
_TEXT_MM = 2.6


def board_pdf(board: Board, paper: str = "a4") -> bytes:
    """One page with the board, its measures in words, and a 100 mm ruler along each side.

    Everything black is one path of rectangles in millimetres (ISO 32000-1, 8.5), so no printer resamples it.

    Args:
        paper: one of `PAPERS_MM`.

    Raises:
        UserError: unknown paper, or a board that does not fit on it.
    """
    if paper not in PAPERS_MM:
        raise UserError(f"paper '{paper}': expected {' or '.join(PAPERS_MM)}")
    page_mm = PAPERS_MM[paper]
    size_mm = tuple(1e3 * side for side in board.squares_size_m)
    room_mm = tuple(side - 2 * _EDGE_MM - _STRIP_MM for side in page_mm)
    if size_mm[0] > room_mm[0] or size_mm[1] > room_mm[1]:
        raise UserError(
            f"board: {size_mm[0]:g} x {size_mm[1]:g} mm do not fit on {paper} ({room_mm[0]:g} x {room_mm[1]:g} mm are "
            "free); choose fewer or smaller squares"
        )
    # The top left of the squares, millimetres from the paper's; the strips are below and to the right.
    left_mm = _EDGE_MM + (room_mm[0] - size_mm[0]) / 2
    top_mm = _EDGE_MM + (room_mm[1] - size_mm[1]) / 2
    below_mm, beside_mm = page_mm[1] - _EDGE_MM - 4.0, page_mm[0] - _EDGE_MM - 4.0
    scale = f"{_POINTS_PER_MM:.8f}"
    content = [f"{scale} 0 0 -{scale} 0 {page_mm[1] * _POINTS_PER_MM:.6f} cm"]  # from here on: mm, y down
    content += [_rectangle(left_mm + x, top_mm + y, w, h) for x, y, w, h in board_rectangles_mm(board)]
    content += [_rectangle(left_mm + a, below_mm, b, h) for a, b, h in _ruler()]
    content += [_rectangle(beside_mm, top_mm + a, h, b) for a, b, h in _ruler()]
    content += ["f"]
    square_mm, marker_mm = 1e3 * board.square_m, 1e3 * board.marker_m
    measures = (
        f"{board.squares_x} x {board.squares_y} squares of {square_mm:g} mm, markers {marker_mm:g} mm "
        f"({board.dictionary}). Print at 100 %; both rulers must be {RULER_MM} mm long. Glue it on a flat plate."
    )
    content += [_text(measures, left_mm, below_mm - 1.5), _text(f"{RULER_MM} mm", left_mm + RULER_MM + 2, below_mm + 3)]
    return _document(page_mm, "\n".join(content))


def board_rectangles_mm(board: Board) -> list[tuple[float, float, float, float]]:
    """x, y, width, height of every black rectangle, millimetres from the top left of the squares, y down.

    White squares hold the markers, in OpenCV's order; a marker's black cells are joined along its rows.
    """
    square_mm, marker_mm = 1e3 * board.square_m, 1e3 * board.marker_m
    dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, board.dictionary))
    cells = dictionary.markerSize + 2
    cell_mm, inset_mm = marker_mm / cells, (square_mm - marker_mm) / 2
    rectangles, marker = [], 0
    for row in range(board.squares_y):
        for column in range(board.squares_x):
            x, y = column * square_mm, row * square_mm
            if (row + column) % 2 == 0:
                rectangles.append((x, y, square_mm, square_mm))
                continue
            bits = np.asarray(cv2.aruco.generateImageMarker(dictionary, marker, cells, borderBits=1))
            marker += 1
            for line, black in enumerate(bits == 0):
                edges = np.flatnonzero(np.diff(np.concatenate([[0], black.astype(int), [0]])))
                for start, end in edges.reshape(-1, 2).tolist():
                    rectangles.append(
                        (
                            x + inset_mm + start * cell_mm,
                            y + inset_mm + line * cell_mm,
                            (end - start) * cell_mm,
                            cell_mm,
                        )
                    )
    return rectangles


def _ruler() -> list[tuple[float, float, float]]:
    """Along, how far, across: a line and a tick every 10 mm; from outer edge to outer edge it is RULER_MM."""
    line_mm = 0.2
    ticks = [(10.0 * i - line_mm / 2, line_mm, 2.0) for i in range(1, RULER_MM // 10)]
    return [(0.0, float(RULER_MM), line_mm), (0.0, line_mm, 3.0), (RULER_MM - line_mm, line_mm, 3.0), *ticks]


def _rectangle(x: float, y: float, width: float, height: float) -> str:
    return f"{x:.5f} {y:.5f} {width:.5f} {height:.5f} re"


def _text(text: str, x_mm: float, y_mm: float) -> str:
    """Helvetica; the axes are turned back, or it would stand on its head."""
    return f"BT /F1 {_TEXT_MM} Tf 1 0 0 -1 {x_mm:.3f} {y_mm:.3f} Tm ({text.replace('(', '[').replace(')', ']')}) Tj ET"


def _document(page_mm: tuple[float, float], content: str) -> bytes:
    """The file around a page's content: objects, their places, and the trailer."""
    width, height = (side * _POINTS_PER_MM for side in page_mm)
    stream = content.encode("ascii")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width:.6f} {height:.6f}] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>".encode(),
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    file = b"%PDF-1.6\n%\xe2\xe3\xcf\xd3\n"
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    start = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % place for place in places)
    file += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return file
