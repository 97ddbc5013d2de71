"""The video of a run, rendered and encoded beside it by a process that yields to the arm's."""

from __future__ import annotations

import multiprocessing
import os
import queue
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from drivers.sim.film import film
from drivers.sim.process import deaf_to_interrupts
from drivers.sim.scene import Scene
from drivers.sim.server import State

FPS = 10
Image = NDArray[np.uint8]

_BAR_PX = 24
_PAPER, _INK, _GOOD, _BAD = (24, 27, 33), (232, 234, 238), (64, 200, 90), (220, 60, 60)
_VERDICT_FRAMES = 12


class VideoWriter:
    """H.264 in MP4, yuv420p, which every ordinary player opens. The file has its name once it is whole.

    Args:
        path: of the video, ``….mp4``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(path.stem + ".partial.mp4")
        self._container = av.open(str(self._partial), "w", options={"movflags": "+faststart"})
        self._stream: Any = None

    def write(self, rgb: Image) -> None:
        """One more frame, (h, w, 3) RGB, h and w even and the same for all."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=FPS, options={"crf": "24", "preset": "veryfast"})
            self._stream.height, self._stream.width = rgb.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file; without frames there is none."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
        if self._stream is not None:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)


class Cinema:
    """Takes recorded episodes while the run goes on; leaving the context waits for the video to be finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        context = multiprocessing.get_context("spawn")
        self._queue = context.Queue()
        self._process = context.Process(target=_work, args=(self._queue, path), name="cinema", daemon=True)

    def __enter__(self) -> Cinema:
        with deaf_to_interrupts():  # the run ends first, then the film of what there was
            self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._process.join()
        if self._process.exitcode and kind is None:
            self._queue.cancel_join_thread()
            raise UserError(f"{self._path}: the video could not be made; see what its process printed above")

    def add(self, scene: Scene, states: list[State], decision: Image, title: str, success: bool) -> None:
        """One more episode: its states, and the picture of what was decided, shown beside them."""
        self._queue.put((scene, states, decision, title, success))


def _work(episodes: Any, path: Path) -> None:
    os.nice(15)
    cv2.setNumThreads(1)
    writer = VideoWriter(path)
    try:
        while (episode := _next(episodes)) is not None:
            scene, states, decision, title, success = episode
            for k, rgb in enumerate(film(scene, states)):
                over = k >= len(states) - _VERDICT_FRAMES
                writer.write(compose(rgb, decision, title, success if over else None))
    finally:
        writer.close()


def _next(episodes: Any) -> Any:
    """The next episode; None when there are no more, or nobody is left to send any."""
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        try:
            return episodes.get(timeout=1.0)
        except queue.Empty:
            continue
    return None


def compose(rgb: Image, decision: Image, title: str, success: bool | None) -> Image:
    """The spectator's view and the decision side by side over a line of text, framed in the verdict's colour."""
    height = rgb.shape[0]
    width = round(decision.shape[1] * height / decision.shape[0] / 2) * 2
    small = cv2.resize(decision, (width, height), interpolation=cv2.INTER_AREA)
    bar = np.full((_BAR_PX, rgb.shape[1] + width, 3), _PAPER, np.uint8)
    cv2.putText(bar, title, (8, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
    picture = np.vstack([np.hstack([rgb, small]), bar]).astype(np.uint8)
    if success is not None:
        right, bottom = rgb.shape[1] - 2, height - 2
        cv2.rectangle(picture, (1, 1), (right, bottom), _GOOD if success else _BAD, 3)
    return picture
