"""The printed board: drawn anew from the file's own numbers, its corners lie where the board says, in millimetres."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.board import CAMERA_BOARD, Board
from calib.board_pdf import PAPERS_MM, RULER_MM, board_pdf
from drivers.errors import UserError

PX_PER_MM = 10
POINT_MM = 25.4 / 72


def objects(pdf: bytes) -> dict[int, bytes]:
    """Every object by its number, found by the table at the end of the file, as a reader finds them."""
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", pdf)[1])
    table = pdf[start:]
    count = int(re.match(rb"xref\n0 (\d+)\n", table)[1])
    places = [int(entry[:10]) for entry in table.split(b"\n")[2 : 2 + count]]
    found = {}
    for number, place in enumerate(places[1:], start=1):
        head = b"%d 0 obj\n" % number
        assert pdf[place:].startswith(head)
        found[number] = pdf[place + len(head) : pdf.index(b"\nendobj\n", place)]
    return found


def page_mm(pdf: bytes) -> tuple[float, float]:
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", objects(pdf)[3])
    return float(box[1]) * POINT_MM, float(box[2]) * POINT_MM


def rectangles_mm(pdf: bytes) -> np.ndarray:
    """(n, 4) left, top, right, bottom of every filled rectangle, millimetres from the top left of the paper."""
    stream = objects(pdf)[4]
    length = int(re.search(rb"/Length (\d+)", stream)[1])
    content = stream[stream.index(b"stream\n") + 7 :][:length].decode()
    height_mm = page_mm(pdf)[1]
    matrix, stack, filled = np.eye(3), [], []
    path: list[list[float]] = []
    for word in content.split("BT")[0].split():
        if word == "cm":
            a, b, c, d, e, f = stack
            matrix = np.array([[a, b, 0], [c, d, 0], [e, f, 1]]) @ matrix
        elif word == "re":
            x, y, w, h = stack
            corners = np.array([[x, y, 1], [x + w, y + h, 1]]) @ matrix
            across, up = corners[:, 0] * POINT_MM, height_mm - corners[:, 1] * POINT_MM
            path.append([across.min(), up.min(), across.max(), up.max()])
        elif word == "f":
            filled += path
        else:
            stack.append(float(word))
            continue
        stack = []
    return np.array(filled)


def raster(pdf: bytes) -> np.ndarray:
    """The page in 0.1 mm pixels."""
    width, height = (round(side * PX_PER_MM) for side in page_mm(pdf))
    image = np.full((height, width), 255, np.uint8)
    for left, top, right, bottom in np.rint(rectangles_mm(pdf) * PX_PER_MM).astype(int):
        image[top:bottom, left:right] = 0
    return image


@pytest.mark.parametrize("paper", PAPERS_MM)
@pytest.mark.parametrize("board", [CAMERA_BOARD, Board()], ids=["camera", "hand-eye"])
def test_the_print_is_the_board_at_true_scale(board: Board, paper: str):
    pdf = board_pdf(board, paper)
    np.testing.assert_allclose(page_mm(pdf), PAPERS_MM[paper], atol=1e-3)
    image = raster(pdf)
    found = board.detect(image)
    assert found is not None and len(found.ids) == (board.squares_x - 1) * (board.squares_y - 1)
    # pixel (i, j) covers [i, i + 1) / PX_PER_MM
    seen_mm = (found.corners_px + 0.5) / PX_PER_MM
    expected_mm = 1e3 * board.corners_m(found.ids)[:, :2]
    offset_mm = (seen_mm - expected_mm).mean(axis=0)
    np.testing.assert_allclose(seen_mm - offset_mm, expected_mm, atol=0.03)  # neither scaled nor turned
    edge_mm = 5.0
    rectangles = rectangles_mm(pdf)
    assert rectangles[:, :2].min() > edge_mm  # printers leave the paper's edge white
    assert (rectangles[:, 2:].max(axis=0) < np.array(PAPERS_MM[paper]) - edge_mm).all()


def test_the_pattern_is_opencvs_own():
    """Pixel by pixel beside the picture that OpenCV draws, where both are in steps of 0.1 mm."""
    board = Board()
    image, theirs = raster(board_pdf(board)), board.image(1e3 * PX_PER_MM)
    border = round(1e3 * board.margin_m) * PX_PER_MM
    left, top = (np.rint(rectangles_mm(board_pdf(board))[:, :2].min(axis=0) * PX_PER_MM)).astype(int)
    height, width = theirs.shape
    ours = image[top - border : top - border + height, left - border : left - border + width]
    assert np.mean(ours != theirs) < 2e-3  # nothing but rounded edges


def test_rulers_are_as_long_as_they_say_along_both_sides():
    rectangles = rectangles_mm(board_pdf(CAMERA_BOARD))
    size = rectangles[:, 2:] - rectangles[:, :2]
    for axis in (0, 1):
        line = (size[:, axis] > RULER_MM - 1) & (size[:, 1 - axis] < 0.5)
        assert line.sum() == 1
        np.testing.assert_allclose(size[line, axis], RULER_MM, atol=1e-3)
        start, across = rectangles[line][0][axis], rectangles[line][0][1 - axis]
        here = (size[:, axis] < 0.5) & (abs(rectangles[:, 1 - axis] - across) < 0.01)
        centres = np.sort(rectangles[here][:, [axis, axis + 2]].mean(axis=1) - start)
        assert len(centres) == RULER_MM // 10 + 1
        np.testing.assert_allclose(centres[1:-1], np.arange(10, RULER_MM, 10), atol=1e-3)


def test_the_text_says_what_to_measure():
    pdf = board_pdf(CAMERA_BOARD)
    assert b"8 x 6 squares of 30 mm, markers 22 mm" in pdf and b"Print at 100 %" in pdf
    assert b"/PrintScaling /None" in objects(pdf)[1]


@settings(max_examples=10, deadline=None)
@given(
    squares=st.tuples(st.integers(4, 8), st.integers(3, 6)),
    square_mm=st.sampled_from([14, 18, 24]),
    dictionary=st.sampled_from(["DICT_4X4_50", "DICT_5X5_50", "DICT_6X6_50"]),
    paper=st.sampled_from(sorted(PAPERS_MM)),
)
def test_every_board_that_fits_is_drawn_at_true_scale(squares, square_mm, dictionary, paper):
    board = Board(*squares, square_mm / 1e3, square_mm * 0.75e-3, dictionary)
    found = board.detect(raster(board_pdf(board, paper)))
    assert found is not None and len(found.ids) == (squares[0] - 1) * (squares[1] - 1)
    across_mm = cv2.norm(found.corners_px[0] - found.corners_px[squares[0] - 2]) / PX_PER_MM
    assert across_mm == pytest.approx((squares[0] - 2) * square_mm, abs=0.05)


@pytest.mark.parametrize(
    ("board", "paper", "told"),
    [
        (Board(12, 6, 0.03, 0.02), "a4", r"360 x 180 mm do not fit on a4 \(\d+ x \d+ mm are free\)"),
        (Board(), "a3", "paper 'a3': expected a4 or letter"),
    ],
)
def test_what_cannot_be_printed_is_refused(board: Board, paper: str, told: str):
    with pytest.raises(UserError, match=told):
        board_pdf(board, paper)
